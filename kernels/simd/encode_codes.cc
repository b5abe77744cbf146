#include "kernels/simd/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/encode_codes.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::size_t kTokens = kCodeBlockTokens;
constexpr std::size_t kEntriesMax = std::size_t{kCodeEntries} * kCodeDimsFactorMax * kHeadDimMax;

// What stays the same from block to block.
struct Book {
  const std::uint16_t* dims;
  const std::uint16_t* first;
  alignas(64) float entries[kEntriesMax];  // times the roots
  float root[kHeadDimMax];                 // sqrt of the weight
  std::uint8_t last_use[kHeadDimMax];      // the last sub-quantiser that sees a dim
};

template <Dtype kDtype>
void prepare(const EncodeCodesArgs& args, Book* out) {
  const CodeBook& book = args.book;
  out->dims = book.dims;
  out->first = book.first;
  load_floats<kDtype>(book.entries, 0, std::size_t{kCodeEntries} * book.first[book.subspaces],
                      out->entries);
  for (std::uint32_t m = 0; m < book.subspaces; ++m)
    for (std::uint32_t d = book.first[m]; d < book.first[m + 1]; ++d)
      out->last_use[book.dims[d]] = static_cast<std::uint8_t>(m);
  if (args.weights == nullptr) return;
  for (std::uint32_t d = 0; d < book.dim; ++d) out->root[d] = std::sqrt(args.weights[d]);
  for (std::uint32_t m = 0; m < book.subspaces; ++m) {
    const std::uint32_t dims = book.first[m + 1] - book.first[m];
    float* entries = out->entries + std::size_t{kCodeEntries} * book.first[m];
    for (std::uint32_t j = 0; j < kCodeEntries; ++j)
      for (std::uint32_t d = 0; d < dims; ++d)
        entries[j * dims + d] *= out->root[book.dims[book.first[m] + d]];
  }
}

// What is left of the keys of a block, dim by dim: vectors run over tokens.
struct Left {
  alignas(64) float of[kHeadDimMax][kTokens];
};

// Turns four dims of four keys round.
template <Dtype kDtype>
HWY_INLINE void turn_four(const std::byte* const* rows, std::uint32_t d, const float* root,
                          std::size_t t, Left* left) {
#if HWY_TARGET == HWY_SCALAR
  for (std::uint32_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < 4; ++j) {
      const float value = load_element(rows[j], kDtype, d + i);
      left->of[d + i][t + j] = root != nullptr ? value * root[d + i] : value;
    }
#else
  const hn::CappedTag<float, 4> four;
  const hn::Repartition<std::uint64_t, decltype(four)> pairs;
  hn::Vec<decltype(four)> key[4];
  for (std::size_t j = 0; j < 4; ++j) {
    key[j] = load_row<kDtype>(four, rows[j], d);
    if (root != nullptr) key[j] = hn::Mul(key[j], hn::LoadU(four, root + d));
  }
  const auto low_a = hn::BitCast(pairs, hn::InterleaveLower(four, key[0], key[1]));
  const auto low_b = hn::BitCast(pairs, hn::InterleaveLower(four, key[2], key[3]));
  const auto high_a = hn::BitCast(pairs, hn::InterleaveUpper(four, key[0], key[1]));
  const auto high_b = hn::BitCast(pairs, hn::InterleaveUpper(four, key[2], key[3]));
  hn::Store(hn::BitCast(four, hn::InterleaveLower(pairs, low_a, low_b)), four, left->of[d] + t);
  hn::Store(hn::BitCast(four, hn::InterleaveUpper(pairs, low_a, low_b)), four, left->of[d + 1] + t);
  hn::Store(hn::BitCast(four, hn::InterleaveLower(pairs, high_a, high_b)), four,
            left->of[d + 2] + t);
  hn::Store(hn::BitCast(four, hn::InterleaveUpper(pairs, high_a, high_b)), four,
            left->of[d + 3] + t);
#endif
}

