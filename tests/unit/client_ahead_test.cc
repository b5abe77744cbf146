// Rows that come before the step that wants them, over the real daemon: what is attended to never
// depends on them, whatever was guessed and whatever happens meanwhile.
#include <gtest/gtest.h>

#include "tests/unit/client_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kScale = kStepScale;
constexpr double kClose = 2e-5;
constexpr std::uint64_t kStored = 4500;

class Ahead : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    space_ = open_space(shape_, "ahead", "codes");
    kvt_sequence* sequence = create_sequence(space_, "long");
    model_.append_many(sequence, 1, kStored);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    sequence_ = open_sequence(space_, "long", true);
    model_.append(sequence_, 90000, 4);
  }
  void TearDown() override {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    ClientTest::TearDown();
  }
  kvt_view* open_view(const char* preset, std::uint64_t budget = 128) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.preset = preset;
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    return view;
  }
  std::vector<float> queries(std::uint32_t step, std::uint32_t layer) const {
    return step_queries(shape_, step, layer);
  }
  std::vector<float> step(kvt_view* view, std::uint32_t number, std::uint32_t guess = kNoGuess) {
    return run_step(shape_, view, number, guess);
  }
  static kvt_view_stats stats(const kvt_view* view) { return stats_of(view); }

  const TestShape shape_{};
  Model model_{shape_};
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

TEST_F(Ahead, ARightGuessLeavesNothingToWaitFor) {
  kvt_view* plain = open_view("codes");
  kvt_view* ahead = open_view("codes-lookahead");
  EXPECT_EQ(kvt_view_looks_ahead(plain), 0);
  EXPECT_EQ(kvt_view_looks_ahead(ahead), 1);
  EXPECT_LT(distance(step(plain, 0), step(ahead, 0)), kClose);
  const kvt_view_stats first = stats(ahead);
  EXPECT_EQ(first.steps_waited, shape_.layers);
  EXPECT_EQ(first.rows_waited, first.rows_fetched);
  for (std::uint32_t i = 1; i < 6; ++i)
    EXPECT_LT(distance(step(plain, i), step(ahead, i, i)), kClose) << i;
  const kvt_view_stats seen = stats(ahead);
  EXPECT_EQ(seen.rows_waited, first.rows_waited);
  EXPECT_GT(seen.rows_fetched, first.rows_fetched + 5 * shape_.layers);
  EXPECT_GT(stats(plain).rows_waited, first.rows_waited);
  EXPECT_EQ(stats(plain).rows_waited, stats(plain).rows_fetched);
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

TEST_F(Ahead, AWrongGuessChangesNothing) {
  kvt_view* plain = open_view("codes");
  kvt_view* ahead = open_view("codes-lookahead");
  for (std::uint32_t i = 0; i < 6; ++i)
    EXPECT_LT(distance(step(plain, i), step(ahead, i, 100 + i)), kClose) << i;
  const kvt_view_stats seen = stats(ahead);
  EXPECT_GT(seen.rows_waited, stats(plain).rows_waited / 2);
  EXPECT_GT(seen.rows_fetched, seen.rows_waited) << "the guesses' rows, too";
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

// A guess that no step follows, prompts, and tokens that are taken back and others in their place.
TEST_F(Ahead, WhatHappensMeanwhileChangesNothing) {
  kvt_view* plain = open_view("codes");
  kvt_view* ahead = open_view("codes-lookahead");
  step(plain, 0);
  step(ahead, 0);
  const auto guess = [&](std::uint32_t number) {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      KVT_EXPECT_OK(kvt_view_look_ahead(ahead, layer, queries(number, layer).data(), kScale));
  };
  guess(1);
  guess(2);
  std::vector<float> two = queries(3, 0), out(2 * two.size());
  two.insert(two.end(), two.begin(), two.end());
  KVT_EXPECT_OK(kvt_view_attend(ahead, 0, 2, two.data(), kScale, out.data(), nullptr));
  EXPECT_LT(distance(step(plain, 4), step(ahead, 4)), kClose);
  guess(5);
  KVT_ASSERT_OK(kvt_sequence_truncate(sequence_, 3000));
  model_.append_many(sequence_, 200000, 2200);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence_));  // sealed, for both views
  EXPECT_LT(distance(step(plain, 5), step(ahead, 5)), kClose);
  EXPECT_LT(distance(step(plain, 6), step(ahead, 6, 6)), kClose);
  guess(7);
  kvt_view_close(plain);
  kvt_view_close(ahead);  // with rows on their way
}

