#include "kernels/code_layout.h"

#include <cmath>

#include "kernels/float16.h"
#include "kernels/row_pages.h"

namespace kvtier {

Result<void> check_code_subspaces(std::uint32_t subspaces) noexcept {
  if (subspaces < 2 || subspaces % 2 != 0 || subspaces > kCodeSubspacesMax)
    return error(Code::kUnsupported, "key codes have an even number of sub-quantisers, 2 to 64");
  return {};
}

Result<void> CodeBook::validate() const noexcept {
  KVT_TRY_VOID(check_code_subspaces(subspaces));
  if (dtype != Dtype::kF32 && dtype != Dtype::kF16)
    return error(Code::kUnsupported, "the entries of a codebook are f32 or f16");
  if (dim < kKernelDimStep || dim % kKernelDimStep != 0 || dim > kHeadDimMax)
    return error(Code::kUnsupported, "a codebook is for keys of 8 to 1024 dims, in steps of 8");
  return {};
}

Result<void> CodeBook::check_contents() const noexcept {
  KVT_TRY_VOID(validate());
  if (first[0] != 0) return error(Code::kInvalid, "a codebook's first dims must begin at 0");
  for (std::uint32_t m = 0; m < subspaces; ++m)
    if (first[m + 1] < first[m])
      return error(Code::kInvalid, "a codebook's first dims must ascend");
  const std::uint32_t total = first[subspaces];
  if (total > kCodeDimsFactorMax * dim)
    return error(Code::kInvalid,
                 "a codebook's sub-quantisers see at most 4 times the dims of a key");
  for (std::uint32_t i = 0; i < total; ++i)
    if (dims[i] >= dim)
      return error(Code::kInvalid, "a codebook names a dim that keys do not have");
  for (std::uint32_t i = 0; i < kCodeEntries * total; ++i)
    if (!std::isfinite(load_element(entries, dtype, i)))
      return error(Code::kInvalid, "a codebook has an entry that is not finite");
  return {};
}

}  // namespace kvtier
