// Arguments of the operations on base renditions (kernels/base_layout.h). The rules of
// kernels/kernel_table.h hold.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "kernels/base_layout.h"
#include "kernels/row_pages.h"

namespace kvtier {

// Base chunks of one (layer, KV head): tokens [32 c, 32 c + 32) at base + chunks[c]; with a null
// base chunks are addresses.
struct BasePages {
  const std::byte* base = nullptr;
  const std::uint64_t* chunks = nullptr;
  BaseFormat format;
};

// Which rows of BasePages: those of tokens [range[0], range[1]), or with `tokens` of
// tokens[range[0]]
// .. tokens[range[1] - 1], in any order (ascending is fastest).
struct BaseRows {
  const std::uint32_t* tokens = nullptr;
  const std::uint64_t* range = nullptr;
};

// Base chunks of tokens [0, *token_count), chunk after chunk; what is missing in the last one does
// not count in its groups. Of the values of a group:
//   zero  = the largest f16 not above the least of them, at most 65504 in size
//   scale = the smallest f16 not below (greatest - zero) / (2^bits - 1), at most 65504
//   code  = nearest((value - zero) * (1 / scale)), ties to even, cut to what the bits hold; 0 where
//           scale is 0
// each step rounded to f32; so a value comes back within scale / 2, but for rounding and for what
// f16 cannot hold. All back ends give the same bits for finite rows; of others only their groups
// suffer.
struct EncodeBaseArgs {
  RowPages rows;
  const std::uint64_t* token_count = nullptr;
  BaseFormat format;
  std::byte* out = nullptr;  // [ceil(*token_count / 32)][format.chunk_bytes()]
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Rows as numbers: zero + scale * code in f32 (the product is exact), rounded to `dtype`. Row n of
// the range goes to out_k + n * k_stride and out_v + n * v_stride. All back ends give the same
// bits.
struct DecodeBaseArgs {
  BasePages pages;
  BaseRows rows;
  Dtype dtype = Dtype::kF32;
  std::byte* out_k = nullptr;  // null: not wanted
  std::byte* out_v = nullptr;
  std::uint64_t k_stride = 0;  // in bytes
  std::uint64_t v_stride = 0;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// As AttendArgs, over rows of a base rendition. `logits` gives scale * q[i] . k of row n of the
// range at logits[i * logits_stride + n]: so the caller finds the rows that must be exact.
struct AttendBaseArgs {
  BasePages pages;
  BaseRows rows;
  const float* q = nullptr;
  std::uint64_t q_stride = 0;  // in floats, as all strides here
  std::uint32_t queries = 0;
  float scale = 1.0f;
  float* out = nullptr;
  std::uint64_t out_stride = 0;
  float* lse = nullptr;
  std::uint64_t lse_stride = 1;
  float* logits = nullptr;  // null: not wanted
  std::uint64_t logits_stride = 0;
  [[nodiscard]] Result<void> validate() const noexcept;
};

}  // namespace kvtier
