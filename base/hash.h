// xxh3: the checksum of everything stored, and the chain hash of blocks. The door to libxxhash. Any
// thread.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ids.h"

namespace kvtier {

[[nodiscard]] std::uint64_t hash64(ByteSpan bytes, std::uint64_t seed = 0) noexcept;
[[nodiscard]] BlockHash hash128(ByteSpan bytes, std::uint64_t seed = 0) noexcept;

}  // namespace kvtier
