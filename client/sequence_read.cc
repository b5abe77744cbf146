// Sequence: exact rows and token records, from the tail or from the daemon.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "client/chunk_range.h"
#include "client/last_error.h"
#include "client/sequence.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kTokensPerRequest = 1u << 20;

Result<void> check_range(std::uint64_t first, std::uint64_t count, std::uint64_t length) {
  if (first <= length && count <= length - first) return {};
  return error_with(Code::kInvalid, "tokens %llu to %llu: the sequence has %llu",
                    static_cast<unsigned long long>(first),
                    static_cast<unsigned long long>(first + count),
                    static_cast<unsigned long long>(length));
}

}  // namespace

Result<void> Sequence::read_tokens(std::uint64_t first, std::uint64_t count, TokenRecord* out) {
  KVT_TRY_VOID(check_open());
  KVT_TRY_VOID(check_range(first, count, length()));
  const std::uint64_t last = first + count;
  // A new connection may find more of it sealed: each attempt looks anew where the tail begins.
  std::uint64_t sealed_end = first;
  const auto stored = [&]() -> Result<void> {
    KVT_TRY(sealed_end, sealed_part(first, last));
    for (std::uint64_t at = first; at < sealed_end;) {
      const std::uint64_t step = std::min(sealed_end - at, kTokensPerRequest);
      KVT_TRY(const ControlMessage reply,
              connection_->call(
                  Json{{"op", "tokens"}, {"handle", handle_}, {"first", at}, {"count", step}}, {},
                  0, space_->client().deadline()));
      if (reply.payload.size() != step * sizeof(TokenRecord))
        return error(Code::kProtocol, "the daemon sent fewer tokens");
      std::memcpy(out + (at - first), reply.payload.data(), reply.payload.size());
      at += step;
    }
    return {};
  };
  if (first < tail_first()) KVT_TRY_VOID(with_connection(Patience::kFull, stored));
  if (sealed_end < last) tail_->copy_tokens(sealed_end, last, out + (sealed_end - first));
  return {};
}

// Of tokens [first, last) those before the end of what is sealed, as this connection has it; the
// rest is in our tail. kStale where there is none: a writer cut them off.
Result<std::uint64_t> Sequence::sealed_part(std::uint64_t first, std::uint64_t last) const {
  KVT_TRY_VOID(check_whole());
  const std::uint64_t end = std::clamp(tail_first(), first, last);
  if (end < last && !tail_) return error(Code::kStale, "its writer has cut these tokens off");
  return end;
}

Result<void> Sequence::fetch_texts(const std::shared_ptr<Connection>& connection,
                                   std::uint32_t handle, std::uint64_t first, std::uint64_t count,
                                   TokenTexts* out) const {
  for (std::uint64_t at = first; at < first + count;) {
    const std::uint64_t step = std::min<std::uint64_t>(first + count - at, kTextTokensMax);
    const Json request{{"op", "texts"}, {"handle", handle}, {"first", at}, {"count", step}};
    KVT_TRY(const ControlMessage reply,
            connection->call(request, {}, 0, space_->client().deadline()));
    const auto texts = TokenTexts::parse(reply.payload, static_cast<std::uint32_t>(step));
    if (!texts) return error(Code::kProtocol, "the daemon sent texts that are none");
    out->append(*texts, 0, static_cast<std::uint32_t>(step));
    at += step;
  }
  return {};
}

Result<void> Sequence::read_texts(std::uint64_t first, std::uint64_t count, TokenTexts* out) {
  KVT_TRY_VOID(check_open());
  KVT_TRY_VOID(check_range(first, count, length()));
  const std::uint64_t last = first + count;
  std::uint64_t sealed_end = first;
  const std::uint32_t before = out->tokens();
  const auto stored = [&]() -> Result<void> {
    out->resize(before);  // what came of an attempt that was cut off
    KVT_TRY(sealed_end, sealed_part(first, last));
    return fetch_texts(connection_, handle_, first, sealed_end - first, out);
  };
  if (first < tail_first()) KVT_TRY_VOID(with_connection(Patience::kFull, stored));
  if (sealed_end < last) tail_->append_texts(sealed_end, last, out);
  KVT_CHECK(out->tokens() == before + count);
  return {};
}

