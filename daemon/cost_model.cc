#include "daemon/cost_model.h"

#include <algorithm>

#include "daemon/engine_state.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kWindowBytes = 4ull << 20;
constexpr double kNewest = 0.3;  // weight of a new measurement

double smooth(double old, double measured) {
  return old == 0 ? measured : old + kNewest * (measured - old);
}

}  // namespace

void begin_timed_read(EngineState& engine) {
  CostModel& cost = engine.cost;
  if (cost.reads_in_flight++ == 0) cost.busy_since_ns = engine.now_ns();
}

void end_timed_read(EngineState& engine, std::uint64_t bytes) {
  CostModel& cost = engine.cost;
  const std::uint64_t now = engine.now_ns();
  cost.window_bytes += bytes;
  cost.window_ns += now - cost.busy_since_ns;
  cost.busy_since_ns = now;
  --cost.reads_in_flight;
  if (cost.window_bytes < kWindowBytes) return;
  if (cost.window_ns > 0) {
    cost.read_bytes_per_s =
        smooth(cost.read_bytes_per_s,
               static_cast<double>(cost.window_bytes) * 1e9 / static_cast<double>(cost.window_ns));
    ++cost.windows;
  }
  cost.window_bytes = cost.window_ns = 0;
}

void learn_compute_time(EngineState& engine, const StoredSpace& space, std::uint64_t ns_per_token) {
  if (ns_per_token == 0 || ns_per_token > 60ull * 1'000'000'000) return;
  double& known = engine.cost.compute_ns_per_token[space.row.id];
  known = smooth(known, static_cast<double>(ns_per_token));
}

LoadEstimate estimate_load(const EngineState& engine, const std::vector<PartSpec>& parts,
                           std::size_t first) {
  LoadEstimate estimate;
  if (first >= parts.size()) return estimate;
  const StoredSpace& space = *parts[first].segment->space;
  const std::uint64_t token_bytes = space.row.geometry.token_bytes();
  std::uint64_t tokens = 0;
  for (std::size_t i = first; i < parts.size(); ++i) {
    const std::uint64_t bytes = parts[i].visible_tokens * token_bytes;
    estimate.bytes += bytes - std::min(bytes, parts[i].segment->resident_bytes);
    tokens += parts[i].visible_tokens;
  }
  estimate.tokens = token_bytes == 0 ? 0 : estimate.bytes / token_bytes;
  if (engine.cost.read_bytes_per_s > 0)
    estimate.load_s = static_cast<double>(estimate.bytes) / engine.cost.read_bytes_per_s;
  const auto known = engine.cost.compute_ns_per_token.find(space.row.id);
  if (known != engine.cost.compute_ns_per_token.end())
    estimate.compute_s = known->second * static_cast<double>(tokens) / 1e9;
  return estimate;
}

}  // namespace kvtier
