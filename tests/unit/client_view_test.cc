// Views against attention in double precision, and against a brute-force selection.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "tests/unit/client_view_fixture.h"

namespace kvtier::testing {
namespace {

TEST_P(ViewTest, EverythingIsFullAttention) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  kvt_view* view = open_view(sequence, 0);
  std::uint64_t number = 1;
  std::uint32_t seed = 1;
  for (const std::uint64_t length : {1u, 60u, 2047u, 2049u, 4500u}) {
    model.append_many(sequence, number, length - model.tokens().size());
    number += 10000;
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
      expect_exact(view, model, layer, 1, ++seed);
      expect_exact(view, model, layer,
                   static_cast<std::uint32_t>(std::min<std::uint64_t>(length, 130)), ++seed);
    }
  }
  kvt_sequence* fork = nullptr;  // several short segments, all stored
  KVT_ASSERT_OK(kvt_sequence_fork(sequence, 4333, nullptr, &fork));
  Model branch = model;
  branch.tokens().resize(4333);
  kvt_view* other = open_view(fork, 0, "full");
  expect_exact(other, branch, 0, 1, ++seed);
  expect_exact(other, branch, 0, 300, ++seed);  // more queries than the tail has tokens
  EXPECT_EQ(leased_bytes(), 0u);
  EXPECT_GT(stats(view).chunks_fetched, 0u);
  kvt_view_close(view);
  kvt_view_close(other);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  KVT_EXPECT_OK(kvt_sequence_close(fork));
  kvt_space_close(space);
}

TEST_P(ViewTest, ABudgetReadsWhatTheAbstractsSay) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "long");
  Model model(shape);
  model.append_many(sequence, 1, 4500);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));  // segments of 2048, 2048, 404
  sequence = open_sequence(space, "long", true);
  model.append(sequence, 90000, 40);
  // Abstracts follow the seal.
  kvt_view* view = open_view(sequence, 128, "quest", 16, 64);
  for (int i = 0; i < 500 && stats(view).abstract_bytes == 0; ++i) {
    const std::vector<float> q = random_queries(shape, 1, 1);
    std::vector<float> out(shape.query_heads * shape.dim);
    KVT_ASSERT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.25f, out.data(), nullptr));
    ::usleep(10000);
  }
  const std::uint64_t per_token = stats(view).abstract_bytes;
  ASSERT_GT(per_token, 0u);
  for (std::uint32_t step = 0; step < 12; ++step) {
    const std::uint32_t layer = step % shape.layers;
    const std::vector<float> q = random_queries(shape, 1, 100 + step);
    std::vector<float> out(shape.query_heads * shape.dim), lse(shape.query_heads);
    KVT_ASSERT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), lse.data()));
    std::vector<std::vector<std::uint64_t>> tokens;
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head)
      tokens.push_back(chosen_tokens(model, layer, head, q.data(), 0.25f, 4500, 128, 16, 64,
                                     {2048, 4096, 4500}));
    expect_near(reference(model, layer, q.data(), 0.25f, tokens), out.data(), lse.data(),
                "step " + std::to_string(step));
    model.append(sequence, 100000 + step, 1);
  }
  const kvt_view_stats end = stats(view);
  const std::uint64_t cache_rows = 2 * 128 + 16 + 64;
  EXPECT_LE(end.rows_attended, end.steps * shape.kv_heads * (128 + 16 + 64 + 60));
  EXPECT_LE(
      end.client_bytes,
      shape.layers * shape.kv_heads * cache_rows * (2 * shape.row_bytes() + 64 + 128) + (1 << 20));
  EXPECT_EQ(leased_bytes(), 0u);
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// What full attention says that a step missed is below the bound that boxes and balls give.
TEST_P(ViewTest, WhatAStepMissesIsBounded) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "long");
  Model model(shape);
  model.append_many(sequence, 1, 4500);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(space, "long", true);
  model.append(sequence, 90000, 3);
  kvt_view* full = open_view(sequence, 0);
  std::vector<float> out(shape.query_heads * shape.dim), some(shape.query_heads), all(some);
  for (const char* preset : {"quest", "arkvale", "mean"}) {
    kvt_view* view = open_view(sequence, 512, preset);
    kvt_view_stats last = stats(view);
    double most = 0.0;
    int fell = 0;
    for (std::uint32_t step = 0; step < 6; ++step) {
      SCOPED_TRACE(std::string(preset) + ", step " + std::to_string(step));
      const std::uint32_t layer = step % shape.layers;
      const std::vector<float> q = random_queries(shape, 1, 300 + step);
      KVT_ASSERT_OK(kvt_view_attend(full, layer, 1, q.data(), 0.25f, out.data(), all.data()));
      KVT_ASSERT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), some.data()));
      double mean = 0.0, largest = 0.0;
      for (std::size_t i = 0; i < all.size(); ++i) {
        const double missed = 1.0 - std::exp(static_cast<double>(some[i] - all[i]));
        mean += missed / static_cast<double>(all.size());
        largest = std::max(largest, missed);
      }
      const kvt_view_stats now = stats(view);
      EXPECT_GT(mean, 0.1);
      EXPECT_EQ(now.bound_steps, last.bound_steps + (preset == std::string("mean") ? 0 : 1));
      if (now.bound_steps != 0) {
        EXPECT_GE(now.bound_sum - last.bound_sum, mean - 1e-5);
        EXPECT_LE(now.bound_sum - last.bound_sum, 1.0);
        EXPECT_GE(now.bound_last, largest - 1e-5);
        most = std::max(most, now.bound_last);
        fell += now.bound_last < last.bound_last ? 1 : 0;
      }
      EXPECT_EQ(now.bound_max, most);
      last = now;
    }
    EXPECT_EQ(fell > 0, last.bound_steps != 0) << "the newest step's, not the largest of any";
    kvt_view_close(view);
  }
  kvt_view* view = open_view(sequence, 8000, "quest");
  KVT_ASSERT_OK(kvt_view_attend(view, 0, 1, random_queries(shape, 1, 1).data(), 0.25f, out.data(),
                                some.data()));
  EXPECT_EQ(stats(view).bound_steps, 1u);
  EXPECT_EQ(stats(view).bound_sum, 0.0) << "nothing was left out";
  EXPECT_EQ(stats(view).bound_last, 0.0);
  // A caller of the first version, whose struct ended before the bounds.
  kvt_view_stats old;
  std::memset(&old, 0x5A, sizeof old);
  for (const std::uint32_t size : {0u, 192u}) {
    old.struct_size = size;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &old));
    EXPECT_EQ(old.steps, 1u);
    EXPECT_EQ(old.bound_steps, 0x5A5A5A5A5A5A5A5Aull);
  }
  kvt_view_close(view);
  kvt_view_close(full);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// The daemon hears every eighth step what a layer chose, and of a prompt that all begins anew.
