#include "kernels/simd/simd.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_box.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/score_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// q with its negative parts zero, and with its positive parts zero: then a score is two dot
// products.
struct SplitQueries {
  alignas(64) float positive[kQueryBlock][kHeadDimMax];
  alignas(64) float negative[kQueryBlock][kHeadDimMax];
};

template <class D>
HWY_INLINE void split(D df, const ScoreArgs& args, std::uint32_t first, std::size_t count,
                      SplitQueries* out) {
  const auto zero = hn::Zero(df);
  for (std::size_t i = 0; i < count; ++i) {
    const float* q = args.q + (first + i) * args.q_stride;
    for (std::size_t d = 0; d < args.dim; d += hn::Lanes(df)) {
      const auto value = hn::LoadU(df, q + d);
      hn::Store(hn::Max(value, zero), df, out->positive[i] + d);
      hn::Store(hn::Min(value, zero), df, out->negative[i] + d);
    }
  }
}

// Scores of units [first, last) for kCount queries.
template <std::size_t kCount, class D>
HWY_INLINE void score_units(D df, const ScoreArgs& args, const SplitQueries& q, std::uint64_t first,
                            std::uint64_t last, float* out) {
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t dim = args.dim;
  for (std::uint64_t u = 0; u < FourUnits::steps(first, last); ++u) {
    const FourUnits four(args, 2 * args.dim, first, last, u);
    hn::Vec<D> sum[kCount][4];
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(df);
    for (std::size_t d = 0; d < dim; d += lanes) {
      for (std::size_t j = 0; j < 4; ++j) {
        const auto low = load_row<Dtype::kF16>(df, four.unit[j], d);
        const auto high = load_row<Dtype::kF16>(df, four.unit[j], dim + d);
        for (std::size_t i = 0; i < kCount; ++i) {
          sum[i][j] = hn::MulAdd(hn::Load(df, q.positive[i] + d), high, sum[i][j]);
          sum[i][j] = hn::MulAdd(hn::Load(df, q.negative[i] + d), low, sum[i][j]);
        }
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      float scores[4];
      store_four_sums(df, sum[i], 1.0f, scores);
      for (std::size_t j = 0; j < 4; ++j) out[i * args.out_stride + four.index[j]] = scores[j];
    }
  }
}

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= kQueryBlock ? units : kUnitsPerTile;
  SplitQueries q;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    with_query_blocks(args.queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
      split(df, args, i, kCount, &q);
      score_units<kCount>(df, args, q, first, last, args.out + i * args.out_stride);
    });
  }
}

void run_score_box(const ScoreArgs& args) {
  begin("score_box");
  with_width(args.dim, [&](auto df) HWY_ATTR { score_all(df, args); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_box);

Result<void> score_box(const ScoreArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_box)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
