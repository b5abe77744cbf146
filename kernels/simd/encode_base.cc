#include "kernels/simd/simd.h"

#include <algorithm>
#include <cstring>

#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/encode_base.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/base-inl.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_encode_base(const EncodeBaseArgs& args) {
  run_reference("encode_base", args, scalar::encode_base);
}
#else

using Floats = hn::Vec<BaseFloats>;
using Words = hn::Vec<BaseWords>;

// What groups are coded with, and how it is stored (f16 bits in u32 lanes).
struct Affine {
  Words scale_bits;
  Words zero_bits;
  Floats zero;
  Floats inverse;
};

HWY_INLINE Floats halves_of(Words bits) {
  const hn::Rebind<std::uint16_t, BaseFloats> d16;
  return f32_from_f16(BaseFloats(),
                      hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<BaseFloats>(), bits)));
}

template <std::uint32_t kBits>
HWY_INLINE Affine affine_of(Floats least, Floats greatest) {
  const BaseFloats df;
  const BaseWords du;
  const auto zero = hn::Zero(df);
  const auto bound = hn::Set(df, 65504.0f);
  Affine result;
  // Additions of 0 make -0 into +0.
  const auto low = hn::Max(hn::Min(hn::Add(least, zero), bound), hn::Neg(bound));
  result.zero_bits = f16_bits_down(df, low);
  result.zero = halves_of(result.zero_bits);
  const auto step =
      hn::Div(hn::Sub(greatest, result.zero), hn::Set(df, static_cast<float>((1u << kBits) - 1)));
  const auto cut = hn::Add(hn::Max(hn::Min(step, bound), zero), zero);
  result.scale_bits = hn::Xor(f16_bits_down(df, hn::Neg(cut)), hn::Set(du, 0x8000u));
  const auto scale = halves_of(result.scale_bits);
  result.inverse = hn::IfThenElseZero(hn::Gt(scale, zero), hn::Div(hn::Set(df, 1.0f), scale));
  return result;
}

template <std::uint32_t kBits>
HWY_INLINE Words code_of(Floats value, Floats zero, Floats inverse) {
  const BaseFloats df;
  const auto steps = hn::Mul(hn::Sub(value, zero), inverse);
  const auto positive = hn::IfThenElseZero(hn::Gt(steps, hn::Zero(df)), steps);  // NaN: 0
  const auto levels = hn::Set(df, static_cast<float>((1u << kBits) - 1));
  return hn::BitCast(BaseWords(), hn::NearestInt(hn::Min(positive, levels)));
}

// Writes the words of a unit's lanes; bits of a nibble plane are or-ed to what is there.
template <std::uint32_t kBits>
HWY_INLINE void store_words(Words words, std::uint32_t units, std::size_t unit, std::size_t lane,
                            std::byte* codes) {
  using Codes = BaseCodes<kBits>;
  const hn::RebindToSigned<BaseFloats> di;
  const hn::Rebind<std::uint8_t, BaseWords> d8;
  const hn::Rebind<std::uint16_t, BaseWords> d16;
  const BaseWords du;
  auto* const row = reinterpret_cast<std::uint8_t*>(codes);
  std::uint8_t* const at = row + unit * Codes::kUnitBytes;
  const auto bytes_of = [&](Words part)
                            HWY_ATTR { return hn::DemoteTo(d8, hn::BitCast(di, part)); };
  if constexpr (kBits == 8) {
    const hn::Repartition<std::uint8_t, BaseWords> bytes;
    hn::StoreU(hn::BitCast(bytes, words), bytes, at + lane * 4);
  } else if constexpr (kBits == 3) {
    hn::StoreU(bytes_of(hn::And(words, hn::Set(du, 0xFFu))), d8, at + lane);
  } else {
    const hn::Repartition<std::uint8_t, decltype(d16)> bytes;
    const auto low = hn::DemoteTo(d16, hn::BitCast(di, hn::And(words, hn::Set(du, 0xFFFFu))));
    hn::StoreU(hn::BitCast(bytes, low), bytes, at + lane * 2);
  }
  if constexpr (kBits == 6)
    hn::StoreU(bytes_of(hn::ShiftRight<16>(words)), d8, at + kBaseLanes * 2 + lane);
  if constexpr (Codes::kNibbles) {
    const auto nibble = hn::ShiftRight < kBits == 5 ? 16 : 8 > (words);
    std::uint8_t* const both = row + units * Codes::kUnitBytes + unit / 2 * kBaseLanes + lane;
    if (unit % 2 == 0) {
      hn::StoreU(bytes_of(nibble), d8, both);
    } else {
      hn::StoreU(hn::Or(bytes_of(hn::ShiftLeft<4>(nibble)), hn::LoadU(d8, both)), d8, both);
    }
  }
}

// Codes of one row; group(d) gives zero and inverse of dims [d, d + kBasePiece).
template <std::uint32_t kBits, Dtype kDtype, class Group>
HWY_INLINE void encode_row(const std::byte* row, std::uint32_t dims, const Group& group,
                           std::byte* codes) {
  const std::uint32_t units = BaseFormat::units(dims);
  for (std::uint32_t unit = 0; unit < units; ++unit)
    for (std::size_t lane = 0; lane < kBaseLanes; lane += kBasePiece) {
      auto words = hn::Zero(BaseWords());
      for_fields([&]<std::size_t kField>() HWY_ATTR {
        const std::size_t d = unit * kBaseUnit + kField * kBaseLanes + lane;
        if (d >= dims) return;
        const auto [zero, inverse] = group(d);
        const auto code = code_of<kBits>(load_row<kDtype>(BaseFloats(), row, d), zero, inverse);
        words = hn::Or(words, hn::ShiftLeft<kField * kBits>(code));
      });
      store_words<kBits>(words, units, unit, lane, codes);
    }
}

