#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/scalar/scalar.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/attend_base.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/base-inl.h"
#include "kernels/simd/elements-inl.h"
#include "kernels/simd/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void run_attend_base(const AttendBaseArgs& args) {
  run_reference("attend_base", args, scalar::attend_base);
}
#else

using Floats = hn::Vec<BaseFloats>;

constexpr std::size_t kLine = 64;               // bytes that one prefetch brings
constexpr std::size_t kQueriesAtOnce = 8;       // that share the unpacking of codes
constexpr std::size_t kSums = kQueryBlock * 4;  // vectors that registers have room for

// Rows, or fields, that kCount queries have sums for at a time: 4, 2 or 1.
template <std::size_t kCount>
constexpr std::size_t kShare = kCount * 4 <= kSums   ? 4
                               : kCount * 2 <= kSums ? 2
                                                     : 1;

// Places and sizes of a format, computed once.
struct Shape {
  explicit Shape(const BaseFormat& format)
      : dim(format.dim),
        v_dim(format.v_dim),
        k_units(BaseFormat::units(format.dim)),
        v_units(BaseFormat::units(format.v_dim)),
        k_first(format.k_row_offset(0)),
        v_first(format.v_row_offset(0)),
        k_stride(format.k_row_bytes()),
        v_stride(format.v_row_bytes()),
        v_groups(v_stride - v_units * 4) {}
  std::size_t dim, v_dim;
  std::size_t k_units, v_units;
  std::size_t k_first, v_first;
  std::size_t k_stride, v_stride;
  std::size_t v_groups;  // behind a row's codes
};

// The rows of one tile.
struct Tile {
  std::size_t rows = 0;
  const std::byte* chunk[kTile];
  const std::byte* k[kTile];
  const std::byte* v[kTile];
};

void find_rows(const AttendBaseArgs& args, const Shape& shape, std::uint64_t first, Tile* tile) {
  const std::uint64_t left = row_count(args.rows) - first;
  tile->rows = std::min<std::uint64_t>(left, kTile);
  for (std::size_t t = 0; t < tile->rows; ++t) {
    const BasePlace place = place_of(args.pages, args.rows, first + t);
    tile->chunk[t] = place.chunk;
    tile->k[t] = place.chunk + shape.k_first + place.token * shape.k_stride;
    tile->v[t] = place.chunk + shape.v_first + place.token * shape.v_stride;
  }
}

HWY_INLINE void prefetch(const std::byte* from, std::size_t bytes) {
  __builtin_prefetch(from, 0, 2);
  for (std::size_t at = kLine; at < bytes; at += kLine) __builtin_prefetch(from + at, 0, 2);
  __builtin_prefetch(from + bytes - 1, 0, 2);
}
HWY_INLINE void prefetch_keys(const Shape& shape, const Tile& tile, std::size_t t) {
  if (t == 0 || tile.chunk[t] != tile.chunk[t - 1]) prefetch(tile.chunk[t], shape.dim * 4);
  prefetch(tile.k[t], shape.k_stride);
}

// A pass of up to kQueries queries over all rows.
struct Pass : RunningSoftmax {
  const AttendBaseArgs* args = nullptr;
  const Shape* shape = nullptr;
  const float* q = nullptr;
  float* out = nullptr;
  std::uint32_t queries = 0;
  const Tile* tile = nullptr;
  const Tile* next = nullptr;  // the tile after it, maybe empty
  // Queries times the scales of one chunk of keys, fields' factors taken out; dims beyond the last
  // are 0.
  alignas(64) float scaled[kQueriesAtOnce][kHeadDimMax];
  float offset[kQueriesAtOnce];  // queries times its zeros, a share for each lane of a sum
  // Scales and zeros of the tile's values, group by group.
  alignas(64) float v_scale[kHeadDimMax / kBaseUnit][kTile];
  alignas(64) float v_zero[kHeadDimMax / kBaseUnit][kTile];
};

