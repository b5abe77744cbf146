#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/low_rank_layout.h"
#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/rebuild_keys.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::size_t kRowsAtOnce = 4;  // a basis is loaded once for so many

// Rows before they are turned, [kRowsAtOnce][kHeadDimMax].
template <class D>
HWY_INLINE void multiply(D df, const RebuildKeysArgs& args, const float* coefficients,
                         float* rows) {
  const auto* basis = reinterpret_cast<const std::byte*>(args.basis);
  const float* c0 = coefficients;
  const float* c1 = c0 + kLowRankMax;
  const float* c2 = c1 + kLowRankMax;
  const float* c3 = c2 + kLowRankMax;
  for (std::size_t d = 0; d < args.dim; d += hn::Lanes(df)) {
    auto sum0 = hn::Zero(df), sum1 = hn::Zero(df), sum2 = hn::Zero(df), sum3 = hn::Zero(df);
    for (std::size_t r = 0; r < args.rank; ++r) {
      const auto part = load_row<Dtype::kF16>(df, basis, r * args.dim + d);
      sum0 = hn::MulAdd(hn::Set(df, c0[r]), part, sum0);
      sum1 = hn::MulAdd(hn::Set(df, c1[r]), part, sum1);
      sum2 = hn::MulAdd(hn::Set(df, c2[r]), part, sum2);
      sum3 = hn::MulAdd(hn::Set(df, c3[r]), part, sum3);
    }
    hn::StoreU(sum0, df, rows + d);
    hn::StoreU(sum1, df, rows + kHeadDimMax + d);
    hn::StoreU(sum2, df, rows + 2 * kHeadDimMax + d);
    hn::StoreU(sum3, df, rows + 3 * kHeadDimMax + d);
  }
}

// Halves, as far as whole vectors go; the rest, and neighbours, one by one.
HWY_INLINE void turn(const RebuildKeysArgs& args, const float* turns, float* row) {
  if (args.pairing != Rotation::Pairing::kHalves)
    return turn_row(args.pairing, args.pairs, turns, false, row);
  const hn::CappedTag<float, 8> df;
  const std::size_t pairs = args.pairs;
  std::size_t p = 0;
  for (; p + hn::Lanes(df) <= pairs; p += hn::Lanes(df)) {
    const auto a = hn::LoadU(df, row + p), b = hn::LoadU(df, row + pairs + p);
    const auto cosine = hn::LoadU(df, turns + p), sine = hn::LoadU(df, turns + pairs + p);
    hn::StoreU(hn::Sub(hn::Mul(a, cosine), hn::Mul(b, sine)), df, row + p);
    hn::StoreU(hn::Add(hn::Mul(b, cosine), hn::Mul(a, sine)), df, row + pairs + p);
  }
  for (; p < pairs; ++p) {
    const float a = row[p], b = row[pairs + p];
    row[p] = a * turns[p] - b * turns[pairs + p];
    row[pairs + p] = b * turns[p] + a * turns[pairs + p];
  }
}

template <Dtype kDtype>
HWY_INLINE void store(const float* row, std::uint32_t dim, std::byte* out) {
  const hn::CappedTag<float, 8> df;
  for (std::size_t d = 0; d < dim; d += hn::Lanes(df)) {
    const auto value = hn::LoadU(df, row + d);
    if constexpr (kDtype == Dtype::kF32) {
      hn::StoreU(value, df, reinterpret_cast<float*>(out) + d);
    } else if constexpr (kDtype == Dtype::kF16) {
      store_u16(df, f16_bits(df, value), reinterpret_cast<std::uint16_t*>(out) + d);
    } else {
      store_u16(df, bf16_bits(df, value), reinterpret_cast<std::uint16_t*>(out) + d);
    }
  }
}

template <Dtype kDtype>
void rebuild(const RebuildKeysArgs& args) {
  alignas(64) float coefficients[kRowsAtOnce * kLowRankMax];
  alignas(64) float rows[kRowsAtOnce * kHeadDimMax];
  const std::uint64_t count = *args.count;
  for (std::uint64_t first = 0; first < count; first += kRowsAtOnce) {
    const std::uint64_t here = std::min<std::uint64_t>(kRowsAtOnce, count - first);
    for (std::uint64_t i = 0; i < kRowsAtOnce; ++i)  // the last one fills what is missing
      load_floats<Dtype::kF16>(address_of(args.base, args.offsets[first + std::min(i, here - 1)]),
                               0, args.rank, coefficients + i * kLowRankMax);
    with_width(args.dim, [&](auto df) HWY_ATTR { multiply(df, args, coefficients, rows); });
    for (std::uint64_t i = 0; i < here; ++i) {
      float* row = rows + i * kHeadDimMax;
      turn(args, args.turns + (first + i) * 2 * args.pairs, row);
      store<kDtype>(row, args.dim, args.out + args.out_offsets[first + i]);
    }
  }
}

void run_rebuild_keys(const RebuildKeysArgs& args) {
  begin("rebuild_keys");
  with_dtype(args.dtype, [&]<Dtype kDtype>() HWY_ATTR { rebuild<kDtype>(args); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_rebuild_keys);

Result<void> rebuild_keys(const RebuildKeysArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_rebuild_keys)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
