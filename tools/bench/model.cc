#include "tools/bench/model.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/random.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kPiece = 512;

}  // namespace

Result<void> check(kvt_status status) {
  if (status == KVT_OK) return {};
  std::fprintf(stderr, "kvtier-bench: %s: %s\n", kvt_strerror(status), kvt_last_error());
  return error(static_cast<Code>(status), "a call of the client library failed");
}

Result<ClientPtr> open_client(const std::string& socket, std::uint32_t spin_us) {
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.autostart = 0;
  options.socket_path = socket.c_str();
  options.name = "kvtier-bench";
  options.spin_us = spin_us;
  options.timeout_ms = 60'000;
  kvt_client* client = nullptr;
  KVT_TRY_VOID(check(kvt_client_open(&options, &client)));
  return ClientPtr(client);
}

Result<SpacePtr> open_space(kvt_client* client, const Shape& shape, const char* preset) {
  kvt_layer layer{};
  layer.dtype = shape.dtype;
  layer.kv_heads = shape.kv_heads;
  layer.query_heads = shape.query_heads;
  layer.k_row_bytes = layer.v_row_bytes = shape.row_bytes();
  const std::vector<kvt_layer> layers(kLayers, layer);
  kvt_space_options options;
  kvt_space_options_init(&options);
  options.preset = preset;
  options.model = "synthetic SmolLM2-135M";
  options.runtime = "kvtier-bench";
  options.layers = layers.data();
  options.layer_count = kLayers;
  kvt_space* space = nullptr;
  KVT_TRY_VOID(check(kvt_space_open(client, &options, &space)));
  return SpacePtr(space);
}

Result<SequencePtr> create_sequence(kvt_space* space, const std::string& name) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = name.c_str();
  kvt_sequence* sequence = nullptr;
  KVT_TRY_VOID(check(kvt_sequence_create(space, &options, nullptr, 0, nullptr, &sequence)));
  return SequencePtr(sequence);
}

Result<SequencePtr> open_sequence(kvt_space* space, const std::string& name, bool writable) {
  kvt_sequence* sequence = nullptr;
  KVT_TRY_VOID(check(kvt_sequence_open(space, name.c_str(), 0, writable ? 1 : 0, &sequence)));
  return SequencePtr(sequence);
}

Result<ViewPtr> open_view(kvt_sequence* sequence, std::uint64_t budget, const char* preset) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = preset;
  options.wait_ms = 600'000;  // abstracts that are built only now
  options.budget = budget;
  kvt_view* view = nullptr;
  KVT_TRY_VOID(check(kvt_view_open(sequence, &options, &view)));
  return ViewPtr(view);
}

Writer::Writer(const Shape& shape) : shape_(shape) {
  rows_.resize(std::size_t{shape.kv_heads} * kPiece * shape.row_bytes());
  Random random(3);
  // Finite in every dtype: small exponents, random mantissas.
  if (shape.dtype == KVT_DTYPE_F32) {
    auto* values = reinterpret_cast<float*>(rows_.data());
    for (std::size_t i = 0; i < rows_.size() / 4; ++i)
      values[i] = static_cast<float>(random.unit() * 2 - 1);
  } else {
    auto* values = reinterpret_cast<std::uint16_t*>(rows_.data());
    for (std::size_t i = 0; i < rows_.size() / 2; ++i)
      values[i] = static_cast<std::uint16_t>(0x2C00 + (random.next() & 0x8FFF));
  }
}

kvt_token Writer::next_token(std::uint64_t position) noexcept {
  return {next_id_++ * 2654435761u % 49152, static_cast<std::uint32_t>(position), 0, 0};
}

Result<void> Writer::write_layer(kvt_sequence* sequence, std::uint32_t layer, std::uint32_t count) {
  const std::uint32_t row_bytes = shape_.row_bytes();
  const std::size_t shift = std::size_t{layer * 7919 + next_id_} % (kPiece - count + 1) * row_bytes;
  const kvt_rows rows = {rows_.data() + shift, std::uint64_t{kPiece} * row_bytes, row_bytes};
  return check(kvt_sequence_write(sequence, layer, 0, count, &rows, &rows));
}

Result<void> Writer::append(kvt_sequence* sequence, std::uint64_t tokens) {
  std::vector<kvt_token> piece;
  for (std::uint64_t done = 0; done < tokens;) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(kPiece, tokens - done));
    const std::uint64_t position = kvt_sequence_length(sequence);
    piece.clear();
    for (std::uint32_t i = 0; i < count; ++i) piece.push_back(next_token(position + i));
    KVT_TRY_VOID(check(kvt_sequence_append(sequence, piece.data(), count)));
    for (std::uint32_t layer = 0; layer < kLayers; ++layer)
      KVT_TRY_VOID(write_layer(sequence, layer, count));
    KVT_TRY_VOID(check(kvt_sequence_finish_piece(sequence)));
    done += count;
  }
  return {};
}

Result<SessionStore> session_store(const Context& context, const Shape& shape,
                                   std::uint64_t tokens) {
  SessionStore store;
  store.path = context.directory + "/session-" + std::to_string(tokens) +
               (shape.dtype == KVT_DTYPE_F32 ? "-f32" : "-f16");
  store.bytes = tokens * shape.token_bytes();
  if (::access(store.path.c_str(), F_OK) == 0) return store;
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, store.path, {"host.arena_bytes=512MiB"}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "session"));
  Writer writer(shape);
  KVT_TRY_VOID(writer.append(sequence.get(), tokens));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  return store;
}

Result<Json> daemon_stats(kvt_client* client) {
  char* reply = nullptr;
  KVT_TRY_VOID(check(kvt_client_request(client, R"({"op":"stats"})", &reply)));
  Result<Json> stats = parse_json(reply);
  kvt_free(reply);
  return stats;
}

Result<double> attend_step(kvt_view* view, const Shape& shape) {
  std::vector<float> q(std::size_t{shape.query_heads} * kDim), out(q.size());
  const double start = seconds_now();
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = 0.01f * static_cast<float>((i * 31 + layer * 17) % 23) - 0.1f;
    KVT_TRY_VOID(check(kvt_view_attend(view, layer, 1, q.data(), 0.125f, out.data(), nullptr)));
  }
  return seconds_now() - start;
}

}  // namespace kvtier::bench
