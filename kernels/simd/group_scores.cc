#include "kernels/simd/simd.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/group_scores.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Lanes that a softmax can take: neither NaN nor +infinity.
template <class D>
HWY_INLINE hn::Mask<D> usable(D df, hn::Vec<D> scores) {
  return hn::Lt(scores, hn::Set(df, kInfinity));
}

// Calls f(tag, index) for whole vectors, then for the rest one element at a time.
template <class F>
HWY_INLINE void for_each_unit(std::uint64_t units, const F& f) {
  const hn::ScalableTag<float> wide;
  const hn::CappedTag<float, 1> one;
  std::uint64_t u = 0;
  for (; u + hn::Lanes(wide) <= units; u += hn::Lanes(wide)) f(wide, u);
  for (; u < units; ++u) f(one, u);
}

void group_max(const GroupScoresArgs& args, std::uint64_t units) {
  for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
    auto best = hn::Set(df, -kInfinity);
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const auto score = hn::LoadU(df, args.scores + i * args.stride + u);
      best = hn::IfThenElse(usable(df, score), hn::Max(best, score), hn::Set(df, kInfinity));
    }
    hn::StoreU(hn::Mul(best, hn::Set(df, args.scale)), df, args.out + u);
  });
}

void group_mean(const GroupScoresArgs& args, std::uint64_t units) {
  const float weight = args.scale / static_cast<float>(args.queries);
  for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
    auto sum = hn::Zero(df);
    auto good = hn::Eq(sum, sum);
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const auto score = hn::LoadU(df, args.scores + i * args.stride + u);
      good = hn::And(good, usable(df, score));
      sum = hn::Add(sum, score);
    }
    hn::StoreU(hn::IfThenElse(good, hn::Mul(sum, hn::Set(df, weight)), hn::Set(df, kInfinity)), df,
               args.out + u);
  });
}

constexpr std::uint64_t kTile = 512;  // units whose scores stay in cache
constexpr std::uint32_t kHeads = 8;   // heads that share one pass

// Scores of a tile of units for up to kHeads heads, those of units that are not in the softmax, and
// beyond the last unit, at -infinity.
struct Tile {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  bool all = true;                // units are in the softmax
  alignas(64) float keep[kTile];  // where not all: bits of a mask
  alignas(64) float scores[kHeads][kTile];

  std::uint64_t padded() const {
    const std::size_t lanes = hn::Lanes(hn::ScalableTag<float>());
    return (count + lanes - 1) / lanes * lanes;
  }
};

// Whether a softmax can take all of `count` scores (whole vectors).
bool all_usable(const float* scores, std::uint64_t count) {
  const hn::ScalableTag<float> df;
  auto good = hn::Eq(hn::Zero(df), hn::Zero(df));
  for (std::uint64_t u = 0; u < count; u += hn::Lanes(df))
    good = hn::And(good, usable(df, hn::Load(df, scores + u)));
  return hn::AllTrue(df, good);
}

// Leaves out units of which some head's score is not usable.
void leave_out(const GroupScoresArgs& args, std::uint32_t heads, Tile* tile) {
  const hn::ScalableTag<float> df;
  std::fill_n(tile->keep, kTile, std::bit_cast<float>(0xFFFFFFFFu));
  alignas(64) float scores[kTile] = {};
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    std::copy_n(args.scores + i * args.stride + tile->first, tile->count, scores);
    for (std::uint64_t u = 0; u < tile->padded(); u += hn::Lanes(df))
      hn::Store(hn::And(hn::Load(df, tile->keep + u),
                        hn::VecFromMask(df, usable(df, hn::Load(df, scores + u)))),
                df, tile->keep + u);
  }
  for (std::uint32_t i = 0; i < heads; ++i)
    for (std::uint64_t u = 0; u < tile->padded(); u += hn::Lanes(df))
      hn::Store(hn::IfThenElse(hn::MaskFromVec(hn::Load(df, tile->keep + u)),
                               hn::Load(df, tile->scores[i] + u), hn::Set(df, -kInfinity)),
                df, tile->scores[i] + u);
}

void load_tile(const GroupScoresArgs& args, std::uint32_t head, std::uint32_t heads, Tile* tile) {
  tile->all = true;
  alignas(64) float other[kTile];  // head: only looked at
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const bool wanted = i >= head && i < head + heads;
    if (!wanted && !tile->all) continue;
    float* const scores = wanted ? tile->scores[i - head] : other;
    std::copy_n(args.scores + i * args.stride + tile->first, tile->count, scores);
    std::fill_n(scores + tile->count, tile->padded() - tile->count, -kInfinity);
    tile->all = tile->all && all_usable(scores, tile->padded());
  }
  if (!tile->all) leave_out(args, heads, tile);
}

// Largest score of a head, and the sum of exponentials above it.
struct Softmax {
  float max = -kInfinity;
  double sum = 0.0;
};

// exp(scale * (score - max)) of a vector of the tile.
template <class D>
HWY_INLINE hn::Vec<D> exponential(D df, const float* scores, hn::Vec<D> scale, hn::Vec<D> max) {
  return exp_below_one(df, hn::Mul(hn::Sub(hn::Load(df, scores), max), scale));
}

