#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Not a number that a softmax can take: NaN or +infinity.
bool must_fetch(float score) { return !(score < kInfinity); }

void group_max(const GroupScoresArgs& args, std::uint64_t units) {
  for (std::uint64_t u = 0; u < units; ++u) {
    float best = -kInfinity;
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float score = args.scores[i * args.stride + u];
      best = must_fetch(score) ? kInfinity : std::max(best, score);
    }
    args.scores[u] = best * args.scale;
  }
}

void group_mean(const GroupScoresArgs& args, std::uint64_t units) {
  const float weight = args.scale / static_cast<float>(args.queries);
  for (std::uint64_t u = 0; u < units; ++u) {
    float sum = 0.0f;
    bool fetch = false;
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float score = args.scores[i * args.stride + u];
      fetch = fetch || must_fetch(score);
      sum += score;
    }
    args.scores[u] = fetch ? kInfinity : sum * weight;
  }
}

// Largest score of a head over units that are in the softmax, and the sum of exponentials above it.
struct Softmax {
  float max = -kInfinity;
  double sum = 0.0;
};
Softmax measure(const GroupScoresArgs& args, const float* scores, std::uint64_t units) {
  Softmax result;
  for (std::uint64_t u = 0; u < units; ++u)
    if (!must_fetch(args.scores[u])) result.max = std::max(result.max, scores[u]);
  if (result.max == -kInfinity) return result;
  for (std::uint64_t u = 0; u < units; ++u)
    if (!must_fetch(args.scores[u])) result.sum += std::exp(args.scale * (scores[u] - result.max));
  return result;
}

// Row 0, which is head 0's and the result's, holds +infinity for units that must be fetched.
void group_softmax(const GroupScoresArgs& args, std::uint64_t units, bool largest) {
  for (std::uint64_t u = 0; u < units; ++u) {
    bool fetch = false;
    for (std::uint32_t i = 0; i < args.queries; ++i)
      fetch = fetch || must_fetch(args.scores[i * args.stride + u]);
    if (fetch) args.scores[u] = kInfinity;
  }
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    const float* scores = args.scores + i * args.stride;
    const Softmax softmax = measure(args, scores, units);
    const double parts = largest ? 1.0 : args.queries;
    const double weight = softmax.sum > 0.0 ? 1.0 / (softmax.sum * parts) : 0.0;
    for (std::uint64_t u = 0; u < units; ++u) {
      if (must_fetch(args.scores[u])) continue;
      const double share =
          weight > 0.0 ? std::exp(args.scale * (scores[u] - softmax.max)) * weight : 0.0;
      const double before = i == 0 ? 0.0 : static_cast<double>(args.scores[u]);
      args.scores[u] = static_cast<float>(largest ? std::max(before, share) : before + share);
    }
  }
}

// What some head must fetch has no place, and takes none from the others.
void group_each(const GroupScoresArgs& args, std::uint64_t units) {
  std::uint64_t found = 0;
  TopKArgs best{nullptr, &units, args.places, true, args.order, &found};
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    best.scores = args.scores + i * args.stride;
    static_cast<void>(top_k(best, nullptr));               // the arguments are checked
    for (std::uint64_t u = 0; i == 0 && u < units; ++u) {  // head 0 has been read
      bool fetch = false;
      for (std::uint32_t j = 0; j < args.queries; ++j)
        fetch = fetch || must_fetch(args.scores[j * args.stride + u]);
      args.scores[u] = fetch ? kInfinity : -kInfinity;
    }
    float place = 0.0f;
    for (std::uint64_t r = 0; r < found; ++r) {
      float& score = args.scores[args.order[r]];
      if (must_fetch(score)) continue;
      score = std::max(score, place);
      place -= 1.0f;
    }
  }
}

}  // namespace

Result<void> group_scores(const GroupScoresArgs& args, KernelStream) {
  begin("group_scores");
  KVT_TRY_VOID(args.validate());
  if (args.mode == GroupMode::kEach) {
    group_each(args, *args.unit_count);
    begin("group_scores");  // and not the last top_k
  } else if (args.mode == GroupMode::kMax) {
    group_max(args, *args.unit_count);
  } else if (args.mode == GroupMode::kMeanScore) {
    group_mean(args, *args.unit_count);
  } else {
    group_softmax(args, *args.unit_count, args.mode == GroupMode::kMaxSoftmax);
  }
  return {};
}

}  // namespace kvtier::scalar
