// Key codes over the real daemon: a codebook is made on first use, once, and is the same after a
// restart; codes that do not fit it are built again; every kind of abstract works on one sequence.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "client/retrieval/preset.h"
#include "tests/unit/client_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

class Codes : public ClientTest {
 protected:
  // A stored sequence of 4,500 tokens with some in its tail.
  void SetUp() override {
    ClientTest::SetUp();
    space_ = open_space(shape_, "codes", "codes");
    kvt_sequence* sequence = create_sequence(space_, "long");
    model_.append_many(sequence, 1, 4500);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    open();
  }
  void TearDown() override {
    close();
    ClientTest::TearDown();
  }
  void open(bool more = true) {
    sequence_ = open_sequence(space_, "long", true);
    if (more) model_.append(sequence_, 90000 + model_.tokens().size(), 4);
  }
  void close() {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    sequence_ = nullptr;
    space_ = nullptr;
  }
  void restart() {
    close();
    kvt_client_close(client_);
    daemon_->stop();
  }
  void start_again(bool more = true) {
    daemon_->start();
    client_ = open_client();
    space_ = open_space(shape_, "codes", "codes");
    open(more);
  }
  // One step of every layer through a fresh view; its statistics.
  kvt_view_stats run(const char* preset, std::vector<float>* attended = nullptr) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = 128;
    options.preset = preset;
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    std::vector<float> out(shape_.query_heads * shape_.dim);
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      std::vector<float> q(out.size());
      for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = element(7, layer, static_cast<std::uint32_t>(i), 2, 0);
      KVT_EXPECT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), nullptr));
      if (attended != nullptr) attended->insert(attended->end(), out.begin(), out.end());
    }
    kvt_view_stats stats{};
    stats.struct_size = sizeof stats;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &stats));
    kvt_view_close(view);
    return stats;
  }
  std::vector<std::filesystem::path> codebooks() const {
    std::vector<std::filesystem::path> out;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/codebooks"))
      out.push_back(entry.path());
    return out;
  }

  const TestShape shape_{};
  Model model_{shape_};
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

TEST_F(Codes, ACodebookIsMadeOnFirstUseAndKept) {
  EXPECT_TRUE(codebooks().empty());
  std::vector<float> first, second;
  const kvt_view_stats stats = run("codes");
  EXPECT_EQ(stats.units_missing, 0u);
  EXPECT_EQ(stats.units_scored, 4500u * shape_.layers * shape_.kv_heads);
  EXPECT_LE(stats.rows_selected, 128u * shape_.layers * shape_.kv_heads);
  EXPECT_GT(stats.rows_selected, 96u * shape_.layers * shape_.kv_heads);
  EXPECT_GT(stats.mass_sum / static_cast<double>(stats.selections), 0.05);
  const auto made = codebooks();
  ASSERT_EQ(made.size(), 1u);
  KVT_ASSERT_OK(kvt_sequence_close(sequence_));  // all is in segments, as after the restart
  open(false);
  run("codes", &first);
  restart();
  start_again(false);
  EXPECT_EQ(run("codes").units_missing, 0u);
  run("codes", &second);  // from memory, as before: what comes from disk is chosen more widely
  EXPECT_EQ(codebooks(), made) << "trained again";
  ASSERT_EQ(first.size(), second.size());
  EXPECT_LT(distance(first, second), 2e-5);
  EXPECT_EQ(request(Json{{"op", "stats"}})["abstracts"]["rebuilt"], 0) << "not from sidecars";
}

TEST_F(Codes, CodebooksAreListedAndNotLoadedForIt) {
  const auto listed = [this] { return request(Json{{"op", "codebooks"}})["codebooks"]; };
  EXPECT_EQ(listed(), Json::array());
  run("codes");
  const Json used = listed();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0]["kind"], "codes:4/tokens");
  EXPECT_EQ(used[0]["model"], "codes");
  EXPECT_EQ(used[0]["state"], "in use");
  EXPECT_GT(used[0]["keys_per_head"], 1000);
  EXPECT_EQ(used[0]["positions"], 0) << "this space does not say how its keys are rotated";
  restart();
  start_again();
  Json stored = listed();
  EXPECT_EQ(stored[0]["state"], "stored");
  stored[0]["state"] = "in use";
  EXPECT_EQ(stored, used);
  EXPECT_EQ(listed()[0]["state"], "stored") << "looking does not load it";
  restart();
  {
    std::fstream file(codebooks()[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5000);
    file.put('\x55');
  }
  start_again();
  EXPECT_EQ(listed()[0]["problem"], "is damaged");
  EXPECT_EQ(listed()[0]["id"], used[0]["id"]) << "looking does not give it up";
}

// Where the rotation is unknown nothing stands in for keys that a short text lacks.
TEST_F(Codes, TheKeysOfACodebookAreThoseItWasTrainedOn) {
  kvt_space* little = open_space(shape_, "little", "codes");
  kvt_sequence* sequence = create_sequence(little, "short");
  Model model(shape_);
  model.append_many(sequence, 1, 300);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(little, "short", true);
  model.append(sequence, 400, 4);
  std::swap(sequence, sequence_);
  EXPECT_EQ(run("codes").units_missing, 0u);
  std::swap(sequence, sequence_);
  const Json made = request(Json{{"op", "codebooks"}})["codebooks"];
  ASSERT_EQ(made.size(), 1u);
  EXPECT_EQ(made[0]["keys_per_head"], 300 - 16) << "all but the sinks";
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(little);
}

