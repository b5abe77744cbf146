// Presets of users over the real daemon: a view that reads its preset from a file decodes as the
// built-in that the file copies, and what is wrong with a file reaches the caller.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/fault.h"
#include "client/retrieval/preset_text.h"
#include "tests/unit/client_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

class UserPresets : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    const char* before = std::getenv("XDG_CONFIG_HOME");
    before_ = before != nullptr ? before : "";
    ::setenv("XDG_CONFIG_HOME", (root_ + "/config").c_str(), 1);
    folder_ = root_ + "/config/kvtier/presets";
    std::filesystem::create_directories(folder_);
    space_ = open_space(shape_, "presets", "codes");
    sequence_ = create_sequence(space_, "long");
    model_.append_many(sequence_, 1, 4500);
  }
  void TearDown() override {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    before_.empty() ? ::unsetenv("XDG_CONFIG_HOME")
                    : ::setenv("XDG_CONFIG_HOME", before_.c_str(), 1);
    ClientTest::TearDown();
  }
  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/" + name + ".toml";
    std::ofstream(path) << text;
    return path;
  }
  kvt_status open(const char* preset, kvt_view** view, std::uint64_t budget = 128) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.preset = preset;
    return kvt_view_open(sequence_, &options, view);
  }
  // Three steps of every layer; rows are in memory.
  std::vector<float> decode(const char* preset, kvt_view_stats* stats, std::uint64_t budget = 128) {
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(open(preset, &view, budget));
    std::vector<float> all, out(shape_.query_heads * shape_.dim), q(out.size());
    for (std::uint32_t step = 0; step < 3; ++step)
      for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
        for (std::size_t i = 0; i < q.size(); ++i)
          q[i] = element(7 + step, layer, static_cast<std::uint32_t>(i), 2, 0);
        KVT_EXPECT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), nullptr));
        all.insert(all.end(), out.begin(), out.end());
      }
    *stats = {};
    stats->struct_size = sizeof *stats;
    KVT_EXPECT_OK(kvt_view_get_stats(view, stats));
    kvt_view_close(view);
    return all;
  }

  // The figures of preset "mean" when both full halves of the tail are sealed.
  kvt_view_stats settle() {
    const std::uint64_t steps = 3 * shape_.layers * shape_.kv_heads;
    kvt_view_stats stats{};
    for (int i = 0; i < 500 && stats.units_scored != steps * 4096 / 16; ++i) decode("mean", &stats);
    EXPECT_EQ(stats.units_scored, steps * 4096 / 16);
    return stats;
  }

  const TestShape shape_{};
  Model model_{shape_};
  std::string before_, folder_;
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};

TEST_F(UserPresets, AFileDecodesAsTheBuiltInThatItCopies) {
  for (const Preset& preset : all_presets()) {
    SCOPED_TRACE(preset.name);
    const std::string path = write("my-" + preset.name, preset_toml(preset));
    kvt_view_stats first, built_in, named, by_path;
    decode(preset.name.c_str(), &first);  // its abstracts are built, its rows read
    const std::vector<float> wanted = decode(preset.name.c_str(), &built_in);
    EXPECT_EQ(decode(("my-" + preset.name).c_str(), &named), wanted);
    EXPECT_EQ(decode(path.c_str(), &by_path), wanted);
    kvt_view* view = nullptr;
    KVT_ASSERT_OK(open(path.c_str(), &view));
    EXPECT_EQ(kvt_view_preset(view), "# my-" + preset.name + "\n" + preset_toml(preset));
    kvt_view_close(view);
    for (const kvt_view_stats& stats : {named, by_path}) {
      EXPECT_EQ(stats.selections, built_in.selections);
      EXPECT_EQ(stats.rows_selected, built_in.rows_selected);
      EXPECT_EQ(stats.rows_fetched, built_in.rows_fetched);
      EXPECT_EQ(stats.steps_repeated, 0u) << "nothing moves here";
      EXPECT_EQ(stats.units_scored, built_in.units_scored);
      EXPECT_EQ(stats.mass_sum, built_in.mass_sum);
    }
  }
}

