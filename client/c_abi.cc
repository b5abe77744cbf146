// The C interface: checks handles, options and the process, and turns results into codes. No
// exception leaves it.
//
// Each handle owns a share of its C++ object, and that of its parents: closing in any order is
// safe. In a forked child every call is KVT_ERROR_FORK, and closing a handle of the parent leaks
// it: its memory is not mapped there.
#include "client/c_abi.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "client/preset_files.h"
#include "client/profiles.h"

using kvtier::Code;
using kvtier::error_with;
using kvtier::Result;

namespace {

// Text that a caller may leave out.
std::string text_or_empty(const char* text) { return text != nullptr ? text : ""; }

Result<kvtier::SpaceOptions> space_options(const kvt_space_options& options) {
  if (options.layer_count == 0 || options.layers == nullptr)
    return error_with(Code::kInvalid, "a space needs layers");
  if (options.layer_count > kvtier::kLayersMax)
    return error_with(Code::kTooLarge, "%u layers: at most %u", options.layer_count,
                      kvtier::kLayersMax);
  kvtier::SpaceOptions out;
  out.fingerprint.model = text_or_empty(options.model);
  out.fingerprint.runtime = text_or_empty(options.runtime);
  out.fingerprint.detail = text_or_empty(options.detail);
  if (out.fingerprint.model.empty() || out.fingerprint.runtime.empty())
    return error_with(Code::kInvalid,
                      "a space needs model and runtime: what tells its KV from all other");
  kvtier::Geometry& geometry = out.fingerprint.geometry;
  geometry.chunk_tokens = options.chunk_tokens;
  geometry.heads_per_chunk = options.heads_per_chunk;
  geometry.positions_per_token = options.positions_per_token;
  for (uint32_t i = 0; i < options.layer_count; ++i) {
    const kvt_layer& from = options.layers[i];
    if (from.kind > 2 || from.rope > 2 || from.dtype > 3 || from.v_transposed > 1)
      return error_with(Code::kInvalid,
                        "layer %u: kind, rope, dtype or v_transposed is not a number of kvtier.h",
                        i);
    kvtier::LayerGeometry layer;
    layer.kind = static_cast<kvtier::LayerKind>(from.kind);
    layer.rope = static_cast<kvtier::RopeState>(from.rope);
    layer.v_transposed = from.v_transposed != 0;
    layer.dtype = static_cast<kvtier::Dtype>(from.dtype);
    layer.kv_heads = from.kv_heads;
    layer.query_heads = from.query_heads;
    layer.k_row_bytes = from.k_row_bytes;
    layer.v_row_bytes = from.v_row_bytes;
    geometry.layers.push_back(layer);
  }
  KVT_TRY(const std::string name,
          kvtier::preset_or_profile(text_or_empty(options.preset), out.fingerprint.model));
  KVT_TRY(const kvtier::Preset preset, kvtier::load_preset(name));
  out.abstract = preset.abstract;
  out.rope_pairing = options.rope_pairing;
  out.rope_positions = options.rope_positions;
  if (options.rope_frequency_count != 0 && options.rope_frequencies == nullptr)
    return error_with(Code::kInvalid, "rope_frequencies is null");
  if (options.rope_frequency_count > kvtier::kHeadDimMax)
    return error_with(Code::kTooLarge, "%u RoPE frequencies: at most %u",
                      options.rope_frequency_count, kvtier::kHeadDimMax);
  out.rope_frequencies.assign(options.rope_frequencies,
                              options.rope_frequencies + options.rope_frequency_count);
  out.private_only = options.private_only != 0;
  return out;
}

Result<kvtier::SequenceOptions> sequence_options(const kvt_sequence_options* given) {
  kvtier::SequenceOptions out;
  if (given == nullptr) return out;
  kvt_sequence_options options;
  KVT_TRY_VOID(kvtier::take_options(given, &options, kvt_sequence_options_init));
  out.name = text_or_empty(options.name);
  out.private_only = options.private_only != 0;
  return out;
}

void give_match(const kvtier::PrefixMatch& from, kvt_match* out) {
  if (out != nullptr) *out = {from.tokens, from.tokens, from.stored_token, from.reason};
}

kvt_status close_sequence(kvt_sequence* sequence, kvtier::Patience patience) {
  if (sequence == nullptr) return KVT_OK;
  bool own = false;
  const kvt_status status = kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) {
    own = true;
    return object.close(patience);
  });
  if (own) delete sequence;
  return status;
}

template <class Handle, class Object>
Result<void> give_handle(Result<Object> made, Handle** out) {
  if (!made) return kvtier::error(made.error());
  *out = new Handle{*std::move(made)};
  return {};
}

}  // namespace

// ---- library, options ---------------------------------------------------------------------------

