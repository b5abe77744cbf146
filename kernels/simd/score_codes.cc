#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/code_scale.h"
#include "kernels/row_cursor.h"
#include "kernels/scalar/scalar.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_codes.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_score_codes(const ScoreCodesArgs& args) {
  run_reference("score_codes", args, scalar::score_codes);
}
#else
constexpr std::uint32_t kQueriesPerPass = 16;  // that share one reading of the codes
constexpr std::uint64_t kBlocksPerTile = 16;   // several blocks of queries read a tile in cache
constexpr std::size_t kTableBytes = kCodeSubspacesMax * kCodeEntries;

// The tables of a pass as bytes, in the order of a block's codes.
struct ByteTables {
  alignas(64) std::uint8_t bytes[kQueriesPerPass][kTableBytes];
  CodeScale scale[kQueriesPerPass];
};

// As bytes, entry by entry nearest((entry - low) * inverse).
void quantise(const float* table, std::uint32_t subspaces, std::uint8_t* bytes, CodeScale* scale) {
  const hn::CappedTag<float, kCodeEntries> df;
  const hn::Rebind<std::int32_t, decltype(df)> di;
  const hn::Rebind<std::uint8_t, decltype(df)> d8;
  const std::size_t lanes = hn::Lanes(df);
  float low[kCodeSubspacesMax];
  float high[kCodeSubspacesMax];
  auto bad = hn::Zero(df);  // becomes NaN with the first entry that is not finite
  for (std::uint32_t m = 0; m < subspaces; ++m) {
    const float* entries = table + m * kCodeEntries;
    auto least = hn::LoadU(df, entries);
    auto most = least;
    for (std::size_t j = 0; j < kCodeEntries; j += lanes) {
      const auto entry = hn::LoadU(df, entries + j);
      least = hn::Min(least, entry);
      most = hn::Max(most, entry);
      bad = hn::Add(bad, hn::Sub(entry, entry));
    }
    low[m] = hn::GetLane(hn::MinOfLanes(df, least));
    high[m] = hn::GetLane(hn::MaxOfLanes(df, most));
  }
  const bool finite = hn::AllFalse(df, hn::IsNaN(bad));
  *scale = code_scale(low, high, subspaces, finite);
  const auto inverse = hn::Set(df, scale->inverse);
  for (std::uint32_t m = 0; m < subspaces; ++m)
    for (std::size_t j = 0; j < kCodeEntries; j += lanes) {
      const std::size_t at = m * kCodeEntries + j;
      const auto steps = hn::Mul(hn::Sub(hn::LoadU(df, table + at), hn::Set(df, low[m])), inverse);
      const auto whole = finite ? hn::NearestInt(steps) : hn::Zero(di);
      hn::StoreU(hn::DemoteTo(d8, whole), d8, bytes + at);
    }
}

// Adds up the lanes that hold the same tokens: vectors are groups of 16 bytes, one per
// sub-quantiser.
template <class D>
HWY_INLINE hn::Vec<hn::CappedTag<std::uint16_t, 8> > fold_subspaces(D, hn::Vec<D> sums) {
  if constexpr (hn::MaxLanes(D()) <= 8) {
    return sums;
  } else {
    const hn::Half<D> half;
    return fold_subspaces(half, hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums)));
  }
}

// Sums of 16 tokens in order, from the sums of pairs (even token + 256 * odd token, modulo 2^16)
// and of the odd ones.
template <class D>
HWY_INLINE void store_sums(D d16, hn::Vec<D> pairs, hn::Vec<D> odd, std::uint16_t* out) {
  const hn::CappedTag<std::uint16_t, 8> eight;
  const auto even = fold_subspaces(d16, hn::Sub(pairs, hn::ShiftLeft<8>(odd)));
  const auto odds = fold_subspaces(d16, odd);
  hn::Store(hn::InterleaveLower(eight, even, odds), eight, out);
  hn::Store(hn::InterleaveUpper(eight, even, odds), eight, out + 8);
}