TEST_F(UserPresets, PartsAct) {
  kvt_view_stats every = settle(), fourth, third;
  write("seldom", "base = \"mean\"\ntrigger = \"every-n\"\nlevel = 2\n");
  decode("seldom", &fourth);
  EXPECT_EQ(fourth.selections * 3, every.selections * 2) << "steps 1 and 3 of three";
  // Scored at every step, chosen anew only where too much is outside.
  kvt_view_stats lax, strict;
  write("lax", "base = \"mean\"\ntrigger = \"mass\"\nlevel = 0.999\n");
  decode("lax", &lax);
  EXPECT_EQ(lax.selections * 3, every.selections) << "the first step only";
  EXPECT_EQ(lax.units_scored, every.units_scored);
  EXPECT_LT(lax.rows_fetched, every.rows_fetched);
  write("strict", "base = \"mean\"\ntrigger = \"mass\"\nlevel = 0.000001\n");
  decode("strict", &strict);
  EXPECT_EQ(strict.selections, every.selections);
  EXPECT_EQ(strict.rows_selected, every.rows_selected);
  write("together", "base = \"mean\"\nscope = \"layer\"\ntrigger = \"mass\"\nlevel = 0.999\n");
  decode("together", &lax);
  EXPECT_EQ(lax.selections * 3, every.selections);
  EXPECT_EQ(lax.units_scored, every.units_scored);
  write("less", "base = \"mean\"\nbudget = \"ratio\"\nshare = 0.01\n");
  decode("less", &third);
  EXPECT_LE(third.rows_selected, 48 * third.selections) << "a hundredth of 4500";
  EXPECT_GT(third.rows_selected, 0u);
}

// As if reindex overwrote the borders of a layer's units while its first head read them.
TEST_F(UserPresets, HeadsOfALayerHaveTheSameUnits) {
  write("layered", "partition = \"sentences:64\"\nabstract = \"mean\"\nscope = \"layer\"\n");
  settle();
  kvt_view_stats all, seen;
  decode("layered", &all);
  EXPECT_EQ(all.units_missing, 0u);
  ASSERT_TRUE(arm_faults("view.borders=fail"));
  decode("layered", &seen);
  ASSERT_TRUE(arm_faults(""));
  const std::uint64_t of_step = all.units_scored / (3 * shape_.layers);
  EXPECT_EQ(seen.units_scored, all.units_scored - of_step + shape_.kv_heads * 2)
      << "two segments of one unit each, at one step";
}

// The bound that the view tells of its steps is the one that was asked for, where the budget has
// room for it. The keys are noise, so that certainty takes nearly all rows.
TEST_F(UserPresets, ACertifiedBudgetKeepsItsPromise) {
  settle();
  for (const auto& [abstract, share] : {std::pair{"box", 0.005}, std::pair{"ball", 0.1}}) {
    SCOPED_TRACE(abstract);
    write("sure", "base = \"quest\"\nabstract = \"" + std::string(abstract) +
                      "\"\nbudget = \"certified\"\nshare = " + std::to_string(share) + "\n");
    kvt_view_stats room, narrow;
    decode("sure", &room, 6000);  // its abstracts are built
    decode("sure", &room, 6000);
    EXPECT_EQ(room.bound_steps, 3u * shape_.layers);
    EXPECT_LE(room.bound_max, 1.0 - share + 1e-5);
    EXPECT_GT(room.bound_max, 0.5) << "no more than was asked for";
    EXPECT_LT(room.rows_selected, room.selections * 3950);
    decode("sure", &narrow);
    EXPECT_GT(narrow.bound_max, 1.0 - share);
    EXPECT_LE(narrow.rows_selected, narrow.selections * 128);
  }
}

