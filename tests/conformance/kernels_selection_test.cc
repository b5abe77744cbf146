// Abstracts and what chooses by them: build_abstract, scores, group_scores and top_k of every back
// end against the scalar reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/conformance/kernels_backends.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kLengths[] = {0,  1,  2,  3,  4,  5,  7,  8,   9,   15,  16,
                                    17, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1100};
constexpr AbstractKind kKinds[] = {AbstractKind::kBox, AbstractKind::kMean, AbstractKind::kBall};

class BuildAbstract : public KernelConformance {
 protected:
  // The same bits, but for the radius of a ball: that may be larger by little.
  void compare(BuildAbstractArgs args, std::size_t units) {
    const std::uint32_t elements = abstract_elements(args.kind, args.dim);
    Guarded<std::uint16_t> tested(units * elements), wanted(tested.size());
    args.out = tested.data();
    BuildAbstractArgs reference = args;
    reference.out = wanted.data();
    ASSERT_TRUE(run(&KernelTable::build_abstract, "build_abstract", args, reference));
    ASSERT_TRUE(tested.intact());
    for (std::size_t u = 0; u < units && args.kind == AbstractKind::kBall; ++u) {
      std::uint16_t& radius = tested[u * elements + args.dim];
      const std::uint16_t exact = wanted[u * elements + args.dim];
      ASSERT_TRUE(radius == exact || radius == exact + 1) << radius << " " << exact;
      radius = exact;
    }
    ASSERT_TRUE(tested.same_bits(wanted))
        << dtype_name(args.rows.dtype) << " dim " << args.dim << " unit " << args.unit_tokens << " "
        << abstract_kind_name(args.kind);
  }
};

TEST_P(BuildAbstract, FixedUnits) {
  for (const Dtype dtype : kDtypes)
    for (const std::uint32_t dim : {8u, 24u, 64u, 72u, 128u, 256u})
      for (const std::uint32_t unit_tokens : {1u, 16u, 100u})
        for (const std::uint64_t tokens : {0u, 1u, 15u, 16u, 17u, 130u})
          for (const std::size_t page_tokens : {1u, 32u}) {
            const PagedRows keys(&random, dtype, tokens, page_tokens, dim, 8, awkward_float);
            for (const AbstractKind kind : kKinds) {
              BuildAbstractArgs args;
              args.rows = keys.rows;
              args.token_count = &tokens;
              args.unit_tokens = unit_tokens;
              args.dim = dim;
              args.kind = kind;
              ASSERT_NO_FATAL_FAILURE(compare(args, (tokens + unit_tokens - 1) / unit_tokens));
            }
          }
}

// Sentences and clusters; some units without tokens.
TEST_P(BuildAbstract, VariableUnitsAndMembers) {
  for (const Dtype dtype : kDtypes)
    for (const std::uint32_t dim : {8u, 72u, 128u})
      for (const std::uint64_t units : {0u, 1u, 2u, 9u})
        for (const std::size_t page_tokens : {1u, 32u})
          for (const AbstractKind kind : kKinds) {
            std::vector<std::uint32_t> starts = {static_cast<std::uint32_t>(random.below(4))};
            for (std::uint64_t u = 0; u < units; ++u)
              starts.push_back(starts.back() +
                               static_cast<std::uint32_t>(random.one_in(4) ? 0 : random.below(80)));
            const std::uint32_t tokens = starts.back() + 1;
            const PagedRows keys(&random, dtype, tokens, page_tokens, dim, 8, awkward_float);
            std::vector<std::uint32_t> members(starts.back());
            for (auto& member : members) member = static_cast<std::uint32_t>(random.below(tokens));
            BuildAbstractArgs args;
            args.rows = keys.rows;
            args.dim = dim;
            args.kind = kind;
            args.starts = starts.data();
            args.unit_count = &units;
            ASSERT_NO_FATAL_FAILURE(compare(args, units));
            args.members = members.data();
            ASSERT_NO_FATAL_FAILURE(compare(args, units));
            const std::uint64_t places = members.size();
            args.starts = nullptr;
            args.token_count = &places;
            args.unit_tokens = 13;
            ASSERT_NO_FATAL_FAILURE(compare(args, (places + 12) / 13));
          }
}

class Scores : public KernelConformance {
 protected:
  using Op = Result<void> (*KernelTable::*)(const ScoreArgs& args, KernelStream stream);

