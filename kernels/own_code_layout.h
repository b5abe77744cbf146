// Own codes: 6-bit product codes of the keys of one segment, layer and KV head, beside the codebook
// that they were made with. One place for everybody who writes or reads them.
//
// Sub-space m has consecutive dimensions, multiples of kKernelDimStep, as even as these allow, and
// kOwnCodeEntries entries. First come the entries, f16, sub-space by sub-space [64][its
// dimensions]: means of keys as score_mean takes them. Then the codes, in blocks of 32 tokens; a
// block has 24 bytes for each sub-space: 16 with the low four bits, as 4-bit codes have them
// (kernels/code_layout.h), then 8 with the high two: byte i holds, from bit 0, those of the tokens
// i, i + 8, i + 16 and i + 24. The last block is padded with zero codes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/code_layout.h"
#include "kernels/row_pages.h"

namespace kvtier {

inline constexpr std::uint32_t kOwnCodeEntries = 64;  // of a sub-space
inline constexpr std::uint32_t kOwnCodeSubspacesMax = 16;
inline constexpr std::uint64_t kOwnCodeBlockBytes = 24;  // of a sub-space

// Bytes of the codes of `tokens` tokens.
[[nodiscard]] constexpr std::uint64_t own_code_bytes(std::uint64_t tokens,
                                                     std::uint32_t subspaces) noexcept {
  return (tokens + kCodeBlockTokens - 1) / kCodeBlockTokens * subspaces * kOwnCodeBlockBytes;
}

// Where a token's code lies.
struct OwnCodePlace {
  std::uint64_t low_byte, high_byte;
  unsigned low_shift, high_shift;
};
[[nodiscard]] constexpr OwnCodePlace own_code_place(std::uint64_t token, std::uint32_t subspaces,
                                                    std::uint32_t subspace) noexcept {
  const std::uint64_t begin =
      (token / kCodeBlockTokens * subspaces + subspace) * kOwnCodeBlockBytes;
  const auto at = static_cast<unsigned>(token % kCodeBlockTokens);
  return {begin + at % 16, begin + 16 + at % 8, at / 16 * 4, at / 8 * 2};
}
[[nodiscard]] constexpr std::uint32_t own_code_at(const std::uint8_t* codes, std::uint64_t token,
                                                  std::uint32_t subspaces,
                                                  std::uint32_t subspace) noexcept {
  const OwnCodePlace at = own_code_place(token, subspaces, subspace);
  return (codes[at.low_byte] >> at.low_shift & 15u) |
         (codes[at.high_byte] >> at.high_shift & 3u) << 4;
}
// `codes` are zero at first; each place is written once.
constexpr void put_own_code(std::uint8_t* codes, std::uint64_t token, std::uint32_t subspaces,
                            std::uint32_t subspace, std::uint32_t code) noexcept {
  const OwnCodePlace at = own_code_place(token, subspaces, subspace);
  std::uint8_t& low = codes[at.low_byte];
  std::uint8_t& high = codes[at.high_byte];
  low = static_cast<std::uint8_t>(low | (code & 15u) << at.low_shift);
  high = static_cast<std::uint8_t>(high | (code >> 4 & 3u) << at.high_shift);
}

// The part of one layer and KV head. No place of it depends on the number of tokens but the end.
struct OwnCodeLayout {
  std::uint32_t dim = 0;
  std::uint32_t subspaces = 0;

  // As many sub-spaces as are wanted and the dimensions allow.
  static constexpr OwnCodeLayout of(std::uint32_t wanted, std::uint32_t dim) noexcept {
    return {dim, std::clamp(wanted, 1u, std::max(1u, dim / kKernelDimStep))};
  }
  // Sub-space m has the dimensions [first(m), first(m + 1)).
  [[nodiscard]] constexpr std::uint32_t first(std::uint32_t m) const noexcept {
    return m == subspaces ? dim : m * (dim / kKernelDimStep) / subspaces * kKernelDimStep;
  }
  [[nodiscard]] constexpr std::uint32_t width(std::uint32_t m) const noexcept {
    return first(m + 1) - first(m);
  }
  [[nodiscard]] constexpr std::uint64_t entries_offset(std::uint32_t m) const noexcept {
    return std::uint64_t{first(m)} * kOwnCodeEntries * 2;
  }
  [[nodiscard]] constexpr std::uint64_t codes_offset() const noexcept {
    return std::uint64_t{dim} * kOwnCodeEntries * 2;
  }
  [[nodiscard]] constexpr std::uint64_t size_bytes(std::uint64_t tokens) const noexcept {
    return codes_offset() + own_code_bytes(tokens, subspaces);
  }
};

}  // namespace kvtier
