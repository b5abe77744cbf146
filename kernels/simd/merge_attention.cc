#include "kernels/simd/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/merge_attention.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// out = weight_a * out + weight_b * other.
void blend(float* out, const float* other, std::uint32_t dim, float weight_a, float weight_b) {
  const hn::ScalableTag<float> df;
  const auto a = hn::Set(df, weight_a);
  const auto b = hn::Set(df, weight_b);
  std::size_t d = 0;
  for (; d + hn::Lanes(df) <= dim; d += hn::Lanes(df))
    hn::StoreU(hn::MulAdd(b, hn::LoadU(df, other + d), hn::Mul(a, hn::LoadU(df, out + d))), df,
               out + d);
  for (; d < dim; ++d) out[d] = weight_a * out[d] + weight_b * other[d];
}

void run_merge_attention(const MergeAttentionArgs& args) {
  begin("merge_attention");
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    float* out_a = args.out_a + i * args.out_a_stride;
    float* lse_a = args.lse_a + i * args.lse_a_stride;
    const float* out_b = args.out_b + i * args.out_b_stride;
    const float lse_b = args.lse_b[i * args.lse_b_stride];
    if (lse_b == kEmpty) continue;
    if (*lse_a == kEmpty) {
      std::copy_n(out_b, args.v_dim, out_a);
      *lse_a = lse_b;
      continue;
    }
    const float max = std::max(*lse_a, lse_b);
    const float weight_a = std::exp(*lse_a - max);
    const float weight_b = std::exp(lse_b - max);
    const float sum = weight_a + weight_b;
    blend(out_a, out_b, args.v_dim, weight_a / sum, weight_b / sum);
    *lse_a = max + std::log(sum);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_merge_attention);

Result<void> merge_attention(const MergeAttentionArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_merge_attention)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
