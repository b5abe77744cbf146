// Selector: chooses the tokens of one (layer, KV head) that a query group attends to.
//
// Works on what it is handed: extents of sealed segments with pointers to abstracts, query vectors,
// ranges that are always kept, a budget. Knows nothing of tiers or sockets. Tokens without an
// abstract form pages of kMissingUnitTokens and count as +infinity: they are fetched, never skipped
// in silence. Deterministic: ties go to the older unit. What is kept counts in the softmax of the
// group's scores and is left out of the choice.
//
// Two steps, so that a selection for a whole layer can add up the scores of its heads: score(),
// then choose() over the scores of the same extents. One selector serves all layers and heads of a
// view in turn. Its scratch grows with the longest sequence seen (4 bytes per unit and query head,
// 16 per candidate; with bounds 12 per unit more, with a certified budget twice the scores and 16
// per candidate more) and is reused: no allocation per step after the first. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "client/retrieval/preset.h"
#include "client/retrieval/select_input.h"
#include "client/retrieval/tree_search.h"
#include "kernels/kernel_table.h"

namespace kvtier {

struct Selection {
  // Strictly ascending, kept ones included; valid until the next choose().
  std::span<const std::uint32_t> tokens;
  std::uint64_t kept_rows = 0;       // of them, rows of kept ranges
  std::uint64_t units_scored = 0;    // had an abstract
  std::uint64_t units_missing = 0;   // had none and counted as +infinity
  std::uint64_t abstract_bytes = 0;  // read for this selection
  // Estimated share of the attention mass over stored tokens that are not kept which the chosen
  // ones hold. 1 where the group's scores are not masses.
  float mass = 1.0f;
  // Where asked for: the runners-up, rows of the best units that were not taken, ascending, none of
  // them among `tokens`. At most SelectInput::next_rows. Valid as `tokens` are.
  std::span<const std::uint32_t> next;
  // Where asked for: of each query, an upper bound of the logarithm of the attention mass (the sum
  // of exp(scale * q . k)) of all rows that are not among `tokens`; -infinity: there are none.
  // Empty where the scores bound no key (selector_bound.cc). Valid as `tokens` are.
  std::span<const float> missed;
};

class Selector {
 public:
  // Both outlive it.
  Selector(const KernelTable* kernels, const Preset* preset) noexcept
      : kernels_(kernels), preset_(preset), tree_(kernels) {}

  // One score per unit of all segments, for the group. Valid until the next score(). kInvalid for
  // segments with gaps, ranges out of order, or arguments that the kernels refuse; kTooLarge beyond
  // kSequenceTokensMax. Does not block.
  [[nodiscard]] Result<std::span<float>> score(const SelectInput& input);
  // The same for the heads of one selection together, over the levels of their boxes: the sum of
  // each head's mean score, and for a unit that was not looked at, that of the smallest box around
  // it that was. `heads` differ in data and queries only.
  [[nodiscard]] Result<std::span<float>> score_tree(std::span<const SelectInput> heads);
  // The best units by these scores. `scores`: as score() gave them for these extents, or sums of
  // them over heads; empty for presets that score nothing. They are used as scratch.
  [[nodiscard]] Result<Selection> choose(const SelectInput& input, std::span<float> scores);
  // Scores by the preset's search for one head, as choose() wants them.
  [[nodiscard]] Result<std::span<float>> scores_of(const SelectInput& input);
  // Both.
  [[nodiscard]] Result<Selection> select(const SelectInput& input);
  // An earlier selection of the same extents and kept ranges, `tokens`, as these scores see it: its
  // `mass` is what its rows hold now, those of a unit having the same each. Units without a score
  // count for nothing, and without any the mass is 1.
  [[nodiscard]] Result<Selection> weigh(const SelectInput& input, std::span<const float> scores,
                                        std::span<const std::uint32_t> tokens);

  // The preset takes scores into account at all.
  [[nodiscard]] bool scores_units() const noexcept {
    return preset_->budget != BudgetKind::kAll && preset_->budget != BudgetKind::kKept;
  }
  // Private memory of the scratch.
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept;

 private:
  // A unit that may be chosen; `cost` of its visible tokens are not kept anyway.
  struct Candidate {
    std::uint32_t segment = 0;
    std::uint32_t unit = 0;
    std::uint32_t cost = 0;
    std::uint32_t place = 0;  // of its scores; of grains nothing
  };

  // Of a unit's visible tokens, those that are not kept: all, and the marked ones.
  struct UnitRows {
    std::uint32_t free = 0;
    std::uint32_t marked = 0;
  };