TEST_F(Ahead, ADaemonThatDiesMeanwhileIsTheStepsBusiness) {
  kvt_view* plain = open_view("codes");
  kvt_view* ahead = open_view("codes-lookahead");
  step(plain, 0);
  step(ahead, 0);
  KVT_EXPECT_OK(kvt_view_look_ahead(ahead, 0, queries(1, 0).data(), kScale));
  daemon_->kill();
  KVT_EXPECT_OK(kvt_view_look_ahead(ahead, 1, queries(1, 1).data(), kScale));
  daemon_->start();
  // From the disk both choose in runs, the second less so than the first.
  step(plain, 1);
  step(ahead, 1);
  request(Json{{"op", "warm"}, {"target", "long"}});
  for (std::uint32_t i = 2; i < 4; ++i) {
    step(plain, i);
    step(ahead, i, i);
  }
  EXPECT_LT(distance(step(plain, 4), step(ahead, 4)), kClose);
  EXPECT_LT(distance(step(plain, 5), step(ahead, 5, 5)), kClose);
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

TEST_F(Ahead, BehindAStepComesWhatItsQueriesChoose) {
  kvt_view* view = open_view("freekv");
  step(view, 0);
  const std::vector<float> again = step(view, 0);
  const kvt_view_stats before = stats(view);
  EXPECT_LT(distance(step(view, 0), again), kClose);
  EXPECT_EQ(stats(view).rows_waited, before.rows_waited);
  EXPECT_EQ(before.rows_waited, before.rows_fetched) << "the same queries choose nothing new";
  step(view, 1);  // heads that turn fetch for themselves, and wait
  const kvt_view_stats turned = stats(view);
  EXPECT_GT(turned.rows_waited, before.rows_waited);
  kvt_view_close(view);
}

// Ten views send for 2 MiB each, of 16 that this client may lease, and then nobody looks at them.
TEST_F(Ahead, WhatLiesThereLeavesRoomForWhoWaits) {
  std::vector<kvt_view*> views;
  for (int i = 0; i < 10; ++i) views.push_back(open_view("codes-lookahead", 1024));
  kvt_view* plain = open_view("codes", 1024);
  step(plain, 0);
  for (kvt_view* view : views) step(view, 0);
  for (kvt_view* view : views)
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      KVT_EXPECT_OK(kvt_view_look_ahead(view, layer, queries(1, layer).data(), kScale));
  std::uint64_t leased = 0;
  for (int i = 0; i < 1000 && leased <= 2u << 20; ++i) leased = leased_bytes();
  EXPECT_GT(leased, 2u << 20);
  EXPECT_LE(leased, 4u << 20) << "a quarter";
  kvt_view* full = open_view("full", 0);
  step(full, 1);
  const std::vector<float> wanted = step(plain, 1);
  for (kvt_view* view : views) EXPECT_LT(distance(step(view, 1), wanted), kClose);
  EXPECT_EQ(leased_bytes(), 0u);
  for (kvt_view* view : views) kvt_view_close(view);
  kvt_view_close(plain);
  kvt_view_close(full);
}

// A prompt chooses nothing, but takes what has come.
TEST_F(Ahead, AnExactStepGivesBackWhatHasCome) {
  kvt_view* view = open_view("codes-lookahead");
  step(view, 0);
  KVT_EXPECT_OK(kvt_view_look_ahead(view, 0, queries(1, 0).data(), kScale));
  for (int i = 0; i < 1000 && leased_bytes() == 0; ++i) {
  }
  EXPECT_NE(leased_bytes(), 0u);
  std::vector<float> two = queries(3, 1), out(2 * two.size());
  two.insert(two.end(), two.begin(), two.end());
  for (int i = 0; i < 1000 && leased_bytes() != 0; ++i)
    KVT_EXPECT_OK(kvt_view_attend(view, 1, 2, two.data(), kScale, out.data(), nullptr));
  EXPECT_EQ(leased_bytes(), 0u);
  kvt_view_close(view);
}

TEST_F(Ahead, WhatTheCallerGetsWrongIsSaid) {
  kvt_view* view = open_view("codes-lookahead");
  std::vector<float> q = queries(0, 0);
  EXPECT_EQ(kvt_view_look_ahead(view, 9, q.data(), kScale), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_view_look_ahead(view, 0, nullptr, kScale), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_view_look_ahead(nullptr, 0, q.data(), kScale), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_view_looks_ahead(nullptr), 0);
  q[5] = std::nanf("");
  EXPECT_EQ(kvt_view_look_ahead(view, 0, q.data(), kScale), KVT_ERROR_NOT_FINITE);
  kvt_view_close(view);
}

}  // namespace
}  // namespace kvtier
