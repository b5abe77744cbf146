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
constexpr std::uint64_t kBlocksPerTile = 8;    // several blocks of queries read a tile in cache
constexpr std::size_t kLine = 64;              // bytes that one prefetch brings
constexpr std::size_t kAheadBytes = 2048;
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

using Eight = hn::CappedTag<std::uint16_t, 8>;

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

// Scores of as many tokens as `sums` has lanes. The product is exact (kernels/code_scale.h): fused
// or not, the bits are the same.
template <class D>
HWY_INLINE void store_scores(D d16, hn::Vec<D> sums, const CodeScale& scale, float* out) {
  const hn::Rebind<float, D> df;
  if constexpr (hn::MaxLanes(hn::ScalableTag<float>()) >= hn::MaxLanes(D())) {
    const auto whole = hn::ConvertTo(df, hn::PromoteTo(hn::RebindToSigned<decltype(df)>(), sums));
    hn::StoreU(hn::MulAdd(hn::Set(df, scale.scale), whole, hn::Set(df, scale.bias)), df, out);
  } else {
    const hn::Half<D> half;
    store_scores(half, hn::LowerHalf(half, sums), scale, out);
    store_scores(half, hn::UpperHalf(half, sums), scale, out + hn::Lanes(d16) / 2);
  }
}

// Scores of 16 tokens from the sums of pairs (even token + 256 * odd token, modulo 2^16) and of the
// odd ones.
template <class D>
HWY_INLINE void score_half(D d16, hn::Vec<D> pairs, hn::Vec<D> odd, const CodeScale& scale,
                           float* out) {
  const auto even = fold_subspaces(d16, hn::Sub(pairs, hn::ShiftLeft<8>(odd)));
  const auto odds = fold_subspaces(d16, odd);
  store_scores(Eight(), hn::InterleaveLower(Eight(), even, odds), scale, out);
  store_scores(Eight(), hn::InterleaveUpper(Eight(), even, odds), scale, out + 8);
}

// One pass of up to kQueriesPerPass queries over one piece.
struct Pass {
  const ByteTables* tables;
  const std::uint8_t* piece;
  std::size_t block_bytes;
  float* out;
  std::uint64_t out_stride;
};

// Scores of kBlocks blocks, `apart` from each other, for kCount queries from `query`. A lookup
// gives bytes of 16 tokens; added as 16-bit numbers they make the even tokens' sums with the odd
// ones' on top, and the latter are summed a second time alone.
template <std::size_t kBlocks, std::size_t kCount, class D>
HWY_INLINE void score_blocks(D d8, const Pass& pass, std::uint32_t query, const std::uint8_t* codes,
                             std::size_t apart, float* out, std::size_t out_apart,
                             std::size_t out_stride) {
  const hn::Repartition<std::uint16_t, D> d16;
  const auto nibble = hn::Set(d8, 15);
  hn::Vec<decltype(d16)> sum[kBlocks][kCount][4];
  for (std::size_t b = 0; b < kBlocks; ++b)
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[b][i][j] = hn::Zero(d16);
  for (std::size_t at = 0; at < pass.block_bytes; at += hn::Lanes(d8)) {
    hn::Vec<D> table[kCount];
    for (std::size_t i = 0; i < kCount; ++i)
      table[i] = hn::LoadU(d8, pass.tables->bytes[query + i] + at);
    for (std::size_t b = 0; b < kBlocks; ++b) {
      const auto both = hn::LoadU(d8, codes + b * apart + at);
      const auto low = hn::And(both, nibble);
      const auto high = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, both))), nibble);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto first = hn::BitCast(d16, hn::TableLookupBytes(table[i], low));
        const auto second = hn::BitCast(d16, hn::TableLookupBytes(table[i], high));
        sum[b][i][0] = hn::Add(sum[b][i][0], first);
        sum[b][i][1] = hn::Add(sum[b][i][1], hn::ShiftRight<8>(first));
        sum[b][i][2] = hn::Add(sum[b][i][2], second);
        sum[b][i][3] = hn::Add(sum[b][i][3], hn::ShiftRight<8>(second));
      }
    }
  }
  for (std::size_t b = 0; b < kBlocks; ++b)
    for (std::size_t i = 0; i < kCount; ++i) {
      float* target = out + b * out_apart + i * out_stride;
      const CodeScale& scale = pass.tables->scale[query + i];
      score_half(d16, sum[b][i][0], sum[b][i][1], scale, target);
      score_half(d16, sum[b][i][2], sum[b][i][3], scale, target + 16);
    }
}

