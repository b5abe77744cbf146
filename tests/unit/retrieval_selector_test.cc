// The selector against brute force: exact box scores in double precision, a sort, a greedy budget.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <set>

#include "client/retrieval/selector.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

// A sequence of segments for one head, with abstracts.
struct World {
  World(Random* random, std::vector<std::uint32_t> visible, std::uint32_t unit, std::uint32_t dim_,
        std::uint32_t group, AbstractKind kind)
      : unit_tokens(unit), dim(dim_) {
    std::uint64_t first = 0;
    for (const std::uint32_t tokens : visible) {
      // The segment goes on beyond what is visible.
      const std::uint32_t units = (tokens + unit - 1) / unit + 2;
      std::vector<std::uint16_t> halves(static_cast<std::size_t>(units) *
                                        abstract_elements(kind, dim));
      for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = f32_to_f16(random_float(random));
      if (kind == AbstractKind::kBox)
        for (std::size_t u = 0; u < units; ++u)
          for (std::size_t d = 0; d < dim; ++d)
            if (f16_to_f32(halves[u * 2 * dim + d]) > f16_to_f32(halves[u * 2 * dim + dim + d]))
              std::swap(halves[u * 2 * dim + d], halves[u * 2 * dim + dim + d]);
      abstracts.push_back(std::move(halves));
      segments.push_back(
          {first, tokens, units, reinterpret_cast<const std::byte*>(abstracts.back().data())});
      first += tokens;
    }
    queries = random_floats(random, static_cast<std::size_t>(group) * dim);
    query_count = group;
    end = first;
  }
  SelectInput input(std::span<const TokenRange> kept, std::uint64_t budget) const {
    return {segments, kept, queries.data(), dim, query_count, dim, 0.2f, nullptr, budget};
  }

  std::uint32_t unit_tokens;
  std::uint32_t dim;
  std::uint32_t query_count = 0;
  std::uint64_t end = 0;
  std::vector<std::vector<std::uint16_t>> abstracts;
  std::vector<SegmentExtent> segments;
  std::vector<float> queries;
};

struct Unit {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  double score = 0.0;
  std::vector<double> head_scores;
};

// Every unit with its score for the group, by definition, best first.
std::vector<Unit> brute_scores(const World& world, const Preset& preset) {
  std::vector<Unit> units;
  const double scale = static_cast<double>(0.2f);
  for (const SegmentExtent& segment : world.segments)
    for (std::uint32_t at = 0, u = 0; at < segment.visible_tokens; at += world.unit_tokens, ++u) {
      Unit unit;
      unit.first = segment.first_token + at;
      unit.last = unit.first + std::min(world.unit_tokens, segment.visible_tokens - at);
      for (std::uint32_t i = 0; i < world.query_count; ++i) {
        double score = 0.0;
        if (segment.data == nullptr || u >= segment.units) {
          score = HUGE_VAL;
        } else {
          for (std::uint32_t d = 0; d < world.dim; ++d) {
            const double q = static_cast<double>(world.queries[i * world.dim + d]);
            if (preset.abstract.abstract == AbstractKind::kBox) {
              const std::uint16_t* box = reinterpret_cast<const std::uint16_t*>(segment.data) +
                                         static_cast<std::size_t>(u) * 2 * world.dim;
              score += std::max(q * static_cast<double>(f16_to_f32(box[d])),
                                q * static_cast<double>(f16_to_f32(box[world.dim + d])));
            } else {
              const auto* means = reinterpret_cast<const std::uint16_t*>(segment.data);
              score += q * static_cast<double>(f16_to_f32(means[std::size_t{u} * world.dim + d]));
            }
          }
        }
        unit.head_scores.push_back(score);
      }
      units.push_back(unit);
    }
  for (std::uint32_t i = 0; i < world.query_count; ++i) {
    double sum = 0.0;
    for (const Unit& unit : units)
      if (unit.head_scores[i] < HUGE_VAL) sum += std::exp(scale * unit.head_scores[i]);
    for (Unit& unit : units)
      unit.score +=
          unit.head_scores[i] < HUGE_VAL ? std::exp(scale * unit.head_scores[i]) / sum : HUGE_VAL;
  }
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.score > b.score; });
  return units;
}

