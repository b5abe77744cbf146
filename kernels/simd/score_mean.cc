#include "kernels/simd/simd.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_mean.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/score_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

template <class D>
void score_all(D df, const ScoreArgs& args) {
  const std::uint64_t units = *args.unit_count;
  const std::uint64_t tile = args.queries <= kQueryBlock ? units : kUnitsPerTile;
  for (std::uint64_t first = 0; first < units; first += tile) {
    const std::uint64_t last = std::min(units, first + tile);
    with_query_blocks(args.queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
      score_dots<kCount>(df, args, args.dim, args.q + i * args.q_stride, first, last,
                         args.out + i * args.out_stride,
                         [](std::size_t, const std::byte*, float product) { return product; });
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