// Blocks [first, last) and those that lie `half` blocks behind them: two streams, which the machine
// reads faster than one. The first queries of a pass meet codes that are not in cache yet, and ask
// for what comes.
template <std::size_t kCount, class D>
HWY_INLINE void score_tile(D d8, const Pass& pass, std::uint32_t query, std::uint64_t first,
                           std::uint64_t last, std::uint64_t half) {
  constexpr std::size_t kBlocks = 2 * kCount <= kQueryBlock ? 2 : 1;
  const std::size_t apart = half * pass.block_bytes;
  const std::size_t out_apart = half * kCodeBlockTokens;
  for (std::uint64_t block = first; block < last; ++block) {
    const std::uint8_t* codes = pass.piece + block * pass.block_bytes;
    float* out = pass.out + query * pass.out_stride + block * kCodeBlockTokens;
    if (query == 0)
      for (std::size_t at = kAheadBytes; at < kAheadBytes + pass.block_bytes; at += kLine) {
        __builtin_prefetch(codes + at);
        __builtin_prefetch(codes + apart + at);
      }
    for (std::size_t b = 0; b < 2; b += kBlocks)
      score_blocks<kBlocks, kCount>(d8, pass, query, codes + b * apart, apart, out + b * out_apart,
                                    out_apart, pass.out_stride);
  }
}

// The last block or blocks of a piece, of which maybe not all tokens are there.
template <std::size_t kCount, class D>
HWY_INLINE void score_rest(D d8, const Pass& pass, std::uint32_t query, std::uint64_t block,
                           std::uint64_t tokens) {
  for (std::uint64_t at = block * kCodeBlockTokens; at < tokens; at += kCodeBlockTokens) {
    float scores[kCount][kCodeBlockTokens];
    score_blocks<1, kCount>(d8, pass, query, pass.piece + at / kCodeBlockTokens * pass.block_bytes,
                            0, scores[0], 0, kCodeBlockTokens);
    for (std::size_t i = 0; i < kCount; ++i)
      std::copy_n(scores[i], std::min<std::uint64_t>(tokens - at, kCodeBlockTokens),
                  pass.out + (query + i) * pass.out_stride + at);
  }
}

template <class D>
void score_pieces(D d8, const ScoreCodesArgs& args, const ByteTables& tables, std::uint32_t queries,
                  float* out) {
  const CodePieces& codes = args.codes;
  Pass pass{&tables, nullptr, std::size_t{codes.subspaces} * kCodeEntries, nullptr,
            args.out_stride};
  for (std::uint64_t p = 0; p < *codes.count; ++p) {
    pass.piece = reinterpret_cast<const std::uint8_t*>(address_of(codes.base, codes.pieces[p]));
    pass.out = out + codes.starts[p];
    const std::uint64_t tokens = codes.starts[p + 1] - codes.starts[p];
    const std::uint64_t half = tokens / kCodeBlockTokens / 2;
    for (std::uint64_t first = 0; first < half; first += kBlocksPerTile) {
      const std::uint64_t last = std::min(half, first + kBlocksPerTile);
      with_query_blocks(queries, [&]<std::size_t kCount>(std::uint32_t i) HWY_ATTR {
        score_tile<kCount>(d8, pass, i, first, last, half);
      });
    }
    with_query_blocks(queries, [&]<std::size_t kCount>(std::uint32_t i)
                                   HWY_ATTR { score_rest<kCount>(d8, pass, i, 2 * half, tokens); });
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