std::vector<std::uint32_t> brute_select(const World& world, const std::vector<Unit>& units,
                                        std::span<const TokenRange> kept, std::uint64_t budget) {
  std::set<std::uint64_t> chosen;
  for (const TokenRange& range : kept)
    for (std::uint64_t t = range.first; t < std::min(range.last, world.end); ++t) chosen.insert(t);
  const std::set<std::uint64_t> always = chosen;
  for (const Unit& unit : units) {
    std::uint64_t cost = 0;
    for (std::uint64_t t = unit.first; t < unit.last; ++t) cost += always.count(t) == 0 ? 1 : 0;
    if (cost == 0) continue;
    if (cost > budget) break;
    budget -= cost;
    for (std::uint64_t t = unit.first; t < unit.last; ++t) chosen.insert(t);
  }
  return {chosen.begin(), chosen.end()};
}

std::vector<std::uint32_t> tokens_of(const Selection& selection) {
  return {selection.tokens.begin(), selection.tokens.end()};
}
std::vector<std::uint32_t> range_of(std::uint32_t first, std::uint32_t last) {
  std::vector<std::uint32_t> tokens(last - first);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class SelectorTest : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  Random random{77};
};

TEST_P(SelectorTest, EqualsBruteForce) {
  const std::vector<std::vector<std::uint32_t>> sequences = {{1},
                                                             {16},
                                                             {33},
                                                             {2048, 2048, 500},
                                                             {64, 17, 1, 2048, 80},
                                                             std::vector<std::uint32_t>(40, 70)};
  for (const char* name : {"quest", "mean"}) {
    for (const auto& visible : sequences)
      for (const std::uint32_t group : {1u, 3u, 12u})
        for (const std::uint32_t unit : {1u, 16u}) {
          Preset preset = **find_preset(name);
          preset.abstract.unit_tokens = static_cast<std::uint16_t>(unit);
          Selector selector(GetParam(), &preset);
          World world(&random, visible, unit, 8, group, preset.abstract.abstract);
          const std::vector<Unit> units = brute_scores(world, preset);
          const std::vector<std::vector<TokenRange>> kept = {
              {},
              {{0, 16}},
              {{0, 16},
               {std::max<std::uint64_t>(16, world.end - world.end / 3),
                std::max<std::uint64_t>(16, world.end)}},
              {{3, 9}, {9, 20}, {40, 41}}};
          for (const auto& ranges : kept)
            for (const std::uint64_t budget : {0u, 1u, 15u, 16u, 100u, 512u, 100000u}) {
              const auto selection = selector.select(world.input(ranges, budget));
              ASSERT_TRUE(selection);
              ASSERT_EQ(tokens_of(*selection), brute_select(world, units, ranges, budget))
                  << name << " group " << group << " unit " << unit << " budget " << budget
                  << " of " << world.end;
            }
        }
  }
}

// Of the units that are not kept, the best of each head in turn, ties to the older.
std::vector<Unit> each_in_turn(const World& world, const Preset& preset,
                               std::span<const TokenRange> kept) {
  std::vector<Unit> units = brute_scores(world, preset);
  std::sort(units.begin(), units.end(),
            [](const Unit& a, const Unit& b) { return a.first < b.first; });
  std::erase_if(units, [&](const Unit& unit) {
    return kept_in(kept, 0, unit.first, unit.last) == unit.last - unit.first;
  });
  for (Unit& unit : units) unit.score = unit.head_scores[0] < HUGE_VAL ? -HUGE_VAL : HUGE_VAL;
  for (std::uint32_t i = 0; i < world.query_count; ++i) {
    std::stable_sort(units.begin(), units.end(), [i](const Unit& a, const Unit& b) {
      return a.head_scores[i] != b.head_scores[i] ? a.head_scores[i] > b.head_scores[i]
                                                  : a.first < b.first;
    });
    double place = 0.0;
    for (Unit& unit : units)
      if (unit.score < HUGE_VAL) unit.score = std::max(unit.score, place--);
  }
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) {
    return a.score != b.score ? a.score > b.score : a.first < b.first;
  });
  return units;
}

