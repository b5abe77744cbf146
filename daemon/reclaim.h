// Reclaim: room on disk. What may go, in this order, after files that were kept for a repair:
//   1. segments that no sequence uses (a cache of prefixes) and opaque values, least recently used
//      first, suffix before prefix. Segmented: a segment that was never matched again (probation)
//      goes before one that was, as long as the latter hold no more than their share.
//   2. closed, nameless, unpinned sequences: those that a client has called finished first, those
//      that it will resume last, else by last use. Their segments then are as in 1.
// Named and pinned sequences never go by themselves: where only these are left, writes are refused.
// Engine's thread.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace kvtier {

struct EngineState;
struct Segment;

// Evicts until `bytes` more fit under the limit, and `written` on the file system: more than
// `bytes` where the file that is replaced stays until then. kNoSpace where that cannot be.
[[nodiscard]] Result<void> reserve_disk(EngineState& engine, std::uint64_t bytes,
                                        std::uint64_t written);
[[nodiscard]] inline Result<void> reserve_disk(EngineState& engine, std::uint64_t bytes) {
  return reserve_disk(engine, bytes, bytes);
}
// Removes every segment without references now; the bytes that will be free.
std::uint64_t evict_unreferenced(EngineState& engine);
// Everything of the store that the limit counts: segments, sidecars, logs, opaque values,
// kept files, and what seals and commits under way will take.
[[nodiscard]] std::uint64_t store_bytes(const EngineState& engine);
// A prefix match found the segment.
void mark_used_again(EngineState& engine, Segment& segment);

}  // namespace kvtier
