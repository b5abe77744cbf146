// Preset shadow over the real daemon: rows whose keys are rebuilt from a low-rank copy, against
// plain attention over keys that were factorised here; low-rank keys that are gone, damaged, moved,
// or cannot be made because nobody says how keys were turned.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "base/fault.h"
#include "kernels/abstract_layout.h"
#include "kernels/float16.h"
#include "kernels/rotation.h"
#include "tests/unit/client_fixture.h"
#include "tiers/low_rank.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint64_t kStored = 4500, kTail = 4;  // segments of 2048, 2048 and 404 tokens
constexpr std::uint32_t kSinks = 16, kWindow = 64;
constexpr float kScale = 0.25f;
constexpr double kClose = 1e-4;

class LowRank : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    frequencies_ = {1.0f, 0.5f, 0.1f, 0.02f, 0.004f, 0.001f};  // of 8 pairs, two do not turn
  }
  void TearDown() override {
    close();
    ClientTest::TearDown();
  }
  void open(bool writable) {
    space_ = open_space(shape_, "low-rank", "shadow");
    sequence_ = open_sequence(space_, "long", writable);
  }
  void store(bool tail = true) {
    space_ = open_space(shape_, "low-rank", "shadow");
    kvt_sequence* sequence = create_sequence(space_, "long");
    model_.append_many(sequence, 1, kStored);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    kvt_space_close(space_);
    open(tail);
    if (tail) model_.append(sequence_, 90000, kTail);
  }
  void close() {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    sequence_ = nullptr;
    space_ = nullptr;
  }
  void restart(const std::function<void()>& between = [] {}) {
    close();
    kvt_client_close(client_);
    daemon_->stop();
    between();
    daemon_->start();
    client_ = open_client();
    open(false);
  }
  kvt_view* open_view(const char* preset, std::uint64_t budget) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.sinks = kSinks;
    options.window = kWindow;
    options.preset = preset;
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    return view;
  }
  std::vector<float> queries(std::uint32_t layer) const {
    std::vector<float> q(shape_.query_heads * shape_.dim);
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = element(7, layer, static_cast<std::uint32_t>(i), 2, 0);
    return q;
  }
  // One step of every layer: [layer][query head][dim].
  std::vector<float> step(kvt_view* view) {
    std::vector<float> all, out(shape_.query_heads * shape_.dim);
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      KVT_EXPECT_OK(
          kvt_view_attend(view, layer, 1, queries(layer).data(), kScale, out.data(), nullptr));
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
  // How many abstracts were built again.
  Json reindex() {
    const Json begun = request(Json{{"op", "reindex"}, {"all", true}});
    while (request(Json{{"op", "reindex_state"}})["running"] == true)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return begun["abstracts"];
  }
  static kvt_view_stats stats(const kvt_view* view) {
    kvt_view_stats out{};
    out.struct_size = sizeof out;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &out));
    return out;
  }

  // ---- what is expected

  // Keys of a segment from their factors: [token][head][dim].
  std::vector<float> factorised(std::uint32_t layer, std::uint64_t first,
                                std::uint32_t count) const {
    const std::uint32_t width = shape_.kv_heads * shape_.dim;
    const LowRankShape shape{shape_.kv_heads, shape_.dim, width * 10 / 64};
    std::vector<float> keys;
    for (std::uint64_t t = first; t < first + count; ++t)
      for (std::uint32_t head = 0; head < shape.heads; ++head)
        for (std::uint32_t d = 0; d < shape.dim; ++d)
          keys.push_back(element(model_.tokens()[t], layer, head, 0, d));
    turn(first, true, &keys);
    std::vector<std::uint16_t> coefficients(std::size_t{count} * shape.rank),
        basis(std::size_t{width} * shape.rank);
    LowRankPlaces places{coefficients.data(), {}};
    for (std::uint32_t head = 0; head < shape.heads; ++head)
      places.bases.push_back(basis.data() + std::size_t{head} * shape.rank * shape.dim);
    EXPECT_TRUE(factorise_keys(shape, keys, places));
    std::fill(keys.begin(), keys.end(), 0.0f);
    for (std::uint32_t t = 0; t < count; ++t)
      for (std::uint32_t head = 0; head < shape.heads; ++head)
        for (std::uint32_t r = 0; r < shape.rank; ++r)
          for (std::uint32_t d = 0; d < shape.dim; ++d)
            keys[t * width + head * shape.dim + d] +=
                f16_to_f32(coefficients[t * shape.rank + r]) *
                f16_to_f32(places.bases[head][r * shape.dim + d]);
    turn(first, false, &keys);
    return keys;
  }
  void turn(std::uint64_t first, bool back, std::vector<float>* keys) const {
    const auto pairs = static_cast<std::uint32_t>(frequencies_.size());
    std::vector<float> turns(2 * pairs);
    const std::uint32_t width = shape_.kv_heads * shape_.dim;
    for (std::size_t i = 0; i < keys->size() / shape_.dim; ++i) {
      const std::uint64_t position = first + i * shape_.dim / width;
      turns_of(frequencies_, static_cast<double>(position), turns.data());
      turn_row(Rotation::Pairing::kHalves, pairs, turns.data(), back,
               keys->data() + i * shape_.dim);
    }
  }
  // Attention over all tokens; keys of those that are neither kept nor in the tail from factors, or
  // all exact.
  std::vector<float> expected(bool low_rank, std::uint64_t stored = kStored) const {
    std::vector<float> out;
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      std::vector<float> low;
      for (std::uint64_t first = 0; first < kStored; first += kSegmentTokensMax) {
        const auto part = factorised(layer, first,
                                     static_cast<std::uint32_t>(std::min<std::uint64_t>(
                                         kSegmentTokensMax, kStored - first)));
        low.insert(low.end(), part.begin(), part.end());
      }
      const auto is_low = [&](std::uint64_t t) {
        return low_rank && t >= kSinks && t < stored - kWindow;
      };
      for (std::uint32_t query = 0; query < shape_.query_heads; ++query)
        attend(layer, query, low, is_low, &out);
    }
    return out;
  }
  void attend(std::uint32_t layer, std::uint32_t query, const std::vector<float>& low,
              const std::function<bool(std::uint64_t)>& is_low, std::vector<float>* out) const {
    const std::uint32_t head = query / (shape_.query_heads / shape_.kv_heads);
    const std::vector<float> q = queries(layer);
    std::vector<double> sums(shape_.dim, 0.0);
    double total = 0.0;
    for (std::uint64_t t = 0; t < model_.tokens().size(); ++t) {
      double dot = 0.0;
      for (std::uint32_t d = 0; d < shape_.dim; ++d) {
        const float key = is_low(t) ? low[(t * shape_.kv_heads + head) * shape_.dim + d]
                                    : element(model_.tokens()[t], layer, head, 0, d);
        dot += static_cast<double>(q[query * shape_.dim + d]) * static_cast<double>(key);
      }
      const double weight = std::exp(dot * static_cast<double>(kScale));
      total += weight;
      for (std::uint32_t d = 0; d < shape_.dim; ++d)
        sums[d] += weight * static_cast<double>(element(model_.tokens()[t], layer, head, 1, d));
    }
    for (const double sum : sums) out->push_back(static_cast<float>(sum / total));
  }
  static double distance(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double far = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (std::isnan(apart)) return apart;  // less than nothing
      far = std::max(far, apart);
    }
    return far;
  }

  const TestShape shape_{};
  const std::uint64_t heads_ = shape_.layers * shape_.kv_heads;
  Model model_{shape_};
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

