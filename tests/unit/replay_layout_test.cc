// Orders of rows on disk: what they are learnt from, where one must win and where none can; reads
// counted as an arena would do them.
#include "tools/bench/replay_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/random.h"
#include "tools/bench/replay_count.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kTokens = 4096, kBudget = 64, kSteps = 160, kFirstStep = 96;
constexpr std::uint64_t kArenaBytes = 4ull << 20;  // 32 of 128 chunks

// One layer of one head whose chunks have 128 KiB.
Trace trace_of(const std::vector<std::vector<std::uint32_t>>& steps) {
  Trace trace;
  trace.shape.tokens = kTokens;
  trace.shape.layers = trace.shape.kv_heads = 1;
  trace.shape.row_bytes = 4096;
  trace.shape.steps = static_cast<std::uint32_t>(steps.size());
  trace.shape.budget = kBudget;
  trace.shape.granules = {1};
  trace.heads.emplace_back();
  for (const auto& rows : steps) trace.heads.back().add(rows);
  return trace;
}

// Steps that ask for one of 64 groups of 64 rows: each in turn, shuffled anew in every round.
template <class RowOf>
Trace grouped(RowOf&& row_of) {
  Random random(4);
  std::vector<std::uint32_t> groups(kTokens / kBudget);
  std::iota(groups.begin(), groups.end(), 0u);
  std::vector<std::vector<std::uint32_t>> steps;
  for (std::uint32_t step = 0; step < kSteps; ++step) {
    if (step % groups.size() == 0)
      for (std::size_t i = groups.size() - 1; i > 0; --i)
        std::swap(groups[i], groups[random.below(i + 1)]);
    steps.emplace_back();
    for (std::uint32_t i = 0; i < kBudget; ++i)
      steps.back().push_back(row_of(groups[step % groups.size()], i));
  }
  return trace_of(steps);
}

Trace random_rows() {
  Random random(6);
  std::vector<std::vector<std::uint32_t>> steps(kSteps);
  for (auto& rows : steps) {
    while (rows.size() < kBudget) {
      const auto row = static_cast<std::uint32_t>(random.below(kTokens));
      if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
    }
    std::sort(rows.begin(), rows.end());
  }
  return trace_of(steps);
}

struct Compared {
  CountedReads token, counts, together, known;
};

Compared compare(const Trace& trace) {
  const auto counter = ReadCounter::make(trace, Ask::kRows, kArenaBytes);
  EXPECT_TRUE(counter);
  const StepRows warm_up = counter->missing(0, 0, kFirstStep);
  const StepRows judged = counter->missing(0, kFirstStep, kSteps);
  const auto reads = [&](const Places& places) {
    auto counted = counter->count({places}, kFirstStep);
    EXPECT_TRUE(counted);
    return *std::move(counted);
  };
  return {reads(places_by_token(kTokens)), reads(places_by_count(warm_up, kTokens, kTokens)),
          reads(places_together(warm_up, kTokens)), reads(places_together(judged, kTokens))};
}

void expect_permutation(Places places) {
  std::sort(places.begin(), places.end());
  EXPECT_EQ(places, places_by_token(static_cast<std::uint32_t>(places.size())));
}

TEST(ReplayLayout, RowsThatAreAskedForMostLieFirst) {
  const std::vector<std::uint32_t> lists[] = {{1, 5, 7}, {5, 7}, {2, 5}};
  const StepRows steps(std::begin(lists), std::end(lists));
  EXPECT_EQ(places_by_count(steps, 8, 8), (Places{4, 2, 3, 5, 6, 0, 7, 1}));
  EXPECT_EQ(places_by_count(steps, 8, 4), (Places{2, 0, 1, 3, 6, 4, 7, 5}));
}

TEST(ReplayLayout, EveryRowHasAPlace) {
  const Trace trace = random_rows();
  const auto counter = ReadCounter::make(trace, Ask::kRows, kArenaBytes);
  ASSERT_TRUE(counter);
  const StepRows few = counter->missing(0, 0, 9);  // most rows are in none of them
  expect_permutation(places_together(few, kTokens));
  expect_permutation(places_together({}, 100));
  expect_permutation(places_by_count(few, kTokens, 1000));
  const Places places = places_together(few, kTokens);
  std::vector<std::uint32_t> asked, others;  // places, by token
  for (std::uint32_t token = 0; token < kTokens; ++token) {
    const bool known = std::any_of(few.begin(), few.end(), [token](const auto& rows) {
      return std::binary_search(rows.begin(), rows.end(), token);
    });
    (known ? asked : others).push_back(places[token]);
  }
  EXPECT_EQ(*std::max_element(asked.begin(), asked.end()) + 1, asked.size());
  EXPECT_TRUE(std::is_sorted(others.begin(), others.end()));
}

