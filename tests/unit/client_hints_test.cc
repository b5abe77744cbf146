// Runners-up, over the real daemon: what is attended to never depends on them.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/unit/client_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr double kClose = 2e-5;

class Hints : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    space_ = open_space(shape_, "hints", "codes");
    sequence_ = create_sequence(space_, "long");
    model_.append_many(sequence_, 1, 4500);
    KVT_ASSERT_OK(kvt_sequence_commit(sequence_));
    write("plain", "");
    write("hinting", "runners_up_percent = 100\n");
    step("plain");  // abstracts and codebook are there, and stored
  }
  void TearDown() override {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    ClientTest::TearDown();
  }
  // Single rows, wherever they lie: the choice depends on nothing else.
  void write(const std::string& name, const std::string& more) const {
    std::ofstream(root_ + "/" + name + ".toml") << "base = \"codes\"\nrun_tokens = 1\n" + more;
  }
  // Nothing is in memory.
  void restart() {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    kvt_client_close(client_);
    daemon_->stop();
    daemon_->start();
    client_ = open_client();
    space_ = open_space(shape_, "hints", "codes");
    sequence_ = open_sequence(space_, "long", true);
  }
  std::vector<float> step(const char* preset, std::uint32_t steps = 1,
                          kvt_view_stats* seen = nullptr) {
    const std::string path = root_ + "/" + preset + ".toml";
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = 64;
    options.preset = path.c_str();
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    std::vector<float> all;
    for (std::uint32_t i = 0; i < steps && view != nullptr; ++i) {
      const std::vector<float> one = run_step(shape_, view, i);
      all.insert(all.end(), one.begin(), one.end());
    }
    if (seen != nullptr) *seen = stats_of(view);
    kvt_view_close(view);
    return all;
  }
  std::uint64_t prefetches() {
    return request(Json{{"op", "stats"}})["chunks"]["prefetch_requests"].get<std::uint64_t>();
  }

  const TestShape shape_{};
  Model model_{shape_};
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

TEST_F(Hints, AreSentWhereRowsComeFromTheDiskAndChangeNothing) {
  restart();
  kvt_view_stats hinting{}, plain{};
  const std::vector<float> with = step("hinting", 8, &hinting);
  EXPECT_GT(hinting.rows_hinted, 0u);
  EXPECT_GT(prefetches(), 0u);
  restart();
  const std::vector<float> without = step("plain", 8, &plain);
  EXPECT_LT(distance(with, without), kClose);
  EXPECT_EQ(plain.rows_hinted, 0u);
  EXPECT_EQ(prefetches(), 0u);
  EXPECT_EQ(hinting.rows_fetched, plain.rows_fetched);
}

TEST_F(Hints, AreInPerCentOfTheLayersBudget) {
  write("planned", "runners_up_percent = 100\nlayer_percent = [25]\n");
  restart();
  kvt_view_stats seen{};
  step("planned", 8, &seen);
  EXPECT_GT(seen.rows_hinted, 0u);
  EXPECT_LE(seen.rows_hinted, 7u * shape_.layers * shape_.kv_heads * 16);
}

TEST_F(Hints, AreNotSentWhereEverythingIsInMemory) {
  restart();
  request(Json{{"op", "warm"}, {"target", "long"}});
  kvt_view_stats seen{};
  step("hinting", 4, &seen);
  EXPECT_EQ(seen.bytes_disk, 0u);
  EXPECT_EQ(seen.rows_hinted, 0u);
  EXPECT_EQ(prefetches(), 0u);
}

TEST_F(Hints, ADaemonThatDiesMeanwhileIsNobodysBusiness) {
  restart();
  const std::string path = root_ + "/hinting.toml";
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = 64;
  options.preset = path.c_str();
  kvt_view* view = nullptr;
  KVT_ASSERT_OK(kvt_view_open(sequence_, &options, &view));
  std::vector<float> all;
  for (std::uint32_t i = 0; i < 6; ++i) {
    if (i == 3) {
      EXPECT_GT(stats_of(view).rows_hinted, 0u);
      daemon_->kill();
      daemon_->start();
    }
    const std::vector<float> one = run_step(shape_, view, i);
    all.insert(all.end(), one.begin(), one.end());
  }
  kvt_view_close(view);  // with hints under way
  EXPECT_LT(distance(all, step("plain", 6)), kClose);
}

}  // namespace
}  // namespace kvtier