const std::string kFile = "-" + std::to_string(10 << 20 | 8 << 4 | 1) + ".kva";

TEST_F(LowRank, OnlyValuesComeAndKeysAreRebuilt) {
  store();
  kvt_view* view = open_view("shadow", kStored);
  const std::vector<float> wanted = expected(true);
  EXPECT_GT(distance(wanted, expected(false)), 100 * kClose);
  EXPECT_LT(distance(step(view), wanted), kClose);
  const kvt_view_stats seen = stats(view);
  const std::uint64_t kept = kSinks + kWindow;
  EXPECT_EQ(seen.rows_fetched, kStored * heads_);
  EXPECT_EQ(seen.rows_rebuilt, (kStored - kept) * heads_);
  EXPECT_EQ(seen.bytes_host, (kStored + kept) * heads_ * shape_.row_bytes());
  EXPECT_GT(seen.base_bytes, kStored * shape_.layers * 5 * 2) << "five coefficients of 16 bits";
  EXPECT_EQ(seen.rows_base, 0u);
  EXPECT_EQ(seen.bound_steps, 0u);
  EXPECT_LT(distance(step(view), wanted), kClose);
  EXPECT_EQ(stats(view).rows_fetched, seen.rows_fetched) << "they stay in the slot cache";
  // A choice of rows, and a view beside it that has them exact.
  kvt_view* small = open_view("shadow", 256);
  step(small);
  EXPECT_LE(stats(small).rows_rebuilt, 256 * heads_);
  EXPECT_GT(stats(small).rows_rebuilt, 248 * heads_) << "pages of 8";
  EXPECT_EQ(stats(small).rows_attended, stats(small).rows_rebuilt + (kept + kTail) * heads_);
  kvt_view* full = open_view("full", 0);
  EXPECT_LT(distance(step(full), expected(false)), kClose);
  for (kvt_view* one : {view, small, full}) kvt_view_close(one);
}

