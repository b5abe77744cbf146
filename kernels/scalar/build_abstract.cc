#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// One dimension of one unit. The sum runs in f32 in the order of the places: the other back ends do
// the same and give the same bits.
void build_dim(const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
               std::uint32_t d, std::uint16_t* out) {
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  float sum = 0.0f;
  UnitCursor cursor(args.rows, args.members, first, last);
  const std::byte* row = nullptr;
  while (cursor.next(&row, 1) == 1) {
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

// The largest distance of a key of the unit to the mean as it is written.
std::uint16_t radius_of(const BuildAbstractArgs& args, std::uint64_t first, std::uint64_t last,
                        const std::uint16_t* mean) {
  double largest = 0.0;
  UnitCursor cursor(args.rows, args.members, first, last);
  const std::byte* row = nullptr;
  while (cursor.next(&row, 1) == 1) {
    double sum = 0.0;
    for (std::uint32_t d = 0; d < args.dim; ++d) {
      const double distance = static_cast<double>(load_element(row, args.rows.dtype, d)) -
                              static_cast<double>(f16_to_f32(mean[d]));
      sum += distance * distance;
    }
    largest = std::max(largest, sum);
  }
  return f32_to_f16_up(static_cast<float>(std::sqrt(largest) * (1.0 + 0x1p-22)));
}

}  // namespace

Result<void> build_abstract(const BuildAbstractArgs& args, KernelStream) {
  begin("build_abstract");
  KVT_TRY_VOID(args.validate());
  const std::uint32_t elements = abstract_elements(args.kind, args.dim);
  std::uint16_t* out = args.out;
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  for (UnitWalk units(args); units.next(&first, &last); out += elements) {
    std::fill_n(out, elements, std::uint16_t{0});
    if (first == last) continue;
    for (std::uint32_t d = 0; d < args.dim; ++d) build_dim(args, first, last, d, out);
    if (args.kind == AbstractKind::kBall) out[args.dim] = radius_of(args, first, last, out);
  }
  return {};
}

}  // namespace kvtier::scalar
