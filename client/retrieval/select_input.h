// What a selection works on: a sequence's stored segments as one (layer, KV head) sees them, the
// query vectors of its group, and what is always kept. Plain values; pointers are the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/abstract_spec.h"
#include "kernels/codebook_layout.h"

namespace kvtier {

inline constexpr std::uint32_t kMissingUnitTokens = 16;

// Scores of units without an abstract, which are fetched first, and of what is never taken.
inline constexpr float kFetchScore = std::numeric_limits<float>::infinity();
inline constexpr float kNeverScore = -std::numeric_limits<float>::infinity();

// Tokens [first, last) of a sequence.
struct TokenRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  [[nodiscard]] bool contains(std::uint64_t token) const noexcept {
    return token >= first && token < last;
  }
};

// One segment of the sequence, as seen by one (layer, KV head).
struct SegmentExtent {
  std::uint64_t first_token = 0;  // segments are ascending and without gaps, the first begins at 0
  std::uint32_t visible_tokens = 0;
  // What follows is of the preset's abstract; `data` null: not there (yet).
  std::uint32_t units = 0;  // that `data` holds; may cover more than what is visible
  const std::byte* data = nullptr;
  const std::uint16_t* starts = nullptr;   // [units + 1]; null: pages or tokens
  const std::uint16_t* members = nullptr;  // clusters: tokens in the order of units
};

struct SelectInput {
  std::span<const SegmentExtent> segments;
  std::span<const TokenRange> kept;  // ascending, disjoint; cut off at the end of the last segment
  const float* queries = nullptr;    // the group's vectors
  std::uint64_t query_stride = 0;    // in floats
  std::uint32_t query_count = 0;
  std::uint32_t dim = 0;
  float scale = 1.0f;                      // of the attention, e.g. 1 / sqrt(dim)
  const HeadCodebook* codebook = nullptr;  // of this layer and head, where the abstract is codes
  std::uint64_t budget_rows = 0;      // beside the kept rows; whole units are taken while they fit
  std::uint32_t ratio_percent = 100;  // so much of its share is what budget "ratio" takes
  // Where units are single tokens: so many neighbours are taken together, by the sum of their
  // scores where these are masses, else by the largest. For rows that lie on a disk, which gives
  // chunks. 1 to kSegmentTokensMax.
  std::uint32_t grain_tokens = 1;
  std::uint64_t next_rows = 0;     // so many rows behind the chosen ones are wanted, too
  std::uint32_t summed_heads = 1;  // whose scores were added up
  bool flat = false;               // every unit is scored, whatever the preset's search
  bool bound = false;              // Selection::missed is wanted
  // Of budget "certified": of each query, the logarithm of the exact mass (the sum of exp(scale * q
  // . k)) of the kept rows and of all that is attended to beside stored ones, [query_count]. Null:
  // nobody knows, it counts for nothing.
  const float* held = nullptr;
};

// Units of a segment that have a score: those that visible tokens belong to, and all clusters.
[[nodiscard]] std::uint32_t unit_count(const SegmentExtent& segment,
                                       const AbstractSpec& spec) noexcept;
// Tokens of [first, last) that lie in kept ranges; `from` is the first range that may.
[[nodiscard]] std::uint64_t kept_in(std::span<const TokenRange> kept, std::size_t from,
                                    std::uint64_t first, std::uint64_t last) noexcept;

}  // namespace kvtier