// The nearest entries for kVectors vectors of tokens from token t.
template <std::size_t kVectors, class D>
HWY_INLINE void find_nearest(D df, const float* entries, const std::uint16_t* dims,
                             std::uint32_t count, const Left& left, std::size_t t,
                             std::int32_t* codes) {
  const hn::RebindToSigned<D> di;
  const std::size_t lanes = hn::Lanes(df);
  hn::Vec<D> least[kVectors];
  hn::Vec<decltype(di)> best[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) {
    least[v] = hn::Set(df, std::numeric_limits<float>::infinity());
    best[v] = hn::Zero(di);
  }
  for (std::uint32_t j = 0; j < kCodeEntries; ++j) {
    hn::Vec<D> distance[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) distance[v] = hn::Zero(df);
    for (std::uint32_t d = 0; d < count; ++d) {
      const auto entry = hn::Set(df, entries[j * count + d]);
      const float* key = left.of[dims[d]] + t;
      for (std::size_t v = 0; v < kVectors; ++v) {
        const auto delta = hn::Sub(hn::Load(df, key + v * lanes), entry);
        distance[v] = hn::Add(distance[v], hn::Mul(delta, delta));
      }
    }
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto nearer = hn::Lt(distance[v], least[v]);
      least[v] = hn::IfThenElse(nearer, distance[v], least[v]);
      best[v] = hn::IfThenElse(hn::RebindMask(di, nearer),
                               hn::Set(di, static_cast<std::int32_t>(j)), best[v]);
    }
  }
  for (std::size_t v = 0; v < kVectors; ++v) hn::Store(best[v], di, codes + t + v * lanes);
}

// Takes the chosen entries away from dims that later sub-quantisers see.
HWY_INLINE void take_away(const Book& book, std::uint32_t m, const std::int32_t* codes,
                          Left* left) {
  const hn::CappedTag<float, kTokens> df;
  const hn::RebindToSigned<decltype(df)> di;
  const float* entries = book.entries + std::size_t{kCodeEntries} * book.first[m];
  const std::uint32_t count = book.first[m + 1] - book.first[m];
  for (std::uint32_t d = 0; d < count; ++d) {
    const std::uint16_t dim = book.dims[book.first[m] + d];
    if (book.last_use[dim] == m) continue;
    for (std::size_t t = 0; t < kTokens; t += hn::Lanes(df)) {
      const auto index = hn::Mul(hn::Load(di, codes + t), hn::Set(di, static_cast<int>(count)));
      const auto entry = hn::GatherIndex(df, entries + d, index);
      hn::Store(hn::Sub(hn::Load(df, left->of[dim] + t), entry), df, left->of[dim] + t);
    }
  }
}

template <Dtype kDtype>
void encode(const EncodeCodesArgs& args, const Book& book) {
  const hn::CappedTag<float, kTokens> df;
  constexpr std::size_t kVectors =
      hn::MaxLanes(decltype(df)()) >= kTokens / 4 ? kTokens / hn::MaxLanes(decltype(df)()) : 4;
  const float* root = args.weights != nullptr ? book.root : nullptr;
  Left left;
  alignas(64) std::int32_t codes[kTokens];
  RowCursor cursor(args.rows, 0, *args.token_count, nullptr);
  const std::byte* rows[kTokens];
  std::uint8_t* out = args.out;
  while (const std::size_t tokens = cursor.next(rows, nullptr, kTokens)) {
    std::fill(rows + tokens, rows + kTokens, rows[0]);  // their codes are dropped
    for (std::size_t t = 0; t < kTokens; t += 4)
      for (std::uint32_t d = 0; d < args.book.dim; d += 4)
        turn_four<kDtype>(rows + t, d, root, t, &left);
    for (std::uint32_t m = 0; m < args.book.subspaces; ++m) {
      for (std::size_t t = 0; t < kTokens; t += kVectors * hn::Lanes(df))
        find_nearest<kVectors>(df, book.entries + std::size_t{kCodeEntries} * book.first[m],
                               book.dims + book.first[m], book.first[m + 1] - book.first[m], left,
                               t, codes);
      take_away(book, m, codes, &left);
      std::fill(codes + tokens, codes + kTokens, 0);
      for (std::size_t i = 0; i < 16; ++i)
        out[i] = static_cast<std::uint8_t>(codes[i] | codes[i + 16] << 4);
      out += 16;
    }
  }
}

void run_encode_codes(const EncodeCodesArgs& args) {
  begin("encode_codes");
  Book book;
  if (args.book.dtype == Dtype::kF16) {
    prepare<Dtype::kF16>(args, &book);
  } else {
    prepare<Dtype::kF32>(args, &book);
  }
  with_dtype(args.rows.dtype, [&]<Dtype kDtype>() HWY_ATTR { encode<kDtype>(args, book); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_encode_codes);

Result<void> encode_codes(const EncodeCodesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_encode_codes)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