TEST_P(SelectorTest, EachHeadOfTheGroupHasItsTurn) {
  for (const char* name : {"quest", "mean"})
    for (const std::uint32_t group : {1u, 3u, 12u})
      for (const bool missing : {false, true}) {
        Preset preset = **find_preset(name);
        preset.group = GroupMode::kEach;
        Selector selector(GetParam(), &preset);
        World world(&random, {64, 17, 32, 2048, 80}, 16, 8, group, preset.abstract.abstract);
        if (missing) world.segments[2].data = nullptr;
        const std::vector<std::vector<TokenRange>> kept = {
            {}, {{0, 16}, {world.end - 130, world.end}}, {{3, 9}, {9, 20}, {40, 1041}}};
        for (const auto& ranges : kept)
          for (const std::uint64_t budget : {1u, 16u, 100u, 512u, 100000u}) {
            const auto selection = selector.select(world.input(ranges, budget));
            ASSERT_TRUE(selection);
            ASSERT_EQ(tokens_of(*selection),
                      brute_select(world, each_in_turn(world, preset, ranges), ranges, budget))
                << name << " group " << group << " budget " << budget << " kept " << ranges.size();
          }
      }
}

// One head is sure of four pages, the other looks at sixteen alike: by the mean of their softmaxes
// it gets none while the first has not got all.
TEST_P(SelectorTest, AHeadThatLooksEverywhereIsNotStarved) {
  Preset preset = **find_preset("mean");
  World world(&random, {320}, 16, 8, 2, AbstractKind::kMean);
  std::fill(world.abstracts[0].begin(), world.abstracts[0].end(), std::uint16_t{0});
  for (std::size_t u = 0; u < 20; ++u) {
    const float better = 1.0f + 0.001f * static_cast<float>(u);
    world.abstracts[0][u * 8 + (u < 4 ? 0 : 1)] = f32_to_f16(better);
  }
  world.queries.assign(16, 0.0f);
  world.queries[0] = world.queries[8 + 1] = 50.0f;
  std::vector<std::uint32_t> wanted = range_of(0, 64);
  Selector mean(GetParam(), &preset);
  EXPECT_EQ(tokens_of(*mean.select(world.input({}, 64))), wanted);
  preset.group = GroupMode::kEach;
  Selector each(GetParam(), &preset);
  wanted = range_of(32, 64);
  for (std::uint32_t token = 288; token < 320; ++token) wanted.push_back(token);
  EXPECT_EQ(tokens_of(*each.select(world.input({}, 64))), wanted) << "two pages of each";
}

// What a larger budget would have taken beside; the choice is what it would be without.
TEST_P(SelectorTest, RunnersUpAreTheNextBest) {
  for (const std::uint32_t unit : {1u, 16u})
    for (const std::uint64_t budget : {0u, 64u, 512u, 2700u, 100000u}) {
      Preset preset = **find_preset("quest");
      preset.abstract.unit_tokens = static_cast<std::uint16_t>(unit);
      Selector selector(GetParam(), &preset), other(GetParam(), &preset);
      World world(&random, {2048, 704}, unit, 8, 3, AbstractKind::kBox);
      const TokenRange kept[] = {{0, 32}, {world.end - 64, world.end}};
      SelectInput input = world.input(kept, budget);
      EXPECT_TRUE(other.select(input)->next.empty()) << "nobody asked";
      const std::vector<std::uint32_t> without = tokens_of(*other.select(input));
      input.budget_rows += 128;
      const std::vector<std::uint32_t> larger = tokens_of(*other.select(input));
      input.budget_rows = budget;
      input.next_rows = 128;
      const auto selection = selector.select(input);
      ASSERT_TRUE(selection);
      EXPECT_EQ(tokens_of(*selection), without);
      std::vector<std::uint32_t> wanted;
      std::set_difference(larger.begin(), larger.end(), without.begin(), without.end(),
                          std::back_inserter(wanted));
      if (budget == 0) wanted.clear();  // nothing is scored
      EXPECT_EQ(std::vector<std::uint32_t>(selection->next.begin(), selection->next.end()), wanted)
          << "unit " << unit << " budget " << budget;
    }
}

