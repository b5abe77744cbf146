#include "kernels/simd/simd.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_representatives.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/score_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint64_t kTileUnits = 16;

// Scores of `units` units from the products of their keys.
HWY_INLINE void join(const ScoreRepresentativesArgs& args, const float* products,
                     std::uint64_t units, float* out) {
  const float weight = 1.0f / static_cast<float>(args.count);
  for (std::uint64_t u = 0; u < units; ++u, products += args.count) {
    float sum = products[0], largest = products[0];
    for (std::uint32_t r = 1; r < args.count; ++r) {
      sum += products[r];
      largest = std::max(largest, products[r]);
    }
    out[u] = args.largest ? largest : sum * weight;
  }
}

// Every key is a unit of one vector; a tile of units at a time.
template <class D>
void score_all(D df, const ScoreRepresentativesArgs& args) {
  float products[kQueryBlock * kTileUnits * kRepresentativesMax];
  const std::uint64_t units = *args.units.unit_count;
  ScoreArgs keys = args.units;
  keys.out_stride = kTileUnits * args.count;
  for (std::uint64_t first = 0; first < units; first += kTileUnits) {
    const std::uint64_t tile = std::min(kTileUnits, units - first);
    keys.abstracts = args.units.abstracts + first * args.count * keys.dim;
    with_query_blocks(keys.queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
      score_dots<kCount>(df, keys, keys.dim, keys.q + i * keys.q_stride, 0, tile * args.count,
                         products,
                         [](std::size_t, const std::byte*, float product) { return product; });
      for (std::size_t j = 0; j < kCount; ++j)
        join(args, products + j * keys.out_stride, tile,
             keys.out + (i + j) * args.units.out_stride + first);
    });
  }
}

void run_score_representatives(const ScoreRepresentativesArgs& args) {
  begin("score_representatives");
  with_width(args.units.dim, [&](auto df) HWY_ATTR { score_all(df, args); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_representatives);

Result<void> score_representatives(const ScoreRepresentativesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_representatives)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
