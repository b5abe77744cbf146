// Layout: where the rows of one layer and KV head lie on disk, learnt from the rows that steps
// asked for.
//
// A disk is read in chunks of 32 rows, so it matters which rows share one. Rows that no step asked
// for keep the order of tokens, behind those that one did.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvtier::bench {

inline constexpr std::uint32_t kChunkRows = 32;

// The place of each token's row: a permutation.
using Places = std::vector<std::uint32_t>;

// What steps asked for: tokens, ascending, a list per step.
using StepRows = std::vector<std::span<const std::uint32_t>>;

[[nodiscard]] Places places_by_token(std::uint32_t tokens);

// Rows that were asked for most often first; rows of different blocks of `block` tokens are not
// mixed. O(n log n).
[[nodiscard]] Places places_by_count(const StepRows& steps, std::uint32_t tokens,
                                     std::uint32_t block);

// Rows that the same steps asked for together, so that a step touches few chunks: recursive
// bisection of the hypergraph whose edges are the steps, each half improved by swapping the rows
// that gain most by it, by the probabilistic fanout of the parts that a half will still be cut into
// (Kabiljo et al., Social Hash Partitioner, VLDB 2017: SHP-2). A heuristic: the least is NP-hard.
// O(n log^2 n) for n rows in the lists.
[[nodiscard]] Places places_together(const StepRows& steps, std::uint32_t tokens);

// Chunks that `count` tokens from each multiple of `count` on lie in, mean over the full ones.
[[nodiscard]] double chunks_of_run(const Places& places, std::uint32_t count);

}  // namespace kvtier::bench
