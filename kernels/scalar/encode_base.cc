#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// What a group is coded with, and how it is stored.
struct Affine {
  std::uint16_t scale_bits;
  std::uint16_t zero_bits;
  float zero;
  float inverse;
  float levels;

  std::uint32_t code(float value) const {
    const float steps = std::nearbyint((value - zero) * inverse);
    return static_cast<std::uint32_t>(steps > 0.0f ? std::min(steps, levels) : 0.0f);  // NaN: 0
  }
};

Affine affine_of(float least, float greatest, std::uint32_t bits) {
  Affine result;
  result.levels = static_cast<float>((1u << bits) - 1);
  result.zero_bits =
      f32_to_f16_down(std::clamp(least + 0.0f, -65504.0f, 65504.0f));  // +0, never -0
  result.zero = f16_to_f32(result.zero_bits);
  const float step = (greatest - result.zero) / result.levels;
  result.scale_bits = f32_to_f16_up(std::clamp(step, 0.0f, 65504.0f) + 0.0f);
  const float scale = f16_to_f32(result.scale_bits);
  result.inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  return result;
}

// Codes of a row; get(d) gives dim d's.
template <class Get>
void pack(std::byte* codes, std::uint32_t dims, std::uint32_t bits, const Get& get) {
  std::fill_n(codes, BaseFormat::code_bytes(dims, bits), std::byte{0});
  for (std::uint32_t unit = 0; unit < BaseFormat::units(dims); ++unit)
    for (std::uint32_t lane = 0; lane < kBaseLanes; ++lane) {
      std::uint32_t word = 0;
      for (std::uint32_t field = 0; field < kBaseFields; ++field) {
        const std::uint32_t d = unit * kBaseUnit + field * kBaseLanes + lane;
        if (d < dims) word |= get(d) << (field * bits);
      }
      set_base_word(codes, dims, bits, unit, lane, word);
    }
}

void put(std::byte* to, std::uint16_t half) { std::memcpy(to, &half, sizeof half); }

void encode_k(const EncodeBaseArgs& args, const std::byte* const* rows, std::size_t count,
              std::byte* chunk) {
  const BaseFormat& format = args.format;
  Affine affine[kHeadDimMax];
  for (std::uint32_t d = 0; d < format.dim; ++d) {
    float least = load_element(rows[0], args.rows.dtype, d);
    float greatest = least;
    for (std::size_t t = 1; t < count; ++t) {
      least = std::min(least, load_element(rows[t], args.rows.dtype, d));
      greatest = std::max(greatest, load_element(rows[t], args.rows.dtype, d));
    }
    affine[d] = affine_of(least, greatest, format.k_bits);
    put(chunk + d * 2, affine[d].scale_bits);
    put(chunk + format.k_zero_offset() + d * 2, affine[d].zero_bits);
  }
  for (std::uint32_t t = 0; t < count; ++t)
    pack(chunk + format.k_row_offset(t), format.dim, format.k_bits, [&](std::uint32_t d) {
      return affine[d].code(load_element(rows[t], args.rows.dtype, d));
    });
}

void encode_v(const EncodeBaseArgs& args, const std::byte* row, std::uint32_t token,
              std::byte* chunk) {
  const BaseFormat& format = args.format;
  Affine affine[kHeadDimMax / kBaseUnit];
  for (std::uint32_t group = 0; group < BaseFormat::units(format.v_dim); ++group) {
    const std::uint32_t first = group * kBaseUnit;
    const std::uint32_t last = std::min(format.v_dim, first + kBaseUnit);
    float least = load_element(row, args.rows.dtype, first);
    float greatest = least;
    for (std::uint32_t d = first + 1; d < last; ++d) {
      least = std::min(least, load_element(row, args.rows.dtype, d));
      greatest = std::max(greatest, load_element(row, args.rows.dtype, d));
    }
    affine[group] = affine_of(least, greatest, format.v_bits);
    std::byte* at = chunk + format.v_groups_offset(token) + group * 4;
    put(at, affine[group].scale_bits);
    put(at + 2, affine[group].zero_bits);
  }
  pack(chunk + format.v_row_offset(token), format.v_dim, format.v_bits, [&](std::uint32_t d) {
    return affine[d / kBaseUnit].code(load_element(row, args.rows.dtype, d));
  });
}

}  // namespace

Result<void> encode_base(const EncodeBaseArgs& args, KernelStream) {
  begin("encode_base");
  KVT_TRY_VOID(args.validate());
  RowCursor cursor(args.rows, 0, *args.token_count, nullptr);
  const std::byte* k[kBaseChunkTokens];
  const std::byte* v[kBaseChunkTokens];
  std::byte* chunk = args.out;
  while (const std::size_t count = cursor.next(k, v, kBaseChunkTokens)) {
    encode_k(args, k, count, chunk);
    for (std::uint32_t t = 0; t < count; ++t) encode_v(args, v[t], t, chunk);
    const auto tokens = static_cast<std::uint32_t>(count);
    std::fill(chunk + args.format.k_row_offset(tokens),
              chunk + args.format.k_row_offset(kBaseChunkTokens), std::byte{0});
    std::fill(chunk + args.format.v_row_offset(tokens), chunk + args.format.chunk_bytes(),
              std::byte{0});
    chunk += args.format.chunk_bytes();
  }
  return {};
}

}  // namespace kvtier::scalar
