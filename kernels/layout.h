// Layout: where a row lies. One place for everybody who writes or reads K and V.
//
// A *plane* holds the chunks of up to kSegmentTokensMax tokens in one order: by layer, then chunk,
// then head group. A tail half (client-written shared memory) and the data part of a segment file
// are planes with the same order; only full-attention layers have a place in it. Chunks are
// slot_bytes apart (kDiskAlign), so a segment file's raw chunk can be read straight into a slot,
// and a tail is sealed by copying chunks. Offsets are 64-bit everywhere.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/geometry.h"

namespace kvtier {

class PlaneLayout {
 public:
  // `tokens_max` rounded up to whole chunks.
  PlaneLayout(const Geometry& geometry, std::uint32_t tokens_max);

  [[nodiscard]] std::uint32_t chunks_per_layer() const noexcept { return chunks_per_layer_; }
  [[nodiscard]] std::uint32_t chunks_total() const noexcept { return chunks_total_; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }

  // The chunk's number in plane order (0 .. chunks_total - 1). The layer must be a full one.
  [[nodiscard]] std::uint32_t chunk_index(std::uint32_t layer, std::uint32_t chunk,
                                          std::uint32_t group) const noexcept {
    return layers_[layer].first_chunk + chunk * layers_[layer].groups + group;
  }
  [[nodiscard]] std::uint64_t chunk_offset(std::uint32_t layer, std::uint32_t chunk,
                                           std::uint32_t group) const noexcept {
    return layers_[layer].offset_bytes +
           (static_cast<std::uint64_t>(chunk) * layers_[layer].groups + group) *
               layers_[layer].slot_bytes;
  }
  // Inverse of chunk_index.
  struct ChunkPlace {
    std::uint32_t layer, chunk, group;
  };
  [[nodiscard]] ChunkPlace place_of(std::uint32_t chunk_index) const noexcept;

 private:
  struct Layer {
    std::uint32_t first_chunk = 0;
    std::uint32_t groups = 0;  // 0: not a full layer
    std::uint64_t offset_bytes = 0;
    std::uint64_t slot_bytes = 0;
  };
  std::vector<Layer> layers_;
  std::uint32_t chunks_per_layer_ = 0;
  std::uint32_t chunks_total_ = 0;
  std::uint64_t size_bytes_ = 0;
};

// Byte offset inside a chunk of the K (V) row of `token` (0 .. chunk_tokens - 1) of head
// `head_in_group`.
[[nodiscard]] constexpr std::uint64_t k_row_offset(const Geometry& geometry,
                                                   const LayerGeometry& layer,
                                                   std::uint32_t head_in_group,
                                                   std::uint32_t token) noexcept {
  const std::uint64_t head_bytes =
      static_cast<std::uint64_t>(geometry.chunk_tokens) * (layer.k_row_bytes + layer.v_row_bytes);
  return head_in_group * head_bytes + static_cast<std::uint64_t>(token) * layer.k_row_bytes;
}
[[nodiscard]] constexpr std::uint64_t v_row_offset(const Geometry& geometry,
                                                   const LayerGeometry& layer,
                                                   std::uint32_t head_in_group,
                                                   std::uint32_t token) noexcept {
  const std::uint64_t head_bytes =
      static_cast<std::uint64_t>(geometry.chunk_tokens) * (layer.k_row_bytes + layer.v_row_bytes);
  return head_in_group * head_bytes +
         static_cast<std::uint64_t>(geometry.chunk_tokens) * layer.k_row_bytes +
         static_cast<std::uint64_t>(token) * layer.v_row_bytes;
}

// A token as stored: what the daemon knows of text. 16 bytes, part of segment, tail and log
// formats.
struct TokenRecord {
  std::uint32_t id = 0;
  std::uint32_t position = 0;
  // Bits 0-7: boundary class (0 none, 1 clause, 2 sentence, 3 paragraph); kTokenOwn, kTokenCut.
  std::uint32_t flags = 0;
  std::uint32_t span = 0;  // client's own mark: turn, document, frame; 0 none
  friend bool operator==(const TokenRecord&, const TokenRecord&) = default;
};
inline constexpr std::uint32_t kTokenOwn = 1u << 8;  // the model wrote it, a step at a time
inline constexpr std::uint32_t kTokenCut = 1u << 9;  // and a segment of what it wrote begins here
static_assert(sizeof(TokenRecord) == 16, "token records are written to disk as they are");

// The tail of an open sequence: two halves; each a plane of kSegmentTokensMax tokens after its
// token records.
struct TailLayout {
  explicit TailLayout(const Geometry& geometry)
      : plane(geometry, kSegmentTokensMax),
        tokens_bytes(align_up<std::uint64_t>(kSegmentTokensMax * sizeof(TokenRecord), kDiskAlign)),
        half_bytes(align_up<std::uint64_t>(tokens_bytes + plane.size_bytes(), kDiskAlign)) {}
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return 2 * half_bytes; }
  [[nodiscard]] std::uint64_t tokens_offset(std::uint32_t half) const noexcept {
    return half * half_bytes;
  }
  [[nodiscard]] std::uint64_t plane_offset(std::uint32_t half) const noexcept {
    return half * half_bytes + tokens_bytes;
  }

  PlaneLayout plane;
  std::uint64_t tokens_bytes;
  std::uint64_t half_bytes;
};

}  // namespace kvtier