template <std::uint32_t kBits, std::size_t kCount>
HWY_INLINE void scale_queries(const std::byte* chunk, std::uint32_t first, Pass* pass) {
  const BaseFloats df;
  const std::size_t dim = pass->shape->dim;
  Floats sum[kCount];
  for (std::size_t i = 0; i < kCount; ++i) sum[i] = hn::Zero(df);
  for (std::size_t d = 0; d < pass->shape->k_units * kBaseUnit; d += kBasePiece) {
    if (d >= dim) {
      for (std::size_t i = 0; i < kCount; ++i) hn::Store(hn::Zero(df), df, pass->scaled[i] + d);
      continue;
    }
    const float factor = 1.0f / field_factor<kBits>(d % kBaseUnit / kBaseLanes);
    const auto scale = hn::Mul(load_base_halves(chunk + d * 2), hn::Set(df, factor));
    const auto zero = load_base_halves(chunk + (dim + d) * 2);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto q = hn::LoadU(df, pass->q + (first + i) * pass->args->q_stride + d);
      hn::Store(hn::Mul(q, scale), df, pass->scaled[i] + d);
      sum[i] = hn::MulAdd(q, zero, sum[i]);
    }
  }
  for (std::size_t i = 0; i < kCount; ++i)
    pass->offset[i] = sum_of(df, sum[i]) / static_cast<float>(kBasePiece);
}

// Scores of kCount queries for kRows rows of one chunk from row t of the tile.
template <std::uint32_t kBits, std::size_t kCount, std::size_t kRows>
HWY_INLINE void score_rows(std::uint32_t first, std::size_t t, std::size_t last, Pass* pass) {
  const BaseFloats df;
  const std::size_t units = pass->shape->k_units;
  const std::byte* rows[kRows];  // beyond the end: the last row again
  for (std::size_t r = 0; r < kRows; ++r) {
    const std::size_t row = std::min(t + r, last - 1);
    rows[r] = pass->tile->k[row];
    if (first == 0) prefetch(pass->tile->v[row], pass->shape->v_stride);
  }
  Floats sum[kCount][kRows];
  for (std::size_t i = 0; i < kCount; ++i)
    for (std::size_t r = 0; r < kRows; ++r) sum[i][r] = hn::Set(df, pass->offset[i]);
  for (std::size_t unit = 0; unit < units; ++unit)
    for (std::size_t lane = 0; lane < kBaseLanes; lane += kBasePiece) {
      hn::Vec<BaseWords> words[kRows];
      for (std::size_t r = 0; r < kRows; ++r)
        words[r] = BaseCodes<kBits>(rows[r], units).words(unit, lane);
      for_fields([&]<std::size_t kField>() HWY_ATTR {
        const std::size_t d = unit * kBaseUnit + kField * kBaseLanes + lane;
        Floats code[kRows];
        for (std::size_t r = 0; r < kRows; ++r) code[r] = field_of<kBits, kField>(words[r]);
        for (std::size_t i = 0; i < kCount; ++i) {
          const auto q = hn::Load(df, pass->scaled[i] + d);
          for (std::size_t r = 0; r < kRows; ++r) sum[i][r] = hn::MulAdd(q, code[r], sum[i][r]);
        }
      });
    }
  // Four sums at a time: of four rows, or of two rows and two queries, or of four queries.
  constexpr std::size_t kAll = kCount * kRows;
  for (std::size_t at = 0; at < kAll; at += 4) {
    Floats four[4];
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t which = std::min(at + j, kAll - 1);
      four[j] = sum[which / kRows][which % kRows];
    }
    float scores[4];
    store_four_sums(df, four, pass->args->scale, scores);
    for (std::size_t j = 0; j < 4 && at + j < kAll; j += kRows)
      std::copy_n(scores + j, kRows, &pass->scores[first + (at + j) / kRows][t]);
  }
}

template <std::uint32_t kBits, std::size_t kCount>
HWY_INLINE void score_tile(std::uint32_t first, Pass* pass) {
  constexpr std::size_t kRows = kShare<kCount>;
  const Tile& tile = *pass->tile;
  for (std::size_t t = 0; t < tile.rows;) {
    std::size_t last = t + 1;
    while (last < tile.rows && tile.chunk[last] == tile.chunk[t]) ++last;
    scale_queries<kBits, kCount>(tile.chunk[t], first, pass);
    for (; t < last; t += kRows) score_rows<kBits, kCount, kRows>(first, t, last, pass);
    t = last;
  }
}

