#include <cmath>

#include "kernels/float16.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> all_finite(const AllFiniteArgs& args, KernelStream) {
  begin("all_finite");
  KVT_TRY_VOID(args.validate());
  std::uint64_t i = 0;
  while (i < *args.count && std::isfinite(load_element(args.data, args.dtype, i))) ++i;
  *args.out_index = i;
  return {};
}

}  // namespace kvtier::scalar
