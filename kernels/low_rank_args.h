// Arguments of the operation on low-rank keys (kernels/low_rank_layout.h). The rules of
// kernels/kernel_table.h hold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "kernels/geometry.h"
#include "kernels/rotation.h"

namespace kvtier {

// Keys of *count rows of one KV head:
//   key[d] = sum over r of coefficients[r] * basis[r][d]
// then turned by the cosines and sines of its row (turn_row), and rounded to `dtype`. Row i's
// coefficients, f16 [rank], lie at base + offsets[i]; with a null base offsets are addresses. Sums
// in f32.
struct RebuildKeysArgs {
  const std::byte* base = nullptr;
  const std::uint64_t* offsets = nullptr;
  const std::uint64_t* count = nullptr;
  const std::uint16_t* basis = nullptr;  // f16 [rank][dim]
  std::uint32_t rank = 0;                // 1 to kLowRankMax
  std::uint32_t dim = 0;
  Rotation::Pairing pairing = Rotation::Pairing::kNone;  // kNone: rows are not turned
  std::uint32_t pairs = 0;                               // at most dim / 2
  const float* turns = nullptr;                          // [*count][2][pairs]
  Dtype dtype = Dtype::kF32;
  std::byte* out = nullptr;
  const std::uint64_t* out_offsets = nullptr;  // row i goes to out + out_offsets[i]
  [[nodiscard]] Result<void> validate() const noexcept;
};

}  // namespace kvtier
