// One row of a base rendition as f32, for the reference operations.
#pragma once

#include "kernels/base_args.h"
#include "kernels/float16.h"
#include "kernels/row_cursor.h"

namespace kvtier::scalar {

// Rows are exact: scale (11 bits) times code (8) fits an f32; one rounding in the sum.
class BaseRow {
 public:
  // Row n of the range.
  BaseRow(const BasePages& pages, const BaseRows& rows, std::uint64_t n) : format_(pages.format) {
    const std::uint64_t place = rows.range[0] + n;
    const std::uint64_t token = rows.tokens != nullptr ? rows.tokens[place] : place;
    chunk_ = address_of(pages.base, pages.chunks[token / kBaseChunkTokens]);
    token_ = static_cast<std::uint32_t>(token % kBaseChunkTokens);
  }
  float k(std::uint32_t d) const {
    return value(chunk_ + d * 2, chunk_ + format_.k_zero_offset() + d * 2,
                 base_code(chunk_ + format_.k_row_offset(token_), format_.dim, format_.k_bits, d));
  }
  float v(std::uint32_t d) const {
    const std::byte* group = chunk_ + format_.v_groups_offset(token_) + d / kBaseUnit * 4;
    return value(
        group, group + 2,
        base_code(chunk_ + format_.v_row_offset(token_), format_.v_dim, format_.v_bits, d));
  }

 private:
  static float value(const std::byte* scale, const std::byte* zero, std::uint32_t code) {
    return load_element(zero, Dtype::kF16, 0) +
           load_element(scale, Dtype::kF16, 0) * static_cast<float>(code);
  }

  const BaseFormat& format_;
  const std::byte* chunk_;
  std::uint32_t token_;
};

}  // namespace kvtier::scalar
