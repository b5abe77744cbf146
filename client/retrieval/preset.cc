#include "client/retrieval/preset.h"

#include <algorithm>
#include <vector>

namespace kvtier {
namespace {

AbstractSpec units(std::string_view text) { return *parse_abstract_spec(text); }

// The default first. What is not said has the default of preset.h.
std::vector<Preset> make_presets() {
  return {
      {.name = "codes", .abstract = units("codes:4/tokens")},
      {.name = "quest", .abstract = units("box/pages:16")},
      {.name = "mean", .abstract = units("mean/pages:16")},
      {.name = "sentencekv",
       .abstract = units("mean/sentences:128"),
       .query = QueryKind::kSentence,
       .group = GroupMode::kMeanScore,
       .cut = true},
      {.name = "louiskv",
       .abstract = units("mean/clusters:16"),
       .cut = true,
       .trigger = TriggerKind::kTurn,
       .level = 0.7f},
      {.name = "clusters",
       .abstract = units("mean/clusters:16"),
       .score = ScoreKind::kCount,
       .cut = true},
      {.name = "leoam",
       .abstract = units("box:3/pages:16"),
       .search = SearchKind::kTree,
       .group = GroupMode::kMeanScore,
       .scope = ScopeKind::kLayer,
       .cut = true,
       .flat_layers = 2},
      {.name = "freekv",
       .abstract = units("box/pages:32"),
       .query = QueryKind::kStepBefore,
       .level = 0.8f},
      {.name = "arkvale", .abstract = units("ball/pages:32")},
      {.name = "window", .budget = BudgetKind::kKept, .residency_percent = 0},
      {.name = "full", .budget = BudgetKind::kAll},
  };
}

}  // namespace

std::uint64_t Preset::cache_rows(std::uint64_t budget_rows, std::uint64_t kept_rows,
                                 std::uint64_t capacity) const noexcept {
  if (budget == BudgetKind::kKept) budget_rows = 0;
  const std::uint64_t wanted = capacity != 0 ? capacity
                                             : budget_rows / 100 * residency_percent +
                                                   budget_rows % 100 * residency_percent / 100;
  return std::max(wanted, budget_rows + kept_rows);
}

Result<void> Preset::validate() const {
  KVT_TRY_VOID(abstract.validate());
  const bool chooses = budget != BudgetKind::kAll && budget != BudgetKind::kKept;
  if (chooses && abstract.none())
    return error(Code::kInvalid, "a budget of rows needs an abstract to choose by");
  if (scope == ScopeKind::kLayer && abstract.partition == PartitionKind::kClusters)
    return error(Code::kInvalid,
                 "clusters are of one KV head each: scope \"layer\" needs pages, sentences, spans "
                 "or tokens");
  const bool has_share = budget == BudgetKind::kRatio || budget == BudgetKind::kMass;
  if (has_share && !(share > 0.0f && share <= 1.0f))
    return error(Code::kInvalid, "share is above 0 and at most 1");
  if (budget == BudgetKind::kMass && group != GroupMode::kMeanSoftmax)
    return error(Code::kInvalid, "a budget of mass needs group \"mean-softmax\"");
  if (search == SearchKind::kTree &&
      (abstract.abstract != AbstractKind::kBox || abstract.parameter == 0))
    return error(Code::kInvalid,
                 "search \"tree\" needs boxes with levels, e.g. \"box:3/pages:16\"");
  if (search == SearchKind::kTree && group != GroupMode::kMeanScore)
    return error(Code::kInvalid, "search \"tree\" needs group \"mean-score\"");
  if (query == QueryKind::kStepBefore && trigger != TriggerKind::kEveryStep)
    return error(Code::kInvalid, "query \"step-before\" goes with trigger \"every-step\"");
  if (trigger == TriggerKind::kEveryN && !(level >= 1.0f))
    return error(Code::kInvalid, "level of trigger \"every-n\" is 1 or more steps");
  if ((trigger == TriggerKind::kCosine || trigger == TriggerKind::kCosineHead ||
       trigger == TriggerKind::kTurn || query == QueryKind::kStepBefore) &&
      !(level > -1.0f && level <= 1.0f))
    return error(Code::kInvalid, "level of a cosine is above -1 and at most 1");
  return {};
}

std::span<const Preset> all_presets() {
  static const std::vector<Preset> presets = make_presets();
  return presets;
}

Result<const Preset*> find_preset(std::string_view name) {
  if (name.empty()) return &all_presets().front();
  for (const Preset& preset : all_presets())
    if (name == preset.name) return &preset;
  return error(
      Code::kNotFound,
      "no such preset: codes, quest, mean, sentencekv, louiskv, clusters, leoam, freekv, arkvale, "
      "window or full");
}

}  // namespace kvtier