// Of every query: the bound of each unit for each of its rows that was left out.
TEST_P(SelectorTest, WhatWasNotChosenIsBounded) {
  Preset quest = **find_preset("quest");
  for (const GroupMode mode : {quest.group, GroupMode::kEach}) {
    quest.group = mode;
    Selector selector(GetParam(), &quest), plain(GetParam(), &quest);
    for (const std::uint32_t group : {1u, 3u})
      for (const std::uint64_t budget : {1u, 100u, 512u, 100000u}) {
        World world(&random, {2048, 700, 70}, 16, 8, group, AbstractKind::kBox);
        // Many, so that what is kept would take places from the others.
        const TokenRange kept[] = {{0, 1000}, {world.end - 70, world.end}};
        SelectInput input = world.input(kept, budget);
        EXPECT_TRUE(plain.select(input)->missed.empty()) << "nobody asked";
        input.bound = true;
        const auto selection = selector.select(input);
        ASSERT_TRUE(selection);
        EXPECT_EQ(tokens_of(*selection), tokens_of(*plain.select(world.input(kept, budget))));
        ASSERT_EQ(selection->missed.size(), group);
        const std::set<std::uint64_t> chosen(selection->tokens.begin(), selection->tokens.end());
        for (std::uint32_t i = 0; i < group; ++i) {
          double sum = 0.0;
          for (const Unit& unit : brute_scores(world, quest))
            for (std::uint64_t t = unit.first; t < unit.last; ++t)
              sum += chosen.count(t) != 0 ? 0.0 : std::exp(0.2 * unit.head_scores[i]);
          if (sum > 0.0) {
            EXPECT_NEAR(selection->missed[i], std::log(sum), 1e-4) << "budget " << budget;
          } else {
            EXPECT_EQ(selection->missed[i], kNeverScore);
          }
        }
      }
  }
}

TEST_P(SelectorTest, WhatIsNotKnownHasNoBound) {
  World world(&random, {320, 64}, 16, 8, 3, AbstractKind::kBox);
  Selector quest(GetParam(), *find_preset("quest")), mean(GetParam(), *find_preset("mean"));
  SelectInput input = world.input({}, 64);
  input.bound = true;
  EXPECT_FALSE(quest.select(input)->missed.empty());
  EXPECT_TRUE(mean.select(input)->missed.empty()) << "a mean bounds nothing";
  world.segments[1].data = nullptr;
  input = world.input({}, 64);
  input.bound = true;
  EXPECT_FALSE(quest.select(input)->missed.empty()) << "what has no box was all chosen";
  input.budget_rows = 48;
  EXPECT_TRUE(quest.select(input)->missed.empty());
}

TEST_P(SelectorTest, EmptySequence) {
  for (const Preset& preset : all_presets()) {
    Selector selector(GetParam(), &preset);
    World world(&random, {}, 16, 32, 3, AbstractKind::kBox);
    const TokenRange kept[] = {{0, 16}};
    const auto selection = selector.select(world.input(kept, 100));
    ASSERT_TRUE(selection) << preset.name;
    EXPECT_TRUE(selection->tokens.empty());
    EXPECT_EQ(selection->kept_rows, 0u);
  }
}

TEST_P(SelectorTest, BudgetBeyondTheSequenceTakesAll) {
  World world(&random, {100, 50}, 16, 32, 3, AbstractKind::kBox);
  Selector selector(GetParam(), *find_preset("quest"));
  const TokenRange kept[] = {{0, 16}, {140, 400}};
  const auto selection = selector.select(world.input(kept, 1 << 20));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), range_of(0, 150));
  EXPECT_EQ(selection->kept_rows, 26u);
}

TEST_P(SelectorTest, EqualKeysGoToTheOlder) {
  World world(&random, {320}, 16, 32, 3, AbstractKind::kBox);
  for (std::size_t u = 1; u < 20; ++u)
    std::copy_n(world.abstracts[0].begin(), 64,
                world.abstracts[0].begin() + static_cast<std::ptrdiff_t>(u * 64));
  Selector selector(GetParam(), *find_preset("quest"));
  const auto selection = selector.select(world.input({}, 40));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), range_of(0, 32));
}

TEST_P(SelectorTest, MissingAbstractsAreFetchedFirst) {
  World world(&random, {320, 64, 320}, 16, 32, 3, AbstractKind::kBox);
  Selector selector(GetParam(), *find_preset("quest"));
  world.segments[1].data = nullptr;
  auto selection = selector.select(world.input({}, 96));
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->units_missing, 4u);
  EXPECT_EQ(selection->units_scored, 40u);
  EXPECT_EQ(selection->abstract_bytes, 40u * 2 * 32 * 2);
  EXPECT_EQ(tokens_of(*selection),
            brute_select(world, brute_scores(world, **find_preset("quest")), {}, 96));
  const std::vector<std::uint32_t> wanted = range_of(320, 384);
  EXPECT_TRUE(std::includes(selection->tokens.begin(), selection->tokens.end(), wanted.begin(),
                            wanted.end()));
  // A sidecar that does not reach to the end of what is visible: the rest is missing too.
  world.segments[2].units = 19;
  selection = selector.select(world.input({}, 80));
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->units_missing, 5u);
  std::vector<std::uint32_t> both = range_of(320, 384);
  const std::vector<std::uint32_t> last = range_of(384 + 304, 704);
  both.insert(both.end(), last.begin(), last.end());
  EXPECT_EQ(tokens_of(*selection), both);
}

