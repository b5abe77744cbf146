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

const char* abstract_kind_name(AbstractKind kind) noexcept {
  switch (kind) {
    case AbstractKind::kNone:
      return "none";
    case AbstractKind::kBox:
      return "box";
    case AbstractKind::kMean:
      return "mean";
    case AbstractKind::kBall:
      return "ball";
  }
  return "unknown";
}

std::uint32_t abstract_elements(AbstractKind kind, std::uint32_t dim) noexcept {
  switch (kind) {
    case AbstractKind::kNone:
      return 0;
    case AbstractKind::kBox:
      return 2 * dim;
    case AbstractKind::kMean:
      return dim;
    case AbstractKind::kBall:
      return dim + kBallTail;
  }
  return 0;
}

AbstractLayout::AbstractLayout(const Geometry& geometry, AbstractKind kind,
                               std::uint32_t unit_tokens, std::uint32_t tokens)
    : units_((tokens + unit_tokens - 1) / unit_tokens) {
  layers_.resize(geometry.layers.size());
  for (std::uint32_t i = 0; i < layers_.size(); ++i) {
    const LayerGeometry& layer = geometry.layers[i];
    layers_[i].offset_bytes = size_bytes_;
    if (layer.kind != LayerKind::kFull || layer.dtype == Dtype::kOpaque) continue;
    const std::uint32_t dim = layer.k_row_bytes / dtype_bytes(layer.dtype);
    layers_[i].unit_bytes = std::uint64_t{abstract_elements(kind, dim)} * 2;
    size_bytes_ += static_cast<std::uint64_t>(layer.kv_heads) * units_ * layers_[i].unit_bytes;
  }
}

}  // namespace kvtier