// Scales and zeros of the tile's values.
void load_groups(Pass* pass) {
  const hn::CappedTag<float, 4> four;
  const hn::Rebind<std::uint16_t, decltype(four)> d16;
  const hn::Repartition<std::uint8_t, decltype(d16)> bytes;
  const std::size_t groups = pass->shape->v_units;
  for (std::size_t t = 0; t < pass->tile->rows; ++t) {
    const auto* from =
        reinterpret_cast<const std::uint8_t*>(pass->tile->v[t] + pass->shape->v_groups);
    std::size_t g = 0;
    for (; g + 2 <= groups; g += 2) {
      float pairs[4];
      hn::StoreU(f32_from_f16(four, hn::BitCast(d16, hn::LoadU(bytes, from + g * 4))), four, pairs);
      pass->v_scale[g][t] = pairs[0];
      pass->v_zero[g][t] = pairs[1];
      pass->v_scale[g + 1][t] = pairs[2];
      pass->v_zero[g + 1][t] = pairs[3];
    }
    if (g < groups) {
      const auto* last = reinterpret_cast<const std::byte*>(from + g * 4);
      pass->v_scale[g][t] = load_element(last, Dtype::kF16, 0);
      pass->v_zero[g][t] = load_element(last, Dtype::kF16, 1);
    }
  }
}

// Weights of the tile's rows times the scales of a group, and the sum of weights times zeros.
HWY_INLINE float weigh_group(const Pass& pass, std::uint32_t query, std::size_t group, float* out) {
  const hn::CappedTag<float, kTile> df;
  auto sum = hn::Zero(df);
  for (std::size_t t = 0; t < kTile; t += hn::Lanes(df)) {
    const auto weight = hn::Load(df, pass.scores[query] + t);
    hn::Store(hn::Mul(weight, hn::Load(df, pass.v_scale[group] + t)), df, out + t);
    sum = hn::MulAdd(weight, hn::Load(df, pass.v_zero[group] + t), sum);
  }
  return sum_of(df, sum);
}

// Adds the weighted codes of fields [kFirst, kFirst + kFields) of one unit for kCount queries.
template <std::uint32_t kBits, std::size_t kCount, std::size_t kFirst, std::size_t kFields>
HWY_INLINE void add_fields(const Pass& pass, std::uint32_t first, std::size_t unit,
                           std::size_t lane, const float (&weights)[kCount][kTile],
                           const float (&offsets)[kCount]) {
  const BaseFloats df;
  const Tile& tile = *pass.tile;
  const std::size_t units = pass.shape->v_units;
  const std::size_t ahead =
      first == 0 && unit == 0 && kFirst == 0 && lane == 0 ? pass.next->rows : 0;
  Floats sum[kCount][kFields];
  for (std::size_t i = 0; i < kCount; ++i)
    for (std::size_t k = 0; k < kFields; ++k) sum[i][k] = hn::Zero(df);
  for (std::size_t t = 0; t < tile.rows; ++t) {
    if (t < ahead) prefetch_keys(*pass.shape, *pass.next, t);
    const auto words = BaseCodes<kBits>(tile.v[t], units).words(unit, lane);
    Floats weight[kCount];
    for (std::size_t i = 0; i < kCount; ++i) weight[i] = hn::Set(df, weights[i][t]);
    for_fields([&]<std::size_t kField>() HWY_ATTR {
      if constexpr (kField >= kFirst && kField < kFirst + kFields) {
        const auto code = field_of<kBits, kField>(words);
        for (std::size_t i = 0; i < kCount; ++i)
          sum[i][kField - kFirst] = hn::MulAdd(weight[i], code, sum[i][kField - kFirst]);
      }
    });
  }
  for (std::size_t k = 0; k < kFields; ++k) {
    const std::size_t d = unit * kBaseUnit + (kFirst + k) * kBaseLanes + lane;
    if (d >= pass.shape->v_dim) return;
    const auto factor = hn::Set(df, 1.0f / field_factor<kBits>(kFirst + k));
    for (std::size_t i = 0; i < kCount; ++i) {
      float* out = pass.out + (first + i) * pass.args->out_stride + d;
      const auto before = hn::MulAdd(hn::LoadU(df, out), hn::Set(df, pass.shrink[first + i]),
                                     hn::Set(df, offsets[i]));
      hn::StoreU(hn::MulAdd(sum[i][k], factor, before), df, out);
    }
  }
}

