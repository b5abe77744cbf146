#include "kernels/scalar/base_row.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
Result<void> decode_base(const DecodeBaseArgs& args, KernelStream) {
  begin("decode_base");
  KVT_TRY_VOID(args.validate());
  const BaseFormat& format = args.pages.format;
  for (std::uint64_t n = 0; args.rows.range[0] + n < args.rows.range[1]; ++n) {
    const BaseRow row(args.pages, args.rows, n);
    for (std::uint32_t d = 0; args.out_k != nullptr && d < format.dim; ++d)
      store_element(args.out_k + n * args.k_stride, args.dtype, d, row.k(d));
    for (std::uint32_t d = 0; args.out_v != nullptr && d < format.v_dim; ++d)
      store_element(args.out_v + n * args.v_stride, args.dtype, d, row.v(d));
  }
  return {};
}

}  // namespace kvtier::scalar