TEST_P(ViewTest, WhatWasChosenIsTold) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "told");
  Model model(shape);
  model.append_many(sequence, 1, 3000);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(space, "told", false);
  kvt_view* view = open_view(sequence, 128, "mean", 16, 64);
  const auto attend = [&](std::uint32_t queries) {
    const std::vector<float> q = random_queries(shape, queries, 5);
    std::vector<float> out(q.size());
    KVT_ASSERT_OK(kvt_view_attend(view, 0, queries, q.data(), 0.25f, out.data(), nullptr));
  };
  const auto rows_told = [&] {
    const Json reply =
        request({{"op", "reads"}, {"target", "told"}, {"first", 0}, {"count", 3000}});
    std::uint64_t sum = 0;
    if (reply["groups"].empty() || reply["groups"][0]["counts"].empty()) return sum;  // none yet
    for (const Json& count : reply["groups"][0]["counts"]) sum += count.get<std::uint64_t>();
    EXPECT_EQ(sum, reply["rows"].get<std::uint64_t>());
    for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(reply["groups"][0]["counts"][i], 0) << "a sink";
    EXPECT_EQ(reply["groups"][0]["counts"][2990], 0) << "the window";
    return sum;
  };
  const auto become = [&](std::uint64_t rows) {  // a request may overtake what is told
    for (int wait = 0; wait < 400 && rows_told() != rows; ++wait)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(rows_told(), rows);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // and stay
    EXPECT_EQ(rows_told(), rows);
  };
  const std::uint64_t once = 128 * shape.kv_heads;  // whole pages of 16
  for (int step = 0; step < 8; ++step) attend(1);
  become(once);
  attend(1);
  become(2 * once);
  attend(3);
  attend(1);
  become(once);  // since the last prompt
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_P(ViewTest, ABudgetAboveTheLengthIsExact) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  model.append_many(sequence, 1, 3000);
  kvt_view* view = open_view(sequence, 100000);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    expect_exact(view, model, layer, 1, 5 + layer);
  // What a truncation cut off must not come back from the slot cache.
  KVT_ASSERT_OK(kvt_sequence_truncate(sequence, 1500));
  model.tokens().resize(1500);
  model.append_many(sequence, 500000, 2000);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    expect_exact(view, model, layer, 1, 15 + layer);
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// The writer cuts off and goes on otherwise: a reader's slot cache has rows of the old tokens.
TEST_P(ViewTest, AReaderForgetsWhatTheWriterReplaced) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "rewritten");
  Model model(shape);
  model.append_many(sequence, 1, 3000);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_sequence* reader = open_sequence(space, "rewritten", false);
  kvt_view* view = open_view(reader, 100000);
  expect_exact(view, model, 0, 1, 5);
  for (int round = 0; round < 3; ++round) {
    sequence = open_sequence(space, "rewritten", true);
    KVT_ASSERT_OK(kvt_sequence_truncate(sequence, 1500));
    model.tokens().resize(1500);
    model.append_many(sequence, 500000u + 10000u * static_cast<unsigned>(round), 1800);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    if (round == 1) {
      EXPECT_EQ(kvt_sequence_length(reader), 3300u);  // looks at the directory, too
    }
    if (round == 2) {
      daemon_->kill();
      daemon_->start();
    }
    expect_exact(view, model, 0, 1, 15);
  }
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(reader));
  kvt_space_close(space);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ViewTest,
                         ::testing::Values(TestShape{}, TestShape{1, 1, 4, 64, KVT_DTYPE_F16, 1},
                                           TestShape{2, 3, 3, 24, KVT_DTYPE_F16, 0}));