// Rows 0, 64, 128 and so on are wanted together, so that each lies in a chunk of its own; their
// counts are all alike.
TEST(ReplayLayout, RowsFarApartThatAreWantedTogetherLieTogether) {
  const Compared reads = compare(grouped(
      [](std::uint32_t group, std::uint32_t i) { return group + i * (kTokens / kBudget); }));
  EXPECT_GT(reads.token.asked, 60);
  EXPECT_LE(reads.together.asked, 2.5);
  EXPECT_LT(reads.together.read, reads.token.read / 10);
  EXPECT_LT(reads.known.read, reads.token.read / 10);
  EXPECT_GT(reads.counts.read, reads.token.read / 2);
}

TEST(ReplayLayout, NoOrderWinsWhereNeighboursAreWantedTogether) {
  const Compared reads =
      compare(grouped([](std::uint32_t group, std::uint32_t i) { return group * kBudget + i; }));
  EXPECT_LE(reads.token.asked, 2.0);
  for (const CountedReads* other : {&reads.counts, &reads.together, &reads.known})
    EXPECT_GE(other->asked, reads.token.asked);
  EXPECT_LE(reads.together.asked, 2.5);
}

// Nothing can be learnt; what is known beforehand helps all the same.
TEST(ReplayLayout, ALearntOrderDoesNotWinWhereChoicesAreRandom) {
  const Compared reads = compare(random_rows());
  EXPECT_NEAR(reads.together.read / reads.token.read, 1.0, 0.05);
  EXPECT_NEAR(reads.counts.read / reads.token.read, 1.0, 0.05);
  EXPECT_LT(reads.known.read, reads.token.read * 0.8);
}

TEST(ReplayLayout, ARunOfTokensLiesInTheChunksOfItsRows) {
  EXPECT_EQ(chunks_of_run(places_by_token(kTokens), 2048), 64);
  Places apart(kTokens);
  for (std::uint32_t token = 0; token < kTokens; ++token) apart[token] = token * 33 % kTokens;
  expect_permutation(apart);
  EXPECT_EQ(chunks_of_run(apart, 64), 64);
}

TEST(ReplayCount, AnArenaReadsAsItsSizeAllows) {
  const Trace trace = random_rows();
  const auto reads = [&](std::uint64_t bytes) {
    const auto counter = ReadCounter::make(trace, Ask::kRows, bytes);
    EXPECT_TRUE(counter);
    auto counted = counter->count({places_by_token(kTokens)}, 0);
    EXPECT_TRUE(counted);
    EXPECT_EQ(counted->arena_chunks, bytes / (32 * 4096));
    return *std::move(counted);
  };
  const CountedReads all = reads(16ull << 20);
  EXPECT_DOUBLE_EQ(all.read * kSteps, static_cast<double>(first_reads(all.references, 0)));
  EXPECT_DOUBLE_EQ(all.read * kSteps, 128);
  const CountedReads some = reads(kArenaBytes);
  EXPECT_EQ(some.asked, all.asked);
  EXPECT_GE(some.read * kSteps, static_cast<double>(least_reads(some.references, 0, 32)));
  EXPECT_LT(some.read, some.asked);
  EXPECT_LE(some.runs, some.read);
}

TEST(ReplayCount, SlotCachesAskForWhatTheyLackOnly) {
  // Capacity 128: the third list finds both in it.
  std::vector<std::uint32_t> even, odd, both;
  for (std::uint32_t i = 0; i < kBudget; ++i) {
    even.push_back(2 * i);
    odd.push_back(2 * i + 1);
    both.push_back(i);
  }
  const Trace trace = trace_of({even, odd, both});
  const auto counter = ReadCounter::make(trace, Ask::kRows, kArenaBytes);
  ASSERT_TRUE(counter);
  const StepRows missing = counter->missing(0, 0, 3);
  EXPECT_EQ(std::vector(missing[0].begin(), missing[0].end()), even);
  EXPECT_EQ(std::vector(missing[1].begin(), missing[1].end()), odd);
  EXPECT_TRUE(missing[2].empty());
  const auto counted = counter->count({places_by_token(kTokens)}, 0);
  ASSERT_TRUE(counted);
  EXPECT_DOUBLE_EQ(counted->asked * 3, 8);  // 128 tokens in 4 chunks, twice
  EXPECT_DOUBLE_EQ(counted->read * 3, 4);
  EXPECT_DOUBLE_EQ(counted->runs * 3, 1);
}

TEST(ReplayCount, HotRowsAreThoseThatAreMarked) {
  const Trace trace = trace_of({{3, 40 | kHotRow, 70}, {3 | kHotRow, 40 | kHotRow, 90}});
  const auto counter = ReadCounter::make(trace, Ask::kHot, kArenaBytes);
  ASSERT_TRUE(counter);
  const StepRows missing = counter->missing(0, 0, 2);
  EXPECT_EQ(std::vector(missing[0].begin(), missing[0].end()), std::vector{40u});
  EXPECT_EQ(std::vector(missing[1].begin(), missing[1].end()), std::vector{3u});
}

}  // namespace
}  // namespace kvtier::bench
