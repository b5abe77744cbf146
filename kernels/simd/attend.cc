#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/attend.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::size_t kLine = 64;  // bytes that one prefetch brings

template <Dtype kDtype>
constexpr std::size_t kElementBytes = kDtype == Dtype::kF32 ? 4 : 2;

// Addresses of the rows of one tile.
struct Tile {
  std::size_t tokens = 0;
  const std::byte* k[kTile];
  const std::byte* v[kTile];
};

// Brings a row into the second-level cache while something else is computed: pages of a few KiB,
// here and there, are beyond what the hardware foresees. (The first level has too few buffers for
// that many lines under way.)
HWY_INLINE void prefetch_row(const std::byte* row, std::size_t row_bytes) {
  if (row_bytes == 0) return;
  __builtin_prefetch(row, 0, 2);
  if (row_bytes > kLine) __builtin_prefetch(row + kLine, 0, 2);
  for (std::size_t at = 2 * kLine; at < row_bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

// A pass of up to kQueries queries over all tokens.
struct Pass : RunningSoftmax {
  const float* q = nullptr;
  float* out = nullptr;
  std::uint32_t queries = 0;
  const Tile* tile = nullptr;
  const Tile* next = nullptr;  // the tile after it, maybe empty
};

// Scores of kCount queries from `first` against all tokens of the tile, four tokens at a time.
// Meanwhile the tile's values come.
template <Dtype kDtype, std::size_t kCount, class D>
HWY_INLINE void score_tile(D df, const AttendArgs& args, std::uint32_t first, Pass* pass) {
  const float* q = pass->q + first * args.q_stride;
  const std::size_t lanes = hn::Lanes(df);
  const Tile& tile = *pass->tile;
  const std::size_t v_bytes = first == 0 ? args.v_dim * kElementBytes<kDtype> : 0;
  for (std::size_t t = 0; t < tile.tokens; t += 4) {
    const std::byte* rows[4];  // beyond the end: the last row again, overwritten later
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t token = std::min(t + j, tile.tokens - 1);
      rows[j] = tile.k[token];
      prefetch_row(tile.v[token], v_bytes);
    }
    hn::Vec<D> sum[kCount][4];
    for (std::size_t i = 0; i < kCount; ++i)
      for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(df);
    for (std::size_t d = 0; d < args.dim; d += lanes) {
      hn::Vec<D> key[4];
      for (std::size_t j = 0; j < 4; ++j) key[j] = load_row<kDtype>(df, rows[j], d);
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto query = hn::LoadU(df, q + i * args.q_stride + d);
        for (std::size_t j = 0; j < 4; ++j) sum[i][j] = hn::MulAdd(query, key[j], sum[i][j]);
      }
    }
    for (std::size_t i = 0; i < kCount; ++i)
      store_four_sums(df, sum[i], args.scale, &pass->scores[first + i][t]);
  }
}

// Adds the weighted values of kVectors * Lanes dimensions from d for kCount queries. Meanwhile the
// next tile's keys come.
template <Dtype kDtype, std::size_t kCount, std::size_t kVectors, class D>
HWY_INLINE void add_values_at(D df, const AttendArgs& args, std::uint32_t first, std::size_t d,
                              const Pass& pass) {
  const std::size_t lanes = hn::Lanes(df);
  float* out = pass.out + first * args.out_stride + d;
  hn::Vec<D> sum[kCount][kVectors];
  for (std::size_t i = 0; i < kCount; ++i)
    for (std::size_t j = 0; j < kVectors; ++j)
      sum[i][j] = hn::Mul(hn::LoadU(df, out + i * args.out_stride + j * lanes),
                          hn::Set(df, pass.shrink[first + i]));
  const std::size_t k_bytes = first == 0 && d == 0 ? args.dim * kElementBytes<kDtype> : 0;
  const std::size_t ahead = pass.next->tokens;
  for (std::size_t t = 0; t < pass.tile->tokens; ++t) {
    if (t < ahead) prefetch_row(pass.next->k[t], k_bytes);
    hn::Vec<D> value[kVectors];
    for (std::size_t j = 0; j < kVectors; ++j)
      value[j] = load_row<kDtype>(df, pass.tile->v[t], d + j * lanes);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto weight = hn::Set(df, pass.scores[first + i][t]);
      for (std::size_t j = 0; j < kVectors; ++j)
        sum[i][j] = hn::MulAdd(weight, value[j], sum[i][j]);
    }
  }
  for (std::size_t i = 0; i < kCount; ++i)
    for (std::size_t j = 0; j < kVectors; ++j)
      hn::StoreU(sum[i][j], df, out + i * args.out_stride + j * lanes);
}

