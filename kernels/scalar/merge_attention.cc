#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> merge_attention(const MergeAttentionArgs& args, KernelStream) {
  begin("merge_attention");
  KVT_TRY_VOID(args.validate());
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
    const double max = std::max(*lse_a, lse_b);
    const double weight_a = std::exp(static_cast<double>(*lse_a) - max);
    const double weight_b = std::exp(static_cast<double>(lse_b) - max);
    const double sum = weight_a + weight_b;
    for (std::uint32_t d = 0; d < args.v_dim; ++d)
      out_a[d] = static_cast<float>(
          (weight_a * static_cast<double>(out_a[d]) + weight_b * static_cast<double>(out_b[d])) /
          sum);
    *lse_a = static_cast<float>(max + std::log(sum));
  }
  return {};
}

}  // namespace kvtier::scalar
