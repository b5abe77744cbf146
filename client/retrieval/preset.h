// Preset: a way to choose rows, as a row of a table over orthogonal parts. A preset has no code of
// its own.
//
// Parts: partition (which tokens form a unit), abstract (what stands for a unit), query (what is
// scored against it), score over the group of query heads, budget (how much is taken), trigger
// (when to choose anew), residency (how many rows stay beside those in use). A new preset is one
// line in preset.cc; a new part one value here and one case where it is used.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"
#include "kernels/kernel_table.h"

namespace kvtier {

enum class PartitionKind : std::uint8_t {
  kPages = 0
};  // unit_tokens consecutive tokens of a segment
enum class QueryKind : std::uint8_t { kCurrent = 0 };  // the query vectors of this step
enum class BudgetKind : std::uint8_t {
  kAll = 0,   // every row; abstracts are not read
  kKept = 1,  // only what is always kept (sinks, window)
  kRows = 2,  // up to a number of rows beside what is kept, best units first
};
enum class TriggerKind : std::uint8_t { kEveryStep = 0 };
enum class ResidencyKind : std::uint8_t { kLru = 0 };

struct Preset {
  const char* name;
  PartitionKind partition;
  AbstractKind abstract;  // kNone: nothing is scored
  QueryKind query;
  GroupMode group;
  BudgetKind budget;
  TriggerKind trigger;
  ResidencyKind residency;
  // Rows of the slot cache, in per cent of the budget, where the user says nothing.
  std::uint32_t residency_percent;

  // Rows that a slot cache needs: `capacity` (0: residency_percent of the budget), and never less
  // than what one selection may hold (budget_rows + kept_rows). Only for kKept and kRows.
  [[nodiscard]] std::uint64_t cache_rows(std::uint64_t budget_rows, std::uint64_t kept_rows,
                                         std::uint64_t capacity) const noexcept;
};

// All presets: "full", "window", "quest", "mean". Static.
[[nodiscard]] std::span<const Preset> all_presets() noexcept;
// By name; "" is "quest". kNotFound with the names there are. Static.
[[nodiscard]] Result<const Preset*> find_preset(std::string_view name) noexcept;

}  // namespace kvtier
