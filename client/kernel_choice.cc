#include "client/kernel_choice.h"

#include <cstdlib>
#include <string>

#include "client/last_error.h"
#include "kernels/registry.h"

namespace kvtier {

Result<const KernelTable*> client_kernels() {
  const char* const named = std::getenv("KVTIER_KERNELS");
  const std::string name = named == nullptr ? "" : named;
  const auto chosen = select_kernels(name);
  if (chosen) return chosen;
  std::string known = "auto";
  for (const KernelTable* table : all_kernels()) known += std::string(", ") + table->name;
  const bool unknown = chosen.error().code == Code::kNotFound;
  return error_with(chosen.error().code, "KVTIER_KERNELS is \"%s\": %s; it may be %s", name.c_str(),
                    unknown ? "no such kernels" : "not for this machine", known.c_str());
}

}  // namespace kvtier
