#include "kernels/codebook_layout.h"

#include <algorithm>
#include <cmath>

#include "base/bytes.h"
#include "base/check.h"

namespace kvtier {

CodebookLayout::CodebookLayout(const Geometry& geometry, AbstractSpec spec) {
  KVT_CHECK(spec.abstract == AbstractKind::kCodes);
  layers_.resize(geometry.layers.size());
  size_bytes_ = sizeof(CodebookHeader);
  for (std::uint32_t i = 0; i < layers_.size(); ++i) {
    const LayerGeometry& shape = geometry.layers[i];
    if (shape.kind != LayerKind::kFull || shape.dtype == Dtype::kOpaque) continue;
    Layer& layer = layers_[i];
    layer.dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
    layer.subspaces = code_count(spec, layer.dim);
    layer.kv_heads = shape.kv_heads;
    layer.offset_bytes = size_bytes_;
    const std::uint64_t dim = layer.dim;
    const std::uint64_t floats = dim + 2 * dim * dim + kCodeEntries * dim;
    layer.head_bytes = align_up<std::uint64_t>(floats * 4 + (layer.subspaces + 1 + dim) * 2, 64);
    size_bytes_ += layer.kv_heads * layer.head_bytes;
  }
}

HeadCodebook CodebookLayout::head(const std::byte* base, std::uint32_t layer,
                                  std::uint32_t head) const noexcept {
  KVT_DCHECK(has_layer(layer));
  const Layer& at = layers_[layer];
  const std::uint64_t dim = at.dim;
  const auto* floats =
      reinterpret_cast<const float*>(base + at.offset_bytes + head * at.head_bytes);
  HeadCodebook out;
  out.mean = floats;
  out.encode = out.mean + dim;
  out.query_map = out.encode + dim * dim;
  const float* entries = out.query_map + dim * dim;
  out.book.entries = reinterpret_cast<const std::byte*>(entries);
  out.book.dtype = Dtype::kF32;
  out.book.first = reinterpret_cast<const std::uint16_t*>(entries + kCodeEntries * dim);
  out.book.dims = out.book.first + at.subspaces + 1;
  out.book.subspaces = at.subspaces;
  out.book.dim = at.dim;
  return out;
}

Result<void> CodebookLayout::validate() const noexcept {
  for (const Layer& layer : layers_) {
    CodeBook book;
    book.subspaces = layer.subspaces;
    book.dim = layer.dim;
    if (layer.dim != 0 && !book.validate())
      return error(Code::kUnsupported,
                   "no key codes of this kind for keys of this size: take the preset quest, which "
                   "needs no codebook");
  }
  return {};
}

Result<void> CodebookLayout::check_contents(const std::byte* base) const {
  for (std::uint32_t layer = 0; layer < layers_.size(); ++layer) {
    if (!has_layer(layer)) continue;
    for (std::uint32_t i = 0; i < layers_[layer].kv_heads; ++i) {
      const HeadCodebook part = head(base, layer, i);
      const std::uint64_t dim = layers_[layer].dim;
      if (!std::all_of(part.mean, part.mean + dim + 2 * dim * dim,
                       [](float x) { return std::isfinite(x); }))
        return error(Code::kCorrupt, "the codebook has a number that is not finite");
      // That first: a head has room for so many entries, and check_contents() reads what they say.
      if (part.book.first[part.book.subspaces] != dim || !part.book.check_contents())
        return error(Code::kCorrupt, "a head's part of the codebook is not one");
    }
  }
  return {};
}

}  // namespace kvtier
