// The kernels that this process runs: the best of the machine, or those that the environment
// variable KVTIER_KERNELS names, as --kernels does for the daemon. Any thread.
#pragma once

#include "kernels/kernel_table.h"

namespace kvtier {

// kNotFound or kUnsupported, with the names that would do in the error's text. Static.
[[nodiscard]] Result<const KernelTable*> client_kernels();

}  // namespace kvtier
