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

constexpr std::uint64_t kUnitsPerTile =
    64;  // several blocks of queries read a tile while it is in cache

// Scores of units [first, last) for kCount queries, four units at a time.
template <std::size_t kCount, class D>
HWY_INLINE void score_units(D df, const ScoreArgs& args, const float* q, std::uint64_t first,
                            std::uint64_t last, float* out) {
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t dim = args.dim;
  for (std::uint64_t u = first; u < last; u += 4) {
    const std::uint64_t count = std::min<std::uint64_t>(4, last - u);
    const std::byte* means[4];  // beyond the end: the last one again
    for (std::size_t j = 0; j < 4; ++j)
      means[j] =
          reinterpret_cast<const std::byte*>(args.abstracts + std::min(u + j, last - 1) * dim);
    hn::Vec<D> sum[kCount][4];
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(df);
    for (std::size_t d = 0; d < dim; d += lanes) {
      hn::Vec<D> value[4];
      for (std::size_t j = 0; j < 4; ++j) value[j] = load_row<Dtype::kF16>(df, means[j], d);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto query = hn::LoadU(df, q + i * args.q_stride + d);
        for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::MulAdd(query, value[j], sum[i][j]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      float scores[4];
      store_four_sums(df, sum[i], 1.0f, scores);
      std::copy_n(scores, count, out + i * args.out_stride + u);
    }
  }
}

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= kQueryBlock ? units : kUnitsPerTile;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    with_query_blocks(args.queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
      score_units<kCount>(df, args, args.q + i * args.q_stride, first, last,
                          args.out + i * args.out_stride);
    });
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
