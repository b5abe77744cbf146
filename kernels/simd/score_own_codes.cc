#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/own_code_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/score_own_codes.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// Codes of a sub-space's 32 tokens as they lie in a block.
HWY_INLINE void unpack(const std::uint8_t* bytes, std::int32_t* out) {
  const hn::CappedTag<std::int32_t, 8> di;
  const hn::Rebind<std::uint8_t, decltype(di)> d8;
  const auto four = hn::Set(di, 15), two = hn::Set(di, 3);
  for (std::size_t i = 0; i < 8; i += hn::Lanes(di)) {
    const auto first = hn::PromoteTo(di, hn::LoadU(d8, bytes + i));
    const auto second = hn::PromoteTo(di, hn::LoadU(d8, bytes + 8 + i));
    const auto high = hn::PromoteTo(di, hn::LoadU(d8, bytes + 16 + i));
    const auto high0 = hn::And(high, two);
    const auto high1 = hn::And(hn::ShiftRight<2>(high), two);
    const auto high2 = hn::And(hn::ShiftRight<4>(high), two);
    const auto high3 = hn::ShiftRight<6>(high);
    hn::StoreU(hn::Or(hn::And(first, four), hn::ShiftLeft<4>(high0)), di, out + i);
    hn::StoreU(hn::Or(hn::And(second, four), hn::ShiftLeft<4>(high1)), di, out + 8 + i);
    hn::StoreU(hn::Or(hn::ShiftRight<4>(first), hn::ShiftLeft<4>(high2)), di, out + 16 + i);
    hn::StoreU(hn::Or(hn::ShiftRight<4>(second), hn::ShiftLeft<4>(high3)), di, out + 24 + i);
  }
}

// Block by block: its codes are unpacked once for all queries.
void run_score_own_codes(const ScoreOwnCodesArgs& args) {
  begin("score_own_codes");
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const std::uint64_t tokens = *args.token_count;
  const std::uint64_t block_bytes = args.subspaces * kOwnCodeBlockBytes;
  alignas(64) std::int32_t codes[kOwnCodeSubspacesMax][kCodeBlockTokens];
  for (std::uint64_t first = 0; first < tokens; first += kCodeBlockTokens) {
    const std::uint8_t* block = args.codes + first / kCodeBlockTokens * block_bytes;
    for (std::uint32_t m = 0; m < args.subspaces; ++m)
      unpack(block + m * kOwnCodeBlockBytes, codes[m]);
    const std::uint64_t here = std::min<std::uint64_t>(tokens - first, kCodeBlockTokens);
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float* table = args.tables + i * args.table_stride;
      float* out = args.out + i * args.out_stride + first;
      alignas(64) float scores[kCodeBlockTokens];
      float* place = here == kCodeBlockTokens ? out : scores;
      for (std::size_t at = 0; at < kCodeBlockTokens; at += hn::Lanes(df)) {
        auto sum = hn::Zero(df);
        for (std::uint32_t m = 0; m < args.subspaces; ++m)
          sum = hn::Add(sum, hn::GatherIndex(df, table + m * kOwnCodeEntries,
                                             hn::Load(di, codes[m] + at)));
        hn::StoreU(sum, df, place + at);
      }
      if (place == scores) std::copy_n(scores, here, out);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_score_own_codes);

Result<void> score_own_codes(const ScoreOwnCodesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_score_own_codes)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
