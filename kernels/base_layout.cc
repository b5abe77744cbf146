#include "kernels/base_layout.h"

#include "kernels/row_pages.h"

namespace kvtier {

Result<void> BaseFormat::validate() const noexcept {
  for (const std::uint32_t dims : {dim, v_dim})
    if (dims < kKernelDimStep || dims % kKernelDimStep != 0 || dims > kHeadDimMax)
      return error(Code::kUnsupported,
                   "base renditions take head dimensions that are multiples of 8, from 8 to 1024");
  for (const std::uint32_t bits : {k_bits, v_bits})
    if (!base_bits_fit(bits))
      return error(Code::kUnsupported, "base renditions have 8, 6, 5, 4 or 3 bits");
  return {};
}

}  // namespace kvtier
