// The kernel back ends of this build, best first, probed once. Any thread.
#pragma once

#include <span>
#include <string_view>

#include "kernels/kernel_table.h"

namespace kvtier {

// The tables that work on this machine, best first; the last is always "scalar". Static.
[[nodiscard]] std::span<const KernelTable* const> all_kernels() noexcept;

// "auto" or "": the first of all_kernels(); else the table of that name. kUnsupported for one that
// this machine cannot run, kNotFound for a name that is not known. Logs the choice. The table is
// static.
[[nodiscard]] Result<const KernelTable*> select_kernels(std::string_view name);

// What this thread ran last, for tests and diagnosis: the names of table, target and operation;
// null before the first.
struct KernelTrace {
  const char* table = nullptr;
  const char* target = nullptr;
  const char* op = nullptr;
};
[[nodiscard]] KernelTrace kernel_trace() noexcept;

namespace internal {
// Called by every operation of every back end as its first act.
void trace_kernel(const char* table, const char* target, const char* op) noexcept;
}  // namespace internal

}  // namespace kvtier
