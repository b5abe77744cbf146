// Partitions by tokens: every token in one unit, none empty, none too long.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "tiers/partition.h"

namespace kvtier {
namespace {

std::vector<TokenRecord> tokens_with(std::vector<std::uint32_t> flags,
                                     std::vector<std::uint32_t> spans = {}) {
  std::vector<TokenRecord> out(flags.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].flags = flags[i];
    out[i].span = spans.empty() ? 0 : spans[i];
  }
  return out;
}
using Starts = std::vector<std::uint32_t>;

TEST(Sentences, EndBehindTheirClosingToken) {
  EXPECT_EQ(cut_sentences(tokens_with({0, 0, 2, 0, 3, 0, 0}), 128), (Starts{0, 3, 5, 7}));
  EXPECT_EQ(cut_sentences(tokens_with({2, 2, 2}), 128), (Starts{0, 1, 2, 3}));
  EXPECT_EQ(cut_sentences(tokens_with({0, 0x0102, 0}), 128), (Starts{0, 2, 3}))
      << "only the low byte of the flags is the boundary";
}

TEST(Sentences, LongOnesAreCutBehindAClauseOrAtTheLimit) {
  EXPECT_EQ(cut_sentences(tokens_with({0, 0, 0, 0, 0, 0, 0, 0, 0}), 4), (Starts{0, 4, 8, 9}));
  EXPECT_EQ(cut_sentences(tokens_with({0, 0, 1, 0, 0, 0, 0}), 4), (Starts{0, 3, 7}));
  EXPECT_EQ(cut_sentences(tokens_with({1, 0, 0, 0, 0}), 4), (Starts{0, 4, 5}))
      << "a clause of the first half would leave crumbs";
}

TEST(Spans, EndWhereTheyChange) {
  EXPECT_EQ(cut_spans(tokens_with({0, 0, 0, 0}, {1, 1, 2, 1}), 128), (Starts{0, 2, 3, 4}));
  EXPECT_EQ(cut_spans(tokens_with({0, 0, 0, 0, 0}, {7, 7, 7, 7, 7}), 2), (Starts{0, 2, 4, 5}));
}

TEST(Output, IsCutAtMarksAndTheRestIsLeft) {
  const std::uint32_t own = kTokenOwn, cut = kTokenOwn | kTokenCut;
  const OutputUnits units =
      cut_output(tokens_with({0, kTokenCut, own, own | 2, cut, own, 0, own}), 16);
  EXPECT_EQ(units.others, (Starts{0, 1, 6})) << "a mark alone says nothing";
  EXPECT_EQ(units.tokens, (Starts{2, 3, 4, 5, 7}));
  EXPECT_EQ(units.starts, (Starts{0, 2, 4, 5})) << "at the mark, and behind the token in between";
  EXPECT_EQ(cut_output(tokens_with({cut, cut, own}), 16).starts, (Starts{0, 1, 3}));
  EXPECT_EQ(cut_output(tokens_with({own, own}), 16).starts, (Starts{0, 2}));
  const OutputUnits prompt = cut_output(tokens_with({0, 0, 1}), 16);
  EXPECT_EQ(prompt.others, (Starts{0, 1, 2}));
  EXPECT_EQ(prompt.starts, (Starts{0}));
  EXPECT_EQ(cut_output(tokens_with(std::vector<std::uint32_t>(20, own)), 1).starts,
            (Starts{0, 8, 16, 20}))
      << "eight times the length of a cluster is the limit";
}

void expect_units(const Starts& starts, std::size_t count, std::uint32_t limit) {
  ASSERT_GE(starts.size(), 2u);
  EXPECT_EQ(starts.front(), 0u);
  EXPECT_EQ(starts.back(), count);
  for (std::size_t i = 1; i < starts.size(); ++i) {
    ASSERT_GT(starts[i], starts[i - 1]);
    ASSERT_LE(starts[i] - starts[i - 1], limit);
  }
}

TEST(Partitions, CoverEveryTokenOnce) {
  for (std::uint32_t count : {1u, 2u, 63u, 2048u})
    for (std::uint32_t limit : {1u, 2u, 16u, 128u, 2048u}) {
      std::vector<TokenRecord> tokens(count);
      for (std::uint32_t i = 0; i < count; ++i) {
        tokens[i].flags = i % 11 == 0 ? 2 : i % 5 == 0 ? 1 : 0;
        tokens[i].span = i / 9;
      }
      expect_units(cut_sentences(tokens, limit), count, limit);
      expect_units(cut_spans(tokens, limit), count, limit);
    }
}

// 100,000 sentences or spans of a token each, and one of 100,000 tokens: in one piece, and in
// segments as the daemon has them.
TEST(Partitions, VeryLongTexts) {
  constexpr std::uint32_t kTokens = 100000, kLimit = 128, kSegment = 2048;
  for (const bool one : {false, true})
    for (const std::uint32_t clause : {0u, 1u}) {
      std::vector<TokenRecord> tokens(kTokens);
      for (std::uint32_t i = 0; i < kTokens; ++i) {
        tokens[i].flags = kTokenOwn | (!one ? 2 : i % 100 == 0 ? clause : 0);
        tokens[i].span = one ? 1 : i;
      }
      const Starts whole = cut_sentences(tokens, kLimit);
      expect_units(whole, kTokens, kLimit);
      EXPECT_EQ(cut_spans(tokens, kLimit).size() - 1,
                one ? (kTokens + kLimit - 1) / kLimit : kTokens);
      if (one) {
        EXPECT_LE(whole.size() - 1, 2 * (kTokens / kLimit) + 1) << "no crumbs";
      } else {
        EXPECT_EQ(whole.size() - 1, kTokens);
      }
      const OutputUnits output = cut_output(tokens, kLimit);
      EXPECT_EQ(output.tokens.size(), kTokens);
      expect_units(output.starts, kTokens, kOutputUnitFactor * kLimit);
      std::uint32_t units = 0, segments = 0;
      for (std::uint32_t at = 0; at < kTokens; at += kSegment) {
        const auto segment = std::span(tokens).subspan(at, std::min(kSegment, kTokens - at));
        const Starts starts = cut_sentences(segment, kLimit);
        expect_units(starts, segment.size(), kLimit);
        expect_units(cut_spans(segment, kLimit), segment.size(), kLimit);
        units += static_cast<std::uint32_t>(starts.size()) - 1;
        ++segments;
      }
      if (one)
        EXPECT_LE(units, 2 * (kTokens / kLimit) + segments) << "no crumbs";
      else
        EXPECT_EQ(units, kTokens) << "a unit to each sentence";
    }
}

}  // namespace
}  // namespace kvtier
