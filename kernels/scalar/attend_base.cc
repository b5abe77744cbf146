#include <cmath>
#include <limits>

#include "kernels/scalar/base_row.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// One query over all its rows, in one pass: what was summed is scaled down whenever a larger score
// comes.
void attend_query(const AttendBaseArgs& args, const float* q, float* out, float* lse,
                  float* logits) {
  const BaseFormat& format = args.pages.format;
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0.0;
  double values[kHeadDimMax] = {};
  for (std::uint64_t n = 0; args.rows.range[0] + n < args.rows.range[1]; ++n) {
    const BaseRow row(args.pages, args.rows, n);
    double score = 0.0;
    for (std::uint32_t d = 0; d < format.dim; ++d)
      score += static_cast<double>(q[d]) * static_cast<double>(row.k(d));
    score *= static_cast<double>(args.scale);
    if (logits != nullptr) logits[n] = static_cast<float>(score);
    if (score > max) {
      const double shrink = std::exp(max - score);
      sum *= shrink;
      for (std::uint32_t d = 0; d < format.v_dim; ++d) values[d] *= shrink;
      max = score;
    }
    const double weight = std::exp(score - max);
    sum += weight;
    for (std::uint32_t d = 0; d < format.v_dim; ++d)
      values[d] += weight * static_cast<double>(row.v(d));
  }
  const bool empty = sum == 0.0;
  for (std::uint32_t d = 0; d < format.v_dim; ++d)
    out[d] = empty ? 0.0f : static_cast<float>(values[d] / sum);
  *lse = empty ? -std::numeric_limits<float>::infinity() : static_cast<float>(max + std::log(sum));
}

}  // namespace

Result<void> attend_base(const AttendBaseArgs& args, KernelStream) {
  begin("attend_base");
  KVT_TRY_VOID(args.validate());
  for (std::uint32_t i = 0; i < args.queries; ++i)
    attend_query(args, args.q + i * args.q_stride, args.out + i * args.out_stride,
                 args.lse + i * args.lse_stride,
                 args.logits != nullptr ? args.logits + i * args.logits_stride : nullptr);
  return {};
}

}  // namespace kvtier::scalar