template <Dtype kDtype, std::size_t kCount, class D>
HWY_INLINE void add_values(D df, const AttendArgs& args, std::uint32_t first, const Pass& pass) {
  const std::size_t lanes = hn::Lanes(df);
  std::size_t d = 0;
  for (; d + 4 * lanes <= args.v_dim; d += 4 * lanes)
    add_values_at<kDtype, kCount, 4>(df, args, first, d, pass);
  for (; d < args.v_dim; d += lanes) add_values_at<kDtype, kCount, 1>(df, args, first, d, pass);
}

template <Dtype kDtype, std::size_t kCount, class D>
HWY_INLINE void add_tile(D df, const AttendArgs& args, std::uint32_t first, Pass* pass) {
  score_tile<kDtype, kCount>(df, args, first, pass);
  for (std::uint32_t i = first; i < first + kCount; ++i) pass->weigh(i, pass->tile->tokens);
  add_values<kDtype, kCount>(df, args, first, *pass);
}

// Walks the rows from four places at once: the machine reads those faster than one.
class FourCursors {
 public:
  explicit FourCursors(const AttendArgs& args)
      : cursors_{part(args, 0), part(args, 1), part(args, 2), part(args, 3)} {}

  // No tokens at the end.
  void next(Tile* tile) {
    std::size_t& tokens = tile->tokens;
    tokens = 0;
    // The second time in place of cursors that are at their end.
    for (const std::size_t room : {kTile / 4, kTile})
      for (RowCursor& cursor : cursors_)
        tokens += cursor.next(tile->k + tokens, tile->v + tokens, std::min(room, kTile - tokens));
  }

 private:
  static RowCursor part(const AttendArgs& args, std::uint64_t j) {
    const std::uint64_t first = args.token_range[0];
    const std::uint64_t last = std::max(first, args.token_range[1]);
    const std::uint64_t quarter = (last - first + 3) / 4;
    return RowCursor(args.rows, std::min(first + j * quarter, last),
                     std::min(first + (j + 1) * quarter, last), args.row_masks);
  }
  RowCursor cursors_[4];
};

template <Dtype kDtype, class D>
void attend_pass(D df, const AttendArgs& args, float* lse, Pass* pass) {
  pass->begin(pass->queries, args.v_dim, pass->out, args.out_stride);
  FourCursors cursors(args);
  Tile tiles[2];
  cursors.next(&tiles[0]);
  const bool empty = tiles[0].tokens == 0;
  for (std::size_t turn = 0; tiles[turn].tokens > 0; turn ^= 1) {
    Tile& next = tiles[turn ^ 1];
    cursors.next(&next);
    pass->tile = &tiles[turn];
    pass->next = &next;
    with_query_blocks(pass->queries, [&]<std::size_t kCount>(std::uint32_t first) HWY_ATTR {
      add_tile<kDtype, kCount>(df, args, first, pass);
    });
  }
  pass->finish(df, pass->queries, args.v_dim, empty, pass->out, args.out_stride, lse,
               args.lse_stride);
}

template <Dtype kDtype, class D>
void attend_all(D df, const AttendArgs& args) {
  Pass pass;
  for (std::uint32_t first = 0; first < args.queries; first += kQueries) {
    pass.q = args.q + first * args.q_stride;
    pass.out = args.out + first * args.out_stride;
    pass.queries = std::min<std::uint32_t>(args.queries - first, kQueries);
    attend_pass<kDtype>(df, args, args.lse + first * args.lse_stride, &pass);
  }
}

void run_attend(const AttendArgs& args) {
  begin("attend");
  with_width(args.dim | args.v_dim, [&](auto df) HWY_ATTR {
    with_dtype(args.rows.dtype, [&]<Dtype kDtype>() HWY_ATTR { attend_all<kDtype>(df, args); });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_attend);

Result<void> attend(const AttendArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_attend)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
