// The least that a cache must read: Belady's rule, which drops what is needed again last.
#pragma once

#include <cstdint>
#include <vector>

namespace kvtier::bench {

// Chunks in the order in which they were asked for, and where each step ends.
struct References {
  std::vector<std::uint32_t> chunks;
  std::vector<std::size_t> step_ends;
};

// Reads of the steps from `first_step` on, by a cache that begins empty, holds `capacity` chunks
// (above 0) and takes in whatever is asked for: no order of eviction reads less over all steps.
[[nodiscard]] std::uint64_t least_reads(const References& references, std::size_t first_step,
                                        std::uint64_t capacity);

// Reads of those steps by a cache that holds everything: each chunk once.
[[nodiscard]] std::uint64_t first_reads(const References& references, std::size_t first_step);

}  // namespace kvtier::bench
