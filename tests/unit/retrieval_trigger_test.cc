// Triggers and queries of presets: which heads choose anew at a step, and by which queries.
#include <gtest/gtest.h>

#include "client/retrieval/trigger.h"

namespace kvtier {
namespace {

struct Steps {
  explicit Steps(TriggerKind trigger, float level = 0.0f) {
    preset.trigger = trigger;
    preset.level = level;
  }
  // One step of a layer with two KV heads of one query head each, dim 2; which heads choose.
  std::vector<bool> step(std::vector<float> q, bool boundary = false, std::uint64_t stored = 100) {
    vectors = std::move(q);
    query.observe(preset, {vectors.data(), 2, 1, 2, boundary, stored});
    std::vector<bool> due;
    for (std::uint32_t head = 0; head < 2; ++head) {
      due.push_back(query.due(head));
      if (due.back()) query.chosen(head);
    }
    return due;
  }
  Preset preset;
  LayerQuery query;
  std::vector<float> vectors;
};
using Due = std::vector<bool>;

TEST(Triggers, EveryStepAndEveryN) {
  Steps every(TriggerKind::kEveryStep);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(every.step({1, 0, 1, 0}), Due({true, true}));
  Steps third(TriggerKind::kEveryN, 3);
  std::vector<bool> seen;
  for (int i = 0; i < 7; ++i) seen.push_back(third.step({1, 0, 1, 0})[0]);
  EXPECT_EQ(seen, Due({true, false, false, true, false, false, true}));
}

TEST(Triggers, CosineOfTheLayerIsToTheLastChoice) {
  Steps steps(TriggerKind::kCosine, 0.8f);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true})) << "the first step always";
  EXPECT_EQ(steps.step({2, 0, 3, 0}), Due({false, false})) << "length does not matter";
  EXPECT_EQ(steps.step({1, 0, 0.7f, 0.7f}), Due({false, false})) << "mean of 1 and 0.71";
  EXPECT_EQ(steps.step({0.7f, 0.7f, 0.7f, 0.7f}), Due({true, true})) << "drifted from the anchor";
  EXPECT_EQ(steps.step({0.7f, 0.7f, 0.7f, 0.7f}), Due({false, false}));
}

TEST(Triggers, CosineOfAHeadIsItsOwn) {
  Steps steps(TriggerKind::kCosineHead, 0.8f);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 0, 1}), Due({false, true}));
  EXPECT_EQ(steps.step({1, 0, 0, 1}), Due({false, false}));
}

// Whether the trigger fired is told also where a head had to choose anyway.
TEST(Triggers, HaveFiredInHalfOfTheHeads) {
  Steps turn(TriggerKind::kTurn, 0.7f);
  turn.step({1, 0, 1, 0});
  EXPECT_FALSE(turn.query.fired()) << "nothing before it";
  turn.step({0, 1, 0, 1});
  EXPECT_TRUE(turn.query.fired());
  turn.step({0, 1, 0, 1});
  EXPECT_FALSE(turn.query.fired());
  EXPECT_EQ(turn.step({1, 0, 1, 0}, false, 200), (Due{true, true}));
  EXPECT_TRUE(turn.query.fired()) << "more is stored, and the queries turned";
  EXPECT_EQ(turn.step({1, 0, 1, 0}, false, 300), (Due{true, true}));
  EXPECT_FALSE(turn.query.fired()) << "more is stored";
  Steps head(TriggerKind::kCosineHead, 0.7f);
  head.step({1, 0, 1, 0});
  head.step({1, 0, 0, 1});
  EXPECT_TRUE(head.query.fired()) << "one of two";
  head.query.begin_block(head.vectors.data(), 2);
  EXPECT_FALSE(head.query.fired());
  Steps every(TriggerKind::kEveryStep);
  every.step({1, 0, 1, 0});
  every.step({0, 1, 0, 1});
  EXPECT_FALSE(every.query.fired()) << "no queries are looked at";
}

