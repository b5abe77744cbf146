#include <algorithm>
#include <cmath>

#include "kernels/code_scale.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// One query's table as bytes.
struct ByteTable {
  CodeScale scale;
  std::uint8_t bytes[kCodeSubspacesMax][kCodeEntries];
};

void quantise(const float* table, std::uint32_t subspaces, ByteTable* out) {
  float low[kCodeSubspacesMax];
  float high[kCodeSubspacesMax];
  bool finite = true;
  for (std::uint32_t m = 0; m < subspaces; ++m) {
    const float* entries = table + m * kCodeEntries;
    low[m] = *std::min_element(entries, entries + kCodeEntries);
    high[m] = *std::max_element(entries, entries + kCodeEntries);
    for (std::uint32_t j = 0; j < kCodeEntries; ++j) finite = finite && std::isfinite(entries[j]);
  }
  out->scale = code_scale(low, high, subspaces, finite);
  for (std::uint32_t m = 0; m < subspaces; ++m)
    for (std::uint32_t j = 0; j < kCodeEntries; ++j) {
      const float steps = (table[m * kCodeEntries + j] - low[m]) * out->scale.inverse;
      out->bytes[m][j] = finite ? static_cast<std::uint8_t>(std::nearbyint(steps)) : 0;
    }
}

}  // namespace

Result<void> score_codes(const ScoreCodesArgs& args, KernelStream) {
  begin("score_codes");
  KVT_TRY_VOID(args.validate());
  const CodePieces& codes = args.codes;
  ByteTable table;
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    quantise(args.tables + i * args.table_stride, codes.subspaces, &table);
    if (args.out_error != nullptr) args.out_error[i] = table.scale.error;
    for (std::uint64_t p = 0; p < *codes.count; ++p) {
      const auto* piece =
          reinterpret_cast<const std::uint8_t*>(address_of(codes.base, codes.pieces[p]));
      const std::uint64_t tokens = codes.starts[p + 1] - codes.starts[p];
      float* out = args.out + i * args.out_stride + codes.starts[p];
      for (std::uint64_t t = 0; t < tokens; ++t) {
        std::uint32_t sum = 0;
        for (std::uint32_t m = 0; m < codes.subspaces; ++m)
          sum += table.bytes[m][code_at(piece, t, codes.subspaces, m)];
        out[t] = table.scale.bias + table.scale.scale * static_cast<float>(sum);
      }
    }
  }
  return {};
}

}  // namespace kvtier::scalar