void measure(const Tile& tile, const float* scores, float scale, Softmax* softmax) {
  const hn::ScalableTag<float> df;
  auto most = hn::Set(df, softmax->max);
  for (std::uint64_t u = 0; u < tile.padded(); u += hn::Lanes(df))
    most = hn::Max(most, hn::Load(df, scores + u));
  const float max = hn::GetLane(hn::MaxOfLanes(df, most));
  if (max == -kInfinity) return;
  if (max > softmax->max) softmax->sum *= std::exp(double{scale} * (softmax->max - max));
  softmax->max = max;
  auto sum = hn::Zero(df);
  for (std::uint64_t u = 0; u < tile.padded(); u += hn::Lanes(df))
    sum = hn::Add(sum, exponential(df, scores + u, hn::Set(df, scale), hn::Set(df, max)));
  softmax->sum += static_cast<double>(sum_of(df, sum));
}

// Adds the heads' shares to what `out` has of the heads before, or takes the largest.
template <bool kLargest>
void add_shares(const GroupScoresArgs& args, std::uint32_t head, std::uint32_t heads,
                const Softmax* softmax, const Tile& tile) {
  const hn::ScalableTag<float> df;
  alignas(64) float shares[kTile] = {};
  if (head > 0) std::copy_n(args.out + tile.first, tile.count, shares);
  for (std::uint32_t i = 0; i < heads; ++i) {
    if (softmax[i].sum == 0.0) continue;
    const double parts = kLargest ? 1.0 : args.queries;
    const auto weight = hn::Set(df, static_cast<float>(1.0 / (softmax[i].sum * parts)));
    const auto scale = hn::Set(df, args.scale);
    const auto max = hn::Set(df, softmax[i].max);
    for (std::uint64_t u = 0; u < tile.padded(); u += hn::Lanes(df)) {
      const auto share = exponential(df, tile.scores[i] + u, scale, max);
      const auto before = hn::Load(df, shares + u);
      hn::Store(kLargest ? hn::Max(hn::Mul(weight, share), before)
                         : hn::MulAdd(weight, share, before),
                df, shares + u);
    }
  }
  for (std::uint64_t u = 0; !tile.all && u < tile.padded(); u += hn::Lanes(df))
    hn::Store(hn::IfThenElse(hn::MaskFromVec(hn::Load(df, tile.keep + u)), hn::Load(df, shares + u),
                             hn::Set(df, kInfinity)),
              df, shares + u);
  std::copy_n(shares, tile.count, args.out + tile.first);
}

// `out` may be head 0's scores. What it holds when later heads come is +infinity where some score
// was not usable, and finite elsewhere: so it tells the same as the scores did.
template <bool kLargest>
void group_softmax(const GroupScoresArgs& args, std::uint64_t units) {
  Tile tile;
  for (std::uint32_t head = 0; head < args.queries; head += kHeads) {
    const std::uint32_t heads = std::min(args.queries - head, kHeads);
    Softmax softmax[kHeads];
    for (const bool measuring : {true, false})
      for (tile.first = 0; tile.first < units; tile.first += kTile) {
        tile.count = std::min(units - tile.first, kTile);
        load_tile(args, head, heads, &tile);
        if (!measuring) add_shares<kLargest>(args, head, heads, softmax, tile);
        for (std::uint32_t i = 0; measuring && i < heads; ++i)
          measure(tile, tile.scores[i], args.scale, &softmax[i]);
      }
  }
}

// A top_k for each head. What some head must fetch has no place, and takes none from the others.
void group_each(const GroupScoresArgs& args, std::uint64_t units) {
  std::uint64_t found = 0;
  TopKArgs best{nullptr, &units, args.places, true, args.order, &found};
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    best.scores = args.scores + i * args.stride;
    static_cast<void>(top_k(best, nullptr));  // the arguments are checked
    if (i == 0)                               // and head 0 has been read
      for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
        auto good = usable(df, hn::LoadU(df, args.scores + u));
        for (std::uint32_t j = 1; j < args.queries; ++j)
          good = hn::And(good, usable(df, hn::LoadU(df, args.scores + j * args.stride + u)));
        hn::StoreU(hn::IfThenElse(good, hn::Set(df, -kInfinity), hn::Set(df, kInfinity)), df,
                   args.out + u);
      });
    float place = 0.0f;
    for (std::uint64_t r = 0; r < found; ++r) {
      float& score = args.out[args.order[r]];
      if (score == kInfinity) continue;
      score = std::max(score, place);
      place -= 1.0f;
    }
  }
}

void run_group_scores(const GroupScoresArgs& args) {
  begin("group_scores");
  if (args.mode == GroupMode::kEach) {
    group_each(args, *args.unit_count);
    begin("group_scores");  // and not the last top_k
  } else if (args.mode == GroupMode::kMax) {
    group_max(args, *args.unit_count);
  } else if (args.mode == GroupMode::kMeanScore) {
    group_mean(args, *args.unit_count);
  } else if (args.mode == GroupMode::kMaxSoftmax) {
    group_softmax<true>(args, *args.unit_count);
  } else {
    group_softmax<false>(args, *args.unit_count);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_group_scores);

Result<void> group_scores(const GroupScoresArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_group_scores)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
