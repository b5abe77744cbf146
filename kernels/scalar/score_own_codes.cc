#include "kernels/own_code_layout.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> score_own_codes(const ScoreOwnCodesArgs& args, KernelStream) {
  begin("score_own_codes");
  KVT_TRY_VOID(args.validate());
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* table = args.tables + i * args.table_stride;
    for (std::uint64_t t = 0; t < *args.token_count; ++t) {
      float sum = 0.0f;
      for (std::uint32_t m = 0; m < args.subspaces; ++m)
        sum += table[m * kOwnCodeEntries + own_code_at(args.codes, t, args.subspaces, m)];
      args.out[i * args.out_stride + t] = sum;
    }
  }
  return {};
}

}  // namespace kvtier::scalar
