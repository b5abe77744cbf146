#include "tiers/prefix_index.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/check.h"
#include "base/hash.h"

namespace kvtier {

BlockHash PrefixIndex::extend(BlockHash previous,
                              std::span<const std::uint32_t> ids) const noexcept {
  KVT_CHECK(ids.size() == kBlockTokens);
  struct {
    BlockHash previous;
    std::uint32_t ids[kBlockTokens];
  } input;
  static_assert(sizeof(input) == sizeof(BlockHash) + kBlockTokens * sizeof(std::uint32_t),
                "no padding is hashed");
  input.previous = previous;
  std::copy(ids.begin(), ids.end(), input.ids);
  return hash128(as_bytes_of(input), key_);
}

std::vector<BlockHash> PrefixIndex::chain(std::span<const std::uint32_t> ids) const {
  std::vector<BlockHash> hashes;
  hashes.reserve(ids.size() / kBlockTokens);
  BlockHash hash = first();
  for (std::size_t begin = 0; ids.size() - begin >= kBlockTokens; begin += kBlockTokens) {
    hash = extend(hash, ids.subspan(begin, kBlockTokens));
    hashes.push_back(hash);
  }
  return hashes;
}

void PrefixIndex::insert(BlockHash hash, Place place) { places_.try_emplace(hash, place); }

void PrefixIndex::erase(BlockHash hash, SegmentId segment) {
  const auto filed = places_.find(hash);
  if (filed != places_.end() && filed->second.segment == segment) places_.erase(filed);
}

const PrefixIndex::Place* PrefixIndex::find(BlockHash hash) const noexcept {
  const auto filed = places_.find(hash);
  return filed == places_.end() ? nullptr : &filed->second;
}

bool PrefixIndex::find_longest(std::span<const std::uint32_t> ids, Hit* hit) const {
  const std::vector<BlockHash> hashes = chain(ids);
  for (std::size_t block = hashes.size(); block-- > 0;) {
    if (const Place* place = find(hashes[block])) {
      *hit = {block, *place};
      return true;
    }
  }
  return false;
}

}  // namespace kvtier
