#include "client/retrieval/preset.h"

#include <algorithm>
#include <array>

namespace kvtier {
namespace {

constexpr std::array<Preset, 4> kPresets = {{
    // name, partition, abstract, query, group, budget, trigger, residency, residency_percent
    {"quest", PartitionKind::kPages, AbstractKind::kBox, QueryKind::kCurrent,
     GroupMode::kMeanSoftmax, BudgetKind::kRows, TriggerKind::kEveryStep, ResidencyKind::kLru, 200},
    {"mean", PartitionKind::kPages, AbstractKind::kMean, QueryKind::kCurrent,
     GroupMode::kMeanSoftmax, BudgetKind::kRows, TriggerKind::kEveryStep, ResidencyKind::kLru, 200},
    {"window", PartitionKind::kPages, AbstractKind::kNone, QueryKind::kCurrent, GroupMode::kMax,
     BudgetKind::kKept, TriggerKind::kEveryStep, ResidencyKind::kLru, 0},
    {"full", PartitionKind::kPages, AbstractKind::kNone, QueryKind::kCurrent, GroupMode::kMax,
     BudgetKind::kAll, TriggerKind::kEveryStep, ResidencyKind::kLru, 0},
}};

}  // namespace

std::uint64_t Preset::cache_rows(std::uint64_t budget_rows, std::uint64_t kept_rows,
                                 std::uint64_t capacity) const noexcept {
  if (budget == BudgetKind::kKept) budget_rows = 0;
  const std::uint64_t wanted = capacity != 0 ? capacity
                                             : budget_rows / 100 * residency_percent +
                                                   budget_rows % 100 * residency_percent / 100;
  return std::max(wanted, budget_rows + kept_rows);
}

std::span<const Preset> all_presets() noexcept { return kPresets; }

Result<const Preset*> find_preset(std::string_view name) noexcept {
  if (name.empty()) return &kPresets[0];
  for (const Preset& preset : kPresets)
    if (name == preset.name) return &preset;
  return error(Code::kNotFound, "no such preset: quest, mean, window or full");
}

}  // namespace kvtier
