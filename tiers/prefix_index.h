// PrefixIndex: from tokens to the longest stored prefix of one space, in memory. One thread (the
// engine).
//
// The chain hash of block i covers all token ids up to its end, keyed with a secret of the store:
// hash(i) = xxh3-128(hash(i-1) || ids of block i, seed = key). Blocks sit at absolute positions; a
// block is filed under the segment that holds its last token. The hash finds, comparison of ids
// decides: a doubtful match is a miss. 40 bytes a block.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"

namespace kvtier {

class PrefixIndex {
 public:
  explicit PrefixIndex(std::uint64_t key) noexcept : key_(key) {}

  [[nodiscard]] BlockHash first() const noexcept { return {}; }
  // Chain hash of a block from its predecessor's ({0,0} for block 0) and its kBlockTokens ids.
  [[nodiscard]] BlockHash extend(BlockHash previous,
                                 std::span<const std::uint32_t> ids) const noexcept;
  // Of all whole blocks of a run of ids that begins at token 0.
  [[nodiscard]] std::vector<BlockHash> chain(std::span<const std::uint32_t> ids) const;

  struct Place {
    SegmentId segment;
    std::uint32_t visible_tokens = 0;  // tokens of the segment up to and with the block's last one
  };
  // First writer wins: an existing place of the hash is kept.
  void insert(BlockHash hash, Place place);
  // Removes the hash where it is filed under this segment.
  void erase(BlockHash hash, SegmentId segment);
  [[nodiscard]] const Place* find(BlockHash hash) const noexcept;

  // The deepest block of `ids` that is filed, with its index; null where none is.
  struct Hit {
    std::uint64_t block = 0;
    Place place;
  };
  [[nodiscard]] bool find_longest(std::span<const std::uint32_t> ids, Hit* hit) const;
  [[nodiscard]] std::size_t size() const noexcept { return places_.size(); }

 private:
  std::uint64_t key_;
  std::unordered_map<BlockHash, Place> places_;
};

}  // namespace kvtier
