// Clusters: units of similar keys of one layer and KV head, by spherical k-means (ClusterKV, arXiv
// 2412.03213, section 3; LouisKV, arXiv 2510.11292, section 4.2, groups a prompt's keys alike).
// Deterministic. Any thread; allocates.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernel_table.h"

namespace kvtier {

struct Clusters {
  std::vector<std::uint32_t> starts;   // [clusters + 1]
  std::vector<std::uint32_t> members;  // [keys], ascending inside a cluster
};

// `keys` is [n][dim] and is left with rows of length 1. Begins with evenly spaced keys and stops
// after kClusterIterations or when nothing moves. A cluster may end empty. False where a kernel
// refuses.
inline constexpr int kClusterIterations = 6;
[[nodiscard]] bool cluster_keys(const KernelTable& kernels, std::uint32_t dim,
                                std::uint32_t clusters, std::span<float> keys, Clusters* out);

}  // namespace kvtier
