// Low-rank keys of one segment and layer: the best approximation of the keys before rotation, all
// KV heads side by side, as coefficients times a basis (ShadowKV, arXiv 2410.21465: the truncated
// singular value decomposition; nothing is subtracted first).
//
// The basis are the largest eigenvectors of keys^T x keys, exact up to kLowRankDirectWidth and
// found by subspace iteration above it: eight rounds, a little beside the best, in a tenth of the
// time. Both take a time that depends on the shape only. Deterministic. Any thread; allocates.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/low_rank_layout.h"

namespace kvtier {

inline constexpr std::uint32_t kLowRankDirectWidth = 256;

struct LowRankPlaces {
  std::uint16_t* coefficients = nullptr;  // f16 [tokens][rank]
  std::vector<std::uint16_t*> bases;      // of each head: f16 [rank][dim]
};

// `keys` is [tokens][shape.width()], finite, with at least shape.rank tokens. False where no basis
// was found.
[[nodiscard]] bool factorise_keys(const LowRankShape& shape, std::span<const float> keys,
                                  const LowRankPlaces& out);

}  // namespace kvtier
