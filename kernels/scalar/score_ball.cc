#include <cmath>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> score_ball(const ScoreArgs& args, KernelStream) {
  begin("score_ball");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t units = *args.unit_count;
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* q = args.q + i * args.q_stride;
    double squares = 0.0;
    for (std::uint32_t d = 0; d < args.dim; ++d)
      squares += static_cast<double>(q[d]) * static_cast<double>(q[d]);
    const double length = std::sqrt(squares);
    for (std::uint64_t u = 0; u < units; ++u) {
      const std::uint16_t* ball =
          args.abstracts + unit_of(args, u) * abstract_elements(AbstractKind::kBall, args.dim);
      double sum = length * static_cast<double>(f16_to_f32(ball[args.dim]));
      for (std::uint32_t d = 0; d < args.dim; ++d)
        sum += static_cast<double>(q[d]) * static_cast<double>(f16_to_f32(ball[d]));
      args.out[i * args.out_stride + u] = static_cast<float>(sum);
    }
  }
  return {};
}

}  // namespace kvtier::scalar