struct ZeroAndInverse {
  Floats zero;
  Floats inverse;
};

template <std::uint32_t kBits, Dtype kDtype>
void encode_k(const BaseFormat& format, const std::byte* const* rows, std::size_t count,
              std::byte* chunk) {
  const BaseFloats df;
  alignas(64) float zeros[kHeadDimMax];
  alignas(64) float inverses[kHeadDimMax];
  for (std::size_t d = 0; d < format.dim; d += kBasePiece) {
    auto least = load_row<kDtype>(df, rows[0], d);
    auto greatest = least;
    for (std::size_t t = 1; t < count; ++t) {
      const auto value = load_row<kDtype>(df, rows[t], d);
      least = hn::Min(least, value);
      greatest = hn::Max(greatest, value);
    }
    const Affine affine = affine_of<kBits>(least, greatest);
    std::uint16_t halves[2][kBaseLanes];
    store_u16(df, affine.scale_bits, halves[0]);
    store_u16(df, affine.zero_bits, halves[1]);
    std::memcpy(chunk + d * 2, halves[0], kBasePiece * 2);
    std::memcpy(chunk + format.k_zero_offset() + d * 2, halves[1], kBasePiece * 2);
    hn::Store(affine.zero, df, zeros + d);
    hn::Store(affine.inverse, df, inverses + d);
  }
  const auto group = [&](std::size_t d) HWY_ATTR {
    return ZeroAndInverse{hn::Load(df, zeros + d), hn::Load(df, inverses + d)};
  };
  for (std::uint32_t t = 0; t < count; ++t)
    encode_row<kBits, kDtype>(rows[t], format.dim, group, chunk + format.k_row_offset(t));
}

template <std::uint32_t kBits, Dtype kDtype>
void encode_v(const BaseFormat& format, const std::byte* row, std::uint32_t token,
              std::byte* chunk) {
  const BaseFloats df;
  float zeros[kHeadDimMax / kBaseUnit];  // numbers: structures of vectors would be copied by halves
  float inverses[kHeadDimMax / kBaseUnit];
  for (std::uint32_t unit = 0; unit < BaseFormat::units(format.v_dim); ++unit) {
    const std::size_t first = unit * kBaseUnit;
    const std::size_t last = std::min<std::size_t>(format.v_dim, first + kBaseUnit);
    auto least = load_row<kDtype>(df, row, first);
    auto greatest = least;
    for (std::size_t d = first + kBasePiece; d < last; d += kBasePiece) {
      const auto value = load_row<kDtype>(df, row, d);
      least = hn::Min(least, value);
      greatest = hn::Max(greatest, value);
    }
    const Affine affine = affine_of<kBits>(hn::MinOfLanes(df, least), hn::MaxOfLanes(df, greatest));
    zeros[unit] = hn::GetLane(affine.zero);
    inverses[unit] = hn::GetLane(affine.inverse);
    const std::uint16_t halves[2] = {static_cast<std::uint16_t>(hn::GetLane(affine.scale_bits)),
                                     static_cast<std::uint16_t>(hn::GetLane(affine.zero_bits))};
    std::memcpy(chunk + format.v_groups_offset(token) + unit * 4, halves, 4);
  }
  const auto group = [&](std::size_t d) HWY_ATTR {
    return ZeroAndInverse{hn::Set(df, zeros[d / kBaseUnit]), hn::Set(df, inverses[d / kBaseUnit])};
  };
  encode_row<kBits, kDtype>(row, format.v_dim, group, chunk + format.v_row_offset(token));
}

template <Dtype kDtype>
void encode(const EncodeBaseArgs& args) {
  const BaseFormat& format = args.format;
  RowCursor cursor(args.rows, 0, *args.token_count, nullptr);
  const std::byte* k[kBaseChunkTokens];
  const std::byte* v[kBaseChunkTokens];
  std::byte* chunk = args.out;
  while (const std::size_t count = cursor.next(k, v, kBaseChunkTokens)) {
    const auto tokens = static_cast<std::uint32_t>(count);
    with_bits(format.k_bits, [&]<std::uint32_t kBits>()
                                 HWY_ATTR { encode_k<kBits, kDtype>(format, k, count, chunk); });
    with_bits(format.v_bits, [&]<std::uint32_t kBits>() HWY_ATTR {
      for (std::uint32_t t = 0; t < tokens; ++t) encode_v<kBits, kDtype>(format, v[t], t, chunk);
    });
    std::fill(chunk + format.k_row_offset(tokens), chunk + format.k_row_offset(kBaseChunkTokens),
              std::byte{0});
    std::fill(chunk + format.v_row_offset(tokens), chunk + format.chunk_bytes(), std::byte{0});
    chunk += format.chunk_bytes();
  }
}

void run_encode_base(const EncodeBaseArgs& args) {
  begin("encode_base");
  with_dtype(args.rows.dtype, [&]<Dtype kDtype>() HWY_ATTR { encode<kDtype>(args); });
}
#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_encode_base);

Result<void> encode_base(const EncodeBaseArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_encode_base)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