  // Grows, never shrinks: scratch is reused from step to step.
  template <class T>
  static void make_room(std::vector<T>* scratch, std::uint64_t count) {
    if (scratch->size() < count) scratch->resize(static_cast<std::size_t>(count));
  }

  Result<void> check_input(const SelectInput& input);
  Result<void> bound_missed(const SelectInput& input, Selection* out);
  // The lower bounds of the products, as score_segment gives the upper ones, into lower_.
  Result<void> score_lower(const SelectInput& input);
  // Of budget "certified": how many of the first `found` of best_ are enough.
  Result<std::uint64_t> enough_units(const SelectInput& input, std::uint64_t found);
  std::uint64_t enough_for(const SelectInput& input, std::uint32_t query, std::uint64_t found,
                           double upper_factor, double lower_factor);
  [[nodiscard]] std::uint32_t unit_size(const SelectInput& input, const Candidate& unit) const;
  [[nodiscard]] float mean_error(const SelectInput& input, std::uint32_t query,
                                 const Candidate& unit) const;
  // exp(scale * score) of every unit into `out` (not `scores`), but for a factor, whose
  // logarithm it gives: -infinity where no score is finite. A score that is +infinity or NaN gives
  // +infinity.
  Result<double> masses_of(const SelectInput& input, const float* scores, float* out) const;
  Result<void> score_segment(const SelectInput& input, const SegmentExtent& segment, float* out);
  Result<void> make_tables(const SelectInput& input);
  Result<void> score_codes(const SelectInput& input);
  Result<void> score_own_codes(const SelectInput& input, const SegmentExtent& segment,
                               std::uint64_t known, float* out);
  void add_counts(const SelectInput& input);
  // In scores_: kept units come last in the order of each query head.
  void leave_out_kept(const SelectInput& input);
  std::uint64_t rows_allowed(const SelectInput& input) const;
  template <class RowsOf>
  std::uint64_t rows_worth(const SelectInput& input, std::span<const float> scores,
                           const RowsOf& rows_of) const;
  // f(unit) of every unit of segments, kept ones too: their cost is 0.
  template <class F>
  void for_each_unit(const SelectInput& input, const F& f) const;
  void collect(const SelectInput& input, std::span<float> scores);
  void collect_grains(const SelectInput& input, std::span<float> scores);
  // Of candidates_, whose scores come first in `scores`.
  Result<void> choose_units(const SelectInput& input, std::span<float> scores, Selection* out);
  Result<void> choose_tokens(const SelectInput& input, std::span<float> scores, Selection* out);
  double weigh_units(const SelectInput& input, std::span<const float> scores) const;
  // Where all kept tokens are marked.
  UnitRows rows_of(const SelectInput& input, const Candidate& unit) const;
  void clear_marks();
  void mark(std::uint64_t first, std::uint64_t last);
  [[nodiscard]] std::uint32_t marked_in(std::uint64_t first, std::uint64_t last) const;
  TokenRange range_of(const SelectInput& input, const Candidate& unit) const;
  template <class F>
  void for_each_member(const SelectInput& input, const Candidate& unit, const F& f) const;
  void mark_unit(const SelectInput& input, const Candidate& unit);
  // Its tokens that are neither marked nor kept, while there is room for runners-up.
  void add_next(const SelectInput& input, const Candidate& unit);
  // The first `rows` of its tokens that are not kept.
  void mark_first(const SelectInput& input, const Candidate& unit, std::uint64_t rows);
  void emit(Selection* out);

  const KernelTable* kernels_;
  const Preset* preset_;
  std::uint64_t end_token_ = 0;  // of the sealed part
  std::uint64_t units_ = 0;      // of all segments
  TreeSearch tree_;
  Selection tally_;            // what score() counted
  bool bounded_ = false;       // scores_ bound the products of keys, and are as they were scored
  std::vector<float> scores_;  // [query][unit]
  std::vector<float> weights_, left_, masses_, missed_;  // of bounds
  std::vector<float> turned_, lower_, least_;            // of a certified budget
  std::vector<double> rest_, taken_;
  std::vector<float> moved_;   // queries in the codebook's coordinates
  std::vector<float> tables_;  // of codes; of own codes, a segment's at a time
  std::vector<std::uint64_t> pieces_, piece_starts_;
  std::vector<Candidate> candidates_;  // in token order
  std::vector<std::uint32_t> best_;    // numbers of the chosen candidates or tokens
  std::vector<std::uint64_t> chosen_;  // a bit per token
  std::vector<std::uint32_t> tokens_;  // the selection
  std::vector<std::uint32_t> next_;    // and the runners-up
};

}  // namespace kvtier