  // Tolerance: rounding of a sum of `dim` products.
  void compare(AbstractKind kind, std::uint32_t dim, std::uint32_t queries, std::uint64_t units,
               bool listed) {
    const Op op = kind == AbstractKind::kBox    ? &KernelTable::score_box
                  : kind == AbstractKind::kMean ? &KernelTable::score_mean
                                                : &KernelTable::score_ball;
    const std::uint64_t stored = listed ? 150 : units;
    std::vector<std::uint16_t> abstracts(stored * abstract_elements(kind, dim));
    for (auto& half : abstracts) half = f32_to_f16(random_float(&random));
    if (kind != AbstractKind::kMean && dim == 64 && !abstracts.empty())
      abstracts[random.below(abstracts.size())] = 0x7C00;
    std::vector<std::uint32_t> list(units);
    for (auto& unit : list) unit = static_cast<std::uint32_t>(random.below(150));
    const std::size_t q_stride = dim + 3;
    const std::size_t out_stride = units + 5;
    const std::vector<float> q = random_floats(&random, queries * q_stride);
    Guarded<float> tested(queries * out_stride);
    Guarded<float> wanted(queries * out_stride);
    ScoreArgs args{abstracts.data(), &units,     q.data(),
                   q_stride,         queries,    dim,
                   tested.data(),    out_stride, listed ? list.data() : nullptr};
    ScoreArgs reference = args;
    reference.out = wanted.data();
    const std::string name = std::string("score_") + abstract_kind_name(kind);
    ASSERT_TRUE(run(op, name.c_str(), args, reference));
    ASSERT_TRUE(tested.intact());
    for (std::uint32_t i = 0; i < queries; ++i) {
      ASSERT_TRUE(tested.untouched((i * out_stride + units) * sizeof(float), 5 * sizeof(float)));
      for (std::uint64_t u = 0; u < units; ++u) {
        const float a = tested[i * out_stride + u];
        const float b = wanted[i * out_stride + u];
        const bool fetch_a = !(a < kInfinity);
        const bool fetch_b = !(b < kInfinity);
        ASSERT_EQ(fetch_a, fetch_b) << a << " " << b;
        if (!fetch_a && std::isfinite(b)) {
          ASSERT_NEAR(a, b, 2e-6f * static_cast<float>(dim)) << "unit " << u << " dim " << dim;
        }
      }
    }
  }
};

TEST_P(Scores, EveryAbstract) {
  for (const AbstractKind kind : kKinds)
    for (const std::uint32_t dim : {8u, 24u, 64u, 72u, 128u, 256u})
      for (const std::uint32_t queries : {0u, 1u, 2u, 3u, 4u, 5u, 12u})
        for (const std::uint64_t units : {0u, 1u, 2u, 3u, 63u, 64u, 65u, 129u})
          for (const bool listed : {false, true})
            ASSERT_NO_FATAL_FAILURE(compare(kind, dim, queries, units, listed));
}

TEST_P(Scores, Representatives) {
  for (const std::uint32_t count : {1u, 3u, 4u, 16u})
    for (const std::uint32_t dim : {8u, 24u, 64u, 72u, 256u})
      for (const std::uint32_t queries : {0u, 1u, 2u, 3u, 4u, 5u, 12u})
        for (const std::uint64_t units : {0u, 1u, 15u, 16u, 17u, 50u})
          for (const bool largest : {false, true}) {
            std::vector<std::uint16_t> keys(units * count * dim);
            for (auto& half : keys) half = f32_to_f16(random_float(&random));
            const std::size_t q_stride = dim + 3, out_stride = units + 5;
            const std::vector<float> q = random_floats(&random, queries * q_stride);
            Guarded<float> tested(queries * out_stride), wanted(queries * out_stride);
            ScoreRepresentativesArgs args;
            args.units = {keys.data(), &units,        q.data(),   q_stride, queries,
                          dim,         tested.data(), out_stride, nullptr};
            args.count = count;
            args.largest = largest;
            ScoreRepresentativesArgs reference = args;
            reference.units.out = wanted.data();
            ASSERT_TRUE(
                run(&KernelTable::score_representatives, "score_representatives", args, reference));
            ASSERT_TRUE(tested.intact());
            for (std::uint32_t i = 0; i < queries; ++i) {
              ASSERT_TRUE(tested.untouched((i * out_stride + units) * sizeof(float), 20));
              for (std::uint64_t u = 0; u < units; ++u)
                ASSERT_NEAR(tested[i * out_stride + u], wanted[i * out_stride + u],
                            2e-6f * static_cast<float>(dim))
                    << "unit " << u << ", " << count << " keys of " << dim;
            }
          }
  const std::uint64_t one = 1;
  const std::uint32_t list[] = {0};
  std::vector<std::uint16_t> keys(17 * 8);
  std::vector<float> q(8), out(1);
  ScoreRepresentativesArgs args;
  args.units = {keys.data(), &one, q.data(), 8, 1, 8, out.data(), 1, nullptr};
  for (const std::uint32_t count : {0u, 17u}) {
    args.count = count;
    EXPECT_FALSE(GetParam().table->score_representatives(args, nullptr));
  }
  args.count = 1;
  args.units.unit_list = list;
  EXPECT_FALSE(GetParam().table->score_representatives(args, nullptr));
}

