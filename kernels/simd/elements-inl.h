// Vectors of f32 from rows of f32, f16 and bf16, and back. Compiled once per instruction set.
//
// Highway 1.0.3 converts f16 through hardware where the target has F16C; its emulation elsewhere
// truncates and knows no infinities, so those targets use the integer forms below, which follow
// kernels/float16.h bit for bit.
#if defined(KVTIER_KERNELS_SIMD_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVTIER_KERNELS_SIMD_ELEMENTS_INL_H_
#undef KVTIER_KERNELS_SIMD_ELEMENTS_INL_H_
#else
#define KVTIER_KERNELS_SIMD_ELEMENTS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/float16.h"
#include "kernels/kernel_table.h"
#include "kernels/registry.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// First act of every operation: this code really runs on this instruction set.
inline void begin(const char* op) {
  internal::trace_kernel("simd", hwy::TargetName(HWY_TARGET), op);
}

// For operations that need more than one lane: the reference, on the one target that has only one
// (HWY_SCALAR; machines without vectors do not get this table, but the tests run it).
template <class Args>
inline void run_reference(const char* op, const Args& args,
                          Result<void> (*reference)(const Args&, KernelStream)) {
  static_cast<void>(reference(args, nullptr));  // the arguments are checked
  begin(op);
}

// f16 bits in u16 lanes to f32.
template <class D>
HWY_INLINE hn::Vec<D> f32_from_f16(D df, hn::Vec<hn::Rebind<std::uint16_t, D>> half) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), half));
#else
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::PromoteTo(du, half);
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFu));
  const auto mantissa = hn::And(bits, hn::Set(du, 0x3FFu));
  const auto small =
      hn::BitCast(du, hn::Mul(hn::ConvertTo(df, hn::BitCast(hn::RebindToSigned<D>(), mantissa)),
                              hn::Set(df, 0x1.0p-24f)));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(du, 112u << 23));
  const auto quiet = hn::IfThenElseZero(hn::Ne(mantissa, hn::Zero(du)), hn::Set(du, 0x00400000u));
  const auto special = hn::Or(hn::Or(shifted, hn::Set(du, 0x7F800000u)), quiet);
  const auto is_small = hn::Lt(hn::BitCast(df, shifted), hn::BitCast(df, hn::Set(du, 1u << 23)));
  const auto is_special = hn::Ge(hn::BitCast(df, shifted), hn::BitCast(df, hn::Set(du, 31u << 23)));
  const auto finite = hn::IfThenElse(hn::RebindMask(du, is_small), small, normal);
  return hn::BitCast(df,
                     hn::Or(sign, hn::IfThenElse(hn::RebindMask(du, is_special), special, finite)));
#endif
}

// f32 to f16 bits, in the low half of u32 lanes. Round to nearest even.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> f16_bits(D df, hn::Vec<D> value) {
  const hn::RebindToUnsigned<D> du;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(du, hn::BitCast(hn::Rebind<std::uint16_t, D>(), hn::DemoteTo(dh, value)));
#else
  const auto bits = hn::BitCast(du, value);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000u));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto normal =
      hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, hn::Set(du, 0xFFFu - 0x38000000u)), odd));
  const auto small =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f))),
              hn::Set(du, 0x3F000000u));
  const auto nan =
      hn::Or(hn::Set(du, 0x7E00u), hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3FFu)));
  auto result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x387FFFFFu)), normal, small);
  result =
      hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x477FEFFFu)), hn::Set(du, 0x7C00u), result);
  result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7F800000u)), nan, result);
  return hn::Or(sign, result);
#endif
}

// f16 bits that are not above (below) a value: nearest, then one step where nearest went the wrong
// way.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> f16_bits_down(D df, hn::Vec<D> value) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<std::uint16_t, D> dh;
  const auto bits = f16_bits(df, value);
  const auto back = f32_from_f16(df, hn::DemoteTo(dh, hn::BitCast(hn::RebindToSigned<D>(), bits)));
  const auto negative = hn::Ne(hn::And(bits, hn::Set(du, 0x8000u)), hn::Zero(du));
  auto lower =
      hn::IfThenElse(negative, hn::Add(bits, hn::Set(du, 1u)), hn::Sub(bits, hn::Set(du, 1u)));
  lower = hn::IfThenElse(hn::Eq(bits, hn::Zero(du)), hn::Set(du, 0x8001u), lower);
  return hn::IfThenElse(hn::RebindMask(du, hn::Gt(back, value)), lower, bits);
}

template <class D>
HWY_INLINE hn::Vec<D> f32_from_bf16(D df, hn::Vec<hn::Rebind<std::uint16_t, D>> half) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
}

template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> bf16_bits(D, hn::Vec<D> value) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd));
  const auto nan = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40u));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), nan, rounded);
}

// u32 lanes below 65536, stored as u16.
template <class D, class V>
HWY_INLINE void store_u16(D, V bits, std::uint16_t* out) {
  const hn::Rebind<std::uint16_t, D> dh;
  hn::StoreU(hn::DemoteTo(dh, hn::BitCast(hn::RebindToSigned<D>(), bits)), dh, out);
}

