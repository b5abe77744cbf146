#include "base/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvtier {

std::uint64_t hash64(ByteSpan bytes, std::uint64_t seed) noexcept {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

BlockHash hash128(ByteSpan bytes, std::uint64_t seed) noexcept {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {hash.low64, hash.high64};
}

}  // namespace kvtier