uint32_t kvt_abi_version(void) { return KVT_ABI_VERSION; }
const char* kvt_version(void) { return KVTIER_VERSION; }
const char* kvt_strerror(kvt_status status) { return kvtier::code_name(static_cast<Code>(status)); }
const char* kvt_last_error(void) { return kvtier::error_text(); }
void kvt_free(void* memory) { std::free(memory); }

void kvt_client_options_init(kvt_client_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->autostart = 1;
  options->timeout_ms = 10000;
}

void kvt_space_options_init(kvt_space_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->chunk_tokens = kvtier::kChunkTokensDefault;
  options->heads_per_chunk = 1;
  options->positions_per_token = 1;
}

void kvt_sequence_options_init(kvt_sequence_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
}

// ---- client -------------------------------------------------------------------------------------

kvt_status kvt_client_open(const kvt_client_options* options, kvt_client** out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(out));
    *out = nullptr;
    kvt_client_options taken;
    kvt_client_options_init(&taken);
    if (options != nullptr) {
      KVT_TRY_VOID(kvtier::take_options(options, &taken, kvt_client_options_init));
    }
    kvtier::ClientOptions wanted;
    wanted.socket_path = text_or_empty(taken.socket_path);
    wanted.daemon_path = text_or_empty(taken.daemon_path);
    wanted.name = text_or_empty(taken.name);
    wanted.autostart = taken.autostart != 0;
    wanted.timeout_ms = taken.timeout_ms;
    wanted.spin_us = taken.spin_us;
    return give_handle(kvtier::Client::open(std::move(wanted)), out);
  });
}

void kvt_client_close(kvt_client* client) {
  if (client == nullptr || !client->object->check_process()) return;
  client->object->close();
  delete client;
}

kvt_status kvt_client_request(kvt_client* client, const char* json, char** out_json) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(client, json, out_json));
    *out_json = nullptr;
    KVT_TRY_VOID(client->object->check_process());
    KVT_TRY(const std::string reply, client->object->request(json));
    return kvtier::give_text(reply, out_json);
  });
}

// ---- space --------------------------------------------------------------------------------------

kvt_status kvt_space_open(kvt_client* client, const kvt_space_options* options, kvt_space** out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(client, options, out));
    *out = nullptr;
    KVT_TRY_VOID(client->object->check_process());
    kvt_space_options taken;
    KVT_TRY_VOID(kvtier::take_options(options, &taken, kvt_space_options_init));
    KVT_TRY(kvtier::SpaceOptions wanted, space_options(taken));
    return give_handle(kvtier::Space::open(client->object, std::move(wanted)), out);
  });
}

void kvt_space_close(kvt_space* space) {
  if (space == nullptr || !space->object->client().check_process()) return;
  delete space;
}

kvt_status kvt_space_match(kvt_space* space, const uint32_t* ids, uint64_t count, kvt_match* out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(space, out));
    KVT_TRY_VOID(space->object->client().check_process());
    if (count != 0) {
      KVT_TRY_VOID(kvtier::check_pointers(ids));
    }
    KVT_TRY(const kvtier::PrefixMatch match,
            space->object->match({ids, static_cast<std::size_t>(count)}));
    give_match(match, out);
    return {};
  });
}

// ---- sequence -----------------------------------------------------------------------------------

kvt_status kvt_sequence_create(kvt_space* space, const kvt_sequence_options* options,
                               const uint32_t* ids, uint64_t count, kvt_match* match,
                               kvt_sequence** out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(space, out));
    *out = nullptr;
    KVT_TRY_VOID(space->object->client().check_process());
    if (count != 0) {
      KVT_TRY_VOID(kvtier::check_pointers(ids));
    }
    KVT_TRY(const kvtier::SequenceOptions wanted, sequence_options(options));
    kvtier::PrefixMatch found;
    KVT_TRY_VOID(
        give_handle(kvtier::Sequence::create(space->object, wanted,
                                             {ids, static_cast<std::size_t>(count)}, &found),
                    out));
    give_match(found, match);
    return {};
  });
}

kvt_status kvt_sequence_open(kvt_space* space, const char* name, uint64_t id, int32_t writable,
                             kvt_sequence** out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(space, out));
    *out = nullptr;
    KVT_TRY_VOID(space->object->client().check_process());
    if (name != nullptr && name[0] == '\0')
      return error_with(Code::kInvalid, "a name has 1 to %u bytes", kvtier::kNameBytesMax);
    return give_handle(
        kvtier::Sequence::open(space->object, text_or_empty(name), id, writable != 0), out);
  });
}

kvt_status kvt_sequence_fork(kvt_sequence* sequence, uint64_t tokens,
                             const kvt_sequence_options* options, kvt_sequence** out) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(out));
    *out = nullptr;
    KVT_TRY(const kvtier::SequenceOptions wanted, sequence_options(options));
    return give_handle(object.fork(tokens, wanted), out);
  });
}

kvt_status kvt_sequence_close(kvt_sequence* sequence) {
  return close_sequence(sequence, kvtier::Patience::kFull);
}

