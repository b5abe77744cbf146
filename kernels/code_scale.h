// How score_codes turns tables of f32 into bytes: the numbers that all back ends share, computed
// once here so that they agree to the bit. The meaning stands at ScoreCodesArgs. Any thread.
#pragma once

#include <cstdint>

namespace kvtier {

struct CodeScale {
  float scale = 1.0f;
  float inverse = 0.0f;  // 1 / scale
  float bias = 0.0f;
  float error = 0.0f;  // bound on the distance of a score to the exact sum
};

// Of one table, whose sub-quantiser m has entries from low[m] to high[m]. `finite`: no entry is NaN
// or infinite. Where it is false, and where a range overflows, bias and error are NaN and inverse
// 0.
[[nodiscard]] CodeScale code_scale(const float* low, const float* high, std::uint32_t subspaces,
                                   bool finite) noexcept;

}  // namespace kvtier
