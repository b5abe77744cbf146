#include "kernels/simd/simd.h"

#include <algorithm>
#include <limits>

#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/build_abstract.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::size_t kBatch = 64;  // rows whose addresses are computed at a time

// Extremes and sums of the unit so far, in f32.
struct UnitState {
  alignas(64) float low[kHeadDimMax];
  alignas(64) float high[kHeadDimMax];
};

template <Dtype kDtype, class D>
HWY_INLINE void add_box(D df, const std::byte* const* rows, std::size_t count, std::uint32_t dim,
                        UnitState* state) {
  const std::size_t lanes = hn::Lanes(df);
  for (std::size_t d = 0; d < dim; d += lanes) {
    auto low = hn::Load(df, state->low + d);
    auto high = hn::Load(df, state->high + d);
    for (std::size_t i = 0; i < count; ++i) {
      const auto value = load_row<kDtype>(df, rows[i], d);
      low = hn::Min(low, value);
      high = hn::Max(high, value);
    }
    hn::Store(low, df, state->low + d);
    hn::Store(high, df, state->high + d);
  }
}

// Sums in token order, as the reference does.
template <Dtype kDtype, class D>
HWY_INLINE void add_mean(D df, const std::byte* const* rows, std::size_t count, std::uint32_t dim,
                         UnitState* state) {
  const std::size_t lanes = hn::Lanes(df);
  for (std::size_t d = 0; d < dim; d += lanes) {
    auto sum = hn::Load(df, state->low + d);
    for (std::size_t i = 0; i < count; ++i) sum = hn::Add(sum, load_row<kDtype>(df, rows[i], d));
    hn::Store(sum, df, state->low + d);
  }
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
HWY_INLINE void finish_box(D df, const UnitState& state, std::uint32_t dim, std::uint16_t* out) {
  const hn::RebindToUnsigned<D> du;
  const auto zero = hn::Zero(df);
  for (std::size_t d = 0; d < dim; d += hn::Lanes(df)) {
    const auto low = hn::Add(hn::Load(df, state.low + d), zero);  // -0 becomes +0
    const auto high = hn::Neg(hn::Add(hn::Load(df, state.high + d), zero));
    store_u16(df, f16_bits_down(df, low), out + d);
    store_u16(df, hn::Xor(f16_bits_down(df, high), hn::Set(du, 0x8000u)), out + dim + d);
  }
}

template <class D>
HWY_INLINE void finish_mean(D df, const UnitState& state, std::uint32_t dim, std::uint64_t tokens,
                            std::uint16_t* out) {
  const auto scale = hn::Set(df, 1.0f / static_cast<float>(tokens));
  const auto bound = hn::Set(df, 65504.0f);
  for (std::size_t d = 0; d < dim; d += hn::Lanes(df)) {
    const auto mean = hn::Mul(hn::Load(df, state.low + d), scale);
    store_u16(df, f16_bits(df, hn::Max(hn::Min(mean, bound), hn::Neg(bound))), out + d);
  }
}

template <Dtype kDtype, class D>
void build(D df, const BuildAbstractArgs& args) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool box = args.kind == AbstractKind::kBox;
  const std::uint64_t tokens = *args.token_count;
  UnitState state;
  std::uint16_t* out = args.out;
  for (std::uint64_t first = 0; first < tokens; first += args.unit_tokens) {
    const std::uint64_t last = std::min<std::uint64_t>(tokens, first + args.unit_tokens);
    std::fill_n(state.low, args.dim, box ? kInfinity : 0.0f);
    if (box) std::fill_n(state.high, args.dim, -kInfinity);
    RowCursor cursor(args.rows, first, last, nullptr);
    const std::byte* rows[kBatch];
    while (const std::size_t count = cursor.next(rows, nullptr, kBatch)) {
      if (box) {
        add_box<kDtype>(df, rows, count, args.dim, &state);
      } else {
        add_mean<kDtype>(df, rows, count, args.dim, &state);
      }
    }
    if (box) {
      finish_box(df, state, args.dim, out);
    } else {
      finish_mean(df, state, args.dim, last - first, out);
    }
    out += static_cast<std::uint64_t>(box ? 2 : 1) * args.dim;
  }
}

void run_build_abstract(const BuildAbstractArgs& args) {
  begin("build_abstract");
  with_width(args.dim, [&](auto df) HWY_ATTR {
    with_dtype(args.rows.dtype, [&]<Dtype kDtype>() HWY_ATTR { build<kDtype>(df, args); });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_build_abstract);

Result<void> build_abstract(const BuildAbstractArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_build_abstract)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