class Views : public ViewTest {};

TEST_P(Views, RefuseWhatCannotBe) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape, "mean-model", "mean");
  kvt_sequence* sequence = create_sequence(space, nullptr);
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = 64;
  kvt_view* view = nullptr;
  options.preset = "mean";
  options.budget = 8;
  EXPECT_EQ(kvt_view_open(sequence, &options, &view), KVT_ERROR_INVALID) << "below the sinks";
  EXPECT_NE(std::string(kvt_last_error()).find("sinks"), std::string::npos);
  options.preset = "nonsense";
  EXPECT_EQ(kvt_view_open(sequence, &options, &view), KVT_ERROR_NOT_FOUND);
  view = open_view(sequence, 64, "mean");
  const std::vector<float> q(shape.query_heads * shape.dim);
  std::vector<float> out(q.size());
  EXPECT_EQ(kvt_view_attend(view, 0, 1, q.data(), 1.0f, out.data(), nullptr), KVT_ERROR_INVALID)
      << "nothing to attend to";
  EXPECT_EQ(kvt_view_attend(view, 9, 1, q.data(), 1.0f, out.data(), nullptr), KVT_ERROR_INVALID);
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Views, ::testing::Values(TestShape{}));

// The first step waits for codes, and meanwhile the seal of the newest rows ends: each row counts
// once, as of the tail or as stored.
TEST_F(Views, ASealThatEndsWhileAStepWaitsChangesNothing) {
  const TestShape shape{};
  for (int round = 0; round < 5; ++round) {
    // A space without a codebook: training one takes longer than a seal.
    kvt_space* space = open_space(shape, ("waits" + std::to_string(round)).c_str(), "codes");
    kvt_sequence* sequence = create_sequence(space, nullptr);
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = 8192;
    options.preset = "codes";
    kvt_view *view = nullptr, *all = nullptr;
    KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
    Model model(shape);
    model.append_many(sequence, 1, 2048);
    KVT_ASSERT_OK(kvt_sequence_commit(sequence));  // a full half is sealed
    model.append_many(sequence, 10000, 2048);      // and this one is under way
    const std::vector<float> got = run_step(shape, view);
    options.budget = 0;
    KVT_ASSERT_OK(kvt_view_open(sequence, &options, &all));
    EXPECT_LT(distance(got, run_step(shape, all)), 1e-5) << round;
    kvt_view_close(view);
    kvt_view_close(all);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
    kvt_space_close(space);
  }
}

// The daemon dies while the first step waits for codes: the step is done again, by its queries.
TEST_F(Views, ADaemonThatDiesWhileAStepWaitsChangesNothing) {
  const TestShape shape{};
  for (int round = 0; round < 6; ++round) {
    kvt_space* space = open_space(shape, ("dies" + std::to_string(round)).c_str(), "codes");
    kvt_sequence* sequence = create_sequence(space, nullptr);
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = 8192;
    options.preset = "codes";
    kvt_view *view = nullptr, *all = nullptr;
    KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
    Model model(shape);
    model.append_many(sequence, 1, 2048 + 30);
    KVT_ASSERT_OK(kvt_sequence_commit(sequence));
    std::thread fate([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(8 * round));
      daemon_->kill();
      daemon_->start();
    });
    std::vector<float> got;
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
      std::vector<float> q = step_queries(shape, 0, layer), out(q.size());
      KVT_EXPECT_OK(attend_again(view, layer, 1, q.data(), kStepScale, out.data(), nullptr));
      got.insert(got.end(), out.begin(), out.end());
    }
    fate.join();
    options.budget = 0;
    KVT_ASSERT_OK(kvt_view_open(sequence, &options, &all));
    EXPECT_LT(distance(got, run_step(shape, all)), 1e-5) << round;
    kvt_view_close(view);
    kvt_view_close(all);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
    kvt_space_close(space);
  }
}

}  // namespace
}  // namespace kvtier::testing