class GroupScores : public KernelConformance {};

TEST_P(GroupScores, EveryModeAndLength) {
  for (const GroupMode mode : {GroupMode::kMax, GroupMode::kMeanSoftmax, GroupMode::kMeanScore,
                               GroupMode::kMaxSoftmax, GroupMode::kEach})
    for (const std::uint32_t queries : {1u, 3u, 8u, 9u, 12u})
      for (const std::uint64_t units : kLengths)
        for (const int special : {0, 1, 2, 3}) {
          const std::size_t stride = units + 1;
          std::vector<float> scores = random_floats(&random, queries * stride);
          for (float& score : scores) score *= 30.0f;
          for (std::size_t i = units; i < scores.size(); i += stride) scores[i] = 5.0f;
          for (int i = 0; special == 1 && i < 5 && units > 0; ++i)
            scores[random.below(queries) * stride + random.below(units)] =
                i % 2 == 0 ? kNan : (i == 1 ? kInfinity : -kInfinity);
          if (special == 2) scores.assign(scores.size(), -kInfinity);
          for (std::size_t i = 0; special == 3 && i < scores.size(); ++i)
            scores[i] += static_cast<float>(i % stride) * 0.2f;  // the largest come last
          Guarded<float> tested(scores.size());
          Guarded<float> wanted(scores.size());
          tested.fill(scores);
          wanted.fill(scores);
          GroupScoresArgs args{tested.data(), stride, &units, queries, mode, 0.125f};
          args.places = special == 3 ? 5 : units;
          Guarded<std::uint32_t> order(std::min(args.places, units)), other(order.size());
          args.order = order.data();
          GroupScoresArgs reference = args;
          reference.scores = wanted.data();
          reference.order = other.data();
          ASSERT_TRUE(run(&KernelTable::group_scores, "group_scores", args, reference));
          ASSERT_TRUE(tested.intact() && wanted.intact() && order.intact() && other.intact());
          for (std::size_t i = units; i < scores.size(); i += stride)  // between the rows
            ASSERT_EQ(tested[i], scores[i]);
          for (std::uint64_t u = 0; u < units; ++u) {
            if (mode == GroupMode::kEach) {
              ASSERT_EQ(tested[u], wanted[u]) << u << " of " << units;
            } else if (std::isfinite(wanted[u])) {
              ASSERT_NEAR(tested[u], wanted[u], 1e-6f + 1e-5f * std::abs(wanted[u]))
                  << u << " of " << units;
            } else {
              ASSERT_EQ(tested[u], wanted[u]);
            }
          }
        }
}

