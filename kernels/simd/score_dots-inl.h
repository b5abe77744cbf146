// How abstracts of f16 are walked (score_box, score_mean, score_ball), and dot products of queries
// with one vector per unit, which the latter two have in common. Compiled once per instruction set.
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

// Four units that are scored at once. They are a quarter of the units apart, since the machine
// reads four places faster than one, and what comes is asked for ahead.
struct FourUnits {
  static constexpr std::size_t kLine = 64;  // bytes that one prefetch brings
  static constexpr std::size_t kAheadBytes = 2048;

  // Number `u`, below steps(), of the units [first, last) of `elements` elements each.
  HWY_INLINE FourUnits(const ScoreArgs& args, std::uint32_t elements, std::uint64_t first,
                       std::uint64_t last, std::uint64_t u) {
    const std::size_t bytes = std::size_t{elements} * sizeof(std::uint16_t);
    const auto address = [&](std::uint64_t i) {
      return reinterpret_cast<const std::byte*>(args.abstracts + unit_of(args, i) * elements);
    };
    for (std::size_t j = 0; j < 4; ++j) {
      index[j] = std::min(first + j * steps(first, last) + u, last - 1);
      unit[j] = address(index[j]);
      const std::byte* next = address(std::min(index[j] + 1 + kAheadBytes / bytes, last - 1));
      for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(next + at);
    }
  }

  static std::uint64_t steps(std::uint64_t first, std::uint64_t last) {
    return (last - first + 3) / 4;
  }

  std::uint64_t index[4];  // of the scores; beyond the end: the last one again
  const std::byte* unit[4];
};

// Scores of units [first, last) for kCount queries. A unit has `elements` elements, the first `dim`
// of which are multiplied; finish(i, unit, product) makes a score of query i's product.
template <std::size_t kCount, class D, class Finish>
HWY_INLINE void score_dots(D df, const ScoreArgs& args, std::uint32_t elements, const float* q,
                           std::uint64_t first, std::uint64_t last, float* out,
                           const Finish& finish) {
  const std::size_t lanes = hn::Lanes(df);
  for (std::uint64_t u = 0; u < FourUnits::steps(first, last); ++u) {
    const FourUnits four(args, elements, first, last, u);
    hn::Vec<D> sum[kCount][4];
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(df);
    for (std::size_t d = 0; d < args.dim; d += lanes) {
      hn::Vec<D> value[4];
      for (std::size_t j = 0; j < 4; ++j) value[j] = load_row<Dtype::kF16>(df, four.unit[j], d);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto query = hn::LoadU(df, q + i * args.q_stride + d);
        for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::MulAdd(query, value[j], sum[i][j]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      float scores[4];
      store_four_sums(df, sum[i], 1.0f, scores);
      for (std::size_t j = 0; j < 4; ++j)
        out[i * args.out_stride + four.index[j]] = finish(i, four.unit[j], scores[j]);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#endif  // per target