kvt_status kvt_sequence_drop(kvt_sequence* sequence) {
  return close_sequence(sequence, kvtier::Patience::kQuick);
}

uint64_t kvt_sequence_id(const kvt_sequence* sequence) {
  return sequence != nullptr ? sequence->object->id() : 0;
}

uint64_t kvt_sequence_length(const kvt_sequence* sequence) {
  if (sequence == nullptr || !sequence->object->space().client().check_process()) return 0;
  return sequence->object->current_length();
}

kvt_status kvt_sequence_tokens(kvt_sequence* sequence, uint64_t first, uint64_t count,
                               kvt_token* out) {
  static_assert(sizeof(kvt_token) == sizeof(kvtier::TokenRecord));
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    if (count == 0) return {};
    KVT_TRY_VOID(kvtier::check_pointers(out));
    return object.read_tokens(first, count, reinterpret_cast<kvtier::TokenRecord*>(out));
  });
}

kvt_status kvt_sequence_append(kvt_sequence* sequence, const kvt_token* tokens, uint32_t count) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(tokens));
    return object.append({reinterpret_cast<const kvtier::TokenRecord*>(tokens), count});
  });
}

kvt_status kvt_sequence_append_with_texts(kvt_sequence* sequence, const kvt_token* tokens,
                                          uint32_t count, const uint16_t* text_bytes,
                                          const char* texts) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(tokens, text_bytes, texts));
    kvtier::TokenTexts given;
    std::size_t sum = 0;
    for (uint32_t i = 0; i < count; ++i) {
      if (text_bytes[i] > kvtier::kTokenTextBytesMax)
        return error_with(Code::kTooLarge, "token %u has a text of %u bytes: at most %u", i,
                          text_bytes[i], kvtier::kTokenTextBytesMax);
      sum += text_bytes[i];
    }
    KVT_TRY_VOID(given.append({text_bytes, text_bytes + count},
                              {reinterpret_cast<const std::byte*>(texts), sum}));
    return object.append({reinterpret_cast<const kvtier::TokenRecord*>(tokens), count},
                         std::move(given));
  });
}

kvt_status kvt_sequence_texts(kvt_sequence* sequence, uint64_t first, uint64_t count,
                              uint16_t* out_bytes, char* out_texts, uint64_t room,
                              uint64_t* out_total) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(out_total));
    *out_total = 0;
    if (count == 0) return {};
    KVT_TRY_VOID(kvtier::check_pointers(out_bytes));
    kvtier::TokenTexts texts;
    KVT_TRY_VOID(object.read_texts(first, count, &texts));
    std::copy(texts.lengths().begin(), texts.lengths().end(), out_bytes);
    const std::span<const std::byte> bytes = texts.bytes();
    *out_total = bytes.size();
    if (bytes.size() > room)
      return error_with(Code::kTooLarge, "the texts are %zu bytes, there is room for %llu",
                        bytes.size(), static_cast<unsigned long long>(room));
    if (bytes.empty()) return {};
    KVT_TRY_VOID(kvtier::check_pointers(out_texts));
    std::memcpy(out_texts, bytes.data(), bytes.size());
    return {};
  });
}

kvt_status kvt_sequence_write(kvt_sequence* sequence, uint32_t layer, uint32_t first,
                              uint32_t count, const kvt_rows* k, const kvt_rows* v) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(k, v));
    const auto rows = [](const kvt_rows& from) {
      return kvtier::StridedRows{static_cast<const std::byte*>(from.data), from.head_stride,
                                 from.token_stride};
    };
    return object.write(layer, first, count, rows(*k), rows(*v));
  });
}

kvt_status kvt_sequence_finish_piece(kvt_sequence* sequence) {
  return kvtier::with_sequence(sequence,
                               [](kvtier::Sequence& object) { return object.finish_piece(); });
}

kvt_status kvt_sequence_abort_piece(kvt_sequence* sequence) {
  return kvtier::with_sequence(sequence,
                               [](kvtier::Sequence& object) { return object.abort_piece(); });
}

kvt_status kvt_sequence_commit(kvt_sequence* sequence) {
  return kvtier::with_sequence(sequence, [](kvtier::Sequence& object) { return object.commit(); });
}

kvt_status kvt_sequence_truncate(kvt_sequence* sequence, uint64_t tokens) {
  return kvtier::with_sequence(
      sequence, [tokens](kvtier::Sequence& object) { return object.truncate(tokens); });
}

kvt_status kvt_sequence_read(kvt_sequence* sequence, uint32_t layer, uint64_t first, uint64_t count,
                             void* k, void* v) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence& object) -> Result<void> {
    if (count == 0) return {};
    KVT_TRY_VOID(kvtier::check_pointers(k, v));
    return object.read(layer, first, count, static_cast<std::byte*>(k), static_cast<std::byte*>(v));
  });
}