// A layer attends to what it would in a view with the layer's budget, and takes the same memory.
TEST_F(UserPresets, ALayerHasItsOwnBudget) {
  settle();
  const auto run = [&](const std::string& preset, std::uint64_t budget, std::uint32_t layer,
                       kvt_view_stats* stats) {
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(open(preset.c_str(), &view, budget));
    std::vector<float> all, out(shape_.query_heads * shape_.dim);
    for (std::uint32_t step = 0; step < 3; ++step) {
      const std::vector<float> q = step_queries(shape_, step, layer);
      KVT_EXPECT_OK(kvt_view_look_ahead(view, layer, q.data(), 0.25f));
      KVT_EXPECT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), nullptr));
      all.insert(all.end(), out.begin(), out.end());
    }
    *stats = stats_of(view);
    kvt_view_close(view);
    return all;
  };
  kvt_view_stats seen, other;
  const std::vector<float> kept = run("window", 128, 1, &seen);
  const std::vector<float> everything = run("full", 128, 0, &seen);
  for (const char* base :
       {"base = \"quest\"\n", "base = \"codes\"\n", "base = \"progressive-lookahead\"\n",
        "base = \"leoam\"\nflat_layers = 0\n", "base = \"mean\"\ntrigger = \"mass\"\nlevel = 0.5\n",
        "base = \"mean\"\ntrigger = \"mass\"\nlevel = 0.5\nscope = \"layer\"\n",
        "base = \"quest\"\nbudget = \"certified\"\nshare = 0.5\n"}) {
    SCOPED_TRACE(base);
    write("even", base);
    write("uneven", std::string(base) + "layer_percent = [200, 50]\n");
    run("even", 256, 0, &seen);  // its abstracts are built, its rows read
    run("even", 256, 1, &seen);
    std::uint64_t client_bytes[2];
    for (const std::uint32_t layer : {0u, 1u}) {
      SCOPED_TRACE(layer);
      EXPECT_EQ(run("uneven", 128, layer, &seen),
                run("even", layer == 0 ? 256 : 64, layer, &other));
      EXPECT_GT(seen.rows_selected, 0u);
      EXPECT_EQ(seen.rows_selected, other.rows_selected);
      EXPECT_EQ(seen.rows_attended, other.rows_attended);
      EXPECT_EQ(seen.rows_fetched, other.rows_fetched);
      EXPECT_EQ(seen.client_bytes, other.client_bytes);
      client_bytes[layer] = seen.client_bytes;
    }
    EXPECT_GT(client_bytes[0], client_bytes[1]);
    if (std::string(base).find("certified") != std::string::npos) continue;  // refused
    write("none", std::string(base) + "layer_percent = [100, 0]\n");
    EXPECT_LT(distance(run("none", 128, 1, &seen), kept), 1e-5);
    EXPECT_EQ(seen.rows_selected + seen.units_scored, 0u);
    write("dense", std::string(base) + "layer_percent = [0]\ndense_layers = 1\n");
    EXPECT_EQ(run("dense", 128, 0, &seen), everything);
  }
}

