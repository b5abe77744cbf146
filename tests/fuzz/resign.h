// Makes checksums right again after a mutation, so that a fuzz target gets behind them. Only inside
// the input.
#pragma once

#include <cstring>
#include <vector>

#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier::fuzz {

template <class T>
T get(const std::vector<std::byte>& bytes, std::size_t offset) {
  T value{};
  if (offset <= bytes.size() && sizeof(T) <= bytes.size() - offset)
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// Writes the xxh3-64 of [begin, begin + size) to `target`, where both lie inside.
inline void sign(std::vector<std::byte>* bytes, std::uint64_t begin, std::uint64_t size,
                 std::uint64_t target) {
  if (begin > bytes->size() || size > bytes->size() - begin) return;
  if (target > bytes->size() || bytes->size() - target < sizeof(std::uint64_t)) return;
  const std::uint64_t checksum = hash64(ByteSpan(*bytes).subspan(begin, size));
  std::memcpy(bytes->data() + target, &checksum, sizeof(checksum));
}

inline void sign_head(std::vector<std::byte>* bytes) {
  sign(bytes, 0, kHeadChecksumOffset, kHeadChecksumOffset);
}

}  // namespace kvtier::fuzz
