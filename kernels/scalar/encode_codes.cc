#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float16.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

// sqrt of a dim's weight.
float root_of(const EncodeCodesArgs& args, std::uint32_t dim) {
  return args.weights != nullptr ? std::sqrt(args.weights[dim]) : 1.0f;
}

float entry_of(const EncodeCodesArgs& args, std::uint32_t m, std::uint32_t j, std::uint32_t d) {
  const CodeBook& book = args.book;
  const std::uint32_t dims = book.first[m + 1] - book.first[m];
  const std::uint64_t index = kCodeEntries * std::uint64_t{book.first[m]} + j * dims + d;
  return load_element(book.entries, book.dtype, index) *
         root_of(args, book.dims[book.first[m] + d]);
}

// The code of sub-quantiser m for what is left of a key, and takes its entry away from that.
std::uint32_t encode(const EncodeCodesArgs& args, std::uint32_t m, float* left) {
  const std::uint32_t dims = args.book.first[m + 1] - args.book.first[m];
  const std::uint16_t* dim = args.book.dims + args.book.first[m];
  std::uint32_t best = 0;
  float least = std::numeric_limits<float>::infinity();
  for (std::uint32_t j = 0; j < kCodeEntries; ++j) {
    float distance = 0.0f;
    for (std::uint32_t d = 0; d < dims; ++d) {
      const float delta = left[dim[d]] - entry_of(args, m, j, d);
      distance += delta * delta;
    }
    if (distance < least) {
      best = j;
      least = distance;
    }
  }
  for (std::uint32_t d = 0; d < dims; ++d) left[dim[d]] -= entry_of(args, m, best, d);
  return best;
}

}  // namespace

Result<void> encode_codes(const EncodeCodesArgs& args, KernelStream) {
  begin("encode_codes");
  KVT_TRY_VOID(args.validate());
  const CodeBook& book = args.book;
  const std::uint64_t tokens = *args.token_count;
  std::fill_n(args.out, code_bytes(tokens, book.subspaces), std::uint8_t{0});
  RowCursor cursor(args.rows, 0, tokens, nullptr);
  const std::byte* row = nullptr;
  float left[kHeadDimMax];
  for (std::uint64_t t = 0; cursor.next(&row, nullptr, 1) == 1; ++t) {
    for (std::uint32_t d = 0; d < book.dim; ++d)
      left[d] = load_element(row, args.rows.dtype, d) * root_of(args, d);
    for (std::uint32_t m = 0; m < book.subspaces; ++m) {
      const CodePlace place = code_place(t, book.subspaces, m);
      args.out[place.byte] |= static_cast<std::uint8_t>(encode(args, m, left) << place.shift);
    }
  }
  return {};
}

}  // namespace kvtier::scalar
