// Codes of base renditions as vectors (kernels/base_layout.h). Vectors run over the eight lanes of
// a unit, in one piece or, where they are shorter, in several. Compiled once per instruction set;
// not for HWY_SCALAR.
#if defined(KVTIER_KERNELS_SIMD_BASE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVTIER_KERNELS_SIMD_BASE_INL_H_
#undef KVTIER_KERNELS_SIMD_BASE_INL_H_
#else
#define KVTIER_KERNELS_SIMD_BASE_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/base_args.h"
#include "kernels/row_cursor.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {

using BaseFloats = hn::CappedTag<float, kBaseLanes>;
using BaseWords = hn::RebindToUnsigned<BaseFloats>;
inline constexpr std::size_t kBasePiece = hn::MaxLanes(BaseFloats());  // lanes at a time

// Calls f.template operator()<bits>().
template <class F>
HWY_INLINE void with_bits(std::uint32_t bits, const F& f) {
  if (bits == 8) return f.template operator()<8>();
  if (bits == 6) return f.template operator()<6>();
  if (bits == 5) return f.template operator()<5>();
  if (bits == 4) return f.template operator()<4>();
  f.template operator()<3>();
}

#if HWY_TARGET != HWY_SCALAR

// Where the planes of a row's codes begin.
template <std::uint32_t kBits>
struct BaseCodes {
  static constexpr bool kNibbles = kBits == 5 || kBits == 3;
  static constexpr std::size_t kUnitBytes = kBaseLanes * (kBits / 2);

  BaseCodes(const std::byte* row, std::size_t units)
      : plane(reinterpret_cast<const std::uint8_t*>(row)), nibbles(plane + units * kUnitBytes) {}

  // The words of lanes [lane, lane + kBasePiece).
  HWY_INLINE hn::Vec<BaseWords> words(std::size_t unit, std::size_t lane) const {
    const BaseWords du;
    const hn::Rebind<std::uint8_t, BaseWords> d8;
    const hn::Rebind<std::uint16_t, BaseWords> d16;
    const std::uint8_t* at = plane + unit * kUnitBytes;
    hn::Vec<BaseWords> result;
    if constexpr (kBits == 8) {
      const hn::Repartition<std::uint8_t, BaseWords> bytes;
      result = hn::BitCast(du, hn::LoadU(bytes, at + lane * 4));
    } else if constexpr (kBits == 3) {
      result = hn::PromoteTo(du, hn::LoadU(d8, at + lane));
    } else {
      const hn::Repartition<std::uint8_t, decltype(d16)> bytes;
      result = hn::PromoteTo(du, hn::BitCast(d16, hn::LoadU(bytes, at + lane * 2)));
    }
    if constexpr (kBits == 6) {
      const auto high = hn::PromoteTo(du, hn::LoadU(d8, at + kBaseLanes * 2 + lane));
      result = hn::Or(result, hn::ShiftLeft<16>(high));
    }
    if constexpr (kNibbles) {
      constexpr int kShift = kBits == 5 ? 16 : 8;
      const auto both = hn::PromoteTo(du, hn::LoadU(d8, nibbles + unit / 2 * kBaseLanes + lane));
      const auto high = unit % 2 == 0
                            ? hn::ShiftLeft<kShift>(hn::And(both, hn::Set(du, 0x0Fu)))
                            : hn::ShiftLeft<kShift - 4>(hn::And(both, hn::Set(du, 0xF0u)));
      result = hn::Or(result, high);
    }
    return result;
  }

  const std::uint8_t* plane;
  const std::uint8_t* nibbles;
};

// Field kField of words as f32, times field_factor: masked where it lies, which saves the shift.
// The top byte would be a sign there and is shifted.
template <std::uint32_t kBits, std::size_t kField>
HWY_INLINE hn::Vec<BaseFloats> field_of(hn::Vec<BaseWords> words) {
  const BaseFloats df;
  const BaseWords du;
  const hn::RebindToSigned<BaseFloats> di;
  if constexpr ((kField + 1) * kBits == 32) {
    return hn::ConvertTo(df, hn::BitCast(di, hn::ShiftRight<kField * kBits>(words)));
  } else {
    constexpr std::uint32_t kMask = ((1u << kBits) - 1) << (kField * kBits);
    return hn::ConvertTo(df, hn::BitCast(di, hn::And(words, hn::Set(du, kMask))));
  }
}
template <std::uint32_t kBits>
constexpr float field_factor(std::size_t field) {
  return (field + 1) * kBits == 32 ? 1.0f : static_cast<float>(1u << (field * kBits));
}

// Calls f.template operator()<field>() for the four fields.
template <class F>
HWY_INLINE void for_fields(const F& f) {
  f.template operator()<0>();
  f.template operator()<1>();
  f.template operator()<2>();
  f.template operator()<3>();
}

// kBasePiece f16 at any address as f32.
HWY_INLINE hn::Vec<BaseFloats> load_base_halves(const std::byte* from) {
  const hn::Rebind<std::uint16_t, BaseFloats> d16;
  const hn::Repartition<std::uint8_t, decltype(d16)> bytes;
  const auto raw = hn::LoadU(bytes, reinterpret_cast<const std::uint8_t*>(from));
  return f32_from_f16(BaseFloats(), hn::BitCast(d16, raw));
}

#endif  // HWY_SCALAR

// A row of a range: its chunk and its place there.
struct BasePlace {
  const std::byte* chunk;
  std::uint32_t token;
};
HWY_INLINE BasePlace place_of(const BasePages& pages, const BaseRows& rows, std::uint64_t n) {
  const std::uint64_t place = rows.range[0] + n;
  const std::uint64_t token = rows.tokens != nullptr ? rows.tokens[place] : place;
  return {address_of(pages.base, pages.chunks[token / kBaseChunkTokens]),
          static_cast<std::uint32_t>(token % kBaseChunkTokens)};
}
HWY_INLINE std::uint64_t row_count(const BaseRows& rows) {
  return rows.range[1] > rows.range[0] ? rows.range[1] - rows.range[0] : 0;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#endif  // per target
