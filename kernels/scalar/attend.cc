#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// One query over all its tokens, in one pass: what was summed is scaled down whenever a larger
// score comes.
void attend_query(const AttendArgs& args, const float* q, float* out, float* lse) {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0.0;
  double values[kHeadDimMax] = {};
  RowCursor cursor(args.rows, args.token_range[0], args.token_range[1], args.row_masks);
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  while (cursor.next(&k, &v, 1) == 1) {
    double score = 0.0;
    for (std::uint32_t d = 0; d < args.dim; ++d)
      score += static_cast<double>(q[d]) * static_cast<double>(load_element(k, args.rows.dtype, d));
    score *= static_cast<double>(args.scale);
    if (score > max) {
      const double shrink = std::exp(max - score);
      sum *= shrink;
      for (std::uint32_t d = 0; d < args.v_dim; ++d) values[d] *= shrink;
      max = score;
    }
    const double weight = std::exp(score - max);
    sum += weight;
    for (std::uint32_t d = 0; d < args.v_dim; ++d)
      values[d] += weight * static_cast<double>(load_element(v, args.rows.dtype, d));
  }
  const bool empty = sum == 0.0;
  for (std::uint32_t d = 0; d < args.v_dim; ++d)
    out[d] = empty ? 0.0f : static_cast<float>(values[d] / sum);
  *lse = empty ? -std::numeric_limits<float>::infinity() : static_cast<float>(max + std::log(sum));
}

}  // namespace

Result<void> attend(const AttendArgs& args, KernelStream) {
  begin("attend");
  KVT_TRY_VOID(args.validate());
  for (std::uint32_t i = 0; i < args.queries; ++i)
    attend_query(args, args.q + i * args.q_stride, args.out + i * args.out_stride,
                 args.lse + i * args.lse_stride);
  return {};
}

}  // namespace kvtier::scalar
