#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/rescore_codes.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint64_t kAhead = 4;  // blocks lie anywhere: ask for them early
constexpr std::size_t kLine = 64;

// Where the codes of a token begin: byte i of each 16 of its block.
struct TokenCodes {
  const std::uint8_t* bytes;
  unsigned shift;
};

// Finds tokens in pieces; neighbours in the list are as a rule in the same piece.
class Finder {
 public:
  explicit Finder(const CodePieces& codes) : codes_(codes) {}
  TokenCodes find(std::uint64_t token) {
    if (token < first_ || token >= last_) enter(token);
    const CodePlace place = code_place(token - first_, codes_.subspaces, 0);
    return {piece_ + place.byte, place.shift};
  }

 private:
  void enter(std::uint64_t token) {
    const auto p = static_cast<std::uint64_t>(
        std::upper_bound(codes_.starts, codes_.starts + *codes_.count, token) - codes_.starts - 1);
    piece_ = reinterpret_cast<const std::uint8_t*>(address_of(codes_.base, codes_.pieces[p]));
    first_ = codes_.starts[p];
    last_ = codes_.starts[p + 1];
  }

  const CodePieces& codes_;
  const std::uint8_t* piece_ = nullptr;
  std::uint64_t first_ = 0;
  std::uint64_t last_ = 0;
};

HWY_INLINE void prefetch_block(const TokenCodes& codes, std::uint32_t subspaces) {
  const std::size_t bytes = std::size_t{subspaces} * kCodeEntries;
  for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(codes.bytes + at);
}

void run_rescore_codes(const RescoreCodesArgs& args) {
  begin("rescore_codes");
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const std::size_t lanes = hn::Lanes(df);
  const std::uint32_t subspaces = args.codes.subspaces;
  const std::uint64_t count = *args.token_count;
  Finder finder(args.codes);
  Finder scout(args.codes);
  alignas(64) std::int32_t entries[kCodeSubspacesMax][16] = {};  // of one vector of tokens
  for (std::uint64_t n = 0; n < count; n += lanes) {
    const std::size_t tokens = std::min<std::uint64_t>(count - n, lanes);
    for (std::size_t j = 0; j < tokens; ++j) {
      if (n + j + kAhead < count)
        prefetch_block(scout.find(args.tokens[n + j + kAhead]), subspaces);
      const TokenCodes codes = finder.find(args.tokens[n + j]);
      for (std::uint32_t m = 0; m < subspaces; ++m)
        entries[m][j] = codes.bytes[std::size_t{m} * 16] >> codes.shift & 15;
    }
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float* table = args.tables + i * args.table_stride;
      auto sum = hn::Zero(df);
      for (std::uint32_t m = 0; m < subspaces; ++m)
        sum = hn::Add(sum, hn::GatherIndex(df, table + m * kCodeEntries, hn::Load(di, entries[m])));
      float* out = args.out + i * args.out_stride + n;
      if (tokens == lanes) {
        hn::StoreU(sum, df, out);
      } else {
        float scores[16];
        hn::StoreU(sum, df, scores);
        std::copy_n(scores, tokens, out);
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_rescore_codes);

Result<void> rescore_codes(const RescoreCodesArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_rescore_codes)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
