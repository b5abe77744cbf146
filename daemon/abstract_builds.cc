// Builds of abstracts that no seal has made: for a lane that is new, missing or damaged. Layers are
// built a few at a time, so that a long build (clusters) never keeps a worker from a seal.
#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "daemon/abstracts.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"
#include "daemon/raw_segment.h"

namespace kvtier {
namespace {

// Layers that a worker builds in one go; to factorise one of many heads takes a second.
constexpr std::uint32_t kLayersAtOnce = 4, kFactorisedAtOnce = 1;

struct Build {
  SegmentId segment;
  std::uint32_t lane = 0;
  const StoredSpace* space = nullptr;
  std::shared_ptr<const RawSegment> raw;
  std::shared_ptr<const Codebook> codebook;
  bool failed = false;
  const KernelTable* kernels = nullptr;
  std::optional<AbstractPlan> plan;
  std::uint32_t next_layer = 0;
  std::vector<std::byte> payload;
  std::function<void(RebuildEnd)> done;  // null: a view wants it
};
using BuildPtr = std::shared_ptr<Build>;

void next_build(EngineState& engine);

void end_build(EngineState& engine, const BuildPtr& build) {
  Segment* segment = find_segment(engine, build->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  build->raw = nullptr;
  const auto done = std::move(build->done);
  const auto next = [&engine] {
    engine.abstract_table.building = false;
    next_build(engine);
  };
  if (build->failed) {
    lane_of(*segment, build->lane).state = AbstractState::kFailed;
    settle_lane(engine, build->segment, build->lane);
    if (done) done(RebuildEnd::kFailed);
    return next();
  }
  ++engine.metrics.abstracts_rebuilt;
  const KeptBytes payload{build, build->payload};
  // Base renditions are large: the next is not begun before this one is written.
  const bool wait = is_rendition(*segment, build->lane);
  install_abstract(engine, *segment, build->lane, payload);
  write_sidecar(engine, *segment, build->lane, payload, [done, wait, next](bool written) {
    if (done) done(written ? RebuildEnd::kWritten : RebuildEnd::kUnwritten);
    if (wait) next();
  });
  if (!wait) next();
}

// Worker: the next layers.
void build_slice(Build& build) {
  const Geometry& geometry = build.space->row.geometry;
  const auto layers = static_cast<std::uint32_t>(geometry.layers.size());
  const std::uint32_t first = build.next_layer;
  const bool factorised = build.plan->spec.abstract == AbstractKind::kLowRank;
  build.next_layer = std::min(layers, first + (factorised ? kFactorisedAtOnce : kLayersAtOnce));
  const AbstractSource source{build.kernels, &geometry, build.raw->layout, build.raw->chunks,
                              build.codebook.get()};
  if (!build_abstract_layers(source, *build.plan, first, build.next_layer, build.payload))
    build.failed = true;
}

void step_build(EngineState& engine, const BuildPtr& build) {
  const bool whole = build->next_layer == build->space->row.geometry.layers.size();
  build->failed = build->failed || (engine.draining && !whole);
  if (build->failed || whole) return end_build(engine, build);
  run_on_worker(
      engine, [build] { build_slice(*build); }, [&engine, build] { step_build(engine, build); });
}

void begin_layers(EngineState& engine, const BuildPtr& build) {
  const AbstractSpec spec = build->space->lane_spec(build->lane);
  build->plan = plan_abstract(build->space->row.geometry, spec, build->raw->meta->tokens,
                              build->space->row.rotation);
  build->payload.resize(static_cast<std::size_t>(build->plan->layout.size_bytes()));
  begin_abstract(*build->plan, build->codebook != nullptr ? build->codebook->id : 0,
                 build->payload);
  step_build(engine, build);
}

void read_segment(EngineState& engine, const BuildPtr& build) {
  load_raw(engine, *find_segment(engine, build->segment),
           [&engine, build](Result<std::shared_ptr<const RawSegment>> raw) {
             build->failed = !raw;
             if (!raw) return end_build(engine, build);
             build->raw = *raw;
             begin_layers(engine, build);
           });
}

void start_build(EngineState& engine, Segment& segment, AbstractTable::Build wanted) {
  const std::uint32_t lane = wanted.lane;
  engine.abstract_table.building = true;
  ++segment.busy;
  auto build = std::make_shared<Build>();
  build->segment = segment.row.id;
  build->lane = lane;
  build->done = std::move(wanted.done);
  build->space = segment.space;
  build->kernels = engine.kernels;
  const AbstractSpec spec = segment.space->lane_spec(lane);
  if (lacks_rotation(*segment.space, spec)) {
    ++engine.metrics.rotation_unknown;
    build->failed = true;
    return end_build(engine, build);
  }
  if (spec.abstract != AbstractKind::kCodes) return read_segment(engine, build);
  load_codebook(engine, *segment.space, spec,
                [&engine, build](std::shared_ptr<const Codebook> codebook) {
                  build->codebook = std::move(codebook);
                  build->failed = build->codebook == nullptr;
                  build->failed ? end_build(engine, build) : read_segment(engine, build);
                });
}

void next_build(EngineState& engine) {
  AbstractTable& table = engine.abstract_table;
  if (table.starting) return;  // the loop below goes on by itself
  table.starting = true;
  while (!engine.draining && !table.building && !table.waiting.empty()) {
    AbstractTable::Build build = std::move(table.waiting.front());
    table.waiting.pop_front();
    Segment* segment = find_segment(engine, build.segment);
    if (segment != nullptr && !segment->condemned &&
        (build.done || lane_of(*segment, build.lane).wants != 0)) {
      start_build(engine, *segment, std::move(build));
      continue;
    }
    if (segment != nullptr) lane_of(*segment, build.lane).state = AbstractState::kAbsent;
    if (build.done) build.done(RebuildEnd::kGone);
    settle_lane(engine, build.segment, build.lane);
  }
  table.starting = false;
}

}  // namespace

void queue_build(EngineState& engine, Segment& segment, std::uint32_t lane,
                 std::function<void(RebuildEnd)> done) {
  engine.abstract_table.waiting.push_back({segment.row.id, lane, std::move(done)});
  next_build(engine);
}

void rebuild_abstract(EngineState& engine, SegmentId id, std::uint32_t lane,
                      std::function<void(RebuildEnd)> done) {
  Segment* segment = find_segment(engine, id);
  if (segment == nullptr || segment->condemned || segment->state != SegmentState::kOnDisk)
    return done(RebuildEnd::kGone);
  if (lane_of(*segment, lane).state == AbstractState::kWorking) {
    engine.abstract_table.settled.push_back(
        [&engine, id, lane, done = std::move(done)] { rebuild_abstract(engine, id, lane, done); });
    return;
  }
  drop_abstract(engine, *segment, lane);
  lane_of(*segment, lane).state = AbstractState::kWorking;
  queue_build(engine, *segment, lane, std::move(done));
}

}  // namespace kvtier