// Lanes(df) elements from element `index` of a row.
template <Dtype kDtype, class D>
HWY_INLINE hn::Vec<D> load_row(D df, const std::byte* row, std::size_t index) {
  if constexpr (kDtype == Dtype::kF32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(row) + index);
  } else {
    const hn::Rebind<std::uint16_t, D> dh;
    const auto half = hn::LoadU(dh, reinterpret_cast<const std::uint16_t*>(row) + index);
    if constexpr (kDtype == Dtype::kF16) {
      return f32_from_f16(df, half);
    } else {
      return f32_from_bf16(df, half);
    }
  }
}

// `count` elements from element `index` as f32.
template <Dtype kDtype>
HWY_INLINE void load_floats(const std::byte* row, std::uint64_t index, std::size_t count,
                            float* out) {
  const hn::ScalableTag<float> df;
  std::size_t i = 0;
  for (; i + hn::Lanes(df) <= count; i += hn::Lanes(df))
    hn::StoreU(load_row<kDtype>(df, row, index + i), df, out + i);
  for (; i < count; ++i) out[i] = load_element(row, kDtype, index + i);
}

template <class D>
HWY_INLINE float sum_of(D df, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(df, v));
}

// exp(x) for x of 0 or less, within 2e-7 of its size; 0 below -87, and for NaN. Half the work of
// Highway's, which holds for all x.
template <class D>
HWY_INLINE hn::Vec<D> exp_below_one(D df, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  // The sum with 1.5 * 2^23 is rounded to a whole number, which stands in its lowest bits.
  const auto magic = hn::Set(df, 0x1.8p23f);
  const auto shifted = hn::MulAdd(x, hn::Set(df, 1.44269504f), magic);
  const auto rest = hn::MulAdd(hn::Sub(shifted, magic), hn::Set(df, -0.693147181f), x);
  auto power = hn::Set(df, 0.008297616615891457f);
  power = hn::MulAdd(power, rest, hn::Set(df, 0.04191562905907631f));
  power = hn::MulAdd(power, rest, hn::Set(df, 0.16667576134204865f));
  power = hn::MulAdd(power, rest, hn::Set(df, 0.4999889135360718f));
  power = hn::MulAdd(power, rest, hn::Set(df, 0.9999997019767761f));
  power = hn::MulAdd(power, rest, hn::Set(df, 1.0000001192092896f));
  const auto result =
      hn::BitCast(df, hn::Add(hn::BitCast(di, power), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(df, -87.0f)), result);
}

#if HWY_TARGET == HWY_SCALAR
template <class D>
HWY_INLINE void store_four_sums(D df, const hn::Vec<D> (&v)[4], float scale, float* out) {
  for (std::size_t i = 0; i < 4; ++i) out[i] = scale * sum_of(df, v[i]);
}
#else
// Sums over the groups of four lanes that a vector consists of, down to one group.
template <class D>
HWY_INLINE auto fold_to_four(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return fold_to_four(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Writes scale times the sum of the lanes of each of four vectors. Four at once cost little more
// than one.
template <class D>
HWY_INLINE void store_four_sums(D df, const hn::Vec<D> (&v)[4], float scale, float* out) {
  const hn::Repartition<std::uint64_t, D> pairs;
  // In each group of four lanes: a0+a2 b0+b2 a1+a3 b1+b3, the same of c and d, then a b c d.
  const auto ab = hn::BitCast(
      pairs, hn::Add(hn::InterleaveLower(df, v[0], v[1]), hn::InterleaveUpper(df, v[0], v[1])));
  const auto cd = hn::BitCast(
      pairs, hn::Add(hn::InterleaveLower(df, v[2], v[3]), hn::InterleaveUpper(df, v[2], v[3])));
  const auto sums = fold_to_four(df, hn::Add(hn::BitCast(df, hn::InterleaveLower(pairs, ab, cd)),
                                             hn::BitCast(df, hn::InterleaveUpper(pairs, ab, cd))));
  const hn::CappedTag<float, 4> four;
  hn::StoreU(hn::Mul(sums, hn::Set(four, scale)), four, out);
}
#endif

// Queries whose sums for four rows fit into the registers.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr std::uint32_t kQueryBlock = 4;
#else
inline constexpr std::uint32_t kQueryBlock = 2;
#endif

// Calls f.template operator()<count>(first) for blocks of kQueryBlock queries and for what remains.
template <class F>
HWY_INLINE void with_query_blocks(std::uint32_t queries, const F& f) {
  std::uint32_t first = 0;
  for (; first + kQueryBlock <= queries; first += kQueryBlock)
    f.template operator()<kQueryBlock>(first);
  if constexpr (kQueryBlock > 2) {
    if (queries - first == 3) f.template operator()<3>(first);
    if (queries - first == 2) f.template operator()<2>(first);
  }
  if (queries - first == 1) f.template operator()<1>(first);
}

// Calls f(tag) with the widest vector that divides `dims` (a multiple of 8, or several or-ed
// together). The lambda must be marked HWY_ATTR, here and below.
template <class F>
HWY_INLINE void with_width(std::uint32_t dims, const F& f) {
  const hn::ScalableTag<float> wide;
  if (dims % hn::Lanes(wide) == 0) {
    f(wide);
  } else {
    f(hn::CappedTag<float, 8>());
  }
}

// Calls f.template operator()<dtype>().
template <class F>
HWY_INLINE void with_dtype(Dtype dtype, const F& f) {
  if (dtype == Dtype::kF32) {
    f.template operator()<Dtype::kF32>();
  } else if (dtype == Dtype::kF16) {
    f.template operator()<Dtype::kF16>();
  } else {
    f.template operator()<Dtype::kBf16>();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#endif  // per target
