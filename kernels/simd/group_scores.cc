#include "kernels/simd/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/group_scores.cc"
#include "hwy/foreach_target.h"

#include "hwy/contrib/math/math-inl.h"
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

float largest(const GroupScoresArgs& args, const float* scores, std::uint64_t units) {
  float best = -kInfinity;
  const hn::ScalableTag<float> wide;
  auto bests = hn::Set(wide, -kInfinity);
  std::uint64_t u = 0;
  for (; u + hn::Lanes(wide) <= units; u += hn::Lanes(wide)) {
    const auto use = usable(wide, hn::LoadU(wide, args.out + u));
    const auto score = hn::LoadU(wide, scores + u);
    bests = hn::IfThenElse(use, hn::Max(bests, score), bests);
  }
  best = hn::GetLane(hn::MaxOfLanes(wide, bests));
  for (; u < units; ++u)
    if (args.out[u] < kInfinity) best = std::max(best, scores[u]);
  return best;
}

// exp(scale * (score - max)) where usable, else 0.
template <class D>
HWY_INLINE hn::Vec<D> exponential(D df, const GroupScoresArgs& args, const float* scores,
                                  std::uint64_t u, float max) {
  const auto use = usable(df, hn::LoadU(df, args.out + u));
  const auto distance = hn::Sub(hn::LoadU(df, scores + u), hn::Set(df, max));
  return hn::IfThenElseZero(use, hn::Exp(df, hn::Mul(distance, hn::Set(df, args.scale))));
}

double sum_of_exponentials(const GroupScoresArgs& args, const float* scores, std::uint64_t units,
                           float max) {
  const hn::ScalableTag<float> wide;
  const hn::CappedTag<float, 1> one;
  double sum = 0.0;
  std::uint64_t u = 0;
  while (u + hn::Lanes(wide) <= units) {
    auto part = hn::Zero(wide);
    for (int i = 0; i < 64 && u + hn::Lanes(wide) <= units; ++i, u += hn::Lanes(wide))
      part = hn::Add(part, exponential(wide, args, scores, u, max));
    sum += static_cast<double>(sum_of(wide, part));
  }
  for (; u < units; ++u)
    sum += static_cast<double>(hn::GetLane(exponential(one, args, scores, u, max)));
  return sum;
}

// As the reference: `out` holds +infinity for units that must be fetched, and may be head 0's
// scores.
void group_mean_softmax(const GroupScoresArgs& args, std::uint64_t units) {
  for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
    auto kept = hn::LoadU(df, args.scores + u);
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const auto score = hn::LoadU(df, args.scores + i * args.stride + u);
      kept = hn::IfThenElse(usable(df, score), kept, hn::Set(df, kInfinity));
    }
    hn::StoreU(kept, df, args.out + u);
  });
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* scores = i == 0 ? args.out : args.scores + i * args.stride;
    const float max = largest(args, scores, units);
    const double sum = max > -kInfinity ? sum_of_exponentials(args, scores, units, max) : 0.0;
    const float weight = sum > 0.0 ? static_cast<float>(1.0 / (sum * args.queries)) : 0.0f;
    for_each_unit(units, [&](auto df, std::uint64_t u) HWY_ATTR {
      const auto before = hn::LoadU(df, args.out + u);
      auto share = hn::Zero(df);
      if (weight > 0.0f)
        share = hn::Mul(exponential(df, args, scores, u, max), hn::Set(df, weight));
      const auto after = i == 0 ? share : hn::Add(before, share);
      hn::StoreU(hn::IfThenElse(usable(df, before), after, before), df, args.out + u);
    });
  }
}

void run_group_scores(const GroupScoresArgs& args) {
  begin("group_scores");
  if (args.mode == GroupMode::kMax) {
    group_max(args, *args.unit_count);
  } else {
    group_mean_softmax(args, *args.unit_count);
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