TEST_F(LowRank, TheyComeBackFromSidecarsAndAreMadeAnew) {
  store(false);
  const std::vector<float> wanted = expected(true);
  kvt_view* view = open_view("shadow", kStored);
  EXPECT_LT(distance(step(view), wanted), kClose);
  kvt_view_close(view);
  const auto harm = [&](bool remove) {
    int harmed = 0;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/sidecars")) {
      if (!entry.path().string().ends_with(kFile)) continue;
      if (remove) {
        std::filesystem::remove(entry.path());
      } else {
        std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(5001);
        file.put('\x55');
      }
      ++harmed;
    }
    EXPECT_EQ(harmed, 3);
  };
  frequencies_.clear();  // the store knows them
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    restart([&] {
      if (round > 0) harm(round == 1);
    });
    view = open_view("shadow", kStored);
    EXPECT_LT(distance(step(view), wanted), kClose);
    EXPECT_EQ(stats(view).rows_rebuilt, (kStored - kSinks - kWindow) * heads_);
    kvt_view_close(view);
    const Json abstracts = request(Json{{"op", "stats"}})["abstracts"];
    EXPECT_EQ(abstracts["rebuilt"], round == 0 ? 0 : 3);
    EXPECT_EQ(abstracts["base_bytes"], 0) << "nobody wants them any more";
  }
}

TEST_F(LowRank, WithoutARotationKeysAreExact) {
  const std::vector<float> known = std::exchange(frequencies_, {});
  store(false);
  kvt_view* view = open_view("shadow", kStored);
  const std::vector<float> exact = expected(false);
  EXPECT_LT(distance(step(view), exact), kClose);
  EXPECT_EQ(stats(view).rows_rebuilt, 0u);
  EXPECT_EQ(stats(view).bytes_host, 2 * kStored * heads_ * shape_.row_bytes());
  kvt_view_close(view);
  const Json told = request(Json{{"op", "stats"}});
  EXPECT_EQ(told["abstracts"]["rotation_unknown"], 3);
  EXPECT_NE(told["off"].dump().find("low-rank keys of some segments"), std::string::npos);
  EXPECT_EQ(reindex(), 3) << "means alone";
  // A client that knows it says so when it opens the space.
  close();
  frequencies_ = known;
  open(false);
  view = open_view("shadow", kStored);
  EXPECT_LT(distance(step(view), expected(true)), kClose);
  kvt_view_close(view);
  EXPECT_EQ(reindex(), 6);
}

