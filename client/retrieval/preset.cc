#include "client/retrieval/preset.h"

#include <algorithm>
#include <vector>

namespace kvtier {
namespace {

AbstractSpec abstract(AbstractKind kind, PartitionKind partition, std::uint16_t unit_tokens,
                      std::uint8_t parameter = 0) {
  return {partition, kind, unit_tokens, parameter};
}

// What is not said has the default of preset.h.
std::vector<Preset> make_presets() {
  const AbstractSpec none;
  const AbstractSpec boxes = abstract(AbstractKind::kBox, PartitionKind::kPages, 16);
  std::vector<Preset> all;
  all.push_back({.name = "quest", .abstract = boxes});
  all.push_back(
      {.name = "mean", .abstract = abstract(AbstractKind::kMean, PartitionKind::kPages, 16)});
  all.push_back({.name = "sentencekv",
                 .abstract = abstract(AbstractKind::kMean, PartitionKind::kSentences, 128),
                 .query = QueryKind::kSentence});
  all.push_back({.name = "louiskv",
                 .abstract = abstract(AbstractKind::kMean, PartitionKind::kClusters, 16),
                 .trigger = TriggerKind::kCosine,
                 .level = 0.7f});
  all.push_back({.name = "clusters",
                 .abstract = abstract(AbstractKind::kMean, PartitionKind::kClusters, 16),
                 .score = ScoreKind::kCount});
  all.push_back(
      {.name = "codes", .abstract = abstract(AbstractKind::kCodes, PartitionKind::kTokens, 1, 4)});
  all.push_back(
      {.name = "window", .abstract = none, .budget = BudgetKind::kKept, .residency_percent = 0});
  all.push_back({.name = "full", .abstract = none, .budget = BudgetKind::kAll});
  return all;
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
  if (trigger == TriggerKind::kEveryN && !(level >= 1.0f))
    return error(Code::kInvalid, "level of trigger \"every-n\" is 1 or more steps");
  if ((trigger == TriggerKind::kCosine || trigger == TriggerKind::kCosineHead) &&
      !(level > -1.0f && level <= 1.0f))
    return error(Code::kInvalid, "level of a cosine trigger is above -1 and at most 1");
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
  return error(Code::kNotFound,
               "no such preset: quest, mean, sentencekv, louiskv, clusters, codes, window or full");
}

}  // namespace kvtier
