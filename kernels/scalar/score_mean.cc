#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> score_mean(const ScoreArgs& args, KernelStream) {
  begin("score_mean");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t units = *args.unit_count;
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* q = args.q + i * args.q_stride;
    for (std::uint64_t u = 0; u < units; ++u) {
      const std::uint16_t* mean = args.abstracts + unit_of(args, u) * args.dim;
      double sum = 0.0;
      for (std::uint32_t d = 0; d < args.dim; ++d)
        sum += static_cast<double>(q[d]) * static_cast<double>(f16_to_f32(mean[d]));
      args.out[i * args.out_stride + u] = static_cast<float>(sum);
    }
  }
  return {};
}

}  // namespace kvtier::scalar
