// What steps would read from disk if the rows of each layer and KV head lay there in another order
// than that of tokens, learnt from the steps that warm up or, as a bound, from those judged.
#pragma once

#include "tools/bench/bench.h"
#include "tools/bench/replay_trace.h"

namespace kvtier::bench {

// Reads of a step through the daemon, to compare with what is counted; below 0: not measured.
struct DaemonReads {
  double runs = -1, hot = -1;
};

// Counted, so that neither store nor daemon is needed. The steps from `first_step` on are judged.
[[nodiscard]] Result<void> add_layouts(const Trace& trace, std::uint32_t first_step,
                                       const DaemonReads& daemon, std::vector<Figure>* figures);

}  // namespace kvtier::bench
