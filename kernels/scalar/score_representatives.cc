#include <algorithm>
#include <limits>

#include "kernels/float16.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> score_representatives(const ScoreRepresentativesArgs& args, KernelStream) {
  begin("score_representatives");
  KVT_TRY_VOID(args.validate());
  const ScoreArgs& units = args.units;
  for (std::uint32_t i = 0; i < units.queries; ++i) {
    const float* q = units.q + i * units.q_stride;
    for (std::uint64_t u = 0; u < *units.unit_count; ++u) {
      const std::uint16_t* key = units.abstracts + u * args.count * units.dim;
      double sum = 0.0;
      double largest = -std::numeric_limits<double>::infinity();
      for (std::uint32_t r = 0; r < args.count; ++r, key += units.dim) {
        double product = 0.0;
        for (std::uint32_t d = 0; d < units.dim; ++d)
          product += static_cast<double>(q[d]) * static_cast<double>(f16_to_f32(key[d]));
        sum += product;
        largest = std::max(largest, product);
      }
      units.out[i * units.out_stride + u] =
          static_cast<float>(args.largest ? largest : sum / args.count);
    }
  }
  return {};
}

}  // namespace kvtier::scalar
