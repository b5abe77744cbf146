#include "kernels/simd/simd.h"

#include <algorithm>
#include <cmath>

#include "kernels/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_ball.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/score_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE float length_of(D df, const float* q, std::uint32_t dim) {
  auto sum = hn::Zero(df);
  for (std::size_t d = 0; d < dim; d += hn::Lanes(df)) {
    const auto value = hn::LoadU(df, q + d);
    sum = hn::MulAdd(value, value, sum);
  }
  return std::sqrt(sum_of(df, sum));
}

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint32_t elements = abstract_elements(AbstractKind::kBall, args.dim);
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= kQueryBlock ? units : kUnitsPerTile;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    with_query_blocks(args.queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
      const float* q = args.q + i * args.q_stride;
      float length[kCount];
      for (std::size_t j = 0; j < kCount; ++j)
        length[j] = length_of(df, q + j * args.q_stride, args.dim);
      score_dots<kCount>(df, args, elements, q, first, last, args.out + i * args.out_stride,
                         [&](std::size_t j, const std::byte* ball, float product) {
                           return product + length[j] * load_element(ball, Dtype::kF16, args.dim);
                         });
    });
  }
}

void run_score_ball(const ScoreArgs& args) {
  begin("score_ball");
  with_width(args.dim, [&](auto df) HWY_ATTR { score_all(df, args); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_ball);

Result<void> score_ball(const ScoreArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_ball)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
