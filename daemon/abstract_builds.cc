// Builds of abstracts that no seal has made: for a lane that is new, missing or damaged. Layers are
// built a few at a time, so that a long build (clusters) never keeps a worker from a seal.
#include <algorithm>
#include <optional>

#include "base/check.h"
#include "daemon/abstracts.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"
#include "daemon/raw_segment.h"

namespace kvtier {
namespace {

// Layers that a worker builds in one go.
constexpr std::uint32_t kLayersAtOnce = 4;

struct Build {
  SegmentId segment;
  std::uint32_t lane = 0;
  const Space* space = nullptr;
  std::shared_ptr<const RawSegment> raw;
  std::shared_ptr<const Codebook> codebook;
  bool failed = false;
  const KernelTable* kernels = nullptr;
  std::optional<AbstractPlan> plan;
  std::uint32_t next_layer = 0;
  std::vector<std::byte> payload;
};
using BuildPtr = std::shared_ptr<Build>;

void next_build(EngineState& engine);

void end_build(EngineState& engine, const BuildPtr& build) {
  engine.abstract_table.building = false;
  Segment* segment = find_segment(engine, build->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  if (build->failed) {
    lane_of(*segment, build->lane).state = AbstractState::kFailed;
  } else {
    ++engine.metrics.abstracts_rebuilt;
    write_sidecar(engine, *segment, build->lane, build->payload);
    install_abstract(engine, *segment, build->lane, build->payload);
  }
  next_build(engine);
}

// Worker: the next layers.
void build_slice(Build& build) {
  const Geometry& geometry = build.space->row.geometry;
  const auto layers = static_cast<std::uint32_t>(geometry.layers.size());
  const std::uint32_t first = build.next_layer;
  build.next_layer = std::min(layers, first + kLayersAtOnce);
  const AbstractSource source{build.kernels, &geometry, build.raw->layout, build.raw->chunks,
                              build.codebook.get()};
  if (!build_abstract_layers(source, *build.plan, first, build.next_layer, build.payload))
    build.failed = true;
}

void step_build(EngineState& engine, const BuildPtr& build) {
  if (build->failed || build->next_layer == build->space->row.geometry.layers.size())
    return end_build(engine, build);
  run_on_worker(
      engine, [build] { build_slice(*build); }, [&engine, build] { step_build(engine, build); });
}

void begin_layers(EngineState& engine, const BuildPtr& build) {
  const AbstractSpec spec = build->space->lane_spec(build->lane);
  build->plan = plan_abstract(build->space->row.geometry, spec, build->raw->meta->tokens);
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

void start_build(EngineState& engine, Segment& segment, std::uint32_t lane) {
  engine.abstract_table.building = true;
  ++segment.busy;
  auto build = std::make_shared<Build>();
  build->segment = segment.row.id;
  build->lane = lane;
  build->space = segment.space;
  build->kernels = engine.kernels;
  const AbstractSpec spec = segment.space->lane_spec(lane);
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
  while (!table.building && !table.waiting.empty()) {
    const AbstractTable::Build build = table.waiting.front();
    table.waiting.pop_front();
    Segment* segment = find_segment(engine, build.segment);
    if (segment == nullptr) continue;
    SegmentAbstract& abstract = lane_of(*segment, build.lane);
    if (abstract.wants == 0 || segment->condemned) {
      abstract.state = AbstractState::kAbsent;
      continue;
    }
    start_build(engine, *segment, build.lane);
  }
  table.starting = false;
}

}  // namespace

void queue_build(EngineState& engine, Segment& segment, std::uint32_t lane) {
  engine.abstract_table.waiting.push_back({segment.row.id, lane});
  next_build(engine);
}

}  // namespace kvtier
