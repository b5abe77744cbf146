// Ids that cannot be mixed up. Each is a 64-bit number; 0 means "none". Trivially copyable.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvtier {

template <class Tag>
struct Id {
  std::uint64_t value = 0;
  [[nodiscard]] constexpr bool valid() const noexcept { return value != 0; }
  friend constexpr auto operator<=>(const Id&, const Id&) = default;
};

using SpaceId = Id<struct SpaceTag>;      // low 64 bits of the space's fingerprint digest, never 0
using SegmentId = Id<struct SegmentTag>;  // counter of the store, never reused
using SequenceId = Id<struct SequenceTag>;  // counter of the store, never reused

// The chain hash of one block: keyed, over all tokens up to the block's end (tiers/prefix_index.h).
struct BlockHash {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend constexpr auto operator<=>(const BlockHash&, const BlockHash&) = default;
};

}  // namespace kvtier

template <class Tag>
struct std::hash<kvtier::Id<Tag>> {
  std::size_t operator()(const kvtier::Id<Tag>& id) const noexcept {
    return static_cast<std::size_t>(id.value * 0x9E3779B97F4A7C15ull);
  }
};
template <>
struct std::hash<kvtier::BlockHash> {
  std::size_t operator()(const kvtier::BlockHash& hash) const noexcept {
    return static_cast<std::size_t>(hash.low);
  }
};
