// Reclaim: room on disk. Segments that no sequence uses stay as a cache of prefixes until the limit
// wants their room; then the least recently used goes first, suffix before prefix. Engine's thread.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace kvtier {

struct EngineState;

// Evicts until `bytes` more fit under the limit and on the file system; kNoSpace where that cannot
// be.
[[nodiscard]] Result<void> reserve_disk(EngineState& engine, std::uint64_t bytes);
// Removes every segment without references now; the bytes that will be free.
std::uint64_t evict_unreferenced(EngineState& engine);

}  // namespace kvtier