// What lay before the window lies in it after a cut, and must be exact then.
TEST_F(LowRank, TheWindowIsExactAfterACut) {
  store();
  kvt_view* view = open_view("shadow", kStored);
  step(view);
  constexpr std::uint64_t kLeft = 3000;
  KVT_ASSERT_OK(kvt_sequence_truncate(sequence_, kLeft));
  const std::vector<std::uint64_t> all = model_.tokens();
  model_.tokens().resize(kStored);
  const std::vector<float> got = step(view);
  std::vector<float> wanted;
  {
    // The factors are of whole segments still.
    std::vector<std::vector<float>> low(shape_.layers);
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      for (std::uint64_t first = 0; first < 2 * kSegmentTokensMax; first += kSegmentTokensMax) {
        const auto part = factorised(layer, first, kSegmentTokensMax);
        low[layer].insert(low[layer].end(), part.begin(), part.end());
      }
    model_.tokens().resize(kLeft);
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      for (std::uint32_t query = 0; query < shape_.query_heads; ++query)
        attend(
            layer, query, low[layer],
            [](std::uint64_t t) { return t >= kSinks && t < kLeft - kWindow; }, &wanted);
  }
  EXPECT_LT(distance(got, wanted), kClose);
  model_.tokens() = all;
  kvt_view_close(view);
}

// Steps that fetch while halves of the tail become segments: each ends with the tail it began with.
TEST_F(LowRank, ASealThatEndsInAStepIsTheNextOnes) {
  store();
  kvt_view* view = open_view("shadow", 512);
  std::uint32_t number = 0;
  for (std::uint64_t round = 1; round <= 10; ++round) {
    for (std::uint64_t half = 0; half < 2; ++half)
      model_.append(sequence_, 100'000 * round + 50'000 * half, kSegmentTokensMax / 2);
    for (int again = 0; again < 40; ++again) run_step(shape_, view, ++number);
  }
  EXPECT_GT(stats(view).rows_rebuilt, 10'000u);
  kvt_view_close(view);
}

// `reindex` frees their places, which then hold rubbish, and gives them to others while a view
// reads.
TEST_F(LowRank, KeysOfWhatMovesMeanwhileAreNeverKept) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "reads first and looks after it whether it may count: a race by design";
#endif
  store();
  const std::vector<float> wanted = expected(true), exact = expected(false);
  std::string freed = "abstracts.freed=fail";
  for (int visit = 2; visit <= 2000; ++visit)
    freed += ",abstracts.freed=fail@" + std::to_string(visit);
  kvt_view* view = open_view("shadow", kStored);
  step(view);
  ASSERT_TRUE(arm_faults(freed));
  constexpr int kRoundsMin = 3, kRoundsMax = 200;
  std::uint64_t repeated = 0;
  for (int round = 0; round < kRoundsMin || (round < kRoundsMax && repeated == 0); ++round) {
    Json state = request(Json{{"op", "reindex"}, {"all", true}});
    for (int i = 0; i < 3 || (state["running"] == true && i < 1000); ++i) {
      kvt_view* fresh = open_view("shadow", kStored);  // with empty slot caches
      const std::vector<float> got = step(fresh);
      // What is not there at that moment is exact; rubbish is far from both.
      ASSERT_LT(std::min(distance(got, wanted), distance(got, exact)),
                1.5 * distance(wanted, exact))
          << round;
      repeated += stats(fresh).steps_repeated;
      kvt_view_close(fresh);
      state = request(Json{{"op", "reindex_state"}});
    }
    EXPECT_EQ(state["running"], false);
  }
  EXPECT_GT(repeated, 0u) << "nothing moved while it was read";
  ASSERT_TRUE(arm_faults(""));
  EXPECT_LT(distance(step(view), wanted), kClose);
  kvt_view_close(view);
}

}  // namespace
}  // namespace kvtier