// More units than fit into tiles of the usual size, with the largest scores in a late one, and
// stretches in which all are far below.
TEST_P(GroupScores, SoftmaxOfManyUnits) {
  for (const std::uint64_t units : {1500u, 140'003u})
    for (const GroupMode mode : {GroupMode::kMeanSoftmax, GroupMode::kMaxSoftmax}) {
      std::vector<float> scores = random_floats(&random, 2 * units);
      for (std::size_t i = 0; i < scores.size(); ++i)
        scores[i] += i / 700 % 3 == 1 ? -2000.0f : (i % units > units / 2 ? 300.0f : 0.0f);
      scores[units / 3] = kNan;
      scores[units + 1] = kInfinity;
      std::vector<float> tested = scores, wanted = scores;
      const GroupScoresArgs args{tested.data(), units, &units, 2, mode, 0.25f};
      GroupScoresArgs reference = args;
      reference.scores = wanted.data();
      ASSERT_TRUE(run(&KernelTable::group_scores, "group_scores", args, reference));
      for (std::uint64_t u = 0; u < units; ++u)
        if (std::isfinite(wanted[u])) {
          ASSERT_NEAR(tested[u], wanted[u], 1e-9f + 1e-5f * wanted[u]) << u << " of " << units;
        } else {
          ASSERT_EQ(tested[u], wanted[u]) << u << " of " << units;
        }
    }
}

class TopK : public KernelConformance {
 protected:
  void compare(const std::vector<float>& scores, std::uint64_t k, bool ordered) {
    const std::uint64_t count = scores.size();
    Guarded<std::uint32_t> tested(std::min<std::size_t>(k, count));
    Guarded<std::uint32_t> wanted(tested.size());
    std::uint64_t found = 77;
    std::uint64_t found_wanted = 78;
    TopKArgs args{scores.data(), &count, k, ordered, tested.data(), &found};
    TopKArgs reference{scores.data(), &count, k, ordered, wanted.data(), &found_wanted};
    ASSERT_TRUE(run(&KernelTable::top_k, "top_k", args, reference));
    ASSERT_EQ(found, found_wanted);
    ASSERT_TRUE(tested.intact() && tested.same_bits(wanted)) << "k " << k << " of " << count;
  }
};

TEST_P(TopK, FewScores) {
  for (const std::uint64_t count : kLengths)
    for (const std::uint64_t k : {0u, 1u, 2u, 7u, 64u, 128u, 129u, 500u, 2000u})
      for (const int pattern : {0, 1, 2, 3}) {
        std::vector<float> scores = random_floats(&random, count);
        for (float& score : scores) {
          if (pattern == 1)
            score = static_cast<float>(static_cast<int>(score * 3.0f));  // many ties, both zeros
          if (pattern == 2) score = 4.25f;
          if (pattern == 3 && random.one_in(3))
            score = random.one_in(2) ? (random.one_in(2) ? kNan : -kNan)
                                     : (random.one_in(2) ? kInfinity : -kInfinity);
        }
        for (const bool ordered : {false, true})
          ASSERT_NO_FATAL_FAILURE(compare(scores, k, ordered)) << "pattern " << pattern;
      }
}

// Orders and values that a sample is deceived by, or that fill the room for candidates again and
// again.
TEST_P(TopK, ManyScores) {
  const auto rank = [](std::size_t i) { return static_cast<float>(i); };
  for (const std::size_t count : {8191u, 8192u, 8193u, 20000u, 70001u})
    for (const char* pattern : {"random", "ascending", "descending", "ties", "equal", "specials",
                                "spikes", "holes", "one more bit", "one place", "tiny"}) {
      const std::string name = pattern;
      std::vector<float> scores = random_floats(&random, count);
      for (std::size_t i = 0; i < count; ++i) {
        if (name == "ascending") scores[i] = rank(i) - 30000.0f;
        if (name == "descending") scores[i] = -rank(i);
        if (name == "ties") scores[i] = static_cast<float>(static_cast<int>(scores[i] * 2.0f));
        if (name == "equal") scores[i] = -0.0f;
        if (name == "specials" && random.one_in(3))
          scores[i] = random.one_in(2) ? (random.one_in(2) ? kNan : -kNan) : -kInfinity;
        const bool sampled = i * 255 % (count - 16) < 255 * 16;
        if (name == "spikes" && sampled) scores[i] += 100.0f;
        if (name == "holes") scores[i] = sampled ? -1e9f : 1e9f + 64.0f * rank(i);
        if (name == "one more bit")
          scores[i] = sampled ? -1e9f : (i > 16000 && i % 100 == 0 ? 1e9f + 64.0f : 1e9f);
        if (name == "one place" && i / 3000 == 2) scores[i] += 100.0f;
        if (name == "tiny") scores[i] *= 1e-41f;
      }
      for (const std::uint64_t k : {1u, 100u, 1000u, 4096u, 4097u, 30000u})
        ASSERT_NO_FATAL_FAILURE(compare(scores, k, k == 100)) << pattern;
    }
}

INSTANTIATE_TEST_SUITE_P(Kernels, BuildAbstract, ::testing::ValuesIn(all_backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, Scores, ::testing::ValuesIn(all_backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, TopK, ::testing::ValuesIn(all_backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, GroupScores, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
