#include "daemon/reindex.h"

#include <algorithm>
#include <vector>

#include "daemon/abstracts.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"

namespace kvtier {
namespace {

void count(ReindexTable& job, RebuildEnd end) {
  switch (end) {
    case RebuildEnd::kUnwritten:
      ++job.unwritten;
      [[fallthrough]];
    case RebuildEnd::kWritten:
      ++job.built;
      break;
    case RebuildEnd::kFailed:
      ++job.failed;
      break;
    case RebuildEnd::kGone:
      ++job.gone;
      break;
  }
}

void go_on(EngineState& engine) {
  ReindexTable& job = engine.reindex;
  if (job.stepping) return;
  job.stepping = true;
  while (!engine.draining && !job.at_work && !job.waiting.empty()) {
    const ReindexTable::Item item = job.waiting.front();
    job.waiting.pop_front();
    job.at_work = true;
    rebuild_abstract(engine, item.segment, item.lane, [&engine](RebuildEnd end) {
      count(engine.reindex, end);
      engine.reindex.at_work = false;
      go_on(engine);
    });
  }
  job.stepping = false;
  job.running = job.at_work;
}

// Its lanes of this kind, or all; not what lacks its codebook or rotation yet.
void add_items(const Segment& segment, AbstractSpec kind, ReindexTable* job) {
  if (segment.state != SegmentState::kOnDisk || segment.condemned) return;
  const StoredSpace& space = *segment.space;
  const std::size_t before = job->waiting.size();
  for (std::uint32_t lane = 0; lane < space.lanes(); ++lane) {
    const AbstractSpec spec = space.lane_spec(lane);
    if (!kind.none() && !(spec == kind)) continue;
    if (spec.abstract == AbstractKind::kCodes && codebook_id(space, spec) == 0) continue;
    if (lacks_rotation(space, spec)) continue;
    if (AbstractLayout(space.row.geometry, spec, segment.row.tokens, 1).size_bytes() == 0) continue;
    job->waiting.push_back({segment.row.id, lane});
  }
  job->segments += job->waiting.size() != before ? 1 : 0;
}

Result<std::vector<const Segment*>> segments_of(EngineState& engine, const Json& body) {
  std::vector<const Segment*> out;
  KVT_TRY(const bool all, json_bool(body, "all", false));
  if (all) {
    for (const auto& [id, segment] : engine.segments.all) out.push_back(segment.get());
  } else {
    KVT_TRY(const StoredSequence* sequence, target_sequence(engine, body));
    for (const SequencePart& part : sequence->parts) out.push_back(part.segment);
  }
  std::sort(out.begin(), out.end(),
            [](const Segment* a, const Segment* b) { return a->row.id.value < b->row.id.value; });
  return out;
}

Result<ReindexTable> plan(EngineState& engine, const Json& body) {
  if (engine.reindex.running)
    return error(Code::kBusy, "abstracts are being built again: wait for its end");
  if (engine.read_only)
    return error(Code::kReadOnly, "the store takes no writes: sidecars cannot be written");
  KVT_TRY(const std::string text, json_string(body, "kind", "", 64));
  KVT_TRY(const AbstractSpec kind, parse_abstract_spec(text));
  KVT_TRY(const std::vector<const Segment*> segments, segments_of(engine, body));
  ReindexTable job;
  for (const Segment* segment : segments) add_items(*segment, kind, &job);
  job.abstracts = job.waiting.size();
  if (!kind.none() && job.abstracts == 0)
    return error(Code::kNotFound,
                 "nothing stored there has abstracts of this kind: `kvtier ls --json` lists the "
                 "kinds of each space");
  return job;
}

void op_state(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  const ReindexTable& job = engine.reindex;
  done(ControlReply{Json{{"running", job.running},
                         {"segments", job.segments},
                         {"abstracts", job.abstracts},
                         {"left", job.waiting.size() + (job.at_work ? 1 : 0)},
                         {"built", job.built},
                         {"unwritten", job.unwritten},
                         {"failed", job.failed},
                         {"gone", job.gone}},
                    {},
                    {}});
}

void op_reindex(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  Result<ReindexTable> job = plan(engine, request.body);
  if (!job) return done(error(job.error()));
  engine.reindex = std::move(*job);
  engine.reindex.running = true;
  go_on(engine);
  op_state(engine, session, std::move(request), std::move(done));
}

}  // namespace

std::span<const ControlOp> reindex_ops() {
  static constexpr ControlOp kOps[] = {
      {"reindex", false, op_reindex},
      {"reindex_state", false, op_state},
  };
  return kOps;
}

}  // namespace kvtier
