#include "kernels/simd/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float16.h"
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

// The largest square of a key's distance to `mean`.
template <Dtype kDtype, class D>
float largest_square(D df, const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
                     const float* mean) {
  UnitCursor cursor(args.rows, args.members, first, last);
  const std::byte* rows[kBatch];
  float largest = 0.0f;
  while (const std::size_t count = cursor.next(rows, kBatch))
    for (std::size_t i = 0; i < count; ++i) {
      auto sum = hn::Zero(df);
      for (std::size_t d = 0; d < args.dim; d += hn::Lanes(df)) {
        const auto distance = hn::Sub(load_row<kDtype>(df, rows[i], d), hn::Load(df, mean + d));
        sum = hn::MulAdd(distance, distance, sum);
      }
      largest = std::max(largest, sum_of(df, sum));
    }
  return largest;
}

// The radius behind the mean at `out`, and the zeros behind that.
template <Dtype kDtype, class D>
void finish_ball(D df, const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
                 UnitState* state, std::uint16_t* out) {
  load_floats<Dtype::kF16>(reinterpret_cast<const std::byte*>(out), 0, args.dim, state->high);
  const float square = largest_square<kDtype>(df, args, first, last, state->high);
  // Each of up to 1024 / 8 + 8 additions rounds by 2^-24 at most, and so do differences and
  // squares.
  const double radius = std::sqrt(static_cast<double>(square)) * (1.0 + 0x1p-14);
  out[args.dim] = f32_to_f16_up(static_cast<float>(radius));
  std::fill_n(out + args.dim + 1, kBallTail - 1, std::uint16_t{0});
}

template <Dtype kDtype, class D>
void build_unit(D df, const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
                UnitState* state, std::uint16_t* out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool box = args.kind == AbstractKind::kBox;
  std::fill_n(state->low, args.dim, box ? kInfinity : 0.0f);
  if (box) std::fill_n(state->high, args.dim, -kInfinity);
  UnitCursor cursor(args.rows, args.members, first, last);
  const std::byte* rows[kBatch];
  while (const std::size_t count = cursor.next(rows, kBatch)) {
    if (box) {
      add_box<kDtype>(df, rows, count, args.dim, state);
    } else {
      add_mean<kDtype>(df, rows, count, args.dim, state);
    }
  }
  if (box) {
    finish_box(df, *state, args.dim, out);
    return;
  }
  finish_mean(df, *state, args.dim, last - first, out);
  if (args.kind == AbstractKind::kBall) finish_ball<kDtype>(df, args, first, last, state, out);
}

template <Dtype kDtype, class D>
void build(D df, const BuildAbstractArgs& args) {
  const std::uint32_t elements = abstract_elements(args.kind, args.dim);
  UnitState state;
  std::uint16_t* out = args.out;
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  for (UnitWalk units(args); units.next(&first, &last); out += elements) {
    if (first == last) {
      std::fill_n(out, elements, std::uint16_t{0});
    } else {
      build_unit<kDtype>(df, args, first, last, &state, out);
    }
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
