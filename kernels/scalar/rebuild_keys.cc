#include <array>

#include "base/limits.h"
#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> rebuild_keys(const RebuildKeysArgs& args, KernelStream) {
  begin("rebuild_keys");
  KVT_TRY_VOID(args.validate());
  const auto* basis = reinterpret_cast<const std::byte*>(args.basis);
  std::array<float, kHeadDimMax> key{};
  for (std::uint64_t i = 0; i < *args.count; ++i) {
    const std::byte* coefficients = address_of(args.base, args.offsets[i]);
    for (std::uint32_t d = 0; d < args.dim; ++d) {
      double sum = 0.0;
      for (std::uint32_t r = 0; r < args.rank; ++r)
        sum +=
            static_cast<double>(load_element(coefficients, Dtype::kF16, r)) *
            static_cast<double>(load_element(basis, Dtype::kF16, std::uint64_t{r} * args.dim + d));
      key[d] = static_cast<float>(sum);
    }
    turn_row(args.pairing, args.pairs, args.turns + i * 2 * args.pairs, false, key.data());
    for (std::uint32_t d = 0; d < args.dim; ++d)
      store_element(args.out + args.out_offsets[i], args.dtype, d, key[d]);
  }
  return {};
}

}  // namespace kvtier::scalar
