// Softmax over rows that come tile by tile: what attend and attend_base have in common. Compiled
// once per instruction set.
#if defined(KVTIER_KERNELS_SIMD_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVTIER_KERNELS_SIMD_SOFTMAX_INL_H_
#undef KVTIER_KERNELS_SIMD_SOFTMAX_INL_H_
#else
#define KVTIER_KERNELS_SIMD_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kTile = 32;     // rows between two updates of the running maximum
inline constexpr std::size_t kQueries = 64;  // queries that share one pass over the rows

// Of up to kQueries queries: `scores` of a tile become weights in place, relative to the largest
// score so far.
struct RunningSoftmax {
  float max[kQueries];
  float sum[kQueries];
  float shrink[kQueries];  // what the sums so far are multiplied with
  alignas(
      64) float scores[kQueries][kTile + 16];  // the last ones for what is written beyond the end

  void begin(std::uint32_t queries, std::uint32_t v_dim, float* out, std::uint64_t out_stride) {
    for (std::uint32_t i = 0; i < queries; ++i) {
      std::fill_n(out + i * out_stride, v_dim, 0.0f);
      max[i] = -std::numeric_limits<float>::infinity();
      sum[i] = 0.0f;
    }
  }

  // Turns the scores of `rows` rows of one query into weights.
  void weigh(std::uint32_t i, std::size_t rows) {
    const hn::ScalableTag<float> df;
    const std::size_t lanes = hn::Lanes(df);
    const std::size_t padded = (rows + lanes - 1) / lanes * lanes;
    std::fill(scores[i] + rows, scores[i] + padded, -std::numeric_limits<float>::infinity());
    auto largest = hn::Set(df, max[i]);
    for (std::size_t t = 0; t < padded; t += lanes)
      largest = hn::Max(largest, hn::Load(df, scores[i] + t));
    const float new_max = hn::GetLane(hn::MaxOfLanes(df, largest));
    const auto maximum = hn::Set(df, new_max);
    auto total = hn::Zero(df);
    for (std::size_t t = 0; t < padded; t += lanes) {
      const auto distance = hn::Sub(hn::Load(df, scores[i] + t), maximum);
      // A NaN must show in the result.
      const auto weight =
          hn::IfThenElse(hn::IsNaN(distance), distance, exp_below_one(df, distance));
      hn::Store(weight, df, scores[i] + t);
      total = hn::Add(total, weight);
    }
    shrink[i] = max[i] == new_max ? 1.0f : std::exp(max[i] - new_max);
    sum[i] = sum[i] * shrink[i] + sum_of(df, total);
    max[i] = new_max;
  }

  // `empty`: there was no row.
  template <class D>
  void finish(D df, std::uint32_t queries, std::uint32_t v_dim, bool empty, float* out,
              std::uint64_t out_stride, float* lse, std::uint64_t lse_stride) const {
    for (std::uint32_t i = 0; i < queries; ++i) {
      lse[i * lse_stride] =
          empty ? -std::numeric_limits<float>::infinity() : max[i] + std::log(sum[i]);
      if (empty) continue;
      float* const row = out + i * out_stride;
      const auto share = hn::Set(df, 1.0f / sum[i]);
      for (std::size_t d = 0; d < v_dim; d += hn::Lanes(df))
        hn::StoreU(hn::Mul(hn::LoadU(df, row + d), share), df, row + d);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#endif  // per target
