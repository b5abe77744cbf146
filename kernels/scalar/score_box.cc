#include <algorithm>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> score_box(const ScoreArgs& args, KernelStream) {
  begin("score_box");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t units = *args.unit_count;
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* q = args.q + i * args.q_stride;
    for (std::uint64_t u = 0; u < units; ++u) {
      const std::uint16_t* low = args.abstracts + unit_of(args, u) * 2 * args.dim;
      const std::uint16_t* high = low + args.dim;
      double sum = 0.0;
      for (std::uint32_t d = 0; d < args.dim; ++d) {
        // The corner of the box that lies farthest along q. As sums of both parts, so that 0 times
        // infinity is NaN here too.
        sum += static_cast<double>(std::max(q[d], 0.0f)) * static_cast<double>(f16_to_f32(high[d]));
        sum += static_cast<double>(std::min(q[d], 0.0f)) * static_cast<double>(f16_to_f32(low[d]));
      }
      args.out[i * args.out_stride + u] = static_cast<float>(sum);
    }
  }
  return {};
}

}  // namespace kvtier::scalar
