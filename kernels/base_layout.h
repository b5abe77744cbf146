// Base rendition: a low-bit copy of K and V, affine by groups. One place for everybody who writes
// or reads it.
//
// A base chunk is 32 tokens of one KV head, whatever chunks the raw rows lie in. Keys are quantised
// per dim over the chunk's tokens, values per token over groups of 32 dims:
//   value = zero + scale * code
// with scale and zero as f16. Bytes of a chunk, in this order:
//   f16 scale[dim], f16 zero[dim]      of K
//   32 K rows of k_row_bytes()         codes
//   32 V rows of v_row_bytes()         codes, then per group of 32 dims f16 scale, f16 zero
// Rows beyond the chunk's tokens are zeros.
//
// Codes of a row lie in units of 32 dims: eight lanes of four fields. Dim d of a unit is field d /
// 8 of lane d % 8; a lane's fields, the first lowest, make a word of 4 x bits. The words' low bytes
// lie lane after lane, so that a load of eight lanes and one mask per field give eight neighbouring
// dims:
//   8 bits  u32[8] per unit
//   6 bits  u16[8] then u8[8] per unit (the word's bits 0-15 and 16-23)
//   5 bits  u16[8] per unit; behind all units u8[8] for each two of them: bits 16-19, of the even
//   unit
//           in the low nibbles, of the odd one in the high ones
//   4 bits  u16[8] per unit
//   3 bits  u8[8] per unit; behind all units the nibbles with bits 8-11, as at 5 bits
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/result.h"

namespace kvtier {

inline constexpr std::uint32_t kBaseChunkTokens = 32;
inline constexpr std::uint32_t kBaseUnit = 32;   // dims of a unit, and of a group of V
inline constexpr std::uint32_t kBaseLanes = 8;   // lanes of a unit
inline constexpr std::uint32_t kBaseFields = 4;  // fields of a lane

[[nodiscard]] constexpr bool base_bits_fit(std::uint32_t bits) noexcept {
  return bits == 8 || (bits >= 3 && bits <= 6);
}

struct BaseFormat {
  std::uint32_t dim = 0;  // of K; multiples of kKernelDimStep
  std::uint32_t v_dim = 0;
  std::uint32_t k_bits = 4;  // 8, 6, 5, 4 or 3
  std::uint32_t v_bits = 4;

  [[nodiscard]] Result<void> validate() const noexcept;

  [[nodiscard]] static constexpr std::uint32_t units(std::uint32_t dims) noexcept {
    return (dims + kBaseUnit - 1) / kBaseUnit;
  }
  // Bytes of the codes of one row.
  [[nodiscard]] static constexpr std::uint32_t code_bytes(std::uint32_t dims,
                                                          std::uint32_t bits) noexcept {
    const std::uint32_t count = units(dims);
    const bool nibbles = bits == 5 || bits == 3;
    return count * kBaseLanes * (bits / 2) + (nibbles ? (count + 1) / 2 * kBaseLanes : 0);
  }
  [[nodiscard]] constexpr std::uint32_t k_row_bytes() const noexcept {
    return code_bytes(dim, k_bits);
  }
  [[nodiscard]] constexpr std::uint32_t v_row_bytes() const noexcept {
    return code_bytes(v_dim, v_bits) + units(v_dim) * 4;
  }
  // Places in a chunk.
  [[nodiscard]] constexpr std::uint32_t k_zero_offset() const noexcept { return dim * 2; }
  [[nodiscard]] constexpr std::uint32_t k_row_offset(std::uint32_t token) const noexcept {
    return dim * 4 + token * k_row_bytes();
  }
  [[nodiscard]] constexpr std::uint32_t v_row_offset(std::uint32_t token) const noexcept {
    return k_row_offset(kBaseChunkTokens) + token * v_row_bytes();
  }
  [[nodiscard]] constexpr std::uint32_t v_groups_offset(std::uint32_t token) const noexcept {
    return v_row_offset(token) + code_bytes(v_dim, v_bits);
  }
  [[nodiscard]] constexpr std::uint32_t chunk_bytes() const noexcept {
    return v_row_offset(kBaseChunkTokens);
  }

  friend bool operator==(const BaseFormat&, const BaseFormat&) = default;
};

// The words of a row's codes, one at a time: the meaning that all back ends follow.
[[nodiscard]] inline std::uint32_t base_word(const std::byte* codes, std::uint32_t dims,
                                             std::uint32_t bits, std::uint32_t unit,
                                             std::uint32_t lane) noexcept {
  const std::byte* at = codes + unit * kBaseLanes * (bits / 2);
  std::uint32_t word = 0;
  const auto add = [&word](const std::byte* from, std::size_t bytes, unsigned shift) {
    std::uint32_t part = 0;
    for (std::size_t i = 0; i < bytes; ++i)
      part |= std::to_integer<std::uint32_t>(from[i]) << (8 * i);
    word |= part << shift;
  };
  if (bits == 8) add(at + lane * 4, 4, 0);
  if (bits == 6 || bits == 5 || bits == 4) add(at + lane * 2, 2, 0);
  if (bits == 6) add(at + kBaseLanes * 2 + lane, 1, 16);
  if (bits == 3) add(at + lane, 1, 0);
  if (bits == 5 || bits == 3) {
    const std::byte* nibbles = codes + BaseFormat::units(dims) * kBaseLanes * (bits / 2);
    const auto both = std::to_integer<std::uint32_t>(nibbles[unit / 2 * kBaseLanes + lane]);
    word |= (both >> (unit % 2 * 4) & 15u) << (bits == 5 ? 16 : 8);
  }
  return word;
}
// Bits of a nibble plane must be zero before.
inline void set_base_word(std::byte* codes, std::uint32_t dims, std::uint32_t bits,
                          std::uint32_t unit, std::uint32_t lane, std::uint32_t word) noexcept {
  std::byte* at = codes + unit * kBaseLanes * (bits / 2);
  const auto put = [word](std::byte* to, std::size_t bytes, unsigned shift) {
    for (std::size_t i = 0; i < bytes; ++i)
      to[i] = static_cast<std::byte>(word >> (shift + 8 * i) & 0xFFu);
  };
  if (bits == 8) put(at + lane * 4, 4, 0);
  if (bits == 6 || bits == 5 || bits == 4) put(at + lane * 2, 2, 0);
  if (bits == 6) put(at + kBaseLanes * 2 + lane, 1, 16);
  if (bits == 3) put(at + lane, 1, 0);
  if (bits == 5 || bits == 3) {
    std::byte* nibbles = codes + BaseFormat::units(dims) * kBaseLanes * (bits / 2);
    nibbles[unit / 2 * kBaseLanes + lane] |=
        static_cast<std::byte>((word >> (bits == 5 ? 16 : 8) & 15u) << (unit % 2 * 4));
  }
}
[[nodiscard]] inline std::uint32_t base_code(const std::byte* codes, std::uint32_t dims,
                                             std::uint32_t bits, std::uint32_t dim) noexcept {
  const std::uint32_t in_unit = dim % kBaseUnit;
  const std::uint32_t word = base_word(codes, dims, bits, dim / kBaseUnit, in_unit % kBaseLanes);
  return word >> (in_unit / kBaseLanes * bits) & ((1u << bits) - 1);
}

}  // namespace kvtier
