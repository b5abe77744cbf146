#include <cstring>

#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> gather_rows(const GatherRowsArgs& args, KernelStream) {
  begin("gather_rows");
  KVT_TRY_VOID(args.validate());
  if (args.row_bytes == 0) return {};
  for (std::uint64_t i = 0; i < *args.count; ++i) {
    const std::uint64_t target =
        args.out_offsets != nullptr ? args.out_offsets[i] : i * args.out_stride;
    std::memcpy(args.out + target, address_of(args.base, args.offsets[i]), args.row_bytes);
  }
  return {};
}

}  // namespace kvtier::scalar
