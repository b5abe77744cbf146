#include <algorithm>
#include <limits>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// One dimension of one unit. The sum runs in f32 in token order: the other back ends do the same
// and give the same bits.
void build_dim(const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
               std::uint32_t d, std::uint16_t* out) {
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  float sum = 0.0f;
  RowCursor cursor(args.rows, first, last, nullptr);
  const std::byte* row = nullptr;
  while (cursor.next(&row, nullptr, 1) == 1) {
    const float value = load_element(row, args.rows.dtype, d);
    low = std::min(low, value);
    high = std::max(high, value);
    sum += value;
  }
  if (args.kind == AbstractKind::kBox) {
    out[d] = f32_to_f16_down(low + 0.0f);  // -0 and +0 are one value: written as +0
    out[args.dim + d] = f32_to_f16_up(high + 0.0f);
  } else {
    const float mean = sum * (1.0f / static_cast<float>(last - first));
    out[d] = f32_to_f16(std::clamp(mean, -65504.0f, 65504.0f));
  }
}

}  // namespace

Result<void> build_abstract(const BuildAbstractArgs& args, KernelStream) {
  begin("build_abstract");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t tokens = *args.token_count;
  std::uint16_t* out = args.out;
  for (std::uint64_t first = 0; first < tokens; first += args.unit_tokens) {
    const std::uint64_t last = std::min<std::uint64_t>(tokens, first + args.unit_tokens);
    for (std::uint32_t d = 0; d < args.dim; ++d) build_dim(args, first, last, d, out);
    out += static_cast<std::uint64_t>(abstract_vectors(args.kind)) * args.dim;
  }
  return {};
}

}  // namespace kvtier::scalar
