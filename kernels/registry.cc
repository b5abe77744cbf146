#include "kernels/registry.h"

#include <array>

#include "base/log.h"
#include "kernels/scalar/scalar.h"
#include "kernels/simd/simd.h"

namespace kvtier {
namespace {

// Every table of this build, best first. A new back end is one line here.
const std::array<const KernelTable*, 2> kAll = {&simd_kernels, &scalar_kernels};

struct Available {
  std::array<const KernelTable*, kAll.size()> tables{};
  std::size_t count = 0;
};

const Available& available() noexcept {
  static const Available probed = [] {
    Available result;
    for (const KernelTable* table : kAll)
      if (table->available()) result.tables[result.count++] = table;
    return result;
  }();
  return probed;
}

thread_local KernelTrace last_kernel;

}  // namespace

std::span<const KernelTable* const> all_kernels() noexcept {
  return {available().tables.data(), available().count};
}

Result<const KernelTable*> select_kernels(std::string_view name) {
  const KernelTable* chosen = nullptr;
  if (name.empty() || name == "auto") chosen = all_kernels().front();
  for (const KernelTable* table : all_kernels())
    if (chosen == nullptr && name == table->name) chosen = table;
  if (chosen == nullptr) {
    for (const KernelTable* table : kAll)
      if (name == table->name)
        return error(Code::kUnsupported, "this machine cannot run these kernels; use auto");
    return error(Code::kNotFound, "no such kernels: auto, simd or scalar");
  }
  KVT_LOG(kInfo, "kernels: %s (%s)", chosen->name, chosen->target());
  return chosen;
}

KernelTrace kernel_trace() noexcept { return last_kernel; }

namespace internal {
void trace_kernel(const char* table, const char* target, const char* op) noexcept {
  last_kernel = {table, target, op};
}
}  // namespace internal

}  // namespace kvtier
