// Dot products of queries with one vector of f16 per unit: what score_mean and score_ball have in
// common. Compiled once per instruction set.
#if defined(KVTIER_KERNELS_SIMD_SCORE_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVTIER_KERNELS_SIMD_SCORE_DOTS_INL_H_
#undef KVTIER_KERNELS_SIMD_SCORE_DOTS_INL_H_
#else
#define KVTIER_KERNELS_SIMD_SCORE_DOTS_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/row_cursor.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {

// Several blocks of queries read a tile of units while it is in cache.
inline constexpr std::uint64_t kUnitsPerTile = 64;

// Scores of units [first, last) for kCount queries, four units at a time. A unit has `elements`
// elements, the first `dim` of which are multiplied; finish(i, unit, product) makes a score of
// query i's product.
template <std::size_t kCount, class D, class Finish>
HWY_INLINE void score_dots(D df, const ScoreArgs& args, std::uint32_t elements, const float* q,
                           std::uint64_t first, std::uint64_t last, float* out,
                           const Finish& finish) {
  const std::size_t lanes = hn::Lanes(df);
  for (std::uint64_t u = first; u < last; u += 4) {
    const std::uint64_t count = std::min<std::uint64_t>(4, last - u);
    const std::byte* units[4];  // beyond the end: the last one again
    for (std::size_t j = 0; j < 4; ++j)
      units[j] = reinterpret_cast<const std::byte*>(
          args.abstracts + unit_of(args, std::min(u + j, last - 1)) * elements);
    hn::Vec<D> sum[kCount][4];
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(df);
    for (std::size_t d = 0; d < args.dim; d += lanes) {
      hn::Vec<D> value[4];
      for (std::size_t j = 0; j < 4; ++j) value[j] = load_row<Dtype::kF16>(df, units[j], d);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto query = hn::LoadU(df, q + i * args.q_stride + d);
        for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::MulAdd(query, value[j], sum[i][j]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      float scores[4];
      store_four_sums(df, sum[i], 1.0f, scores);
      for (std::size_t j = 0; j < 4; ++j) scores[j] = finish(i, units[j], scores[j]);
      std::copy_n(scores, count, out + i * args.out_stride + u);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#endif  // per target
