#include "kernels/simd/simd.h"

#include <algorithm>
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

float* row_of(const GroupScoresArgs& args, std::uint32_t head) {
  return args.scores + head * args.stride;
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
      const auto score = hn::LoadU(df, row_of(args, i) + u);
      best = hn::IfThenElse(usable(df, score), hn::Max(best, score), hn::Set(df, kInfinity));
    }
    hn::StoreU(hn::Mul(best, hn::Set(df, args.scale)), df, args.scores + u);
  });
}

void group_mean(const GroupScoresArgs& args, std::uint64_t units) {
  const float weight = args.scale / static_cast<float>(args.queries);
  for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
    auto sum = hn::Zero(df);
    auto good = hn::Eq(sum, sum);
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const auto score = hn::LoadU(df, row_of(args, i) + u);
      good = hn::And(good, usable(df, score));
      sum = hn::Add(sum, score);
    }
    hn::StoreU(hn::IfThenElse(good, hn::Mul(sum, hn::Set(df, weight)), hn::Set(df, kInfinity)), df,
               args.scores + u);
  });
}

// Softmax takes each exponential once: relative to the largest score of its tile, in place of the
// score. What the largest of all is, is known then, and a factor per tile makes up for it.
constexpr std::uint64_t kTileUnits = 512;  // at least: scores that stay in the first-level cache
constexpr std::uint64_t kTiles = 256;      // of whole vectors, and one of what is left
constexpr std::uint32_t kHeads = 8;        // heads that share one pass

struct Tile {
  std::uint64_t first, count;
};

// Calls f(tag, number, tile); the counts are multiples of the lanes of the tag.
template <class F>
HWY_INLINE void for_each_tile(std::uint64_t units, const F& f) {
  const hn::ScalableTag<float> wide;
  const hn::CappedTag<float, 1> one;
  const std::uint64_t whole = units / hn::Lanes(wide) * hn::Lanes(wide);
  const std::uint64_t least = std::max(kTileUnits, (whole + kTiles - 1) / kTiles);
  const std::uint64_t size = (least + hn::Lanes(wide) - 1) / hn::Lanes(wide) * hn::Lanes(wide);
  std::size_t number = 0;
  for (std::uint64_t first = 0; first < whole; first += size)
    f(wide, number++, Tile{first, std::min(size, whole - first)});
  if (whole < units) f(one, number, Tile{whole, units - whole});
}

struct Softmax {
  float max = -kInfinity;  // of all tiles so far
  double sum = 0.0;        // of exponentials relative to it
  float tile_max[kTiles + 1];
};

// Whether a softmax can take the scores of all heads. Those of later heads are still scores, those
// of earlier ones +infinity where some score was not usable, and finite elsewhere.
template <class D>
bool all_usable(D df, const GroupScoresArgs& args, const Tile& tile) {
  auto good = hn::Eq(hn::Zero(df), hn::Zero(df));
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* const scores = row_of(args, i) + tile.first;
    for (std::uint64_t u = 0; u < tile.count; u += hn::Lanes(df))
      good = hn::And(good, usable(df, hn::LoadU(df, scores + u)));
  }
  return hn::AllTrue(df, good);
}

// +infinity for all heads from `head` on where that of some head is not usable.
void spread_unusable(const GroupScoresArgs& args, std::uint32_t head, const Tile& tile) {
  for (std::uint64_t u = tile.first; u < tile.first + tile.count; ++u) {
    bool good = true;
    for (std::uint32_t i = 0; i < args.queries; ++i) good = good && row_of(args, i)[u] < kInfinity;
    for (std::uint32_t i = head; i < args.queries && !good; ++i) row_of(args, i)[u] = kInfinity;
  }
}

// The largest usable score.
template <bool kAll, class D>
float largest_of(D df, const float* scores, std::uint64_t count) {
  const auto lowest = hn::Set(df, -kInfinity);
  const auto load = [&](std::uint64_t u) HWY_ATTR {
    const auto score = hn::LoadU(df, scores + u);
    return kAll ? score : hn::IfThenElse(usable(df, score), score, lowest);
  };
  // Four at once: each waits for the one before.
  hn::Vec<D> most[4] = {lowest, lowest, lowest, lowest};
  const std::uint64_t lanes = hn::Lanes(df);
  std::uint64_t u = 0;
  for (; u + 4 * lanes <= count; u += 4 * lanes)
    for (std::uint64_t j = 0; j < 4; ++j) most[j] = hn::Max(most[j], load(u + j * lanes));
  for (; u < count; u += lanes) most[0] = hn::Max(most[0], load(u));
  return hn::GetLane(
      hn::MaxOfLanes(df, hn::Max(hn::Max(most[0], most[1]), hn::Max(most[2], most[3]))));
}

