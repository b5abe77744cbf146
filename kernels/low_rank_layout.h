// Low-rank keys: the keys of one segment and layer, all KV heads side by side, before rotation, as
// coefficients [tokens][rank] times a basis [rank][heads x dim]. One place for everybody who writes
// or reads them. f16, rounded to nearest and cut at +-65504.
//
// The rank is in 64ths of the width (heads x dim): ShadowKV's (arXiv 2410.21465) is 10 of them, 160
// of 1,024. A basis is kept in parts, one of each head, [rank][dim]: a head's keys need no other.
// What turns them lies once for all layers:
//   u32 pairing, u32 pairs, f32 frequencies[room]   (kernels/rotation.h)
//   u32 positions[tokens]
// `room` is half the dimensions of the widest layer, at least 1.
#pragma once

#include <cstdint>

#include "base/limits.h"

namespace kvtier {

inline constexpr std::uint32_t kLowRankUnit = 64;          // of the width
inline constexpr std::uint32_t kLowRankParameterMax = 32;  // half of the width: no saving beyond
// Wider layers have none: a factorisation takes width^3 steps.
inline constexpr std::uint32_t kLowRankWidthMax = 2048;
inline constexpr std::uint32_t kLowRankMax = kLowRankWidthMax * kLowRankParameterMax / kLowRankUnit;

// Of one layer of a segment.
struct LowRankShape {
  std::uint32_t heads = 0;
  std::uint32_t dim = 0;
  std::uint32_t rank = 0;

  [[nodiscard]] constexpr std::uint32_t width() const noexcept { return heads * dim; }
  [[nodiscard]] constexpr std::uint64_t coefficient_bytes(std::uint64_t tokens) const noexcept {
    return tokens * rank * 2;
  }
  [[nodiscard]] constexpr std::uint64_t basis_bytes() const noexcept {  // of a head
    return std::uint64_t{rank} * dim * 2;
  }
};

struct LowRankTurns {
  std::uint32_t pairing = 0;
  std::uint32_t pairs = 0;
};

}  // namespace kvtier
