// The conversions between f32 and the 16-bit formats, one element at a time: the meaning that all
// back ends follow.
//
// To 16 bits: round to nearest even, too large becomes infinity. A NaN keeps its sign and leading
// payload and becomes quiet, as the conversion instructions of CPUs do. Any thread.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/geometry.h"

namespace kvtier {

[[nodiscard]] inline float f16_to_f32(std::uint16_t half) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  if (exponent == 31) {
    const std::uint32_t quiet = mantissa != 0 ? 0x00400000u : 0u;
    return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13) | quiet);
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;  // exact
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

[[nodiscard]] inline std::uint16_t f32_to_f16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u)
    return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u)
    return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and more
  if (magnitude < 0x38800000u) {                        // below 2^-14: subnormal
    // Adding 0.5 puts the units of 2^-24 into the lowest bits, rounded to nearest even by the
    // addition itself.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13));
}

// The largest f16 that is not above, the smallest that is not below a value that is not NaN.
[[nodiscard]] inline std::uint16_t f32_to_f16_down(float value) noexcept {
  const std::uint16_t half = f32_to_f16(value);
  if (!(f16_to_f32(half) > value)) return half;
  if (half == 0) return 0x8001;
  return static_cast<std::uint16_t>((half & 0x8000u) != 0 ? half + 1 : half - 1);
}
[[nodiscard]] inline std::uint16_t f32_to_f16_up(float value) noexcept {
  return static_cast<std::uint16_t>(f32_to_f16_down(-value) ^ 0x8000u);
}

[[nodiscard]] inline float bf16_to_f32(std::uint16_t half) noexcept {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return std::bit_cast<float>(bits | (nan ? 0x00400000u : 0u));
}

[[nodiscard]] inline std::uint16_t f32_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Element `index` of a row of f32, f16 or bf16, at any alignment.
[[nodiscard]] inline float load_element(const std::byte* row, Dtype dtype,
                                        std::uint64_t index) noexcept {
  if (dtype == Dtype::kF32) {
    float value;
    std::memcpy(&value, row + index * sizeof(value), sizeof(value));
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, row + index * sizeof(half), sizeof(half));
  return dtype == Dtype::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
}
inline void store_element(std::byte* row, Dtype dtype, std::uint64_t index, float value) noexcept {
  if (dtype == Dtype::kF32) {
    std::memcpy(row + index * sizeof value, &value, sizeof value);
    return;
  }
  const std::uint16_t half = dtype == Dtype::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  std::memcpy(row + index * sizeof half, &half, sizeof half);
}

}  // namespace kvtier
