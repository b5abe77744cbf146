#include "kernels/simd/simd.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_box.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint64_t kUnitsPerTile = 64;  // of more than four queries all read a tile while it is in cache

// q with its negative parts zero, and with its positive parts zero: then a score is two dot products.
struct SplitQueries {
  alignas(64) float positive[4][kHeadDimMax];
  alignas(64) float negative[4][kHeadDimMax];
};

template <class D>
HWY_INLINE void split(D df, const ScoreArgs& args, std::uint32_t first, std::uint32_t count, SplitQueries* out) {
  const auto zero = hn::Zero(df);
  for (std::uint32_t i = 0; i < count; ++i) {
    const float* q = args.q + (first + i) * args.q_stride;
    for (std::size_t d = 0; d < args.dim; d += hn::Lanes(df)) {
      const auto value = hn::LoadU(df, q + d);
      hn::Store(hn::Max(value, zero), df, out->positive[i] + d);
      hn::Store(hn::Min(value, zero), df, out->negative[i] + d);
    }
  }
}

// Scores of units [first, last) for kCount queries. Each unit's boxes are loaded once; both sums of each query run in
// accumulators of their own.
template <std::size_t kCount, class D>
HWY_INLINE void score_units(D df, const ScoreArgs& args, const SplitQueries& q, std::uint64_t first, std::uint64_t last,
                            float* out) {
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t dim = args.dim;
  for (std::uint64_t u = first; u < last; ++u) {
    const auto* low = reinterpret_cast<const std::byte*>(args.abstracts + u * 2 * dim);
    const std::byte* high = low + dim * sizeof(std::uint16_t);
    hn::Vec<D> above[kCount];
    hn::Vec<D> below[kCount];
    for (std::size_t i = 0; i < kCount; ++i) above[i] = below[i] = hn::Zero(df);
    for (std::size_t d = 0; d < dim; d += lanes) {
      const auto low_value = load_row<Dtype::kF16>(df, low, d);
      const auto high_value = load_row<Dtype::kF16>(df, high, d);
      for (std::size_t i = 0; i < kCount; ++i) {
        above[i] = hn::MulAdd(hn::Load(df, q.positive[i] + d), high_value, above[i]);
        below[i] = hn::MulAdd(hn::Load(df, q.negative[i] + d), low_value, below[i]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i) out[i * args.out_stride + u] = sum_of(df, hn::Add(above[i], below[i]));
  }
}

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= 4 ? units : kUnitsPerTile;
  SplitQueries q;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    for (std::uint32_t i = 0; i < args.queries; i += 4) {
      const std::uint32_t count = std::min(args.queries - i, 4u);
      split(df, args, i, count, &q);
      float* out = args.out + i * args.out_stride;
      if (count == 1) score_units<1>(df, args, q, first, last, out);
      if (count == 2) score_units<2>(df, args, q, first, last, out);
      if (count == 3) score_units<3>(df, args, q, first, last, out);
      if (count == 4) score_units<4>(df, args, q, first, last, out);
    }
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
