// Precision over the real daemon: rows attended to from their base rendition, and what of them is
// exact, against plain attention over the same rows; base renditions that are gone, damaged, or
// have no room.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "base/fault.h"
#include "kernels/base_args.h"
#include "tests/unit/client_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint64_t kStored = 4500, kTail = 4;  // segments of 2048, 2048 and 404 tokens
constexpr std::uint32_t kSinks = 16, kWindow = 64;
constexpr float kScale = kStepScale;

class Precision : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    const char* before = std::getenv("XDG_CONFIG_HOME");
    before_ = before != nullptr ? before : "";
    ::setenv("XDG_CONFIG_HOME", (root_ + "/config").c_str(), 1);
  }
  void TearDown() override {
    close();
    before_.empty() ? ::unsetenv("XDG_CONFIG_HOME")
                    : ::setenv("XDG_CONFIG_HOME", before_.c_str(), 1);
    ClientTest::TearDown();
  }
  // A stored sequence; with a tail, some tokens more.
  void store(bool tail = true) {
    space_ = open_space(shape_, "precision", "codes");
    kvt_sequence* sequence = create_sequence(space_, "long");
    model_.append_many(sequence, 1, kStored);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    sequence_ = open_sequence(space_, "long", tail);
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
    space_ = open_space(shape_, "precision", "codes");
    sequence_ = open_sequence(space_, "long", false);
  }
  std::string preset(const std::string& more) {
    const std::string path = root_ + "/" + std::to_string(++presets_) + ".toml";
    std::ofstream(path) << "base = \"progressive\"\n" << more;
    return path;
  }
  kvt_view* open_view(const std::string& preset, std::uint64_t budget) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.sinks = kSinks;
    options.window = kWindow;
    options.preset = preset.c_str();
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    return view;
  }
  std::vector<float> queries(std::uint32_t layer) const { return step_queries(shape_, 0, layer); }
  std::vector<float> step(kvt_view* view, std::uint32_t number = 0,
                          std::uint32_t guess = kNoGuess) {
    return run_step(shape_, view, number, guess);
  }
  static kvt_view_stats stats(const kvt_view* view) { return stats_of(view); }

  // ---- what is expected

  // K or V of a head, [token][dim]; with bits, what is stored as the base rendition has it.
  std::vector<float> rows(std::uint32_t layer, std::uint32_t head, std::uint32_t which,
                          std::uint32_t bits) const {
    const std::uint64_t tokens = model_.tokens().size();
    std::vector<float> out;
    for (std::uint64_t t = 0; t < tokens; ++t)
      for (std::uint32_t d = 0; d < shape_.dim; ++d)
        out.push_back(element(model_.tokens()[t], layer, head, which, d));
    if (bits == 0) return out;
    const std::uint64_t base_tokens = kStored;
    const BaseFormat format{shape_.dim, shape_.dim, bits, bits};
    std::vector<std::byte> encoded((base_tokens + 31) / 32 * format.chunk_bytes());
    const std::uint64_t page = reinterpret_cast<std::uintptr_t>(out.data());
    EncodeBaseArgs encode;
    encode.rows.pages = &page;
    encode.rows.page_tokens = tokens;
    encode.rows.k_stride = encode.rows.v_stride = shape_.dim * sizeof(float);
    encode.token_count = &base_tokens;
    encode.format = format;
    encode.out = encoded.data();
    EXPECT_TRUE(all_kernels().back()->encode_base(encode, nullptr));
    std::vector<std::uint64_t> chunks;
    for (std::uint64_t at = 0; at < encoded.size(); at += format.chunk_bytes())
      chunks.push_back(at);
    const std::uint64_t range[2] = {0, base_tokens};
    DecodeBaseArgs decode;
    decode.pages = {encoded.data(), chunks.data(), format};
    decode.rows = {nullptr, range};
    (which == 0 ? decode.out_k : decode.out_v) = reinterpret_cast<std::byte*>(out.data());
    decode.k_stride = decode.v_stride = shape_.dim * sizeof(float);
    EXPECT_TRUE(all_kernels().back()->decode_base(decode, nullptr));
    return out;
  }
  struct Expected {
    std::vector<float> out;  // as step()
    std::uint64_t hot = 0;
  };
  // Attention over everything; what is neither kept, nor in segment `without`, nor has more than
  // `exact_above` of the mass, from the base rendition.
  Expected expected(float exact_above, std::uint32_t bits = 4, std::uint64_t without = 9) const {
    Expected result;
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      for (std::uint32_t head = 0; head < shape_.kv_heads; ++head)
        expect_head(layer, head, exact_above, bits, without, &result);
    return result;
  }
  void expect_head(std::uint32_t layer, std::uint32_t head, float exact_above, std::uint32_t bits,
                   std::uint64_t without, Expected* result) const {
    const std::uint32_t group = shape_.query_heads / shape_.kv_heads;
    const std::vector<float> k[2] = {rows(layer, head, 0, 0), rows(layer, head, 0, bits)};
    const std::vector<float> v[2] = {rows(layer, head, 1, 0), rows(layer, head, 1, bits)};
    const std::uint64_t tokens = model_.tokens().size();
    const std::vector<float> q = queries(layer);
    std::vector<int> base(tokens, 0);
    for (std::uint64_t t = kSinks; t < kStored - kWindow; ++t)
      base[t] = t / kSegmentTokensMax != without;
    const auto weights = [&](std::uint32_t query) {
      std::vector<double> out(tokens);
      double sum = 0.0;
      for (std::uint64_t t = 0; t < tokens; ++t) {
        double dot = 0.0;
        for (std::uint32_t d = 0; d < shape_.dim; ++d)
          dot += static_cast<double>(q[(head * group + query) * shape_.dim + d]) *
                 static_cast<double>(k[base[t]][t * shape_.dim + d]);
        out[t] = std::exp(dot * static_cast<double>(kScale));
        sum += out[t];
      }
      for (double& weight : out) weight /= sum;
      return out;
    };
    std::vector<double> share(tokens, 0.0);
    for (std::uint32_t i = 0; i < group; ++i) {
      const std::vector<double> w = weights(i);
      for (std::uint64_t t = 0; t < tokens; ++t) share[t] += w[t] / group;
    }
    for (std::uint64_t t = 0; t < tokens; ++t) {
      if (base[t] == 0 || share[t] <= static_cast<double>(exact_above)) continue;
      base[t] = 0;
      ++result->hot;
    }
    for (std::uint32_t i = 0; i < group; ++i) {
      const std::vector<double> w = weights(i);
      for (std::uint32_t d = 0; d < shape_.dim; ++d) {
        double sum = 0.0;
        for (std::uint64_t t = 0; t < tokens; ++t)
          sum += w[t] * static_cast<double>(v[base[t]][t * shape_.dim + d]);
        result->out.push_back(static_cast<float>(sum));
      }
    }
  }

  const TestShape shape_{};
  Model model_{shape_};
  std::string before_;
  int presets_ = 0;
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

