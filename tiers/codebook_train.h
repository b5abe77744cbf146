// Training of a codebook: from sampled keys and queries of one layer and KV head to its part of the
// payload (kernels/codebook_layout.h).
//
// Product quantisation (Jegou et al. 2011) after a change of coordinates: errors are measured as
// the queries see them (the metric is the second moment of the queries), dimensions are the
// principal axes of the keys in that metric, dealt out to sub-spaces so that the products of their
// variances are alike ("eigenvalue allocation", Ge et al., Optimized Product Quantization, 2013),
// then k-means with 16 entries per sub-space. docs/retrieval.md has what was measured.
//
// A codebook must have seen the positions that it is used at, not the text: after RoPE a key's
// direction depends on its position. turn_to_positions() therefore turns sampled keys and queries
// to positions over the whole range. Deterministic for a seed. Any thread; allocates.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "kernels/codebook_layout.h"
#include "kernels/rotation.h"

namespace kvtier {

// How a runtime rotates keys and queries, and how far.
struct RopeSpec : Rotation {
  std::uint32_t positions = 0;  // keys will be used at positions below this
};

// Turns row i of [count][dim], which stands at position `positions[i]`, to a random position below
// rope.positions. Without a pairing nothing is done.
void turn_to_positions(const RopeSpec& rope, std::span<const std::uint32_t> positions,
                       std::uint32_t dim, std::uint64_t seed, std::span<float> rows);

struct TrainingSet {
  std::uint32_t dim = 0;
  std::uint32_t subspaces = 0;
  std::span<const float> keys;     // [n][dim], n at least kCodeEntries
  std::span<const float> queries;  // [m][dim]; empty: all directions count alike
  std::uint64_t seed = 1;
};
// Keys [n][dim] in the coordinates that codes are of; `out` has their size.
void move_keys(const HeadCodebook& codebook, std::uint32_t dim, std::span<const float> keys,
               std::span<float> out);
// Writes one head's part. kInvalid for too few keys or any number that is not finite.
[[nodiscard]] Result<void> train_head(const TrainingSet& set, const HeadCodebook& out);

}  // namespace kvtier
