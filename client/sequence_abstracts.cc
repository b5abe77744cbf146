// Sequence: which abstracts its views want, as the daemon is told.
#include "client/sequence.h"

namespace kvtier {
namespace {

Result<Sequence::AbstractProgress> progress_of(const Json& body) {
  Sequence::AbstractProgress out;
  KVT_TRY(const std::uint64_t lane, json_uint(body, "lane", 0, kSpaceAbstractsMax - 1));
  KVT_TRY(out.segments, json_uint(body, "segments", 0));
  KVT_TRY(out.ready, json_uint(body, "ready", 0));
  KVT_TRY(out.failed, json_uint(body, "failed", 0));
  out.lane = static_cast<std::uint32_t>(lane);
  KVT_TRY(out.codebook_offset, json_uint(body, "codebook_offset", UINT64_MAX));
  KVT_TRY(const std::string codebook, json_string(body, "codebook", ""));
  out.codebook_missing = codebook == "missing";
  out.codebook_coming = codebook == "coming";
  return out;
}

}  // namespace

Result<Sequence::AbstractProgress> Sequence::want_abstracts(const AbstractSpec& spec) {
  KVT_TRY_VOID(check_open());
  KVT_TRY(ControlMessage reply,
          connection_->call(
              Json{{"op", "abstract_want"}, {"handle", handle_}, {"abstract", spec.text()}}, {}, 0,
              space_->client().deadline()));
  return progress_of(reply.body);
}

Result<Sequence::AbstractProgress> Sequence::abstract_progress(std::uint32_t lane) {
  KVT_TRY_VOID(check_open());
  KVT_TRY(ControlMessage reply,
          connection_->call(Json{{"op", "abstract_state"}, {"handle", handle_}, {"lane", lane}}, {},
                            0, space_->client().deadline()));
  return progress_of(reply.body);
}

Result<void> Sequence::calibrate(const AbstractSpec& spec) {
  KVT_TRY_VOID(check_open());
  const SpaceOptions& options = space_->options();
  const auto frequencies = std::as_bytes(std::span<const float>(options.rope_frequencies));
  std::vector<std::byte> payload(frequencies.begin(), frequencies.end());
  const std::uint32_t tokens = space_->queries().take(&payload);
  constexpr std::uint64_t kCalibrationMs = 120000;
  KVT_TRY(ControlMessage reply,
          connection_->call(Json{{"op", "calibrate"},
                                 {"handle", handle_},
                                 {"abstract", spec.text()},
                                 {"rope_pairing", options.rope_pairing},
                                 {"rope_positions", options.rope_positions},
                                 {"rope_frequencies", options.rope_frequencies.size()},
                                 {"query_tokens", tokens}},
                            payload, 0, Deadline::after_ms(kCalibrationMs)));
  static_cast<void>(reply);
  return {};
}

void Sequence::observe_queries(std::uint32_t layer, std::uint32_t queries, const float* q) {
  if (!space_->queries().takes() || !check_layer(layer)) return;
  // With the tokens of a piece that is being written: length() does not count them yet.
  const std::uint64_t end = visible(layer);
  if (queries == 0 || queries > end) return;
  const std::uint64_t first = end - queries;
  std::vector<std::uint32_t> positions(queries);
  for (std::uint32_t i = 0; i < queries; ++i) positions[i] = static_cast<std::uint32_t>(first + i);
  if (tail_ && first >= tail_->first_token()) {
    std::vector<TokenRecord> records(queries);
    tail_->copy_tokens(first, end, records.data());
    for (std::uint32_t i = 0; i < queries; ++i) positions[i] = records[i].position;
  }
  space_->queries().observe(layer, positions, q);
}

void Sequence::drop_abstracts(std::uint32_t lane) noexcept {
  if (closed_ || connection_ == nullptr || connection_->lost()) return;
  // Where it fails the connection is lost, and with it what was wanted.
  static_cast<void>(
      connection_->tell(Json{{"op", "abstract_drop"}, {"handle", handle_}, {"lane", lane}},
                        space_->client().deadline()));
}

}  // namespace kvtier
