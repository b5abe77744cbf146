// Own codes: the keys of one segment, layer and KV head, product-quantised by a codebook trained on
// these keys alone (PQCache, arXiv 2407.12820; its code: 2 sub-spaces, 64 entries). In each
// sub-space Euclidean k-means: evenly spaced keys to begin with, then at most kOwnCodeIterations
// moves, or until no key changes its entry. With 64 keys or fewer every key is an entry. A centroid
// that loses its keys stays where it is. Deterministic. Any thread; allocates.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernel_table.h"
#include "kernels/own_code_layout.h"

namespace kvtier {

inline constexpr int kOwnCodeIterations = 10;

// `keys` is [n][layout.dim]; the entries are trained on all but the first `untrained` of them,
// which get the nearest one as every other. `out` has layout.size_bytes(n) and is zero. False where
// a kernel refuses.
[[nodiscard]] bool build_own_codes(const KernelTable& kernels, const OwnCodeLayout& layout,
                                   std::span<const float> keys, std::uint32_t untrained,
                                   std::byte* out);

}  // namespace kvtier
