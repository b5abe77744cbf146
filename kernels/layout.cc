#include "kernels/layout.h"

#include "base/check.h"

namespace kvtier {

PlaneLayout::PlaneLayout(const Geometry& geometry, std::uint32_t tokens_max)
    : chunks_per_layer_((tokens_max + geometry.chunk_tokens - 1) / geometry.chunk_tokens) {
  layers_.resize(geometry.layers.size());
  for (std::uint32_t i = 0; i < layers_.size(); ++i) {
    layers_[i].first_chunk = chunks_total_;
    layers_[i].offset_bytes = size_bytes_;
    layers_[i].groups = geometry.groups(i);
    layers_[i].slot_bytes = geometry.slot_bytes(i);
    const std::uint32_t chunks = chunks_per_layer_ * layers_[i].groups;
    chunks_total_ += chunks;
    size_bytes_ += chunks * layers_[i].slot_bytes;
  }
}

PlaneLayout::ChunkPlace PlaneLayout::place_of(std::uint32_t chunk_index) const noexcept {
  KVT_DCHECK(chunk_index < chunks_total_);
  std::uint32_t layer = 0;
  while (layer + 1 < layers_.size() && layers_[layer + 1].first_chunk <= chunk_index) ++layer;
  while (layers_[layer].groups == 0)
    --layer;  // empty layers share first_chunk with their successor
  const std::uint32_t rest = chunk_index - layers_[layer].first_chunk;
  return {layer, rest / layers_[layer].groups, rest % layers_[layer].groups};
}

}  // namespace kvtier