Result<void> Sequence::read(std::uint32_t layer, std::uint64_t first, std::uint64_t count,
                            std::byte* k, std::byte* v) {
  KVT_TRY_VOID(check_open());
  KVT_TRY_VOID(check_layer(layer));
  // The writer may have cut off and replaced what we know; what the directory says last counts.
  if (!tail_) static_cast<void>(refresh_directory());
  if (tail_first() < first + count || connection_->lost()) {
    const auto fresh = refresh(Patience::kQuick);
    if (!fresh && (fresh.error().code != Code::kDaemonLost || first < tail_first())) return fresh;
    clear_error_text();
  }
  if (first > visible(layer) || count > visible(layer) - first)
    return error_with(Code::kInvalid, "tokens %llu to %llu: layer %u has %llu",
                      static_cast<unsigned long long>(first),
                      static_cast<unsigned long long>(first + count), layer,
                      static_cast<unsigned long long>(visible(layer)));
  const std::uint64_t last = first + count;
  std::uint64_t sealed_end = first;
  const auto stored = [&]() -> Result<void> {
    KVT_TRY(sealed_end, sealed_part(first, last));
    return first < sealed_end ? read_sealed(layer, first, sealed_end, count, k, v) : Result<void>();
  };
  if (first < tail_first()) KVT_TRY_VOID(with_connection(Patience::kQuick, stored));
  if (sealed_end < last) read_tail(layer, sealed_end, last, first, count, k, v);
  return {};
}

bool Sequence::touch(std::span<const FetchEntry> entries, bool after_prompt) {
  if (entries.empty() || connection_->lost()) return false;
  static_cast<void>(connection_->poll(touched_));  // takes blocks of earlier ones back
  const Deadline deadline = Deadline::after_ms(0);
  const auto arguments = connection_->take_arguments(entries.size_bytes(), false, deadline);
  if (!arguments) return false;
  std::memcpy(connection_->arguments(*arguments), entries.data(), entries.size_bytes());
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(Op::kTouch);
  submission.sequence = handle_;
  submission.argument_offset = *arguments;
  submission.count = static_cast<std::uint32_t>(entries.size());
  submission.value0 = after_prompt ? 1 : 0;
  const Result<Ticket> ticket = connection_->submit(submission, deadline);
  if (!ticket) {
    connection_->give_arguments_back(*arguments);
    return false;
  }
  touched_ = *ticket;
  connection_->tie_arguments(touched_, *arguments);
  connection_->abandon(touched_);
  return true;
}

void Sequence::read_tail(std::uint32_t layer, std::uint64_t begin, std::uint64_t end,
                         std::uint64_t first, std::uint64_t count, std::byte* k,
                         std::byte* v) const {
  const LayerGeometry& shape = space_->geometry().layers[layer];
  std::array<Tail::Run, 3> runs;
  const std::uint32_t run_count = tail_->runs(begin, end, &runs);
  std::uint64_t rows = 0;
  for (std::uint32_t r = 0; r < run_count; ++r) {
    rows += runs[r].count;
    for (std::uint32_t i = 0; i < runs[r].count; ++i) {
      const std::uint64_t row = runs[r].first_token + i - first;
      for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
        std::memcpy(k + (head * count + row) * shape.k_row_bytes,
                    tail_->k_row(runs[r].half, runs[r].first_place + i, layer, head),
                    shape.k_row_bytes);
        std::memcpy(v + (head * count + row) * shape.v_row_bytes,
                    tail_->v_row(runs[r].half, runs[r].first_place + i, layer, head),
                    shape.v_row_bytes);
      }
    }
  }
  KVT_CHECK(rows == end - begin);  // else the caller's memory has rows that nobody wrote
}

Result<void> Sequence::read_sealed(std::uint32_t layer, std::uint64_t first, std::uint64_t last,
                                   std::uint64_t count, std::byte* k, std::byte* v) {
  const Geometry& geometry = space_->geometry();
  const LayerGeometry& shape = geometry.layers[layer];
  const ChunkRange range(directory_.segments(), geometry, layer, first, last);
  FetchTally tally;
  ChunkStreamOptions options;
  options.total = range.entries();
  options.granule = range.groups();
  options.slot_bytes = geometry.slot_bytes(layer);
  const std::uint32_t group_heads = geometry.heads_in_group(layer);
  const auto use = [&](std::uint64_t begin, std::uint64_t entries,
                       const Fetch& fetch) -> Result<void> {
    for (std::uint64_t i = 0; i < entries; ++i) {
      const ChunkRange::Place place = range.place(begin + i);
      const std::byte* chunk = fetch.chunk(i, options.slot_bytes);
      const std::uint64_t from = std::max(first, place.first_token);
      const std::uint64_t rows = std::min(last, place.first_token + place.tokens) - from;
      const auto in_chunk = static_cast<std::uint32_t>(from - place.first_token);
      for (std::uint32_t h = 0; h < group_heads; ++h) {
        const std::uint64_t target = (place.group * group_heads + h) * count + (from - first);
        std::memcpy(k + target * shape.k_row_bytes,
                    chunk + k_row_offset(geometry, shape, h, in_chunk), rows * shape.k_row_bytes);
        std::memcpy(v + target * shape.v_row_bytes,
                    chunk + v_row_offset(geometry, shape, h, in_chunk), rows * shape.v_row_bytes);
      }
    }
    return {};
  };
  return chunk_stream(&tally).run(
      options, [&](std::uint64_t i) { return range.entry(i); }, use);
}

}  // namespace kvtier
