// Every region of segment, tail log and sidecar flipped and cut; the files emptied, deleted and put
// in each other's place. The daemon starts over each, serves what is whole, gives a miss with its
// reason for the rest and never a wrong byte; verify names it, repair drops it, and storing the
// same again heals it, also across the next start.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "tests/fault/fault_store.h"
#include "tests/fault/regions.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier::testing {
namespace {

const Story& story_named(const std::string& name) {
  return *std::find_if(std::begin(kStories), std::end(kStories),
                       [&](const Story& story) { return story.name == name; });
}

struct Damage {
  std::string what;
  std::function<void(FaultStore&)> apply;
  bool harmless = false;  // bytes that nobody reads
};

void flip(std::string* bytes, std::uint64_t at) {
  (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << (at % 8)));
}

// Flips of the first, a middle and the last byte of the region, and a cut in it.
std::vector<Damage> damages_of(const std::string& name, const std::vector<Region>& regions,
                               std::size_t step) {
  EXPECT_FALSE(regions.empty()) << name << " is not sound";
  std::vector<Damage> damages;
  for (std::size_t i = 0; i < regions.size(); i += step) {
    const Region& region = regions[i];
    const std::string where = name + ", " + region.name + " at " + std::to_string(region.offset);
    const std::uint64_t middle = region.offset + region.size_bytes / 2;
    const auto flip_at = [&](std::uint64_t at) {
      damages.push_back({"flip " + std::to_string(at) + " of " + where,
                         [name, at](FaultStore& store) {
                           std::string bytes = store.get(name);
                           flip(&bytes, at);
                           store.put(name, bytes);
                         },
                         !region.read});
    };
    flip_at(i % 2 == 0 ? region.offset : region.offset + region.size_bytes - 1);
    flip_at(middle);
    if (!region.read) continue;
    damages.push_back(
        {"cut at " + std::to_string(middle) + " of " + where,
         [name, middle](FaultStore& store) { store.put(name, store.get(name).substr(0, middle)); },
         false});
  }
  damages.push_back({"empty " + name, [name](FaultStore& store) { store.put(name, ""); }, false});
  damages.push_back({"delete " + name, [name](FaultStore& store) { store.remove(name); }, false});
  return damages;
}

Damage swap_of(const std::string& a, const std::string& b) {
  return {"swap " + a + " and " + b, [a, b](FaultStore& store) {
            const std::string first = store.get(a), second = store.get(b);
            EXPECT_NE(first, second);
            store.put(a, second);
            store.put(b, first);
          }};
}

std::uint64_t reasons(const Json& stats) {
  std::uint64_t sum = stats["misses"].value("checksum", 0u) + stats["misses"].value("evicted", 0u);
  for (const char* key : {"segments_missing", "segments_bad", "chunks_bad", "logs_torn"})
    sum += stats["damage"].value(key, 0u);
  return sum;
}

class DamagedFiles : public ::testing::Test {
 protected:
  // The name of the file of a story's first segment, its sidecar, or its log.
  static std::string file_of(FaultStore& store, const std::string& story) {
    int exit_code = 0;
    const Json shown =
        store.command("show " + story + " --json --socket " + store.settings.socket, &exit_code);
    EXPECT_EQ(exit_code, 0);
    return shown["segments"].empty() ? "" : shown["segments"][0].value("file", "");
  }

  struct Names {
    std::string short_segment, other_segment, long_segment;
    std::vector<std::string> logs;
  };
  static const Names& files() {
    static const Names names = [] {
      FaultStore store;
      Names found;
      EXPECT_TRUE(store.start());
      found.short_segment = file_of(store, "short");
      found.other_segment = file_of(store, "other");
      found.long_segment = file_of(store, "long");
      EXPECT_TRUE(store.stop());
      found.logs = store.files("logs");
      EXPECT_EQ(found.logs.size(), 2u);
      return found;
    }();
    return names;
  }
  static std::string sidecar_of(const std::string& segment) {
    return sidecar_path(*segment_id_of(segment.substr(segment.find('/') + 1)),
                        parse_abstract_spec("box/pages:16")->packed());
  }
  // A log's last record may have been cut off by a power cut before it was acknowledged, sidecars
  // and codebooks are made again from stored keys: named, but no damage.
  static void expect_named(const Json& verified, int exit_code,
                           const std::vector<std::string>& objects, bool harmless) {
    const std::string text = verified.dump(1);
    for (const std::string& object : objects) EXPECT_TRUE(names(verified, object)) << text;
    const bool damage = text.find("\"severity\": \"damage\"") != std::string::npos;
    EXPECT_EQ(exit_code, damage ? 3 : 0) << text;
    EXPECT_TRUE(damage || harmless || objects[0].find("log") != std::string::npos ||
                objects[0].starts_with("sidecars/") || objects[0].starts_with("codebooks/"))
        << text;
  }

