// What was measured: `kvtier-quality --trace FILE --text prose --preset oracle --budget 192
// --context 6144 --eval 128` on SmolLM2-135M-Instruct, a budget of the same share of the context as
// 4,096 rows of 128k tokens; then `kvtier-bench replay --fit FILE`.
#include "tools/bench/replay_generate.h"

namespace kvtier::bench {

TraceLaw measured_law() noexcept {
  TraceLaw law;
  law.run_share = 0.2806;
  law.reach = 0.0;
  law.tail = 1.0;
  law.recency = 0.30;
  law.drift = 0.47;
  law.memory = 0.75;
  law.run_drift = 1.0;
  law.flicker = 0.47;
  law.sharpness = 1.2513;
  law.hot_rows = 7.8444;
  law.hot_new = 0.9589;
  law.layer_motion = {0.72, 0.63, 0.62, 0.50, 0.57, 0.60, 0.57, 0.80, 0.65, 0.57,
                      0.59, 0.81, 0.73, 0.81, 1.34, 0.89, 0.84, 1.67, 1.35, 0.92,
                      1.81, 1.33, 1.22, 1.69, 2.09, 0.84, 1.43, 0.98, 0.97, 1.06};
  return law;
}

TraceFigures recorded_figures() noexcept {
  TraceFigures of;
  of.rows_new[0] = 0.3903;
  of.rows_new[1] = 0.2873;
  of.rows_new[2] = 0.2233;
  of.rows_new[3] = 0.1533;
  of.chunks_touched = 0.3474;
  of.chunks_new = 0.0032;
  of.newest = 0.1769;
  of.in_runs = 0.3318;
  of.in_pages = 0.3041;
  of.pages_new = 0.1638;
  of.hot_rows = 7.8444;
  of.hot_new = 0.9589;
  of.next_head = 0.3582;
  return of;
}

}  // namespace kvtier::bench