// Puts exponentials in place of the usable scores of a tile; their sum.
template <bool kAll, class D>
float exponentials(D df, float scale, float max, float* scores, std::uint64_t count) {
  auto sum = hn::Zero(df);
  for (std::uint64_t u = 0; u < count; u += hn::Lanes(df)) {
    const auto score = hn::LoadU(df, scores + u);
    auto share = exp_below_one(df, hn::Mul(hn::Sub(score, hn::Set(df, max)), hn::Set(df, scale)));
    if constexpr (!kAll) {
      const auto good = usable(df, score);
      sum = hn::Add(sum, hn::IfThenElseZero(good, share));
      share = hn::IfThenElse(good, share, hn::Set(df, kInfinity));
    } else {
      sum = hn::Add(sum, share);
    }
    hn::StoreU(share, df, scores + u);
  }
  return sum_of(df, sum);
}

template <bool kAll, class D>
void measure(D df, float scale, float* scores, std::size_t number, const Tile& tile,
             Softmax* softmax) {
  const float max = largest_of<kAll>(df, scores + tile.first, tile.count);
  softmax->tile_max[number] = max;
  const double sum =
      static_cast<double>(exponentials<kAll>(df, scale, max, scores + tile.first, tile.count));
  if (max == -kInfinity) return;
  const double beyond = std::exp(-double{scale} * std::abs(double{max} - double{softmax->max}));
  softmax->sum = max > softmax->max ? softmax->sum * beyond + sum : softmax->sum + sum * beyond;
  softmax->max = std::max(softmax->max, max);
}

// What the exponentials of a tile are multiplied with to be shares of a head.
float factor_of(const GroupScoresArgs& args, const Softmax& softmax, std::size_t number,
                double parts) {
  if (softmax.sum == 0.0) return 0.0f;
  const double beyond = double{softmax.tile_max[number]} - double{softmax.max};
  return static_cast<float>(std::exp(double{args.scale} * beyond) / (softmax.sum * parts));
}

// Adds the heads' shares to what row 0 has of the heads before, or takes the largest.
template <bool kLargest, class D>
void join_shares(D df, const GroupScoresArgs& args, std::uint32_t head, std::uint32_t heads,
                 const Softmax* softmax, std::size_t number, const Tile& tile) {
  float factors[kHeads];
  for (std::uint32_t i = 0; i < heads; ++i)
    factors[i] = factor_of(args, softmax[i], number, kLargest ? 1.0 : args.queries);
  for (std::uint64_t u = tile.first; u < tile.first + tile.count; u += hn::Lanes(df)) {
    const auto before =
        hn::LoadU(df, args.scores + u);  // exponentials of head 0, in the first turn
    auto shares = head > 0 ? before : hn::Zero(df);
    for (std::uint32_t i = 0; i < heads; ++i) {
      const auto share = hn::LoadU(df, row_of(args, head + i) + u);
      const auto factor = hn::Set(df, factors[i]);
      shares =
          kLargest ? hn::Max(hn::Mul(factor, share), shares) : hn::MulAdd(factor, share, shares);
    }
    hn::StoreU(hn::IfThenElse(usable(df, before), shares, hn::Set(df, kInfinity)), df,
               args.scores + u);
  }
}

template <bool kLargest>
void group_softmax(const GroupScoresArgs& args, std::uint64_t units) {
  Softmax softmax[kHeads];
  for (std::uint32_t head = 0; head < args.queries; head += kHeads) {
    const std::uint32_t heads = std::min(args.queries - head, kHeads);
    for (Softmax& one : softmax) {
      one.max = -kInfinity;
      one.sum = 0.0;
    }
    for_each_tile(units, [&](auto df, std::size_t number, const Tile& tile) HWY_ATTR {
      const bool all = all_usable(df, args, tile);
      if (!all) spread_unusable(args, head, tile);
      for (std::uint32_t i = 0; i < heads; ++i) {
        const auto run = all ? measure<true, decltype(df)> : measure<false, decltype(df)>;
        run(df, args.scale, row_of(args, head + i), number, tile, &softmax[i]);
      }
    });
    for_each_tile(units, [&](auto df, std::size_t number, const Tile& tile) HWY_ATTR {
      join_shares<kLargest>(df, args, head, heads, softmax, number, tile);
    });
  }
}

// A top_k for each head. What some head must fetch has no place, and takes none from the others.
void group_each(const GroupScoresArgs& args, std::uint64_t units) {
  std::uint64_t found = 0;
  TopKArgs best{nullptr, &units, args.places, true, args.order, &found};
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    best.scores = row_of(args, i);
    static_cast<void>(top_k(best, nullptr));  // the arguments are checked
    if (i == 0)                               // and head 0 has been read
      for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
        auto good = usable(df, hn::LoadU(df, args.scores + u));
        for (std::uint32_t j = 1; j < args.queries; ++j)
          good = hn::And(good, usable(df, hn::LoadU(df, row_of(args, j) + u)));
        hn::StoreU(hn::IfThenElse(good, hn::Set(df, -kInfinity), hn::Set(df, kInfinity)), df,
                   args.scores + u);
      });
    float place = 0.0f;
    for (std::uint64_t r = 0; r < found; ++r) {
      float& score = args.scores[args.order[r]];
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
