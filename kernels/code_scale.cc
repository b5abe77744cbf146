#include "kernels/code_scale.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace kvtier {
namespace {

// 10 significant bits times a sum below 2^14: a product of 24 bits is exact, and so it does not
// matter whether a back end fuses it with the addition of the bias.
constexpr std::uint32_t kDroppedBits = 14;
constexpr float kScaleMin = 0x1p-100f;  // its reciprocal is finite

float round_up(float value) {
  constexpr std::uint32_t kDropped = (1u << kDroppedBits) - 1;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(value) + kDropped) & ~kDropped);
}

}  // namespace

CodeScale code_scale(const float* low, const float* high, std::uint32_t subspaces,
                     bool finite) noexcept {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  float range = 0.0f;
  double bias = 0.0;
  for (std::uint32_t m = 0; m < subspaces; ++m) {
    range = std::max(range, high[m] - low[m]);
    bias += static_cast<double>(low[m]);
  }
  if (!finite || !std::isfinite(range)) return {1.0f, 0.0f, kNan, kNan};
  CodeScale result;
  result.scale = std::max(round_up(range / 255.0f), kScaleMin);
  result.inverse = 1.0f / result.scale;
  result.bias = static_cast<float>(bias);
  // Half a step per sub-quantiser; the small parts are the roundings of quotient, bias and score.
  const double step = static_cast<double>(result.scale);
  const double largest = std::abs(bias) + step * 255.0 * subspaces;
  result.error = static_cast<float>(step * subspaces * (0.5 + 0x1p-12) + largest * 0x1p-22);
  return result;
}

}  // namespace kvtier