// Partition "segments": a view tells which tokens its model wrote, and where at least half of the
// layers chose anew; the daemon cuts there.
TEST_F(UserPresets, ADecodeIsStoredInSegments) {
  TestShape shape;
  shape.layers = 3;
  write("cut", "base = \"louiskv\"\n");
  kvt_space* space = open_space(shape, "segments", "cut");
  kvt_sequence* sequence = create_sequence(space, "reply");
  Model model(shape);
  model.append_many(sequence, 1, 40);
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = 128;
  options.preset = "cut";
  kvt_view* view = nullptr;
  KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
  std::vector<float> out(shape.query_heads * shape.dim), q(out.size());
  const auto attend = [&](std::uint32_t layer, float value) {
    std::fill(q.begin(), q.end(), value);
    KVT_EXPECT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), nullptr));
  };
  float side[3] = {1, 1, 1};
  const auto turn = [&](std::initializer_list<int> layers) {
    for (const int layer : layers) side[layer] = -side[layer];
  };
  for (std::uint32_t step = 0; step < 30; ++step) {
    if (step == 10) turn({0, 1, 2});
    if (step == 15) turn({1});
    if (step == 20) turn({0, 2});
    model.append(sequence, 1000 + step, 1, step % 2 == 0);  // of the piece, or complete already
    for (std::uint32_t layer = 0; layer < 3; ++layer) attend(layer, side[layer]);
  }
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  for (std::uint32_t layer = 0; layer < 3; ++layer) attend(layer, -side[layer]);  // too late
  kvt_view_close(view);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(space, "reply", false);
  std::vector<kvt_token> tokens(70);
  KVT_ASSERT_OK(kvt_sequence_tokens(sequence, 0, 70, tokens.data()));
  for (std::uint32_t t = 0; t < 70; ++t)
    EXPECT_EQ(tokens[t].flags >> 8, t < 40 ? 0u : t == 50 || t == 60 ? 3u : 1u) << t;
  options.sinks = options.window = 0;
  KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
  attend(0, 1.0f);
  kvt_view_stats stats{};
  stats.struct_size = sizeof stats;
  KVT_EXPECT_OK(kvt_view_get_stats(view, &stats));
  EXPECT_EQ(stats.units_missing, 0u);
  EXPECT_EQ(stats.units_scored, shape.kv_heads * (3u + 3u)) << "clusters of 40, runs of 10";
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// Several queries: exact, but where the preset chooses for blocks of at most 64 of them.
TEST_F(UserPresets, ABlockOfQueriesChoosesOnce) {
  settle();
  write("exact", "base = \"mean\"\n");
  write("blocks", "base = \"mean\"\nquery = \"block\"\ntrigger = \"every-n\"\nlevel = 1000\n");
  const auto after = [&](const char* preset, const std::vector<std::uint32_t>& calls) {
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(open(preset, &view));
    for (const std::uint32_t queries : calls) {
      std::vector<float> q(std::size_t{queries} * shape_.query_heads * shape_.dim);
      for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = element(7, 0, static_cast<std::uint32_t>(i), 2, 0);
      std::vector<float> out(q.size());
      KVT_EXPECT_OK(kvt_view_attend(view, 0, queries, q.data(), 0.25f, out.data(), nullptr));
    }
    kvt_view_stats stats{};
    stats.struct_size = sizeof stats;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &stats));
    kvt_view_close(view);
    return stats;
  };
  EXPECT_EQ(after("exact", {3}).selections, 0u);
  const kvt_view_stats one = after("blocks", {1}), three = after("blocks", {3});
  EXPECT_EQ(one.selections, shape_.kv_heads);
  EXPECT_EQ(three.selections, shape_.kv_heads);
  EXPECT_EQ(three.rows_selected, one.rows_selected);
  EXPECT_EQ(three.units_scored, 3 * one.units_scored);
  EXPECT_EQ(after("blocks", {64}).selections, shape_.kv_heads);
  EXPECT_EQ(after("blocks", {130}).selections, 3 * shape_.kv_heads);
  EXPECT_EQ(after("blocks", {65}).selections, 2 * shape_.kv_heads) << "the last one alone";
  write("boxes", "base = \"quest\"\nquery = \"block\"\n");
  EXPECT_EQ(after("boxes", {1}).bound_steps, 1u);
  EXPECT_EQ(after("boxes", {65}).bound_steps, 0u) << "no bound of several queries";
  EXPECT_EQ(after("blocks", {1, 1}).selections, shape_.kv_heads);
  EXPECT_EQ(after("blocks", {1, 3, 1, 1}).selections, 3 * shape_.kv_heads);
  // The first of these queries sees less than what is stored: exact.
  EXPECT_EQ(after("blocks", {1000}).selections, 0u);
}

// With a budget for everything, blocks attend to what exact attention does, each query as far as it
// sees; and what they chose is told of every layer.
TEST_F(UserPresets, BlocksOfQueriesAttendToWhatTheyChose) {
  settle();
  kvt_view_options options;
  kvt_view_options_init(&options);
  const auto attend = [&](std::uint64_t budget, const std::string& preset, std::uint32_t layer) {
    options.budget = budget;
    options.preset = preset.c_str();
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    std::vector<float> q(std::size_t{65} * shape_.query_heads * shape_.dim), out(q.size());
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = element(7, layer, static_cast<std::uint32_t>(i), 2, 0);
    KVT_EXPECT_OK(kvt_view_attend(view, layer, 65, q.data(), 0.25f, out.data(), nullptr));
    kvt_view_close(view);
    return out;
  };
  const std::vector<float> exact = attend(0, "codes", 1);
  for (const char* base : {"mean", "quest", "codes", "mean\"\nscope = \"layer"}) {
    const std::string file =
        write("all", "base = \"" + std::string(base) + "\"\nquery = \"block\"\n");
    EXPECT_LT(distance(attend(8192, file, 1), exact), 1e-5) << base;
    EXPECT_GT(distance(attend(64, file, 1), exact), 1e-3) << base;
  }
}