TEST(Triggers, BehindASentence) {
  Steps steps(TriggerKind::kBoundary);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 1, 0}, true), Due({false, false})) << "its closing token";
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true})) << "the first of the next";
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({false, false}));
}

TEST(Triggers, ByMassAsksTheScoresOfEveryStep) {
  Steps steps(TriggerKind::kMass, 0.3f);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_TRUE(steps.query.has_chosen(0) && steps.query.has_chosen(1));
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  steps.query.forget();
  EXPECT_FALSE(steps.query.has_chosen(0)) << "nothing to be weighed";
}

TEST(Triggers, OtherStoredTokensChooseAnew) {
  Steps steps(TriggerKind::kEveryN, 100);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({false, false}));
  EXPECT_EQ(steps.step({1, 0, 1, 0}, false, 101), Due({true, true}));
  steps.query.forget();
  EXPECT_EQ(steps.step({1, 0, 1, 0}, false, 101), Due({true, true}));
}

TEST(Queries, TheMeanSinceTheLastSentence) {
  Steps steps(TriggerKind::kEveryStep);
  steps.preset.query = QueryKind::kSentence;
  const auto vectors = [&] {
    return std::vector<float>(steps.query.vectors(), steps.query.vectors() + 4);
  };
  steps.step({1, 0, 4, 0});
  EXPECT_EQ(vectors(), (std::vector<float>{1, 0, 4, 0}));
  steps.step({3, 2, 0, 0}, true);
  EXPECT_EQ(vectors(), (std::vector<float>{2, 1, 2, 0})) << "the closing token still counts";
  steps.step({5, 5, 5, 5});
  EXPECT_EQ(vectors(), (std::vector<float>{5, 5, 5, 5}));
  steps.query.reset();
  EXPECT_EQ(steps.step({1, 1, 1, 1}), Due({true, true}));
  EXPECT_EQ(vectors(), (std::vector<float>{1, 1, 1, 1})) << "nothing before counts";
}

// A turn, a boundary and the queries of the step before are of what is there no more, too.
TEST(Triggers, NothingBeforeAResetCounts) {
  Steps turn(TriggerKind::kTurn, 0.7f), boundary(TriggerKind::kBoundary);
  for (Steps* steps : {&turn, &boundary}) {
    steps->step({1, 0, 1, 0}, true);
    steps->query.reset();
    EXPECT_EQ(steps->step({0, 1, 0, 1}), Due({true, true}));
    EXPECT_FALSE(steps->query.fired());
  }
}

TEST(Triggers, AStepThatDoesNotFollowTheOneBeforeBeginsAnew) {
  const std::vector<float> q = {1, 0, 1, 0}, other = {0, 1, 0, 1};
  for (const auto& [next, anew] :
       {std::pair{8u, true}, {9u, true}, {10u, false}, {11u, false}, {12u, true}}) {
    Preset preset;
    preset.trigger = TriggerKind::kEveryN;
    preset.level = 100;
    preset.query = QueryKind::kSentence;
    LayerQuery query;
    for (const std::uint64_t visible : {9u, 10u}) {
      query.observe(preset, {q.data(), 2, 1, 2, false, 7, nullptr, visible});
      query.chosen(0);
      query.chosen(1);
    }
    query.observe(preset, {other.data(), 2, 1, 2, false, 7, nullptr, next});
    EXPECT_EQ(query.due(0), anew) << next;
    EXPECT_EQ(query.vectors()[0], anew ? 0.0f : 2.0f / 3.0f) << next;
  }
}

TEST(Triggers, ATurnIsFromOneStepToTheNext) {
  Steps steps(TriggerKind::kTurn, 0.8f);
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 0.9f, 0.3f}), Due({false, false}));
  EXPECT_EQ(steps.step({0.9f, 0.3f, 0.6f, 0.8f}), Due({false, false})) << "far from the anchor";
  EXPECT_EQ(steps.step({0.6f, 0.8f, -0.6f, 0.8f}), Due({true, true}));
}

