#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/code_tables.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint32_t kSlice = 64;  // dims whose entries are turned round at a time

// The 16 entries of some dims, dim by dim: what a vector over entries multiplies with.
struct Slice {
  alignas(64) float by_entry[kCodeEntries * kSlice];
  alignas(64) float by_dim[kSlice][kCodeEntries];
};

// Dims [first, first + count) of a sub-quantiser that sees `dims`; its entries begin at `index`.
template <Dtype kDtype>
void load_slice(const CodeBook& book, std::uint64_t index, std::uint32_t dims, std::uint32_t first,
                std::uint32_t count, Slice* slice) {
  if (count == dims) {
    load_floats<kDtype>(book.entries, index, std::size_t{kCodeEntries} * dims, slice->by_entry);
  } else {
    for (std::uint32_t j = 0; j < kCodeEntries; ++j)
      load_floats<kDtype>(book.entries, index + std::uint64_t{j} * dims + first, count,
                          slice->by_entry + j * count);
  }
  for (std::uint32_t d = 0; d < count; ++d)
    for (std::uint32_t j = 0; j < kCodeEntries; ++j)
      slice->by_dim[d][j] = slice->by_entry[j * count + d];
}

// Adds the slice's products with one query to the 16 sums at `out`.
template <class D>
HWY_INLINE void add_products(D df, const Slice& slice, const std::uint16_t* dims,
                             std::uint32_t count, const float* q, bool begins, float* out) {
  for (std::size_t j = 0; j < kCodeEntries; j += hn::Lanes(df)) {
    auto sum = begins ? hn::Zero(df) : hn::LoadU(df, out + j);
    for (std::uint32_t d = 0; d < count; ++d)
      sum = hn::MulAdd(hn::Set(df, q[dims[d]]), hn::Load(df, slice.by_dim[d] + j), sum);
    hn::StoreU(sum, df, out + j);
  }
}

template <Dtype kDtype>
void make_tables(const CodeTablesArgs& args) {
  const hn::CappedTag<float, kCodeEntries> df;
  const CodeBook& book = args.book;
  Slice slice;
  for (std::uint32_t m = 0; m < book.subspaces; ++m) {
    const std::uint32_t dims = book.first[m + 1] - book.first[m];
    const std::uint64_t index = std::uint64_t{kCodeEntries} * book.first[m];
    std::uint32_t first = 0;
    do {  // once at least: a sub-quantiser that sees no dim has zeros
      const std::uint32_t count = std::min(dims - first, kSlice);
      load_slice<kDtype>(book, index, dims, first, count, &slice);
      for (std::uint32_t i = 0; i < args.queries; ++i)
        add_products(df, slice, book.dims + book.first[m] + first, count,
                     args.q + i * args.q_stride, first == 0,
                     args.out + i * args.out_stride + m * kCodeEntries);
      first += kSlice;
    } while (first < dims);
  }
}

void run_code_tables(const CodeTablesArgs& args) {
  begin("code_tables");
  if (args.book.dtype == Dtype::kF16) {
    make_tables<Dtype::kF16>(args);
  } else {
    make_tables<Dtype::kF32>(args);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_code_tables);

Result<void> code_tables(const CodeTablesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_code_tables)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