TEST_F(UserPresets, WhatBlocksChoseIsToldOfEveryLayer) {
  settle();
  const std::string file = write("told", "base = \"mean\"\nquery = \"block\"\n");
  kvt_view* view = nullptr;
  KVT_ASSERT_OK(open(file.c_str(), &view));
  std::vector<float> q(std::size_t{130} * shape_.query_heads * shape_.dim), out(q.size());
  for (std::size_t i = 0; i < q.size(); ++i)
    q[i] = element(7, 0, static_cast<std::uint32_t>(i), 2, 0);
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
    KVT_ASSERT_OK(kvt_view_attend(view, layer, 130, q.data(), 0.25f, out.data(), nullptr));
  const Json told = request({{"op", "reads"}, {"target", "long"}, {"first", 0}, {"count", 4096}});
  std::uint64_t rows = 0;
  for (const Json& group : told["groups"])
    for (const Json& count : group["counts"]) rows += count.get<std::uint64_t>();
  EXPECT_EQ(rows, std::uint64_t{3} * 128 * shape_.kv_heads * shape_.layers)
      << told.dump().substr(0, 300);
  kvt_view_close(view);
}

TEST_F(UserPresets, WhatIsWrongReachesTheCaller) {
  kvt_view* view = nullptr;
  const auto refused = [&](const char* preset, kvt_status status, const char* says) {
    EXPECT_EQ(open(preset, &view), status) << preset;
    EXPECT_NE(std::string(kvt_last_error()).find(says), std::string::npos) << kvt_last_error();
    EXPECT_EQ(view, nullptr);
  };
  write("mine", "base = \"quest\"\n");
  const std::string typo = write("typo", "base = \"quest\"\nbugdet = \"rows\"\n");
  refused("typo", KVT_ERROR_INVALID,
          "typo.toml: unknown key 'bugdet'; a preset has base, partition");
  refused(typo.c_str(), KVT_ERROR_INVALID, "(line 2)");
  refused("nobody", KVT_ERROR_NOT_FOUND, "or full; of this user: mine, typo (");
  refused("./nobody.toml", KVT_ERROR_NOT_FOUND, "cannot read ./nobody.toml: No such file");
  refused("nobody.toml", KVT_ERROR_NOT_FOUND, "cannot read nobody.toml");
  refused(folder_.c_str(), KVT_ERROR_IO, "it is no file");
  write("large", std::string(70000, '#'));
  refused("large", KVT_ERROR_TOO_LARGE, "at most 65536 bytes");
  kvt_space_options options;
  kvt_space_options_init(&options);
  kvt_layer layer = {0, 0, 0, KVT_DTYPE_F16, 1, 1, 32, 32};
  options.model = "m";
  options.runtime = "r";
  options.layers = &layer;
  options.layer_count = 1;
  options.preset = "typo";
  kvt_space* space = nullptr;
  EXPECT_EQ(kvt_space_open(client_, &options, &space), KVT_ERROR_INVALID);
  EXPECT_NE(std::string(kvt_last_error()).find("unknown key"), std::string::npos);
}

TEST_F(UserPresets, AreListedWithTheBuiltInOnes) {
  write("mine", "base = \"louiskv\"\nlevel = 0.5\n");
  write("quest", "base = \"mean\"\n");
  write("broken", "base = 3\n");
  char* text = nullptr;
  KVT_ASSERT_OK(kvt_presets(nullptr, &text));
  const Json all = Json::parse(text);
  kvt_free(text);
  ASSERT_EQ(all["presets"].size(), all_presets().size() + 1);
  EXPECT_EQ(all["presets"][0]["name"], all_presets().front().name);
  EXPECT_EQ(all["presets"][0]["from"], "built-in");
  const Json& mine = all["presets"].back();
  EXPECT_EQ(mine["name"], "mine");
  EXPECT_EQ(mine["from"], folder_ + "/mine.toml");
  EXPECT_EQ(mine["level"], 0.5);
  ASSERT_EQ(all["broken"].size(), 2u);
  EXPECT_EQ(all["broken"][1]["name"], "quest") << "it would never be taken";
  KVT_ASSERT_OK(kvt_presets("mine", &text));
  const std::string toml = Json::parse(text)["presets"][0]["toml"];
  kvt_free(text);
  std::string problem;
  EXPECT_EQ(parse_preset("mine", toml, &problem)->level, 0.5f) << problem;
  EXPECT_EQ(kvt_presets("broken", &text), KVT_ERROR_INVALID);
  EXPECT_EQ(text, nullptr);
}

