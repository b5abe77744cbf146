// Traces that were not recorded: a process of scores whose choices switch, cluster and cool as
// recorded ones do.
//
// A row's score at a step, in units of the standard deviation of its lasting part:
//   lasting   sqrt(run_share) of its run of 16 + sqrt(1 - run_share) of its own, both normal to the
//             power of `tail`
//   recency   log2(tokens / distance to the end)
//   drift     moves slowly (first-order autoregressive, `memory` from step to step), `run_drift` of
//             its variance with the whole run
//   flicker   new at every step
// The run's part is alike in neighbouring runs (`reach`). The highest scores are chosen; runs and
// pages by the sum of exp(sharpness * score), their estimated mass. Hot rows are a process of their
// own: `hot_rows` at a time, of which `hot_new` a step are replaced by others that were chosen.
//
// The law of a row's score is taken to be the same at every context length, so that a choice of a
// smaller share of a longer context lies further out on it: what a model of 8 billion weights does
// at 128k tokens has not been measured by us.
#pragma once

#include <array>
#include <cstdint>

#include "tools/bench/replay_trace.h"

namespace kvtier::bench {

inline constexpr std::size_t kRecordedLayers = 30;

struct TraceLaw {
  double run_share = 0.25;
  double reach = 0.2;
  double tail = 1;
  double recency = 0.3;
  double drift = 0.47;
  double memory = 0.75;
  double run_drift = 0.5;
  double flicker = 0.47;
  double sharpness = 1.5;
  double hot_rows = 4.5;
  double hot_new = 0.5;
  // Drift and flicker of a layer over the mean's, from the first to the last layer: stretched over
  // the layers there are.
  std::array<double, kRecordedLayers> layer_motion = even();

  [[nodiscard]] double motion(std::uint32_t layer, std::uint32_t layers) const noexcept;

 private:
  static constexpr std::array<double, kRecordedLayers> even() noexcept {
    std::array<double, kRecordedLayers> ones{};
    ones.fill(1.0);
    return ones;
  }
};

// As fitted to a recorded trace, and the figures of that trace (docs/benchmarks.md says which).
[[nodiscard]] TraceLaw measured_law() noexcept;
[[nodiscard]] TraceFigures recorded_figures() noexcept;

// The same trace for the same arguments, whatever the number of threads. The shape is valid, with
// lanes of 1, 16 and 32 tokens or some of them.
[[nodiscard]] Trace generate_trace(const TraceShape& shape, const TraceLaw& law,
                                   std::uint64_t seed);

// The law whose traces have the figures of a recorded one, found by trying; prints what it tries
// for and what it comes to. Deterministic.
[[nodiscard]] TraceLaw fit_law(const Trace& recorded);
// The figures of two traces side by side.
void print_figures(const TraceFigures& asked, const TraceFigures& made);

}  // namespace kvtier::bench
