// RowPages: rows of K and V as kernels take them, and the limits of a row. Host or device memory,
// whichever the back end computes on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/geometry.h"

namespace kvtier {

// Dims of K and V are multiples of this, from 8 to kHeadDimMax.
inline constexpr std::uint32_t kKernelDimStep = 8;

// Rows of one (layer, KV head), found through a table of pages. Token t lies in page p = t /
// page_tokens at place i = t % page_tokens; its K row at base + pages[p] + i * k_stride, its V row
// at base + pages[p] + v_offset + i * v_stride. A slot cache has pages of one row; tail and arena
// have chunks (k_stride = k_row_bytes, v_offset = chunk_tokens * k_row_bytes, pages[p] = slot +
// k_row_offset(geometry, layer, head, 0)). The sum is taken modulo 2^64: with a null base the table
// may hold addresses, and so name rows of several mappings at once.
struct RowPages {
  const std::byte* base = nullptr;
  const std::uint64_t* pages = nullptr;
  std::uint64_t page_tokens = 1;
  std::uint64_t k_stride = 0;
  std::uint64_t v_offset = 0;
  std::uint64_t v_stride = 0;
  Dtype dtype = Dtype::kF32;
};

}  // namespace kvtier
