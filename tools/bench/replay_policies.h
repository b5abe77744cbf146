// What a decode step's KV costs under a policy: the trace says what is chosen, the policy what has
// to come to the device for it.
//
// Real: the daemon, its ring, its host arena, its disk; the client's slot caches and the requests
// that they lead to. On a virtual clock: the link to the device, which takes each batch when the
// daemon has delivered it, and the device's own memory, which scores abstracts and attends to rows.
// The order in a layer: scores; low-bit rows over the link; hot ones, only now known, asked for,
// and each batch of them over the link while the daemon reads the next; attention.
// Left out: choosing and making the list of what is missing (kernels on a device), the model's own
// computing, sinks, window and new tokens (always on the device). Rows are not copied: what would
// be, is counted.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/replay_bound.h"
#include "tools/bench/replay_store.h"
#include "tools/bench/replay_trace.h"

namespace kvtier::bench {

// A card of the commodity class on PCIe 4.0 x16.
inline constexpr double kLinkBytesPerS = 25e9;
inline constexpr double kCopyS = 10e-6;  // a batch of copies: one launch
inline constexpr double kDeviceBytesPerS = 900e9;
inline constexpr double kCodeBytesPerDim = 0.125;  // key codes: 4 bits for 4 dimensions

enum class Policy {
  kRows,    // exact rows in slot caches of twice the budget, in runs of 16 where much of the fetch
            // before came from disk, as View chooses them; what is missing comes as chunks
  kRuns,    // the same, always in runs of 16
  kPages,   // pages of 32 tokens, all of them at every step
  kRefine,  // rows from a low-bit copy in host memory, hot ones exactly, both kept on the device
};

// Means over the measured steps.
struct PolicyRun {
  double seconds = 0;  // of a step's KV
  double waited_s = 0, link_s = 0, device_s = 0;  // of these; waits and copies overlap
  double before_s = 0;  // of the link: low-bit rows, before anything is asked for
  double chunks_asked = 0;
  double chunks_read = 0;  // from disk
  double rows_new = 0;     // that came to the device, per layer and head
  References references;
  std::uint64_t arena_chunks = 0;
};

// Replays the whole trace; the steps from `first_step` on count. `store` was made for its shape.
[[nodiscard]] Result<PolicyRun> run_policy(const Context& context, const std::string& store,
                                           const Trace& trace, Policy policy,
                                           std::uint32_t first_step);
// Bytes of host memory: the arena, and the low-bit copy of kRefine.
[[nodiscard]] std::uint64_t arena_bytes_of(const TraceShape& shape, Policy policy);
[[nodiscard]] std::uint64_t copy_bytes_of(const TraceShape& shape, Policy policy);

// A step that streams everything: `layers` layers from `first_layer` on are read from disk, the
// others are taken to be as fast. The quarter that the arena holds is taken to cost nothing.
[[nodiscard]] Result<double> run_stream(const Context& context, const std::string& store,
                                        const TraceShape& shape, std::uint32_t first_layer,
                                        std::uint32_t layers);

}  // namespace kvtier::bench
