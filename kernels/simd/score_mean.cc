#include "kernels/simd/simd.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_mean.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint64_t kUnitsPerTile = 64;  // of more than four queries all read a tile while it is in cache

// Scores of units [first, last) for kCount queries, two units at a time so that enough sums are under way.
template <std::size_t kCount, class D>
HWY_INLINE void score_units(D df, const ScoreArgs& args, const float* q, std::uint64_t first, std::uint64_t last,
                            float* out) {
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t dim = args.dim;
  for (std::uint64_t u = first; u < last; u += 2) {
    const std::uint64_t second = std::min(u + 1, last - 1);
    const auto* mean_a = reinterpret_cast<const std::byte*>(args.abstracts + u * dim);
    const auto* mean_b = reinterpret_cast<const std::byte*>(args.abstracts + second * dim);
    hn::Vec<D> sum_a[kCount];
    hn::Vec<D> sum_b[kCount];
    for (std::size_t i = 0; i < kCount; ++i) sum_a[i] = sum_b[i] = hn::Zero(df);
    for (std::size_t d = 0; d < dim; d += lanes) {
      const auto value_a = load_row<Dtype::kF16>(df, mean_a, d);
      const auto value_b = load_row<Dtype::kF16>(df, mean_b, d);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto query = hn::LoadU(df, q + i * args.q_stride + d);
        sum_a[i] = hn::MulAdd(query, value_a, sum_a[i]);
        sum_b[i] = hn::MulAdd(query, value_b, sum_b[i]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      out[i * args.out_stride + u] = sum_of(df, sum_a[i]);
      out[i * args.out_stride + second] = sum_of(df, sum_b[i]);
    }
  }
}

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= 4 ? units : kUnitsPerTile;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    for (std::uint32_t i = 0; i < args.queries; i += 4) {
      const std::uint32_t count = std::min(args.queries - i, 4u);
      const float* q = args.q + i * args.q_stride;
      float* out = args.out + i * args.out_stride;
      if (count == 1) score_units<1>(df, args, q, first, last, out);
      if (count == 2) score_units<2>(df, args, q, first, last, out);
      if (count == 3) score_units<3>(df, args, q, first, last, out);
      if (count == 4) score_units<4>(df, args, q, first, last, out);
    }
  }
}

void run_score_mean(const ScoreArgs& args) {
  begin("score_mean");
  with_width(args.dim, [&](auto df) HWY_ATTR { score_all(df, args); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_mean);

Result<void> score_mean(const ScoreArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_mean)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
