#include "tiers/cluster.h"

#include <algorithm>
#include <cmath>

namespace kvtier {
namespace {

void scale_to_one(std::span<float> rows, std::uint32_t dim) {
  for (std::size_t at = 0; at < rows.size(); at += dim) {
    float sum = 0.0f;
    for (std::uint32_t d = 0; d < dim; ++d) sum += rows[at + d] * rows[at + d];
    if (!(sum > 0.0f)) continue;
    const float factor = 1.0f / std::sqrt(sum);
    for (std::uint32_t d = 0; d < dim; ++d) rows[at + d] *= factor;
  }
}

// Directions of the clusters' sums; a cluster without keys keeps its own.
void move_centroids(std::span<const float> keys, std::uint32_t dim,
                    const std::vector<std::uint32_t>& nearest, std::vector<float>* centroids) {
  std::vector<float> sums(centroids->size(), 0.0f);
  std::vector<bool> used(centroids->size() / dim, false);
  for (std::size_t i = 0; i < nearest.size(); ++i) {
    used[nearest[i]] = true;
    float* sum = sums.data() + std::size_t{nearest[i]} * dim;
    for (std::uint32_t d = 0; d < dim; ++d) sum[d] += keys[i * dim + d];
  }
  for (std::size_t c = 0; c < used.size(); ++c)
    if (used[c])
      std::copy_n(sums.begin() + static_cast<std::ptrdiff_t>(c * dim), dim,
                  centroids->begin() + static_cast<std::ptrdiff_t>(c * dim));
  scale_to_one(*centroids, dim);
}

}  // namespace

bool cluster_keys(const KernelTable& kernels, std::uint32_t dim, std::uint32_t clusters,
                  std::span<float> keys, Clusters* out) {
  const std::uint64_t count = keys.size() / dim, wanted = clusters;
  scale_to_one(keys, dim);
  std::vector<float> centroids(std::size_t{clusters} * dim);
  for (std::uint32_t c = 0; c < clusters; ++c)
    std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(c * count / clusters * dim), dim,
                centroids.begin() + static_cast<std::ptrdiff_t>(std::size_t{c} * dim));
  std::vector<std::uint32_t> nearest(static_cast<std::size_t>(count), 0), before;
  std::vector<float> values(nearest.size());
  NearestArgs args;
  args.rows = keys.data();
  args.row_stride = args.centroid_stride = dim;
  args.row_count = &count;
  args.centroids = centroids.data();
  args.centroid_count = &wanted;
  args.dim = dim;
  args.out_index = nearest.data();
  args.out_value = values.data();
  for (int i = 0; i < kClusterIterations; ++i) {
    if (!kernels.nearest(args, nullptr)) return false;
    if (nearest == before) break;
    before = nearest;
    move_centroids(keys, dim, nearest, &centroids);
  }
  out->starts.assign(clusters + 1, 0);
  for (const std::uint32_t c : nearest) ++out->starts[c + 1];
  for (std::uint32_t c = 0; c < clusters; ++c) out->starts[c + 1] += out->starts[c];
  out->members.resize(nearest.size());
  std::vector<std::uint32_t> next(out->starts.begin(), out->starts.end() - 1);
  for (std::uint32_t i = 0; i < nearest.size(); ++i) out->members[next[nearest[i]]++] = i;
  return true;
}

}  // namespace kvtier
