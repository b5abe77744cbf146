// Control requests about abstracts: a view says which kind it wants, looks how far they are, gives
// them back, and brings what a codebook is trained on.
#include <algorithm>
#include <cmath>

#include "daemon/abstracts.h"
#include "daemon/codebooks.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"

namespace kvtier {
namespace {

ControlReply progress_reply(EngineState& engine, const OpenSequence& open, std::uint32_t lane) {
  const LaneProgress progress = progress_of(open, lane);
  Json body{{"lane", lane},
            {"segments", progress.segments},
            {"ready", progress.ready},
            {"failed", progress.failed}};
  const StoredSpace& space = *open.sequence->space;
  if (lane < space.lanes() && space.lane_spec(lane).abstract == AbstractKind::kCodes) {
    const AbstractSpec spec = space.lane_spec(lane);
    const SpaceCodebook& codebook = codebook_of(engine, space, spec);
    body["codebook"] = codebook.state == CodebookState::kReady    ? "ready"
                       : codebook.state == CodebookState::kFailed ? "failed"
                       : codebook.state != CodebookState::kAbsent || codebook_id(space, spec) != 0
                           ? "coming"
                           : "missing";
    if (codebook.state == CodebookState::kReady) body["codebook_offset"] = codebook.offset;
  }
  return {std::move(body), {}, {}};
}

// payload: f32 [frequencies], then for every layer u32 [tokens] positions and f32
// [tokens][query_heads][dim]; `tokens` may be 0.
Result<CalibrationInput> parse_calibration(const ControlRequest& request,
                                           const StoredSpace& space) {
  CalibrationInput input;
  KVT_TRY(const std::string text, json_string(request.body, "abstract", "", 64));
  KVT_TRY(input.spec, parse_abstract_spec(text));
  if (input.spec.abstract != AbstractKind::kCodes)
    return error(Code::kInvalid, "only codes need a calibration");
  KVT_TRY(const std::uint64_t pairing, json_uint(request.body, "rope_pairing", 0, 2));
  KVT_TRY(const std::uint64_t positions, json_uint(request.body, "rope_positions", 0, UINT32_MAX));
  KVT_TRY(const std::uint64_t frequencies,
          json_uint(request.body, "rope_frequencies", 0, kHeadDimMax));
  KVT_TRY(const std::uint64_t tokens, json_uint(request.body, "query_tokens", 0, 256));
  input.rope.pairing = static_cast<RopeSpec::Pairing>(pairing);
  input.rope.positions = static_cast<std::uint32_t>(positions);
  ByteReader reader(request.payload);
  const auto floats = [&reader](std::uint64_t count, std::vector<float>* out) {
    for (std::uint64_t i = 0; i < count && reader.ok(); ++i) out->push_back(reader.read<float>());
  };
  floats(frequencies, &input.rope.frequencies);
  for (const LayerGeometry& shape : space.row.geometry.layers) {
    CalibrationInput::LayerQueries& layer = input.queries.emplace_back();
    if (tokens == 0 || shape.kind != LayerKind::kFull || shape.dtype == Dtype::kOpaque ||
        shape.query_heads % shape.kv_heads != 0)
      continue;
    for (std::uint64_t i = 0; i < tokens && reader.ok(); ++i)
      layer.positions.push_back(reader.read<std::uint32_t>());
    floats(tokens * shape.query_heads * (shape.k_row_bytes / dtype_bytes(shape.dtype)),
           &layer.vectors);
  }
  if (!reader.ok() || reader.remaining() != 0)
    return error(Code::kProtocol, "the calibration's payload has another length");
  if (!std::all_of(input.rope.frequencies.begin(), input.rope.frequencies.end(),
                   [](float x) { return std::isfinite(x); }))
    return error(Code::kInvalid, "a RoPE frequency is not finite");
  return input;
}

void op_calibrate(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  Result<CalibrationInput> input = parse_calibration(request, *(*open)->sequence->space);
  if (!input) return done(error(input.error()));
  calibrate(engine, **open, std::move(*input), [done = std::move(done)](Result<void> made) {
    made ? done(ControlReply{Json::object(), {}, {}}) : done(error(made.error()));
  });
}

// A lane that is new to the space is remembered, so that it is built at later seals, too. Not
// synced: what is lost is wanted again.
Result<std::uint32_t> find_lane(EngineState& engine, StoredSpace& space, AbstractSpec spec) {
  const std::uint32_t before = space.lanes();
  KVT_TRY(const std::uint32_t lane, lane_of(space, spec));
  if (space.lanes() == before || space.row.private_only || engine.read_only) return lane;
  CatalogueBatch batch;
  batch.put_space(space.stored_row());
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
  return lane;
}

void op_want(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::string> text = json_string(request.body, "abstract", "", 64);
  if (!text) return done(error(text.error()));
  const Result<AbstractSpec> spec = parse_abstract_spec(*text);
  if (!spec) return done(error(spec.error()));
  const Result<std::uint32_t> lane = find_lane(engine, *(*open)->sequence->space, *spec);
  if (!lane) return done(error(lane.error()));
  if (spec->abstract == AbstractKind::kCodes)
    load_codebook(engine, *(*open)->sequence->space, *spec, [](const auto&) {});
  want_lane(engine, **open, *lane);
  done(progress_reply(engine, **open, *lane));
}

void op_state(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> lane = json_uint(request.body, "lane", 0, kSpaceAbstractsMax - 1);
  if (!lane) return done(error(lane.error()));
  done(progress_reply(engine, **open, static_cast<std::uint32_t>(*lane)));
}

void op_drop(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> lane = json_uint(request.body, "lane", 0, kSpaceAbstractsMax - 1);
  if (!lane) return done(error(lane.error()));
  drop_lane(engine, **open, static_cast<std::uint32_t>(*lane));
  done(ControlReply{Json::object(), {}, {}});
}

}  // namespace

std::span<const ControlOp> abstract_ops() {
  static constexpr ControlOp kOps[] = {
      {"abstract_want", true, op_want},
      {"abstract_state", true, op_state},
      {"abstract_drop", true, op_drop},
      {"calibrate", true, op_calibrate},
  };
  return kOps;
}

}  // namespace kvtier
