#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/scalar/scalar.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/decode_base.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/base-inl.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_decode_base(const DecodeBaseArgs& args) {
  run_reference("decode_base", args, scalar::decode_base);
}
#else

template <Dtype kDtype>
HWY_INLINE void store_row(hn::Vec<BaseFloats> value, std::byte* row, std::size_t index) {
  const BaseFloats df;
  if constexpr (kDtype == Dtype::kF32) {
    hn::StoreU(value, df, reinterpret_cast<float*>(row) + index);
  } else if constexpr (kDtype == Dtype::kF16) {
    store_u16(df, f16_bits(df, value), reinterpret_cast<std::uint16_t*>(row) + index);
  } else {
    store_u16(df, bf16_bits(df, value), reinterpret_cast<std::uint16_t*>(row) + index);
  }
}

// A row of codes; group(d) gives scale and zero of dims [d, d + kBasePiece). zero + scale * code:
// the product is exact, with the field's factor too.
template <std::uint32_t kBits, Dtype kDtype, class Group>
HWY_INLINE void decode_row(const std::byte* codes, std::uint32_t dims, const Group& group,
                           std::byte* out) {
  const BaseFloats df;
  const BaseCodes<kBits> row(codes, BaseFormat::units(dims));
  for (std::uint32_t unit = 0; unit < BaseFormat::units(dims); ++unit)
    for (std::size_t lane = 0; lane < kBaseLanes; lane += kBasePiece) {
      const auto words = row.words(unit, lane);
      for_fields([&]<std::size_t kField>() HWY_ATTR {
        const std::size_t d = unit * kBaseUnit + kField * kBaseLanes + lane;
        if (d >= dims) return;
        const auto code = hn::Mul(field_of<kBits, kField>(words),
                                  hn::Set(df, 1.0f / field_factor<kBits>(kField)));
        const auto [scale, zero] = group(d);
        store_row<kDtype>(hn::Add(zero, hn::Mul(scale, code)), out, d);
      });
    }
}

struct Group {
  hn::Vec<BaseFloats> scale;
  hn::Vec<BaseFloats> zero;
};

template <Dtype kDtype>
void decode(const DecodeBaseArgs& args) {
  const BaseFloats df;
  const BaseFormat& format = args.pages.format;
  const std::uint64_t rows = row_count(args.rows);
  for (std::uint64_t n = 0; n < rows; ++n) {
    const BasePlace place = place_of(args.pages, args.rows, n);
    const std::byte* chunk = place.chunk;
    const auto k_group = [&](std::size_t d) HWY_ATTR {
      return Group{load_base_halves(chunk + d * 2),
                   load_base_halves(chunk + format.k_zero_offset() + d * 2)};
    };
    const auto v_group = [&](std::size_t d) HWY_ATTR {
      const std::byte* group = chunk + format.v_groups_offset(place.token) + d / kBaseUnit * 4;
      return Group{hn::Set(df, load_element(group, Dtype::kF16, 0)),
                   hn::Set(df, load_element(group, Dtype::kF16, 1))};
    };
    if (args.out_k != nullptr)
      with_bits(format.k_bits, [&]<std::uint32_t kBits>() HWY_ATTR {
        decode_row<kBits, kDtype>(chunk + format.k_row_offset(place.token), format.dim, k_group,
                                  args.out_k + n * args.k_stride);
      });
    if (args.out_v != nullptr)
      with_bits(format.v_bits, [&]<std::uint32_t kBits>() HWY_ATTR {
        decode_row<kBits, kDtype>(chunk + format.v_row_offset(place.token), format.v_dim, v_group,
                                  args.out_v + n * args.v_stride);
      });
  }
}

void run_decode_base(const DecodeBaseArgs& args) {
  begin("decode_base");
  with_dtype(args.dtype, [&]<Dtype kDtype>() HWY_ATTR { decode<kDtype>(args); });
}
#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_decode_base);

Result<void> decode_base(const DecodeBaseArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_decode_base)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
