// AbstractLayout: where things lie in the abstracts of one segment, in its sidecar file and in the
// abstracts arena alike. One place for the builder and all readers.
//
//   header   64 bytes (AbstractHeader)
//   starts   u16 [units + 1], only for sentences and spans: unit u is tokens [starts[u],
//            starts[u + 1]) of the segment
//   turns    only for low-rank keys: what turns them (kernels/low_rank_layout.h)
//   then for every layer with keys that kernels understand, 64-byte aligned, only for low-rank
//   keys:
//     shared   f16 [tokens][rank], the coefficients of all heads
//   and for every KV head, 64-byte aligned:
//     members  u16 [tokens] and starts u16 [units + 1], only for clusters and segments: the tokens
//              of unit u are members[starts[u]] ... members[starts[u + 1] - 1], ascending
//     data     f16 vectors [units][...], levels of boxes one after the other, or codes in blocks of
//              32 tokens (code_bytes), or entries and codes (kernels/own_code_layout.h), or base
//              chunks of 32 tokens (kernels/base_layout.h), or a basis (kernels/low_rank_layout.h)
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/abstract_spec.h"
#include "kernels/base_layout.h"
#include "kernels/code_layout.h"
#include "kernels/geometry.h"
#include "kernels/low_rank_layout.h"
#include "kernels/own_code_layout.h"

namespace kvtier {

// First bytes of a payload. In files little-endian, as all formats.
struct AbstractHeader {
  std::uint32_t spec = 0;    // AbstractSpec::packed
  std::uint32_t tokens = 0;  // of the segment
  std::uint32_t units = 0;
  std::uint32_t version = 1;
  std::uint64_t codebook = 0;   // id of what codes refer to; 0 for other abstracts
  std::uint64_t placement = 0;  // in the arena: another number at every placement; 0 in files
  std::uint64_t reserved[4] = {};
};
static_assert(sizeof(AbstractHeader) == 64, "abstract headers are written to disk as they are");
inline constexpr std::uint32_t kAbstractVersion = 1;

// f16 elements of one unit of `dim` dimensions; 0 for codes of both kinds and renditions.
[[nodiscard]] std::uint64_t unit_elements(AbstractSpec spec, std::uint32_t dim) noexcept;
// Sub-quantisers of keys of `dim` dimensions: dim / parameter, made even.
[[nodiscard]] std::uint32_t code_count(AbstractSpec spec, std::uint64_t dim) noexcept;
// Of one head's own codes of keys of `dim` dimensions.
[[nodiscard]] OwnCodeLayout own_code_layout(AbstractSpec spec, std::uint64_t dim) noexcept;
// Of a base rendition. kUnsupported for a layer whose rows have none: V transposed or without
// bytes, dimensions that are not multiples of 8; its rows are read exactly.
[[nodiscard]] Result<BaseFormat> base_format(AbstractSpec spec,
                                             const LayerGeometry& layer) noexcept;
// Of low-rank keys of a segment of `tokens` tokens. kUnsupported for a layer that has none: wider
// than kLowRankWidthMax, dimensions that are not multiples of 8, or keys that several positions
// turn; its rows are read exactly.
[[nodiscard]] Result<LowRankShape> low_rank_shape(AbstractSpec spec, const Geometry& geometry,
                                                  std::uint32_t layer, std::uint32_t tokens);

class AbstractLayout {
 public:
  // `units`: as the partition made them; spec.units_of(tokens) where it says.
  AbstractLayout(const Geometry& geometry, AbstractSpec spec, std::uint32_t tokens,
                 std::uint32_t units);

  struct HeadBlock {
    std::uint64_t members = 0;  // offsets in the payload; 0: not there
    std::uint64_t starts = 0;
    std::uint64_t data = 0;
    std::uint64_t shared = 0;
  };
  // The layer must have abstracts (has_layer).
  [[nodiscard]] HeadBlock head(std::uint32_t layer, std::uint32_t head) const noexcept;
  [[nodiscard]] bool has_layer(std::uint32_t layer) const noexcept {
    return layer < layers_.size() && layers_[layer].head_bytes != 0;
  }
  // Of units that depend on the tokens and are the same in all heads; 0: not there.
  [[nodiscard]] std::uint64_t starts_offset() const noexcept {
    return shared_starts() ? sizeof(AbstractHeader) : 0;
  }
  // Of low-rank keys: LowRankTurns and frequencies; where the positions lie. 0: not there.
  [[nodiscard]] std::uint64_t turns_offset() const noexcept {
    return turns_bytes_ != 0 ? sizeof(AbstractHeader) : 0;
  }
  [[nodiscard]] std::uint64_t positions_offset() const noexcept {
    return turns_bytes_ != 0 ? turns_offset() + turns_bytes_ : 0;
  }
  // Frequencies that there is room for.
  [[nodiscard]] std::uint32_t turns_room() const noexcept {
    return static_cast<std::uint32_t>((turns_bytes_ - sizeof(LowRankTurns)) / sizeof(float));
  }
  // Level l > 0 of boxes: where its units begin in a head's data, and how many there are.
  [[nodiscard]] std::uint64_t level_offset(std::uint32_t layer, std::uint32_t level) const noexcept;
  [[nodiscard]] std::uint32_t level_units(std::uint32_t level) const noexcept {
    return (units_ + (1u << level) - 1u) >> level;
  }
  [[nodiscard]] const AbstractSpec& spec() const noexcept { return spec_; }
  [[nodiscard]] std::uint32_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::uint32_t units() const noexcept { return units_; }
  // 0 where no layer has abstracts.
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }

 private:
  struct Layer {
    std::uint64_t offset_bytes = 0;
    std::uint64_t shared_bytes = 0;
    std::uint64_t head_bytes = 0;
    std::uint64_t unit_elements = 0;
  };
  [[nodiscard]] bool shared_starts() const noexcept {
    return spec_.by_tokens() && !spec_.by_head();
  }
  // 0 where the layer has none.
  [[nodiscard]] std::uint64_t data_bytes(const Geometry& geometry, std::uint32_t layer) const;

  AbstractSpec spec_;
  std::uint32_t tokens_;
  std::uint32_t units_;
  std::uint64_t members_bytes_ = 0;  // of members and starts of a head
  std::uint64_t starts_bytes_ = 0;
  std::uint64_t turns_bytes_ = 0;  // of pairing and frequencies
  std::vector<Layer> layers_;
  std::uint64_t size_bytes_ = 0;
};

}  // namespace kvtier
