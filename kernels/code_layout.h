// Key codes: 4-bit product codes of keys, and the codebook that gives them a meaning. One place for
// everybody who writes or reads them.
//
// A sub-quantiser m sees some of a key's dims and names one of its 16 entries by a nibble. Codes
// lie in blocks of kCodeBlockTokens tokens; a block is `subspaces` x 16 bytes, and of the 16 bytes
// of sub-quantiser m byte i holds token i in its low nibble and token i + 16 in its high one: so a
// vector of bytes looks up 16 tokens at once (Andre et al., "Quicker ADC"; Faiss calls it fast
// scan). The last block is padded with zero codes.
//
// The codebook is compact: sub-quantiser m sees the dims dims[first[m]] .. dims[first[m + 1] - 1],
// in this order, and its entries are 16 vectors of just these dims, one after the other, at element
// 16 * first[m]. A key's approximation is the sum of one entry per sub-quantiser, so
// sub-quantisers may share dims: the later ones then encode what the earlier ones left (additive
// codes).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "kernels/geometry.h"

namespace kvtier {

inline constexpr std::uint32_t kCodeBlockTokens = 32;
inline constexpr std::uint32_t kCodeEntries = 16;       // of a sub-quantiser
inline constexpr std::uint32_t kCodeSubspacesMax = 64;  // even numbers from 2
inline constexpr std::uint32_t kCodeDimsFactorMax =
    4;  // dims of all sub-quantisers / dims of a key

// Bytes of the codes of `tokens` tokens.
[[nodiscard]] constexpr std::uint64_t code_bytes(std::uint64_t tokens,
                                                 std::uint32_t subspaces) noexcept {
  return (tokens + kCodeBlockTokens - 1) / kCodeBlockTokens * subspaces * 16;
}

// Where a token's nibble lies.
struct CodePlace {
  std::uint64_t byte;
  unsigned shift;  // 0 or 4
};
[[nodiscard]] constexpr CodePlace code_place(std::uint64_t token, std::uint32_t subspaces,
                                             std::uint32_t subspace) noexcept {
  const std::uint64_t in_block = token % kCodeBlockTokens;
  return {(token / kCodeBlockTokens * subspaces + subspace) * 16 + in_block % 16,
          in_block < 16 ? 0u : 4u};
}
[[nodiscard]] constexpr std::uint8_t code_at(const std::uint8_t* codes, std::uint64_t token,
                                             std::uint32_t subspaces,
                                             std::uint32_t subspace) noexcept {
  const CodePlace place = code_place(token, subspaces, subspace);
  return static_cast<std::uint8_t>((codes[place.byte] >> place.shift) & 15);
}

// A codebook in memory. Kernels read what the pointers name without checks: who takes a codebook
// from a file or a client calls check_contents() once.
struct CodeBook {
  const std::byte* entries = nullptr;    // [16 * first[subspaces]] elements of `dtype`
  Dtype dtype = Dtype::kF32;             // f32 or f16
  const std::uint16_t* dims = nullptr;   // [first[subspaces]], each below `dim`
  const std::uint16_t* first = nullptr;  // [subspaces + 1], ascending from 0
  std::uint32_t subspaces = 0;
  std::uint32_t dim = 0;  // of a key; a multiple of kKernelDimStep

  // kUnsupported or kInvalid with what is wrong; looks at no pointer.
  [[nodiscard]] Result<void> validate() const noexcept;
  // The same for dims, first and entries too (entries must be finite). Host memory.
  [[nodiscard]] Result<void> check_contents() const noexcept;
};

[[nodiscard]] Result<void> check_code_subspaces(std::uint32_t subspaces) noexcept;

}  // namespace kvtier