  // The whole life of one damaged store.
  void live(const Damage& damage, const std::vector<std::string>& files,
            const std::vector<std::string>& hurt) {
    SCOPED_TRACE(damage.what);
    FaultStore store;
    std::vector<std::string> before;
    for (const std::string& file : files) before.push_back(store.get(file));
    damage.apply(store);
    for (std::size_t i = 0; i < files.size(); ++i)
      ASSERT_NE(store.get(files[i]), before[i]) << "nothing was damaged";
    int exit_code = -1;
    const Json offline = store.verify_offline(&exit_code);
    expect_named(offline, exit_code, files, damage.harmless);

    ASSERT_TRUE(store.start()) << store.log();
    if (!damage.harmless) {
      const Json verified = store.verify(&exit_code);
      expect_named(verified, exit_code, files, false);
    }
    // A log that was read is sealed when its sequence is closed: every other one is repaired
    // unread.
    if (!files[0].starts_with("logs/") || ++lives_ % 2 == 0) read_all(store, damage, hurt);
    mend(store, hurt);
    ASSERT_TRUE(store.stop()) << store.log();
    ASSERT_TRUE(store.start());
    for (const Story& story : kStories) {
      const Reading again = store.read(story);
      EXPECT_TRUE(again.whole(story)) << story.name << ": " << again.text << again.wrong;
    }
    ASSERT_TRUE(store.stop()) << store.log();
  }

  int lives_ = 0;

  static void read_all(FaultStore& store, const Damage& damage,
                       const std::vector<std::string>& hurt) {
    bool all_whole = true;
    for (const Story& story : kStories) {
      const Reading reading = store.read(story);
      EXPECT_EQ(reading.wrong, "") << story.name;
      const bool may_fail = std::count(hurt.begin(), hurt.end(), story.name) != 0;
      EXPECT_TRUE(reading.whole(story) || (may_fail && !damage.harmless))
          << story.name << ": " << reading.text;
      EXPECT_TRUE(reading.status == KVT_OK || !reading.text.empty()) << "an error without a word";
      all_whole = all_whole && reading.whole(story);
    }
    EXPECT_TRUE(all_whole || reasons(store.request("stats")) > 0) << "a miss without a reason";
    EXPECT_EQ(all_whole, damage.harmless || hurt.empty()) << "the damage was not met";
    store.close_client();
  }

  // Repair drops what is damaged, and what was lost is stored again.
  static void mend(FaultStore& store, const std::vector<std::string>& hurt) {
    int exit_code = -1;
    const Json repaired =
        store.command("repair --json --socket " + store.settings.socket, &exit_code);
    EXPECT_EQ(exit_code, 0);
    Json verified = store.verify(&exit_code);
    EXPECT_EQ(exit_code, 0) << "after " << repaired.dump(1) << verified.dump(1);
    for (const std::string& name : hurt) {
      const Story& story = story_named(name);
      EXPECT_EQ(store.heal(story), KVT_OK) << name << ": " << kvt_last_error();
      const Reading healed = store.read(story);
      EXPECT_TRUE(healed.whole(story)) << name << ": " << healed.text << healed.wrong;
    }
    verified = store.verify(&exit_code);
    EXPECT_EQ(exit_code, 0) << verified.dump(1);
    store.close_client();
  }
};

TEST_F(DamagedFiles, EveryRegionOfASegment) {
  FaultStore whole;
  const std::string file = files().short_segment;
  std::vector<Region> regions = segment_regions(whole.get(file));
  ASSERT_GT(regions.size(), 8u);
  // All of the metadata, and of the chunks the first, some between and the last.
  std::vector<Region> aimed;
  for (std::size_t i = 0; i < regions.size(); ++i)
    if (i < 7 || i + 2 >= regions.size() || i % 29 == 0) aimed.push_back(regions[i]);
  for (const Damage& damage : damages_of(file, aimed, 1)) live(damage, {file}, {"short"});
}

TEST_F(DamagedFiles, TheFirstOfTwoSegments) {
  FaultStore whole;
  const std::string file = files().long_segment;
  const std::vector<Region> regions = segment_regions(whole.get(file));
  for (const Damage& damage : damages_of(file, regions, regions.size() / 3))
    live(damage, {file}, {"long"});
}

TEST_F(DamagedFiles, SegmentsInEachOthersPlace) {
  const std::string a = files().short_segment, b = files().other_segment;
  live(swap_of(a, b), {a, b}, {"short", "other"});
  const std::string c = files().long_segment;
  live(swap_of(a, c), {a, c}, {"short", "long"});
}