TEST_P(SelectorTest, BoxesThatReachToInfinityAreFetched) {
  World world(&random, {320}, 16, 32, 3, AbstractKind::kBox);
  world.abstracts[0][7 * 64 + 32 + 5] = 0x7C00;  // max of dimension 5 in unit 7
  for (std::size_t i = 0; i < 3; ++i)
    world.queries[i * 32 + 5] = i == 0 ? 0.0f : -1.0f;  // 0 times infinity is NaN
  Selector selector(GetParam(), *find_preset("quest"));
  const auto selection = selector.select(world.input({}, 16));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), range_of(112, 128));
}

TEST_P(SelectorTest, PresetsWithoutScores) {
  World world(&random, {100, 50}, 16, 32, 1, AbstractKind::kBox);
  for (SegmentExtent& segment : world.segments) segment.data = nullptr;
  const TokenRange kept[] = {{0, 4}, {145, 1000}};
  Selector window(GetParam(), *find_preset("window"));
  auto selection = window.select(world.input(kept, 64));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection),
            (std::vector<std::uint32_t>{0, 1, 2, 3, 145, 146, 147, 148, 149}));
  EXPECT_EQ(selection->units_missing, 0u);
  Selector full(GetParam(), *find_preset("full"));
  selection = full.select(world.input(kept, 64));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), range_of(0, 150));
}

TEST_P(SelectorTest, NothingIsAllocatedAfterTheFirstStep) {
  World world(&random, {2048, 2048, 100}, 16, 32, 3, AbstractKind::kBox);
  Selector selector(GetParam(), *find_preset("quest"));
  ASSERT_TRUE(selector.select(world.input({}, 512)));
  const std::uint64_t bytes = selector.memory_bytes();
  EXPECT_GT(bytes, 0u);
  EXPECT_LT(bytes, 16384u);
  const std::uint32_t* place = nullptr;
  for (int step = 0; step < 20; ++step) {
    world.queries = random_floats(&random, 3 * 32);
    const auto selection = selector.select(world.input({}, 512));
    ASSERT_TRUE(selection);
    if (place != nullptr) {
      EXPECT_EQ(selection->tokens.data(), place);
    }
    place = selection->tokens.data();
    EXPECT_EQ(selector.memory_bytes(), bytes);
  }
}

TEST_P(SelectorTest, NonsenseIsRefused) {
  World world(&random, {64, 64}, 16, 32, 1, AbstractKind::kBox);
  Selector selector(GetParam(), *find_preset("quest"));
  const TokenRange backwards[] = {{10, 4}};
  EXPECT_EQ(selector.select(world.input(backwards, 8)).error().code, Code::kInvalid);
  const TokenRange overlapping[] = {{0, 10}, {9, 12}};
  EXPECT_EQ(selector.select(world.input(overlapping, 8)).error().code, Code::kInvalid);
  world.segments[1].first_token = 65;
  EXPECT_EQ(selector.select(world.input({}, 8)).error().code, Code::kInvalid);
  world.segments[1].first_token = 64;
  world.segments[1].visible_tokens = 4096;
  EXPECT_EQ(selector.select(world.input({}, 8)).error().code, Code::kTooLarge);
  world.segments[1].visible_tokens = 64;
  SelectInput input = world.input({}, 8);
  input.query_count = 0;
  EXPECT_EQ(selector.select(input).error().code, Code::kInvalid);
  input = world.input({}, 8);
  input.dim = 30;
  EXPECT_EQ(selector.select(input).error().code, Code::kUnsupported);
}

INSTANTIATE_TEST_SUITE_P(Kernels, SelectorTest,
                         ::testing::ValuesIn(all_kernels().begin(), all_kernels().end()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace kvtier