// A profile names preset and budget of a model where the caller names none.
TEST_F(UserPresets, AProfileIsTheDefaultOfItsModel) {
  const std::string profiles = root_ + "/config/kvtier/profiles";
  std::filesystem::create_directories(profiles);
  const auto put = [&](const char* name, const std::string& text) {
    std::ofstream(profiles + "/" + name + ".toml") << text;
  };
  const auto rows_of = [&](const char* preset, std::uint64_t budget) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.preset = preset;
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));
    std::vector<float> out(shape_.query_heads * shape_.dim), q(out.size(), 1.0f);
    KVT_EXPECT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.25f, out.data(), nullptr));
    kvt_view_stats stats{};
    stats.struct_size = sizeof stats;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &stats));
    kvt_view_close(view);
    return stats.rows_selected / shape_.kv_heads;
  };
  put("other", "model = \"another\"\npreset = \"mean\"\nbudget = 96\n");
  kvt_view* view = nullptr;
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = KVT_BUDGET_PROFILE;
  EXPECT_EQ(kvt_view_open(sequence_, &options, &view), KVT_ERROR_NOT_FOUND);
  EXPECT_NE(std::string(kvt_last_error()).find("kvtier tune"), std::string::npos);
  put("mine",
      "model = \"elsewhere\"\nalso = \"presets\"\npreset = \"mean\"\nbudget = 64\n"
      "[measured]\nkl = 0.002\n");
  EXPECT_EQ(rows_of(nullptr, KVT_BUDGET_PROFILE), 64u);
  EXPECT_EQ(rows_of("quest", KVT_BUDGET_PROFILE), 64u);
  EXPECT_EQ(rows_of(nullptr, 128), 128u);
  write("narrow", "base = \"mean\"\nbudget = \"ratio\"\nshare = 0.01\n");
  put("mine", "model = \"presets\"\npreset = \"narrow\"\nbudget = 64\n");
  EXPECT_LE(rows_of(nullptr, 128), 48u) << "the profile's preset";
  EXPECT_EQ(rows_of("mean", 128), 128u) << "the caller's";
  put("twice", "model = \"presets\"\npreset = \"mean\"\nbudget = 1\n");
  EXPECT_EQ(kvt_view_open(sequence_, &options, &view), KVT_ERROR_INVALID);
  EXPECT_NE(std::string(kvt_last_error()).find("remove one"), std::string::npos);
  // A broken file stops the models that it may be of, no others.
  put("twice", "model = \"another\"\nbugdet = 1\n");
  EXPECT_GT(rows_of(nullptr, KVT_BUDGET_PROFILE), 0u);
  std::filesystem::remove(profiles + "/mine.toml");
  for (const char* bad :
       {"model = \"presets\"\nbudget = 0\n", "modell = \"presets\"\n", "also = \"presets\"\n",
        "model = \"presets\"\npreset = \"mean\"\n", "# presets\nbudget = \"all\"\n", "presets"}) {
    put("twice", bad);
    EXPECT_EQ(kvt_view_open(sequence_, &options, &view), KVT_ERROR_INVALID) << bad;
    EXPECT_NE(std::string(kvt_last_error()).find("twice.toml: "), std::string::npos);
  }
  options.preset = "mean";
  options.budget = 16;
  KVT_EXPECT_OK(kvt_view_open(sequence_, &options, &view));  // asks for no profile
  kvt_view_close(view);
}

}  // namespace
}  // namespace kvtier