TEST_F(DamagedFiles, EveryRegionOfATailLog) {
  FaultStore whole;
  const std::string file = files().logs[0];
  for (const Damage& damage : damages_of(file, tail_log_regions(whole.get(file)), 1))
    live(damage, {file}, {"tail"});
}

TEST_F(DamagedFiles, TailLogsInEachOthersPlace) {
  const std::string a = files().logs[0], b = files().logs[1];
  live(swap_of(a, b), {a, b}, {"tail", "tail2"});
}

// A budgeted attention over the story: opening the view waits for its abstracts.
std::vector<float> attend(FaultStore& store, const Story& story, const char* preset = "quest") {
  std::vector<float> out(kKnownHeads * 2 * kKnownDim), q(out.size());
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = known_value(99, 0, 0, i, 0, false);
  kvt_sequence* sequence = nullptr;
  kvt_view* view = nullptr;
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = preset;
  options.sinks = 4;
  options.window = 8;
  options.budget = 48;
  kvt_status status = kvt_sequence_open(store.space(), story.name, 0, 0, &sequence);
  if (status == KVT_OK) status = kvt_view_open(sequence, &options, &view);
  if (status == KVT_OK) status = kvt_view_attend(view, 1, 1, q.data(), 0.35f, out.data(), nullptr);
  EXPECT_EQ(status, KVT_OK) << kvt_last_error();
  kvt_view_close(view);
  kvt_sequence_close(sequence);
  return out;
}

// Abstracts are derived: whatever happens to the sidecar, every row is served, selection works, and
// the file is made again, byte for byte.
TEST_F(DamagedFiles, EveryRegionOfASidecarAndItsRebuild) {
  const std::string file = sidecar_of(files().short_segment);
  const Story& story = story_named("short");
  FaultStore whole;
  const std::string right = whole.get(file);
  ASSERT_TRUE(whole.start());
  const std::vector<float> expected = attend(whole, story);
  EXPECT_EQ(whole.request("stats")["abstracts"].value("rebuilt", 1u), 0u);
  whole.close_client();
  std::vector<Damage> damages = damages_of(file, sidecar_regions(right), 1);
  damages.push_back(swap_of(file, sidecar_of(files().other_segment)));
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.what);
    FaultStore store;
    damage.apply(store);
    ASSERT_TRUE(damage.what.starts_with("delete") || store.get(file) != right);
    ASSERT_TRUE(store.start());
    int exit_code = -1;
    const Json verified = store.verify(&exit_code);
    if (!damage.harmless && !damage.what.starts_with("delete"))
      expect_named(verified, exit_code, {file}, false);
    EXPECT_EQ(attend(store, story), expected);
    for (const Story& other : kStories) {
      const Reading reading = store.read(other);
      EXPECT_TRUE(reading.whole(other)) << other.name << ": " << reading.text << reading.wrong;
    }
    const Json abstracts = store.request("stats")["abstracts"];
    EXPECT_EQ(abstracts.value("rebuilt", 0u) > 0, !damage.harmless) << abstracts.dump();
    store.close_client();
    ASSERT_TRUE(store.stop());
    EXPECT_TRUE(damage.harmless || store.get(file) == right) << "not made again";
  }
}

// So is a codebook: what is damaged is named and dropped, and trained again when codes are wanted.
TEST_F(DamagedFiles, ACodebookIsTrainedAgain) {
  FaultStore store;
  ASSERT_TRUE(store.start());
  attend(store, story_named("long"), "codes");
  store.close_client();
  ASSERT_TRUE(store.stop());
  for (const bool cut : {false, true}) {
    const std::vector<std::string> before = store.files("codebooks");
    ASSERT_EQ(before.size(), 1u);
    std::string bytes = store.get(before[0]);
    bytes[5000] = static_cast<char>(bytes[5000] ^ 4);
    store.put(before[0], cut ? bytes.substr(0, 4096) : bytes);
    int exit_code = -1;
    const Json offline = store.verify_offline(&exit_code);
    expect_named(offline, exit_code, before, false);
    ASSERT_TRUE(store.start());
    const Json verified = store.verify(&exit_code);
    expect_named(verified, exit_code, before, false);
    mend(store, {});
    EXPECT_TRUE(store.files("codebooks").empty());
    attend(store, story_named("long"), "codes");
    const Reading reading = store.read(story_named("long"));
    EXPECT_TRUE(reading.whole(story_named("long"))) << reading.text << reading.wrong;
    store.close_client();
    ASSERT_TRUE(store.stop());
    EXPECT_EQ(store.files("codebooks").size(), 1u);
    EXPECT_NE(store.files("codebooks"), before) << "an id is not given twice";
  }
}

}  // namespace
}  // namespace kvtier::testing
