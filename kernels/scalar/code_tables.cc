#include "kernels/float16.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> code_tables(const CodeTablesArgs& args, KernelStream) {
  begin("code_tables");
  KVT_TRY_VOID(args.validate());
  const CodeBook& book = args.book;
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* q = args.q + i * args.q_stride;
    float* out = args.out + i * args.out_stride;
    for (std::uint32_t m = 0; m < book.subspaces; ++m) {
      const std::uint32_t dims = book.first[m + 1] - book.first[m];
      for (std::uint32_t j = 0; j < kCodeEntries; ++j) {
        const std::uint64_t entry = kCodeEntries * std::uint64_t{book.first[m]} + j * dims;
        double sum = 0.0;
        for (std::uint32_t d = 0; d < dims; ++d)
          sum += static_cast<double>(q[book.dims[book.first[m] + d]]) *
                 static_cast<double>(load_element(book.entries, book.dtype, entry + d));
        out[m * kCodeEntries + j] = static_cast<float>(sum);
      }
    }
  }
  return {};
}

}  // namespace kvtier::scalar