const std::string kBaseFile = "-" + std::to_string(44 << 20 | 7 << 4 | 1) + ".kva";
constexpr double kClose = 2e-5;
constexpr float kShare = 0.003f;

TEST_F(Precision, WithEverythingExactItIsWhatTheCodesChoose) {
  store();
  kvt_view* codes = open_view("codes", 256);
  kvt_view* exact = open_view(preset("exact_above = 0"), 256);
  step(codes);  // in runs: it does not know yet where rows lie
  step(exact);
  EXPECT_LT(distance(step(codes), step(exact)), kClose);
  EXPECT_EQ(stats(exact).rows_base, 0u);
  EXPECT_GT(stats(exact).rows_refined, 0u);
  EXPECT_GT(stats(exact).steps_refined, 0u);
  kvt_view_close(codes);
  kvt_view_close(exact);
}

TEST_F(Precision, NothingExactIsAttentionOverTheBase) {
  store();
  kvt_view* view = open_view(preset("exact_above = 1"), kStored);
  const Expected wanted = expected(1.0f), full = expected(0.0f);
  EXPECT_GT(distance(wanted.out, full.out), 1e-3);
  EXPECT_LT(distance(step(view), wanted.out), kClose);
  const kvt_view_stats seen = stats(view);
  const std::uint64_t heads = shape_.layers * shape_.kv_heads;
  EXPECT_EQ(seen.rows_base, (kStored - kSinks - kWindow) * heads);
  EXPECT_EQ(seen.rows_attended, (kStored + kTail) * heads);
  EXPECT_EQ(seen.rows_fetched, (kSinks + kWindow) * heads) << "what is always kept";
  EXPECT_EQ(seen.rows_refined, 0u);
  EXPECT_EQ(seen.steps_refined, 0u);
  EXPECT_GT(seen.base_bytes, kStored * heads * shape_.dim);
  EXPECT_GT(seen.base_mass_sum, 0.9 * static_cast<double>(shape_.layers));
  EXPECT_LE(seen.base_mass_sum, static_cast<double>(shape_.layers));
  kvt_view_close(view);
}

