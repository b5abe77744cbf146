// Preset: a way to choose rows, as a row of a table over orthogonal parts. A preset has no code of
// its own: every part is read where it acts, whatever the preset is called.
//
//   abstract   which units there are and what stands for their keys (kernels/abstract_spec.h)
//   query      what is scored against them
//   search     whether every unit is scored
//   score      whether a unit's length counts
//   group      how the scores of the query heads that share a KV head become one
//   budget     how much is taken, and in which layers more of it
//   trigger    when to choose anew
//   fetch      when the rows of a choice are brought, and what is hinted at beside them
//   residency  how many rows stay in the slot cache beside those in use
//   precision  from which copy rows are attended, and which of them must be exact
// docs/retrieval.md has the table. A new preset is one row in preset.cc, or a user's file
// (preset_text.h); a new part one value here, its word in preset_text.cc and one case where it acts
// (docs/extending.md).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/abstract_spec.h"
#include "kernels/kernel_table.h"

namespace kvtier {

enum class QueryKind : std::uint8_t {
  kCurrent = 0,   // the query vectors of this step
  kSentence = 1,  // their mean since the last sentence boundary (SentenceKV, section 3)
  // Those of the step before: what they choose can be fetched behind that step. A KV head whose
  // queries turned (mean cosine to them below `level`) has its own (FreeKV, arXiv 2505.13109).
  kStepBefore = 2,
  // Those of the layer below in this step: what they choose is known a layer ahead. The lowest
  // layer has its own.
  kLayerBefore = 3,
  // Of several queries in one call, as of a question over a stored document, all together: a block
  // of them chooses once, by the mean of its queries' scores, with a group of maxima the largest.
  // One query alone is as kCurrent. Every other kind attends exactly where there are several.
  kBlock = 4,
};
enum class SearchKind : std::uint8_t {
  kFlat = 0,
  // Boxes of the coarsest level first, and halves of those that the budget would take, level by
  // level (LeoAM, arXiv 2506.20187, section 4.2).
  kTree = 1,
};
enum class ScoreKind : std::uint8_t {
  kPlain = 0,
  kCount = 1,  // + log of the unit's tokens: a centroid stands for all of them
  // Of representatives the largest product, in place of their mean: what the best of them says.
  kLargest = 2,
};
// Over which scores one selection is made.
enum class ScopeKind : std::uint8_t {
  kHead = 0,   // one per KV head
  kLayer = 1,  // one per layer, from the sum over its KV heads (LeoAM)
};
enum class BudgetKind : std::uint8_t {
  kAll = 0,    // every row; abstracts are not read
  kKept = 1,   // only what is always kept (sinks, window)
  kRows = 2,   // up to the view's budget of rows beside what is kept, best units first
  kRatio = 3,  // up to `share` of the stored rows, at most the view's budget
  // Until `share` of the estimated mass beside kept rows is held, at most the view's budget.
  kMass = 4,
  // As many rows as a uniform distribution would have whose entropy is that of the estimated one,
  // from `share` of the view's budget up to all of it: a head that looks everywhere gets more than
  // one that looks at few rows. The idea is ActQKV's (arXiv 2502.13542), the formula ours: theirs
  // has a largest entropy per model to be found first.
  kEntropy = 5,
  // Until what is left out has at most 1 - `share` of the attention mass of each query head of the
  // group, whatever the keys are: by the bounds that the abstract gives, against the exact mass of
  // what is always attended to and a lower bound of that of the units taken. At most the view's
  // budget, where nothing is certain then (selector_bound.cc).
  kCertified = 6,
};
enum class TriggerKind : std::uint8_t {
  kEveryStep = 0,
  kEveryN = 1,      // every `level` steps of the layer
  kCosine = 2,      // mean over the layer's query heads of cos(query, query of the last selection)
                    // below `level`
  kCosineHead = 3,  // the same per KV head
  kBoundary = 4,    // after a token that ends a sentence
  kTurn = 5,        // mean over the layer's query heads of cos(query, query of the step before)
                    // below `level` (LouisKV, arXiv 2510.11292, section 4.1)
  // Where the rows of the last choice leave more than `level` of the mass outside, by the scores of
  // this step. It scores at every step, so it saves fetches and the choice, not the scoring.
  kMass = 6,
};

// What happens to a row that must be exact and is not.
enum class RefineKind : std::uint8_t {
  kWait = 0,    // it is fetched and exact in this step: one batch for all heads of the layer
  kBehind = 1,  // this step has it from the base rendition; it comes with the next step's rows
};

enum class FetchKind : std::uint8_t {
  kDemand = 0,  // the step that chooses them waits for the rows that it lacks
  // What the caller's guess of the layer's queries would choose comes while the layer before
  // computes (kvt_view_look_ahead; InfiniGen, arXiv 2406.19707, section 4.3, guesses so). The step
  // then chooses with its own queries and waits for the rest: what is attended to does not change.
  // With a precision, only of rows that will have to be exact.
  kAhead = 1,
  // What the step's queries choose comes behind the step, for the next one (FreeKV, arXiv
  // 2505.13109, section 3.2, speculative retrieval). With query kStepBefore.
  kBehind = 2,
};

inline constexpr std::uint32_t kRunTokensMax = 256;
inline constexpr std::uint32_t kLayerPercentMax = 1000;

struct Preset {
  std::string name;
  AbstractSpec abstract = {};  // none: nothing is scored
  QueryKind query = QueryKind::kCurrent;
  SearchKind search = SearchKind::kFlat;
  ScoreKind score = ScoreKind::kPlain;
  GroupMode group = GroupMode::kMeanSoftmax;
  ScopeKind scope = ScopeKind::kHead;
  BudgetKind budget = BudgetKind::kRows;
  float share = 0.0f;
  // Budgets of the layers from the first one on, in per cent of the view's; the last entry is of
  // all further layers, too. At 0 a layer attends to what is always kept.
  std::vector<std::uint32_t> layer_percent = {100};
  bool cut = false;  // the first rows of the unit that fits no more are taken, too
  TriggerKind trigger = TriggerKind::kEveryStep;
  float level = 0.0f;
  FetchKind fetch = FetchKind::kDemand;
  // Where rows come from the disk, so many of the next best, in per cent of the budget, are named
  // to the daemon after each choice: it reads them behind what anybody waits for, and what it has
  // not begun when the layer chooses anew is dropped.
  std::uint32_t runners_up_percent = 0;
  // Of single tokens: so many neighbours are taken together, by the sum of their masses, which is
  // the log-sum-exp of their scores. 0: one where rows come from memory, more where from the disk.
  std::uint32_t run_tokens = 0;
  // Rows of the slot cache, in per cent of the budget, where the user says nothing.
  std::uint32_t residency_percent = 200;
  // A rendition; none: all rows are exact. From a base rendition (AbstractKind::kBase) chosen rows
  // are attended where they are neither kept nor exact in the slot cache. Of them, those that have
  // more than `exact_above` of the step's attention mass, as the base has it (mean over the query
  // heads of the group), are refined: fetched exactly, into the slot cache. With low-rank keys
  // (AbstractKind::kLowRank) rows enter the slot cache as their values alone, and their keys are
  // rebuilt there (ShadowKV, arXiv 2410.21465); kept rows enter whole.
  AbstractSpec precision = {};
  float exact_above = 0.01f;
  RefineKind refine = RefineKind::kWait;
  // Layers below this one attend to everything.
  std::uint32_t dense_layers = 0;
  // Layers below this one score every unit, whatever `search` says.
  std::uint32_t flat_layers = 0;

