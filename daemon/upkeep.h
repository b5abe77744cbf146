// Upkeep: what the daemon does by itself while nobody asks.
//   idle seal   a committed tail that nobody has open and that was not used for daemon.idle_seal_s
//               becomes a segment, so that its prefix is found and its log goes
//   scrub       daemon.scrub_mb_per_s: segments are read and compared with their checksums, one
//               after the other, for ever; what fails is marked and never served
// One of each at a time. Engine's thread.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace kvtier {

struct EngineState;

struct UpkeepState {
  std::uint64_t next_check_ns = 0;  // of idle tails
  SequenceId sealing;               // under way
  std::uint64_t idle_seals = 0;     // done
  bool scrubbing = false;           // a segment is being read
  SegmentId scrub_next;             // goes on behind it
  std::uint64_t scrub_due_ns = 0;
  std::uint64_t scrubbed_segments = 0, scrubbed_bytes = 0, scrub_rounds = 0;
};

// Starts what is due; the number of things started. For run_timers().
std::size_t run_upkeep(EngineState& engine);
// When it wants to be called again; UINT64_MAX: never.
[[nodiscard]] std::uint64_t next_upkeep(const EngineState& engine);

}  // namespace kvtier
