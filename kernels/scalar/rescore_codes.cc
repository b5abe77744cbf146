#include <algorithm>

#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> rescore_codes(const RescoreCodesArgs& args, KernelStream) {
  begin("rescore_codes");
  KVT_TRY_VOID(args.validate());
  const CodePieces& codes = args.codes;
  for (std::uint64_t n = 0; n < *args.token_count; ++n) {
    const std::uint64_t token = args.tokens[n];
    // The last piece that starts at the token or before it; empty ones lie before such a piece.
    const auto p = static_cast<std::uint64_t>(
        std::upper_bound(codes.starts, codes.starts + *codes.count, token) - codes.starts - 1);
    const auto* piece =
        reinterpret_cast<const std::uint8_t*>(address_of(codes.base, codes.pieces[p]));
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float* table = args.tables + i * args.table_stride;
      float sum = 0.0f;
      for (std::uint32_t m = 0; m < codes.subspaces; ++m)
        sum +=
            table[m * kCodeEntries + code_at(piece, token - codes.starts[p], codes.subspaces, m)];
      args.out[i * args.out_stride + n] = sum;
    }
  }
  return {};
}

}  // namespace kvtier::scalar