  [[nodiscard]] std::uint32_t percent_in(std::uint32_t layer) const noexcept;
  // The layer's budget, where the view's is `budget_rows`; no more than a sequence can have.
  [[nodiscard]] std::uint64_t rows_in(std::uint32_t layer,
                                      std::uint64_t budget_rows) const noexcept;
  // Rows that a slot cache needs, of a layer with this budget: `capacity` (0: residency_percent of
  // the budget), and never less than what one selection may hold (budget_rows + kept_rows). Not for
  // kAll.
  [[nodiscard]] std::uint64_t cache_rows(std::uint64_t budget_rows, std::uint64_t kept_rows,
                                         std::uint64_t capacity) const noexcept;
  // kInvalid with what fits, for parts that do not go together.
  [[nodiscard]] Result<void> validate() const;
  friend bool operator==(const Preset&, const Preset&) = default;
};

// The floor; `rows` times `percent` may be more than a number holds.
[[nodiscard]] constexpr std::uint64_t percent_of(std::uint64_t rows,
                                                 std::uint32_t percent) noexcept {
  return rows / 100 * percent + rows % 100 * percent / 100;
}

// All presets, the default first. Static.
[[nodiscard]] std::span<const Preset> all_presets();
// By name; "" is the default. kNotFound with the names that there are. Static.
[[nodiscard]] Result<const Preset*> find_preset(std::string_view name);

}  // namespace kvtier