TEST_F(Precision, RowsWithMuchOfTheMassAreExactAtOnce) {
  store();
  kvt_view* view = open_view(preset("exact_above = 0.003"), kStored);
  const Expected wanted = expected(kShare);
  ASSERT_GT(wanted.hot, 4u);
  EXPECT_GT(distance(wanted.out, expected(1.0f).out), 10 * kClose);
  EXPECT_LT(distance(step(view), wanted.out), kClose);
  const kvt_view_stats first = stats(view);
  EXPECT_EQ(first.rows_refined, wanted.hot);
  EXPECT_EQ(first.steps_refined, shape_.layers);
  EXPECT_GT(first.base_error_sum, 0.0);
  EXPECT_LT(first.base_error_sum, static_cast<double>(wanted.hot)) << "less than e off";
  step(view);
  EXPECT_LE(stats(view).rows_refined, wanted.hot + 2) << "they stay in the slot cache";
  kvt_view_close(view);
}

TEST_F(Precision, RowsThatWillBeExactComeAhead) {
  store();
  // Fine codes: these keys are random, and rough codes mistake too many.
  const std::string parts = "abstract = \"codes:2\"\nexact_above = 0.006\n";
  kvt_view* plain = open_view(preset(parts), kStored);
  kvt_view* ahead = open_view(preset(parts + "fetch = \"ahead\""), kStored);
  EXPECT_EQ(kvt_view_looks_ahead(ahead), 1);
  EXPECT_LT(distance(step(plain), step(ahead)), kClose);
  const kvt_view_stats first = stats(ahead);
  EXPECT_EQ(first.rows_refined, stats(plain).rows_refined);
  const double rough = 3 * distance(expected(1.0f).out, expected(0.0f).out);
  for (std::uint32_t i = 1; i < 9; ++i) {
    EXPECT_LT(distance(step(plain, i), step(ahead, i, i)), rough) << i;
    if (i == 1) {
      EXPECT_LT(stats(ahead).rows_fetched, kStored * shape_.layers * shape_.kv_heads / 2)
          << "not all that are chosen";
    }
  }
  const kvt_view_stats seen = stats(ahead), without = stats(plain);
  ASSERT_GT(without.rows_refined, first.rows_refined + 12);
  // Some rows of a right guess are still found late.
  EXPECT_LT(seen.rows_refined - first.rows_refined,
            (without.rows_refined - first.rows_refined) / 2);
  EXPECT_GT(seen.rows_fetched, without.rows_fetched) << "those that are exact without need, too";
  EXPECT_LT(seen.rows_base, without.rows_base);
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

TEST_F(Precision, WithEverythingExactWhatComesAheadChangesNothing) {
  store();
  kvt_view* plain = open_view(preset("exact_above = 0"), 256);
  kvt_view* ahead = open_view(preset("exact_above = 0\nfetch = \"ahead\""), 256);
  for (std::uint32_t i = 0; i < 6; ++i)
    EXPECT_LT(distance(step(plain, i), step(ahead, i, i % 2 == 0 ? i : 100 + i)), kClose) << i;
  EXPECT_LT(stats(ahead).rows_refined, stats(plain).rows_refined);
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

TEST_F(Precision, AWrongGuessLeavesTheRightRowsExact) {
  store();
  kvt_view* plain = open_view(preset("exact_above = 0.003"), kStored);
  kvt_view* ahead = open_view(preset("exact_above = 0.003\nfetch = \"ahead\""), kStored);
  step(plain);
  step(ahead);
  const std::uint64_t first = stats(ahead).rows_refined;
  const double rough = 3 * distance(expected(1.0f).out, expected(0.0f).out);
  for (std::uint32_t i = 1; i < 9; ++i)
    EXPECT_LT(distance(step(plain, i), step(ahead, i, 100 + i)), rough) << i;
  EXPECT_GT(stats(ahead).rows_refined, first + 4) << "what the guesses did not bring";
  EXPECT_GT(stats(ahead).rows_fetched, stats(plain).rows_fetched);
  kvt_view_close(plain);
  kvt_view_close(ahead);
}

TEST_F(Precision, BehindTheyAreExactInTheNextStep) {
  store();
  kvt_view* view = open_view(preset("exact_above = 0.003\nrefine = \"behind\""), kStored);
  EXPECT_LT(distance(step(view), expected(1.0f).out), kClose);
  const Expected wanted = expected(kShare);
  const kvt_view_stats first = stats(view);
  EXPECT_EQ(first.rows_refined, wanted.hot);
  EXPECT_LT(distance(step(view), wanted.out), kClose);
  EXPECT_EQ(stats(view).rows_fetched - first.rows_fetched, wanted.hot) << "by the step after";
  kvt_view_close(view);
}

TEST_F(Precision, BaseRenditionsComeBackFromSidecarsAndAreMadeAnew) {
  store(false);
  kvt_view* view = open_view(preset("exact_above = 1"), kStored);
  const Expected wanted = expected(1.0f);
  EXPECT_LT(distance(step(view), wanted.out), kClose);
  kvt_view_close(view);
  const auto harm = [&](bool remove) {
    int harmed = 0;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/sidecars")) {
      if (!entry.path().string().ends_with(kBaseFile)) continue;
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
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    restart([&] {
      if (round > 0) harm(round == 1);
    });
    view = open_view(preset("exact_above = 1"), kStored);
    EXPECT_LT(distance(step(view), wanted.out), kClose);
    kvt_view_close(view);
    const Json abstracts = request(Json{{"op", "stats"}})["abstracts"];
    EXPECT_EQ(abstracts["rebuilt"], round == 0 ? 0 : 3);
    EXPECT_EQ(abstracts["base_bytes"], 0) << "nobody wants them any more";
  }
}

// `reindex` frees their places, which then hold rubbish, and gives them to others while a view
// reads.
TEST_F(Precision, WhatMovesMeanwhileIsNeverAttendedTo) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "reads first and looks after it whether it may count: a race by design";
#endif
  store();
  kvt_view* view = open_view(preset("precision = \"base:88\"\nexact_above = 1"), kStored);
  const Expected full = expected(0.0f);
  EXPECT_LT(distance(step(view), full.out), 5e-3) << "8 bits are nearly exact";
  constexpr int kRoundsMin = 3, kRoundsMax = 200;
  std::string freed = "abstracts.freed=fail";
  for (int visit = 2; visit <= 6 * kRoundsMax; ++visit)
    freed += ",abstracts.freed=fail@" + std::to_string(visit);
  ASSERT_TRUE(arm_faults(freed));
  const kvt_view_stats before = stats(view);
  std::uint64_t steps = 0;
  for (int round = 0; round < kRoundsMin || (round < kRoundsMax && stats(view).steps_repeated == 0);
       ++round) {
    Json state = request(Json{{"op", "reindex"}, {"all", true}});
    for (int i = 0; i < 3 || (state["running"] == true && i < 1000); ++i, ++steps) {
      ASSERT_LT(distance(step(view), full.out), 5e-3) << round;
      state = request(Json{{"op", "reindex_state"}});
    }
    EXPECT_EQ(state["running"], false);
    EXPECT_EQ(state["built"], 6) << "codes and base of three segments";
  }
  ASSERT_TRUE(arm_faults(""));
  const kvt_view_stats seen = stats(view);
  EXPECT_GT(seen.steps_repeated, 0u) << "nothing moved while it was read";
  EXPECT_EQ(seen.steps - before.steps, steps * shape_.layers) << "a repeated step counts once";
  EXPECT_LE(seen.base_mass_sum, static_cast<double>(seen.steps)) << "no rubbish in the sums";
  kvt_view_close(view);
}

TEST_F(Precision, WhatHasNoRoomIsReadExactly) {
  daemon_->stop();
  daemon_->abstracts_bytes = 1 << 20;
  kvt_client_close(client_);
  daemon_->start();
  client_ = open_client();
  store();
  // 8 bits: segments of 560, 560 and 111 KiB, and three quarters of 1 MiB are theirs. The older
  // ones go first.
  kvt_view* view = open_view(preset("precision = \"base:88\"\nexact_above = 1"), kStored);
  EXPECT_LT(distance(step(view), expected(1.0f, 8, 1).out), kClose);
  EXPECT_EQ(stats(view).rows_base,
            (kStored - 2048 - kSinks - kWindow) * shape_.layers * shape_.kv_heads);
  EXPECT_EQ(stats(view).units_missing, 0u) << "codes have room";
  const Json told = request(Json{{"op", "stats"}});
  EXPECT_EQ(told["abstracts"]["base_no_room"], 1);
  EXPECT_EQ(told["abstracts"]["no_room"], 0);
  EXPECT_EQ(told["abstracts"]["rebuilt"], 3 + 2) << "codes, and no base in vain";
  EXPECT_NE(told["off"].dump().find("base renditions or low-rank keys of some"), std::string::npos);
  kvt_view_close(view);
  EXPECT_EQ(request(Json{{"op", "stats"}})["abstracts"]["base_no_room"], 0);
}

TEST_F(Precision, RoomThatIsGivenBackServesWhoWaits) {
  daemon_->stop();
  daemon_->abstracts_bytes = 1 << 20;
  kvt_client_close(client_);
  daemon_->start();
  client_ = open_client();
  store(false);
  kvt_view* large = open_view(preset("precision = \"base:88\"\nexact_above = 1"), kStored);
  step(large);
  // 4 bits: 296, 296 and 60 KiB, of which only the last has room beside the 671 KiB above.
  kvt_view* small = open_view(preset("exact_above = 1"), kStored);
  step(small);
  const std::uint64_t heads = shape_.layers * shape_.kv_heads;
  EXPECT_EQ(stats(small).rows_base, (404 - kWindow) * heads);
  kvt_view_close(large);
  const auto ready = [&] {
    return request(Json{{"op", "stats"}})["abstracts"]["base_bytes"].get<std::uint64_t>() >
           600u << 10;
  };
  for (int i = 0; i < 1000 && !ready(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_TRUE(ready()) << request(Json{{"op", "stats"}})["abstracts"].dump();
  // Another view: this one has the rows in its slot caches by now.
  kvt_view* other = open_view(preset("exact_above = 1"), kStored);
  EXPECT_LT(distance(step(other), expected(1.0f).out), kClose);
  EXPECT_EQ(stats(other).rows_base, (kStored - kSinks - kWindow) * heads);
  kvt_view_close(small);
  kvt_view_close(other);
}

TEST_F(Precision, BaseSidecarsGoBeforeAnythingExact) {
  const auto base_files = [&] {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/sidecars"))
      count += entry.path().string().ends_with(kBaseFile) ? 1 : 0;
    return count;
  };
  store(false);
  kvt_view* view = open_view(preset("exact_above = 1"), kStored);
  step(view);
  kvt_view_close(view);
  restart([&] { EXPECT_EQ(base_files(), 3); });
  const auto used = [&] {
    return request(Json{{"op", "stats"}})["disk"]["store_bytes"].get<std::uint64_t>();
  };
  const std::uint64_t full = used();
  restart([&] { daemon_->disk_bytes_max = full; });
  kvt_sequence* more = create_sequence(space_, "more");
  Model other(shape_);
  other.append_many(more, 500000, 300);
  KVT_ASSERT_OK(kvt_sequence_commit(more));
  KVT_ASSERT_OK(kvt_sequence_close(more));
  EXPECT_LT(base_files(), 3) << "room is made of what can be made again";
  EXPECT_EQ(request(Json{{"op", "stats"}})["disk"]["evicted_segments"], 0);
  model_.expect_equal(sequence_);
  // Built again they are used, but written only as far as the disk has room.
  view = open_view(preset("exact_above = 1"), kStored);
  EXPECT_LT(distance(step(view), expected(1.0f).out), kClose);
  kvt_view_close(view);
  restart([&] { EXPECT_LT(base_files(), 3); });
  EXPECT_LE(used(), full);
}

}  // namespace
}  // namespace kvtier
