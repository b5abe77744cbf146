#include "kernels/abstract_layout.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/check.h"

namespace kvtier {

std::uint64_t unit_elements(AbstractSpec spec, std::uint32_t dim) noexcept {
  return spec.abstract == AbstractKind::kRepresentatives ? std::uint64_t{spec.parameter} * dim
                                                         : abstract_elements(spec.abstract, dim);
}

std::uint32_t code_count(AbstractSpec spec, std::uint64_t dim) noexcept {
  if (spec.abstract != AbstractKind::kCodes) return 0;
  return static_cast<std::uint32_t>((dim / spec.parameter + 1) & ~std::uint64_t{1});
}

OwnCodeLayout own_code_layout(AbstractSpec spec, std::uint64_t dim) noexcept {
  return OwnCodeLayout::of(spec.parameter, static_cast<std::uint32_t>(dim));
}

Result<BaseFormat> base_format(AbstractSpec spec, const LayerGeometry& layer) noexcept {
  if (spec.abstract != AbstractKind::kBase || layer.dtype == Dtype::kOpaque || layer.v_transposed)
    return error(Code::kUnsupported, "the layer has no base rendition");
  const BaseFormat format{layer.k_row_bytes / dtype_bytes(layer.dtype),
                          layer.v_row_bytes / dtype_bytes(layer.dtype), spec.parameter / 10u,
                          spec.parameter % 10u};
  KVT_TRY_VOID(format.validate());
  return format;
}

Result<LowRankShape> low_rank_shape(AbstractSpec spec, const Geometry& geometry,
                                    std::uint32_t layer, std::uint32_t tokens) {
  const LayerGeometry& shape = geometry.layers[layer];
  if (spec.abstract != AbstractKind::kLowRank || shape.dtype == Dtype::kOpaque || tokens == 0)
    return error(Code::kUnsupported, "the layer has no low-rank keys");
  const std::uint32_t dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
  const std::uint32_t width = shape.kv_heads * dim;
  if (dim == 0 || dim % kKernelDimStep != 0 || dim > kHeadDimMax || width > kLowRankWidthMax)
    return error(Code::kUnsupported,
                 "low-rank keys take head dimensions that are multiples of 8, from 8 to 1024, and "
                 "layers of at most 2048 of them over all KV heads");
  if (shape.rope == RopeState::kAfter && geometry.positions_per_token != 1)
    return error(Code::kUnsupported, "low-rank keys are turned by one position per token");
  return LowRankShape{shape.kv_heads, dim,
                      std::clamp(width * spec.parameter / kLowRankUnit, 1u, tokens)};
}

namespace {

std::uint64_t turns_bytes(const Geometry& geometry) {
  std::uint32_t room = 1;
  for (const LayerGeometry& layer : geometry.layers)
    if (layer.kind == LayerKind::kFull && layer.dtype != Dtype::kOpaque)
      room = std::max(room, layer.k_row_bytes / dtype_bytes(layer.dtype) / 2);
  return sizeof(LowRankTurns) + room * sizeof(float);
}

}  // namespace

AbstractLayout::AbstractLayout(const Geometry& geometry, AbstractSpec spec, std::uint32_t tokens,
                               std::uint32_t units)
    : spec_(spec), tokens_(tokens), units_(units) {
  layers_.resize(geometry.layers.size());
  if (spec.none()) return;
  starts_bytes_ = align_up<std::uint64_t>((std::uint64_t{units} + 1) * 2, 64);
  if (spec.by_head()) members_bytes_ = align_up<std::uint64_t>(std::uint64_t{tokens} * 2, 64);
  const std::uint64_t lists = members_bytes_ != 0 ? members_bytes_ + starts_bytes_ : 0;
  std::uint64_t begin = sizeof(AbstractHeader) + (shared_starts() ? starts_bytes_ : 0);
  if (spec.abstract == AbstractKind::kLowRank) {
    turns_bytes_ = turns_bytes(geometry);
    begin += align_up<std::uint64_t>(turns_bytes_ + std::uint64_t{tokens} * 4, 64);
  }
  std::uint64_t end = begin;
  for (std::uint32_t i = 0; i < layers_.size(); ++i) {
    const LayerGeometry& layer = geometry.layers[i];
    if (layer.kind != LayerKind::kFull || layer.dtype == Dtype::kOpaque) continue;
    const std::uint64_t data = data_bytes(geometry, i);
    if (data == 0) continue;
    layers_[i].offset_bytes = end;
    if (const auto shape = low_rank_shape(spec, geometry, i, tokens))
      layers_[i].shared_bytes = align_up<std::uint64_t>(shape->coefficient_bytes(tokens), 64);
    layers_[i].unit_elements = unit_elements(spec, layer.k_row_bytes / dtype_bytes(layer.dtype));
    layers_[i].head_bytes = lists + align_up<std::uint64_t>(data, 64);
    end += layers_[i].shared_bytes + layer.kv_heads * layers_[i].head_bytes;
  }
  size_bytes_ = end == begin ? 0 : end;
}

std::uint64_t AbstractLayout::data_bytes(const Geometry& geometry, std::uint32_t index) const {
  const LayerGeometry& layer = geometry.layers[index];
  const std::uint64_t dim = layer.k_row_bytes / dtype_bytes(layer.dtype);
  if (spec_.abstract == AbstractKind::kLowRank) {
    const Result<LowRankShape> shape = low_rank_shape(spec_, geometry, index, tokens_);
    return shape ? shape->basis_bytes() : 0;
  }
  if (spec_.abstract == AbstractKind::kBase) {
    const Result<BaseFormat> format = base_format(spec_, layer);
    const std::uint64_t chunks = (tokens_ + kBaseChunkTokens - 1) / kBaseChunkTokens;
    return format ? chunks * format->chunk_bytes() : 0;
  }
  if (spec_.abstract == AbstractKind::kCodes) return code_bytes(tokens_, code_count(spec_, dim));
  if (spec_.abstract == AbstractKind::kOwnCodes)
    return own_code_layout(spec_, dim).size_bytes(tokens_);
  std::uint64_t units = units_;
  if (spec_.abstract == AbstractKind::kBox)
    for (std::uint32_t level = 1; level <= spec_.parameter; ++level) units += level_units(level);
  return units * unit_elements(spec_, static_cast<std::uint32_t>(dim)) * 2;
}

AbstractLayout::HeadBlock AbstractLayout::head(std::uint32_t layer,
                                               std::uint32_t head) const noexcept {
  KVT_DCHECK(has_layer(layer));
  HeadBlock block;
  const Layer& place = layers_[layer];
  if (place.shared_bytes != 0) block.shared = place.offset_bytes;
  std::uint64_t at = place.offset_bytes + place.shared_bytes + head * place.head_bytes;
  if (members_bytes_ != 0) {
    block.members = at;
    block.starts = at + members_bytes_;
    at += members_bytes_ + starts_bytes_;
  }
  block.data = at;
  return block;
}

std::uint64_t AbstractLayout::level_offset(std::uint32_t layer,
                                           std::uint32_t level) const noexcept {
  std::uint64_t units = 0;
  for (std::uint32_t i = 0; i < level; ++i) units += level_units(i);
  return units * layers_[layer].unit_elements * 2;
}

}  // namespace kvtier
