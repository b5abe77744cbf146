// The order of scores in top_k, as a number: a larger key is a better score. NaN equals +infinity,
// -0 equals +0.
#pragma once

#include <bit>
#include <cstdint>

namespace kvtier {

[[nodiscard]] inline std::uint32_t score_key(float score) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 becomes +0
  if ((bits & 0x7FFFFFFFu) >= 0x7F800000u) {
    return bits == 0xFF800000u ? 0x007FFFFFu : 0xFF800000u;
  }
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Whether unit a comes before unit b, best first.
[[nodiscard]] inline bool scores_better(const float* scores, std::uint32_t a,
                                        std::uint32_t b) noexcept {
  const std::uint32_t key_a = score_key(scores[a]);
  const std::uint32_t key_b = score_key(scores[b]);
  return key_a != key_b ? key_a > key_b : a < b;
}

}  // namespace kvtier