TEST_F(Codes, ADamagedCodebookIsMadeAnewWithItsCodes) {
  run("codes");
  const auto made = codebooks();
  ASSERT_EQ(made.size(), 1u);
  restart();
  {
    std::fstream file(made[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5000);
    file.put('\x55');
  }
  start_again();
  EXPECT_EQ(run("codes").units_missing, 0u);
  const auto anew = codebooks();
  EXPECT_NE(anew, made);
  EXPECT_GE(request(Json{{"op", "stats"}})["abstracts"]["rebuilt"], 3) << "codes of the old one";
}

TEST_F(Codes, EveryKindOfAbstractServesOneSequence) {
  for (const Preset& preset : all_presets()) {
    SCOPED_TRACE(preset.name);
    const kvt_view_stats stats = run(preset.name.c_str());
    EXPECT_EQ(stats.units_missing, 0u);
    if (!preset.abstract.none()) {
      EXPECT_GT(stats.units_scored, 0u);
      EXPECT_GT(stats.rows_selected, 0u);
      EXPECT_LE(stats.rows_selected, 128u * shape_.layers * shape_.kv_heads);
    }
  }
  // What no view wants is not in memory.
  const Json stats = request(Json{{"op", "stats"}});
  EXPECT_EQ(stats["abstracts"]["no_room"], 0);
}

// Own codes need no codebook of the space: their sidecars are read back, and what is damaged there
// is built again.
TEST_F(Codes, OwnCodesAreReadBackAndMended) {
  EXPECT_EQ(run("pqcache").units_missing, 0u);
  EXPECT_TRUE(codebooks().empty());
  restart();
  start_again();
  const kvt_view_stats stats = run("pqcache");
  EXPECT_EQ(stats.units_missing, 0u);
  EXPECT_GE(stats.units_scored, 4500u * shape_.layers * shape_.kv_heads);
  // But for what the close sealed.
  EXPECT_GE(request(Json{{"op", "stats"}})["abstracts"]["loaded"], 3);
  EXPECT_LE(request(Json{{"op", "stats"}})["abstracts"]["rebuilt"], 1);
  restart();
  const std::string kind =
      "-" + std::to_string(parse_abstract_spec("own-codes:2/tokens")->packed()) + ".kva";
  int damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/sidecars")) {
    if (!entry.path().string().ends_with(kind)) continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5000);
    file.put('\x55');
    file.put('\xAA');
    ++damaged;
  }
  EXPECT_GE(damaged, 2);
  start_again();
  EXPECT_EQ(run("pqcache").units_missing, 0u);
  // And what the last close sealed.
  EXPECT_GE(request(Json{{"op", "stats"}})["abstracts"]["rebuilt"], damaged);
}

TEST_F(Codes, APrivateSpaceKeepsItsCodebookToItself) {
  kvt_space* closed = open_space(shape_, "secret", "codes", true);
  kvt_sequence* sequence = create_sequence(closed, nullptr);
  Model model(shape_);
  model.append_many(sequence, 1, 2500);
  std::swap(sequence, sequence_);
  EXPECT_EQ(run("codes").units_missing, 0u);
  std::swap(sequence, sequence_);
  EXPECT_TRUE(codebooks().empty());
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(closed);
}

// It stays in memory, and so do the codes of what is stored that it makes: after a restart another
// one makes them anew.
TEST_F(Codes, NothingStoredNamesACodebookOfWhatIsPrivate) {
  kvt_space* closed = open_space(shape_, "secret", "codes", true);
  kvt_sequence* sequence = create_sequence(closed, nullptr);
  Model model(shape_), open_model(shape_);
  model.append_many(sequence, 1, 2500);
  std::swap(sequence, sequence_);
  const auto listed = [this] { return request(Json{{"op", "codebooks"}})["codebooks"]; };
  for (int i = 0; i < 500 && listed().empty(); ++i) run("codes");  // until something is sealed
  ASSERT_EQ(listed().size(), 1u);
  std::swap(sequence, sequence_);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space* open = open_space(shape_, "secret", "codes");
  sequence = create_sequence(open, "public");
  open_model.append_many(sequence, 2, 2500);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  std::swap(sequence, sequence_);
  EXPECT_EQ(run("codes").units_missing, 0u);
  std::swap(sequence, sequence_);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  EXPECT_TRUE(codebooks().empty());
  EXPECT_TRUE(std::filesystem::is_empty(root_ + "/store/sidecars"));
  daemon_->kill();
  daemon_->start();
  sequence = open_sequence(open, "public", false);
  std::swap(sequence, sequence_);
  EXPECT_EQ(run("codes").units_missing, 0u);
  std::swap(sequence, sequence_);
  open_model.expect_equal(sequence);
  EXPECT_EQ(codebooks().size(), 1u);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(open);
  kvt_space_close(closed);
}

}  // namespace
}  // namespace kvtier
