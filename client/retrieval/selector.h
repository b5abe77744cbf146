// Selector: chooses the tokens of one (layer, KV head) that a query group attends to.
//
// Works on what it is handed: extents of sealed segments with pointers to abstracts, query vectors,
// ranges that are always kept, a budget. Knows nothing of tiers or sockets. Units whose abstract is
// not there count as +infinity: they are fetched, never skipped in silence. Deterministic: ties go
// to the older unit.
//
// One selector serves all layers and heads of a view in turn. Its scratch grows with the longest
// sequence seen (4 bytes per unit and query head, and 4 per selected token) and is reused: no
// allocation per step after the first. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "client/retrieval/preset.h"
#include "kernels/kernel_table.h"

namespace kvtier {

// Tokens [first, last) of a sequence.
struct TokenRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};

// One segment of the sequence, as seen by one (layer, KV head).
struct SegmentExtent {
  std::uint64_t first_token = 0;  // segments are ascending and without gaps, the first begins at 0
  std::uint32_t visible_tokens = 0;
  std::uint32_t units = 0;  // units that `abstracts` holds; may cover more than what is visible
  // f16 [units][vectors][dim] of this layer and head; null: not there (yet).
  const std::uint16_t* abstracts = nullptr;
};

struct SelectInput {
  std::span<const SegmentExtent> segments;
  std::span<const TokenRange> kept;  // ascending, disjoint; cut off at the end of the last segment
  const float* queries = nullptr;    // the group's vectors of this step
  std::uint64_t query_stride = 0;    // in floats
  std::uint32_t query_count = 0;
  std::uint32_t dim = 0;
  float scale = 1.0f;  // of the attention, e.g. 1 / sqrt(dim)
  std::uint32_t unit_tokens = 0;
  std::uint64_t budget_rows = 0;  // beside the kept rows; whole units are taken while they fit
};

struct Selection {
  // Strictly ascending, kept ones included; valid until the next select().
  std::span<const std::uint32_t> tokens;
  std::uint64_t kept_rows = 0;       // of them, rows of kept ranges
  std::uint64_t units_scored = 0;    // had an abstract
  std::uint64_t units_missing = 0;   // had none and counted as +infinity
  std::uint64_t abstract_bytes = 0;  // read for this selection
};

class Selector {
 public:
  // Both are static tables.
  Selector(const KernelTable* kernels, const Preset* preset) noexcept
      : kernels_(kernels), preset_(preset) {}

  // kInvalid for segments with gaps, ranges out of order, or arguments that the kernels refuse;
  // kTooLarge beyond kSequenceTokensMax. Does not block.
  [[nodiscard]] Result<Selection> select(const SelectInput& input);

  // Private memory of the scratch.
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept;

 private:
  // A run of tokens of one unit that may be chosen; `cost` of them are not in kept ranges.
  struct Candidate {
    std::uint32_t first = 0;
    std::uint16_t length = 0;
    std::uint16_t cost = 0;
  };
  struct Tally {
    std::uint64_t end_token = 0;    // of the sealed part
    std::uint64_t units = 0;        // all visible units
    std::uint64_t short_units = 0;  // candidates that cost less than unit_tokens
  };

  Result<void> score(const SelectInput& input, const Tally& tally, Selection* out);
  Result<void> score_segment(const SelectInput& input, const SegmentExtent& segment,
                             std::uint64_t row_units, float* out, Selection* totals);
  void collect(const SelectInput& input, Tally* tally);
  Result<void> choose(const SelectInput& input, const Tally& tally);
  void emit(const SelectInput& input, const Tally& tally, Selection* out);

  const KernelTable* kernels_;
  const Preset* preset_;
  std::vector<float> scores_;  // [query][unit], all units of the sequence; then per candidate
  std::vector<Candidate> candidates_;  // in token order
  std::vector<std::uint32_t> best_;    // numbers of the chosen candidates, ascending
  std::vector<std::uint32_t> tokens_;  // the selection
};

}  // namespace kvtier
