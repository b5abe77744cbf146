// AbstractSpec: what stands for the keys of a segment when rows are chosen: a partition of its
// tokens into units, an abstract per unit, and their sizes. A segment may have several at once,
// each a sidecar file of its own and a place in the abstracts arena.
//
// Renditions are of them by storage, not by use: they stand for the rows themselves and are
// attended from, not scored. A base rendition has K and V (kernels/base_layout.h), low-rank keys
// have K alone (kernels/low_rank_layout.h).
//
// The packed form names sidecar files and is stored in the catalogue; its bits never change
// meaning. The text form is for people and JSON: "box/pages:16", "mean/clusters:16",
// "codes:4/tokens", "own-codes:2/tokens", "base:44/tokens", "low-rank:10/tokens".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvtier {

// Which tokens of a segment form a unit.
enum class PartitionKind : std::uint8_t {
  kPages = 0,      // `unit_tokens` consecutive tokens
  kTokens = 1,     // every token by itself
  kSentences = 2,  // up to a boundary in the token flags, at most `unit_tokens`
  kSpans = 3,      // tokens that carry the same client span, at most `unit_tokens`
  kClusters = 4,   // similar keys of one layer and KV head, `unit_tokens` on average
  // What the model wrote (kTokenOwn) from kTokenCut to kTokenCut, the rest as clusters.
  kSegments = 5,
};

// What stands for a unit's keys. Vectors are f16.
enum class AbstractKind : std::uint8_t {
  kNone = 0,
  kBox =
      1,  // min, then max, per dimension; `parameter` further levels, each of units twice as long
  kMean = 2,             // mean
  kBall = 3,             // mean and the radius around it (8 elements: radius, then 0)
  kCodes = 4,            // product-quantised keys, `parameter` dimensions per 4-bit code
  kRepresentatives = 5,  // `parameter` keys of the unit (tiers/representatives.h)
  // Keys product-quantised by a codebook of their segment's own, 6 bits for each of `parameter`
  // sub-spaces (kernels/own_code_layout.h).
  kOwnCodes = 6,
  kBase = 7,     // K and V in few bits, `parameter` = 10 x bits of K + bits of V
  kLowRank = 8,  // keys of a layer factorised, of rank `parameter` / 64 of KV heads x dimensions
};

struct AbstractSpec {
  PartitionKind partition = PartitionKind::kPages;
  AbstractKind abstract = AbstractKind::kNone;
  std::uint16_t unit_tokens = 1;
  std::uint8_t parameter = 0;

  // kInvalid with what fits.
  [[nodiscard]] Result<void> validate() const noexcept;
  [[nodiscard]] bool none() const noexcept { return abstract == AbstractKind::kNone; }
  [[nodiscard]] bool rendition() const noexcept {
    return abstract == AbstractKind::kBase || abstract == AbstractKind::kLowRank;
  }
  // Below 2^28; 0 for none.
  [[nodiscard]] std::uint32_t packed() const noexcept;
  [[nodiscard]] std::string text() const;
  // Units of `tokens` tokens, where the spec alone says how many (not by_tokens()).
  [[nodiscard]] std::uint32_t units_of(std::uint32_t tokens) const noexcept;
  // The number of units depends on the tokens' flags and spans.
  [[nodiscard]] bool by_tokens() const noexcept {
    return partition == PartitionKind::kSentences || partition == PartitionKind::kSpans ||
           partition == PartitionKind::kSegments;
  }
  // Every layer and KV head has units of its own, of tokens that need not be neighbours.
  [[nodiscard]] bool by_head() const noexcept {
    return partition == PartitionKind::kClusters || partition == PartitionKind::kSegments;
  }
  friend bool operator==(const AbstractSpec&, const AbstractSpec&) = default;
};

// kCorrupt for what packed() cannot have made.
[[nodiscard]] Result<AbstractSpec> unpack_abstract_spec(std::uint32_t packed) noexcept;
// "" and "none" are none. kInvalid with what fits.
[[nodiscard]] Result<AbstractSpec> parse_abstract_spec(std::string_view text);

inline constexpr std::uint32_t kRepresentativesMax = 16;                   // of a unit
[[nodiscard]] const char* abstract_kind_name(AbstractKind kind) noexcept;  // "box", "mean", ...
// f16 elements of one abstract of keys of `dim` dims, as build_abstract makes them. Box: min then
// max; mean; ball: mean, then the radius, then zeros up to kBallTail elements; others 0.
inline constexpr std::uint32_t kBallTail = 8;
[[nodiscard]] std::uint32_t abstract_elements(AbstractKind kind, std::uint32_t dim) noexcept;
[[nodiscard]] const char* partition_kind_name(PartitionKind kind) noexcept;  // "pages", ...

}  // namespace kvtier
