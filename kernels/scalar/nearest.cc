#include <limits>

#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> nearest(const NearestArgs& args, KernelStream) {
  begin("nearest");
  KVT_TRY_VOID(args.validate());
  for (std::uint64_t i = 0; i < *args.row_count; ++i) {
    const float* row = args.rows + i * args.row_stride;
    std::uint32_t best = 0;
    float best_value = -std::numeric_limits<float>::infinity();
    for (std::uint64_t j = 0; j < *args.centroid_count; ++j) {
      const float* centroid = args.centroids + j * args.centroid_stride;
      double sum = args.bias != nullptr ? static_cast<double>(args.bias[j]) : 0.0;
      for (std::uint32_t d = 0; d < args.dim; ++d)
        sum += static_cast<double>(row[d]) * static_cast<double>(centroid[d]);
      const float value = static_cast<float>(sum);
      if (value > best_value) {
        best = static_cast<std::uint32_t>(j);
        best_value = value;
      }
    }
    args.out_index[i] = best;
    args.out_value[i] = best_value;
  }
  return {};
}

}  // namespace kvtier::scalar