TEST(Queries, OfTheStepBeforeWhereTheyDidNotTurn) {
  Steps steps(TriggerKind::kEveryStep, 0.8f);
  steps.preset.query = QueryKind::kStepBefore;
  const auto vectors = [&] {
    return std::vector<float>(steps.query.vectors(), steps.query.vectors() + 4);
  };
  steps.step({1, 0, 1, 0});
  EXPECT_EQ(vectors(), (std::vector<float>{1, 0, 1, 0})) << "the first step has its own only";
  steps.step({0.9f, 0.3f, 0, 1});
  EXPECT_EQ(vectors(), (std::vector<float>{1, 0, 0, 1})) << "the second head turned";
  steps.step({0.9f, 0.3f, 0, 2});
  EXPECT_EQ(vectors(), (std::vector<float>{0.9f, 0.3f, 0, 1}));
}

TEST(Queries, ABlockChoosesAndServesNoStepBehindIt) {
  Steps steps(TriggerKind::kEveryN, 100);
  steps.preset.query = QueryKind::kBlock;
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({false, false}));
  const std::vector<float> first = {1, 2, 3, 4};
  steps.query.begin_block(first.data(), 2);
  EXPECT_EQ(steps.query.vectors(), first.data());
  for (std::uint32_t head = 0; head < 2; ++head) {
    EXPECT_TRUE(steps.query.due(head) && !steps.query.has_chosen(head));
    steps.query.chosen(head);
  }
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({true, true}));
  EXPECT_EQ(steps.step({1, 0, 1, 0}), Due({false, false}));
}

TEST(Queries, OfTheLayerBelowWhereThereIsOne) {
  LayerQuery query;
  Preset preset;
  preset.query = QueryKind::kLayerBefore;
  const std::vector<float> own = {1, 2, 3, 4}, below = {5, 6, 7, 8};
  query.observe(preset, {own.data(), 2, 1, 2, false, 100, below.data()});
  EXPECT_EQ(query.vectors(), below.data());
  query.observe(preset, {own.data(), 2, 1, 2, false, 100, nullptr});
  EXPECT_EQ(query.vectors(), own.data());
  preset.query = QueryKind::kCurrent;
  query.observe(preset, {own.data(), 2, 1, 2, false, 100, below.data()});
  EXPECT_EQ(query.vectors(), own.data());
}

TEST(Queries, PassFromLayerToLayerWithinAStep) {
  LayerBefore layers;
  const auto before = [&](std::uint32_t layer, std::uint64_t tokens, std::vector<float> q) {
    layers.observe({layer, tokens, 1, static_cast<std::uint32_t>(q.size())}, q.data());
    const float* found = layers.queries();
    return found == nullptr ? std::vector<float>() : std::vector<float>(found, found + q.size());
  };
  using Q = std::vector<float>;
  EXPECT_EQ(before(0, 10, {1, 1}), Q());
  EXPECT_EQ(before(1, 10, {2, 2}), Q({1, 1}));
  EXPECT_EQ(before(1, 10, {2, 2}), Q({1, 1})) << "the same layer once more, after a failure";
  EXPECT_EQ(before(3, 10, {3, 3}), Q({2, 2})) << "the layer between is none of this view's";
  EXPECT_EQ(before(4, 10, {3, 3, 3, 3}), Q()) << "another shape";
  EXPECT_EQ(before(0, 11, {4, 4}), Q()) << "another step";
  EXPECT_EQ(before(0, 12, {5, 5}), Q());
  EXPECT_EQ(before(1, 12, {6, 6}), Q({5, 5}));
  EXPECT_EQ(before(2, 13, {7, 7}), Q()) << "a step that begins in the middle";
}

}  // namespace
}  // namespace kvtier