template <std::uint32_t kBits, std::size_t kCount>
HWY_INLINE void add_values(std::uint32_t first, const Pass& pass) {
  alignas(64) float weights[kCount][kTile];
  float offsets[kCount];
  for (std::size_t unit = 0; unit < pass.shape->v_units; ++unit) {
    for (std::size_t i = 0; i < kCount; ++i)
      offsets[i] = weigh_group(pass, first + static_cast<std::uint32_t>(i), unit, weights[i]);
    for (std::size_t lane = 0; lane < kBaseLanes; lane += kBasePiece) {
      constexpr std::size_t kFields = kShare<kCount>;
      add_fields<kBits, kCount, 0, kFields>(pass, first, unit, lane, weights, offsets);
      if constexpr (kFields < 4)
        add_fields<kBits, kCount, kFields, kFields>(pass, first, unit, lane, weights, offsets);
      if constexpr (kFields == 1) {
        add_fields<kBits, kCount, 2, 1>(pass, first, unit, lane, weights, offsets);
        add_fields<kBits, kCount, 3, 1>(pass, first, unit, lane, weights, offsets);
      }
    }
  }
}

// Calls f.template operator()<count>(first) for blocks of up to kQueriesAtOnce queries.
template <class F>
HWY_INLINE void with_blocks(std::uint32_t queries, const F& f) {
  std::uint32_t first = 0;
  for (; first + 8 <= queries; first += 8) f.template operator()<8>(first);
  if (first + 4 <= queries) {
    f.template operator()<4>(first);
    first += 4;
  }
  if (queries - first == 3) f.template operator()<3>(first);
  if (queries - first == 2) f.template operator()<2>(first);
  if (queries - first == 1) f.template operator()<1>(first);
}

void write_logits(const Pass& pass, std::uint64_t row, float* logits) {
  if (logits == nullptr) return;
  for (std::uint32_t i = 0; i < pass.queries; ++i)
    std::copy_n(pass.scores[i], pass.tile->rows, logits + i * pass.args->logits_stride + row);
}

void attend_pass(float* lse, float* logits, Pass* pass) {
  const AttendBaseArgs& args = *pass->args;
  const std::uint64_t rows = row_count(args.rows);
  const std::uint32_t v_dim = args.pages.format.v_dim;
  pass->begin(pass->queries, v_dim, pass->out, args.out_stride);
  Tile tiles[2];
  find_rows(args, *pass->shape, 0, &tiles[0]);
  std::uint64_t row = 0;
  for (std::size_t turn = 0; row < rows; turn ^= 1) {
    pass->tile = &tiles[turn];
    pass->next = &tiles[turn ^ 1];
    find_rows(args, *pass->shape, row + pass->tile->rows, &tiles[turn ^ 1]);
    with_bits(args.pages.format.k_bits, [&]<std::uint32_t kBits>() HWY_ATTR {
      with_blocks(pass->queries, [&]<std::size_t kCount>(std::uint32_t first)
                                     HWY_ATTR { score_tile<kBits, kCount>(first, pass); });
    });
    write_logits(*pass, row, logits);
    for (std::uint32_t i = 0; i < pass->queries; ++i) {
      pass->weigh(i, pass->tile->rows);
      std::fill(pass->scores[i] + pass->tile->rows, pass->scores[i] + kTile, 0.0f);
    }
    load_groups(pass);
    with_bits(args.pages.format.v_bits, [&]<std::uint32_t kBits>() HWY_ATTR {
      with_blocks(pass->queries, [&]<std::size_t kCount>(std::uint32_t first)
                                     HWY_ATTR { add_values<kBits, kCount>(first, *pass); });
    });
    row += pass->tile->rows;
  }
  pass->finish(BaseFloats(), pass->queries, v_dim, rows == 0, pass->out, args.out_stride, lse,
               args.lse_stride);
}

void run_attend_base(const AttendBaseArgs& args) {
  begin("attend_base");
  const Shape shape(args.pages.format);
  Pass pass;
  pass.args = &args;
  pass.shape = &shape;
  // Rows that a last tile lacks have weight 0, which needs finite scales.
  std::fill_n(pass.v_scale[0], sizeof pass.v_scale / sizeof(float), 0.0f);
  std::fill_n(pass.v_zero[0], sizeof pass.v_zero / sizeof(float), 0.0f);
  for (std::uint32_t first = 0; first < args.queries; first += kQueries) {
    pass.q = args.q + first * args.q_stride;
    pass.out = args.out + first * args.out_stride;
    pass.queries = std::min<std::uint32_t>(args.queries - first, kQueries);
    attend_pass(args.lse + first * args.lse_stride,
                args.logits != nullptr ? args.logits + first * args.logits_stride : nullptr, &pass);
  }
}
#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_attend_base);

Result<void> attend_base(const AttendBaseArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_attend_base)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