// Sums of the 32 tokens of one block for kCount queries. A lookup gives bytes of 16 tokens; added
// as 16-bit numbers they make the even tokens' sums with the odd ones' on top, and the latter are
// summed a second time alone.
template <std::size_t kCount, class D>
HWY_INLINE void sum_block(D d8, const std::uint8_t* block, std::size_t bytes,
                          const std::uint8_t* tables, std::uint16_t (*out)[kCodeBlockTokens]) {
  const hn::Repartition<std::uint16_t, D> d16;
  const auto nibble = hn::Set(d8, 15);
  hn::Vec<decltype(d16)> sum[kCount][4];
  for (std::size_t i = 0; i < kCount; ++i)
    for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(d16);
  for (std::size_t at = 0; at < bytes; at += hn::Lanes(d8)) {
    const auto codes = hn::LoadU(d8, block + at);
    const auto low = hn::And(codes, nibble);
    const auto high = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, codes))), nibble);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto table = hn::LoadU(d8, tables + i * kTableBytes + at);
      const auto a = hn::BitCast(d16, hn::TableLookupBytes(table, low));
      const auto b = hn::BitCast(d16, hn::TableLookupBytes(table, high));
      sum[i][0] = hn::Add(sum[i][0], a);
      sum[i][1] = hn::Add(sum[i][1], hn::ShiftRight<8>(a));
      sum[i][2] = hn::Add(sum[i][2], b);
      sum[i][3] = hn::Add(sum[i][3], hn::ShiftRight<8>(b));
    }
  }
  for (std::size_t i = 0; i < kCount; ++i) {
    store_sums(d16, sum[i][0], sum[i][1], out[i]);
    store_sums(d16, sum[i][2], sum[i][3], out[i] + 16);
  }
}

// Scores of a block's 32 tokens. The product is exact (kernels/code_scale.h).
HWY_INLINE void store_scores(const std::uint16_t* sums, const CodeScale& scale, float* out) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<std::uint16_t, decltype(df)> d16;
  const hn::RebindToSigned<decltype(df)> di;
  const auto step = hn::Set(df, scale.scale);
  const auto bias = hn::Set(df, scale.bias);
  for (std::size_t t = 0; t < kCodeBlockTokens; t += hn::Lanes(df)) {
    const auto sum = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d16, sums + t)));
    hn::StoreU(hn::Add(bias, hn::Mul(step, sum)), df, out + t);
  }
}

// Blocks [first, last) of a piece for kCount queries from `query` of the pass.
template <std::size_t kCount, class D>
HWY_INLINE void score_blocks(D d8, const ScoreCodesArgs& args, const std::uint8_t* piece,
                             std::uint64_t first, std::uint64_t last, std::uint64_t tokens,
                             const ByteTables& tables, std::uint32_t query, float* out) {
  const std::size_t bytes = std::size_t{args.codes.subspaces} * kCodeEntries;
  alignas(64) std::uint16_t sums[kCount][kCodeBlockTokens];
  for (std::uint64_t block = first; block < last; ++block) {
    sum_block<kCount>(d8, piece + block * bytes, bytes, tables.bytes[query], sums);
    const std::uint64_t at = block * kCodeBlockTokens;
    for (std::size_t i = 0; i < kCount; ++i) {
      float* target = out + i * args.out_stride + at;
      if (at + kCodeBlockTokens <= tokens) {
        store_scores(sums[i], tables.scale[query + i], target);
      } else {
        float scores[kCodeBlockTokens];
        store_scores(sums[i], tables.scale[query + i], scores);
        std::copy_n(scores, tokens - at, target);
      }
    }
  }
}

template <class D>
void score_pieces(D d8, const ScoreCodesArgs& args, const ByteTables& tables, std::uint32_t queries,
                  float* out) {
  const CodePieces& codes = args.codes;
  for (std::uint64_t p = 0; p < *codes.count; ++p) {
    const auto* piece =
        reinterpret_cast<const std::uint8_t*>(address_of(codes.base, codes.pieces[p]));
    const std::uint64_t tokens = codes.starts[p + 1] - codes.starts[p];
    const std::uint64_t blocks = (tokens + kCodeBlockTokens - 1) / kCodeBlockTokens;
    for (std::uint64_t first = 0; first < blocks; first += kBlocksPerTile) {
      const std::uint64_t last = std::min(blocks, first + kBlocksPerTile);
      with_query_blocks(queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
        score_blocks<kCount>(d8, args, piece, first, last, tokens, tables, i,
                             out + i * args.out_stride + codes.starts[p]);
      });
    }
  }
}

void run_score_codes(const ScoreCodesArgs& args) {
  begin("score_codes");
  ByteTables tables;
  for (std::uint32_t first = 0; first < args.queries; first += kQueriesPerPass) {
    const std::uint32_t queries = std::min(args.queries - first, kQueriesPerPass);
    for (std::uint32_t i = 0; i < queries; ++i) {
      quantise(args.tables + (first + i) * args.table_stride, args.codes.subspaces, tables.bytes[i],
               &tables.scale[i]);
      if (args.out_error != nullptr) args.out_error[first + i] = tables.scale[i].error;
    }
    float* out = args.out + first * args.out_stride;
    const hn::ScalableTag<std::uint8_t> wide;
    if (args.codes.subspaces * kCodeEntries % hn::Lanes(wide) == 0) {
      score_pieces(wide, args, tables, queries, out);
    } else {
      score_pieces(hn::CappedTag<std::uint8_t, 32>(), args, tables, queries, out);
    }
  }
}
#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_codes);

Result<void> score_codes(const ScoreCodesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_codes)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
