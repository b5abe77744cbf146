// The simulated disk: a file system that works, and at a power cut every outcome of its fault model
// and no other.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "tiers/sim_disk.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kSeeds = 600;

std::vector<std::byte> filled(std::size_t size_bytes, int value) {
  return std::vector<std::byte>(size_bytes, static_cast<std::byte>(value));
}

std::vector<std::byte> contents(const SimDisk& disk, std::string_view path) {
  std::vector<std::byte> bytes(disk.size_bytes(path).value_or(0));
  std::uint64_t got = 0;
  EXPECT_TRUE(disk.read(path, 0, bytes, &got));
  EXPECT_EQ(got, bytes.size());
  return bytes;
}

// A file whose name and first contents are durable.
void make_durable(SimDisk& disk, std::string_view path, ByteSpan bytes) {
  ASSERT_TRUE(disk.create(path, true));
  ASSERT_TRUE(disk.write(path, 0, bytes));
  ASSERT_TRUE(disk.sync(path));
  ASSERT_TRUE(disk.sync_directory(""));
}

Code code_of(const Result<void>& result) { return result ? Code::kOk : result.error().code; }

TEST(SimDisk, FilesKeepWhatIsWritten) {
  SimDisk disk({});
  ASSERT_TRUE(disk.create("f", true));
  EXPECT_EQ(code_of(disk.create("f", true)), Code::kExists);
  EXPECT_EQ(code_of(disk.create("f", false)), Code::kOk);
  std::vector<std::byte> expected;
  Random random(1);
  for (int i = 0; i < 500; ++i) {  // overwrites, appends, holes, cuts; pages are 16 KiB
    const std::uint64_t offset = random.below(100'000);
    const auto bytes = filled(random.below(40'000) + 1, static_cast<int>(i % 255 + 1));
    if (random.one_in(10)) {
      ASSERT_TRUE(disk.resize("f", offset));
      expected.resize(offset);
    } else {
      ASSERT_TRUE(disk.write("f", offset, bytes));
      expected.resize(std::max<std::size_t>(expected.size(), offset + bytes.size()));
      std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    if (random.one_in(20)) {
      ASSERT_TRUE(disk.sync("f"));
    }
  }
  EXPECT_EQ(contents(disk, "f"), expected);
  EXPECT_EQ(disk.used_bytes(), expected.size());
  std::uint64_t got = 1;
  std::vector<std::byte> buffer(10);
  ASSERT_TRUE(disk.read("f", expected.size() - 3, buffer, &got));
  EXPECT_EQ(got, 3u);
  ASSERT_TRUE(disk.read("f", expected.size() + 3, buffer, &got));
  EXPECT_EQ(got, 0u);
  ASSERT_TRUE(disk.sync("f"));
  ASSERT_TRUE(disk.sync_directory(""));
  disk.crash();
  EXPECT_EQ(contents(disk, "f"), expected);
}

TEST(SimDisk, DirectoriesAndPaths) {
  SimDisk disk({});
  EXPECT_EQ(code_of(disk.create("d/f", true)), Code::kNotFound);
  ASSERT_TRUE(disk.make_directory("d"));
  ASSERT_TRUE(disk.make_directory("/d/"));
  ASSERT_TRUE(disk.make_directory("d/e"));
  ASSERT_TRUE(disk.create("d//e/./f", true));
  ASSERT_TRUE(disk.create("d-x", true));
  EXPECT_TRUE(disk.exists("/d/e/f"));
  EXPECT_EQ(code_of(disk.create("d/../f", true)), Code::kInvalid);
  EXPECT_EQ(disk.list("d").value_or(std::vector<std::string>{}), std::vector<std::string>{"e"});
  EXPECT_EQ(disk.list("/").value_or(std::vector<std::string>{}),
            (std::vector<std::string>{"d", "d-x"}));
  EXPECT_EQ(code_of(disk.unlink("d/e")), Code::kExists);  // not empty
  ASSERT_TRUE(disk.unlink("d/e/f"));
  ASSERT_TRUE(disk.unlink("d/e"));
  EXPECT_FALSE(disk.exists("d/e"));
  EXPECT_EQ(code_of(disk.rename("d-x", "d")), Code::kInvalid);
}

TEST(SimDisk, SyncedDataSurvivesEveryPowerCut) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(20'000, 1));
    ASSERT_TRUE(disk.write("f", 5'000, filled(5'000, 2)));
    ASSERT_TRUE(disk.sync("f"));
    ASSERT_TRUE(disk.write("f", 20'000, filled(9'000, 3)));  // unsynced, beyond
    disk.crash();
    const auto bytes = contents(disk, "f");
    ASSERT_GE(bytes.size(), 20'000u);
    for (std::size_t i = 0; i < 20'000; ++i)
      ASSERT_EQ(bytes[i], std::byte(i >= 5'000 && i < 10'000 ? 2 : 1))
          << "seed " << seed << " byte " << i;
    for (std::size_t i = 20'000; i < bytes.size(); ++i)
      ASSERT_TRUE(bytes[i] == std::byte{0} || bytes[i] == std::byte{3});
    disk.crash();  // what survived counts as synced
    ASSERT_EQ(contents(disk, "f"), bytes);
  }
}

// One overwrite of ten blocks: kept, lost or torn at 512 bytes.
TEST(SimDisk, AnUnsyncedOverwriteIsKeptLostOrTorn) {
  std::map<std::string, int> seen;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(40'960, 1));
    ASSERT_TRUE(disk.write("f", 100, filled(40'000, 2)));
    disk.crash();
    const auto bytes = contents(disk, "f");
    ASSERT_EQ(bytes.size(), 40'960u);
    std::size_t changes = 0, twos = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      ASSERT_TRUE(bytes[i] == std::byte{1} || bytes[i] == std::byte{2});
      if (i < 100 || i >= 40'100) {
        ASSERT_EQ(bytes[i], std::byte{1});
      }
      twos += bytes[i] == std::byte{2};
      if (i > 0 && bytes[i] != bytes[i - 1]) {
        ++changes;
        if (i != 100 && i != 40'100) {
          ASSERT_EQ(i % 512, 0u) << "torn elsewhere than at a sector";
        }
      }
    }
    ASSERT_LE(changes, 4u);
    ++seen[twos == 40'000 ? "kept" : twos == 0 ? "lost" : "torn"];
  }
  EXPECT_GT(seen["kept"], 100);
  EXPECT_GT(seen["lost"], 100);
  EXPECT_GT(seen["torn"], 20);
}

TEST(SimDisk, ALaterWriteMaySurviveAnEarlierOneThatDoesNot) {
  int reordered = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(1'024, 1));
    ASSERT_TRUE(disk.write("f", 0, filled(512, 2)));
    ASSERT_TRUE(disk.write("f", 512, filled(512, 3)));
    disk.crash();
    const auto bytes = contents(disk, "f");
    reordered += bytes[0] == std::byte{1} && bytes[512] == std::byte{3};
  }
  EXPECT_GT(reordered, 20);
}

TEST(SimDisk, AWriteMayLandOnAnotherUnsyncedBlock) {
  int misdirected = 0;
  for (std::uint64_t seed = 0; seed < 4 * kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(3 * kDiskAlign, 1));
    ASSERT_TRUE(disk.write("f", 0, filled(kDiskAlign, 2)));
    ASSERT_TRUE(disk.write("f", kDiskAlign, filled(kDiskAlign, 3)));
    disk.crash();
    const auto bytes = contents(disk, "f");
    ASSERT_EQ(bytes[2 * kDiskAlign], std::byte{1}) << "a synced block was hit";
    for (std::size_t i = 0; i < 2 * kDiskAlign; ++i) {
      const bool own =
          bytes[i] == std::byte{1} || bytes[i] == (i < kDiskAlign ? std::byte{2} : std::byte{3});
      misdirected += !own && i % kDiskAlign == 0;
    }
  }
  EXPECT_GT(misdirected, 5);
  EXPECT_LT(misdirected, 200);  // rare
}

TEST(SimDisk, TheSizeAfterAPowerCutIsOneOfThePossible) {
  std::set<std::uint64_t> sizes;
  bool zeros_where_written = false;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(512, 1));
    for (int i = 1; i < 4; ++i)
      ASSERT_TRUE(disk.write("f", static_cast<std::uint64_t>(i) * 512, filled(512, i + 1)));
    disk.crash();
    const auto bytes = contents(disk, "f");
    ASSERT_TRUE(bytes.size() % 512 == 0 && bytes.size() >= 512 && bytes.size() <= 2'048)
        << bytes.size();
    sizes.insert(bytes.size());
    zeros_where_written |= bytes.size() == 2'048 && bytes[2'047] == std::byte{0};
    EXPECT_EQ(disk.used_bytes(), bytes.size());
  }
  EXPECT_EQ(sizes, (std::set<std::uint64_t>{512, 1'024, 1'536, 2'048}));
  EXPECT_TRUE(zeros_where_written);
}

TEST(SimDisk, AnUnsyncedCutIsKeptOrLost) {
  std::set<std::uint64_t> sizes;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(30'000, 1));
    ASSERT_TRUE(disk.resize("f", 100));
    disk.crash();
    sizes.insert(disk.size_bytes("f").value_or(0));
  }
  EXPECT_EQ(sizes, (std::set<std::uint64_t>{100, 30'000}));
}

TEST(SimDisk, NamesWithoutADirectorySyncAreKeptOrLost) {
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "old", filled(10, 1));
    ASSERT_TRUE(disk.create("new", true));
    ASSERT_TRUE(disk.write("new", 0, filled(10, 2)));
    ASSERT_TRUE(disk.sync("new"));  // the contents, not the name
    ASSERT_TRUE(disk.unlink("old"));
    disk.crash();
    seen.insert(std::string(disk.exists("old") ? "old " : "") + (disk.exists("new") ? "new" : ""));
    if (disk.exists("new")) {
      ASSERT_EQ(contents(disk, "new"), filled(10, 2));
    }
    if (disk.exists("old")) {
      ASSERT_EQ(contents(disk, "old"), filled(10, 1));
    }
  }
  EXPECT_EQ(seen, (std::set<std::string>{"", "old ", "new", "old new"}));
}

// Replacing by rename is whole: the name holds the old or the new file, and both file names never
// hold it at once.
TEST(SimDisk, ARenameIsKeptOrLostAsAWhole) {
  int replaced = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "current", filled(10, 1));
    ASSERT_TRUE(disk.create("temporary", true));
    ASSERT_TRUE(disk.write("temporary", 0, filled(10, 2)));
    ASSERT_TRUE(disk.sync("temporary"));
    ASSERT_TRUE(disk.rename("temporary", "current"));
    disk.crash();
    ASSERT_TRUE(disk.exists("current")) << seed;
    const bool is_new = contents(disk, "current") == filled(10, 2);
    ASSERT_TRUE(is_new || contents(disk, "current") == filled(10, 1));
    if (is_new) {
      ASSERT_FALSE(disk.exists("temporary"));
    }
    replaced += is_new;
  }
  EXPECT_GT(replaced, 100);
  EXPECT_LT(replaced, static_cast<int>(kSeeds) - 100);
}

TEST(SimDisk, ChangesOfOneNameKeepTheirOrder) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    for (int i = 1; i <= 3; ++i) {  // created and unlinked again and again; the last one stays
      ASSERT_TRUE(disk.create("f", true));
      ASSERT_TRUE(disk.write("f", 0, filled(10, i)));
      ASSERT_TRUE(disk.sync("f"));
      if (i < 3) {
        ASSERT_TRUE(disk.unlink("f"));
      }
    }
    ASSERT_TRUE(disk.create("g", true));
    disk.crash();
    if (!disk.exists("f")) continue;
    const auto bytes = contents(disk, "f");
    ASSERT_EQ(bytes.size(), 10u);
    ASSERT_TRUE(bytes[0] == std::byte{1} || bytes[0] == std::byte{2} || bytes[0] == std::byte{3});
  }
}

TEST(SimDisk, ASyncedDirectoryKeepsItsNames) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SimDisk disk({seed});
    ASSERT_TRUE(disk.make_directory("d"));
    ASSERT_TRUE(disk.sync_directory(""));
    ASSERT_TRUE(disk.create("elsewhere", true));
    ASSERT_TRUE(disk.write("elsewhere", 0, filled(10, 1)));
    ASSERT_TRUE(disk.sync("elsewhere"));
    ASSERT_TRUE(disk.rename("elsewhere", "d/f"));  // its creation was never synced by itself
    ASSERT_TRUE(disk.sync_directory("d"));
    disk.crash();
    ASSERT_TRUE(disk.exists("d/f"));
    ASSERT_FALSE(disk.exists("elsewhere"));
    ASSERT_EQ(contents(disk, "d/f"), filled(10, 1));
  }
}

TEST(SimDisk, AFileInALostDirectoryIsLost) {
  bool kept = false, lost = false;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimDisk disk({seed});
    ASSERT_TRUE(disk.make_directory("d"));
    ASSERT_TRUE(disk.create("d/f", true));
    ASSERT_TRUE(disk.sync("d/f"));
    ASSERT_TRUE(disk.sync_directory("d"));
    disk.crash();
    ASSERT_EQ(disk.exists("d/f"), disk.exists("d"));
    (disk.exists("d") ? kept : lost) = true;
  }
  EXPECT_TRUE(kept && lost);
}

TEST(SimDisk, ASeedReplaysExactly) {
  const auto story = [](std::uint64_t seed) {
    SimDisk disk({seed});
    Random random(99);
    std::string out;
    for (int i = 0; i < 300; ++i) {
      const std::string name = "f" + std::to_string(random.below(5));
      static_cast<void>(disk.create(name, false));
      static_cast<void>(disk.write(name, random.below(9'000), filled(random.below(9'000), i)));
      if (random.one_in(5)) static_cast<void>(disk.sync(name));
      if (random.one_in(7)) static_cast<void>(disk.sync_directory(""));
      if (random.one_in(9)) static_cast<void>(disk.unlink(name));
      if (!random.one_in(50)) continue;
      disk.crash();
      for (const std::string& each : disk.list("").value_or(std::vector<std::string>{})) {
        const auto bytes = contents(disk, each);
        out += each + ":" + std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      }
    }
    return out;
  };
  EXPECT_EQ(story(1), story(1));
  EXPECT_NE(story(1), story(2));
}

TEST(SimDisk, ASkippedSyncDoesNothing) {
  bool lost = false;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(10, 1));
    EXPECT_EQ(disk.syncs(), 2u);
    disk.skip_sync(1);
    for (int i = 2; i <= 3; ++i) {
      ASSERT_TRUE(disk.write("f", 0, filled(10, i)));
      ASSERT_TRUE(disk.sync("f"));
    }
    EXPECT_EQ(disk.syncs(), 4u);
    disk.crash();
    const auto bytes = contents(disk, "f");
    ASSERT_NE(bytes[0], std::byte{1}) << "the first sync was not skipped";
    lost |= bytes[0] == std::byte{2};
  }
  EXPECT_TRUE(lost);
}

TEST(SimDisk, ASkippedSyncTellsWhatBecameOfIt) {
  SimDisk disk({});
  make_durable(disk, "f", filled(100, 1));
  disk.skip_sync(0);
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kNone);
  ASSERT_TRUE(disk.sync("f"));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kIdle);

  ASSERT_TRUE(disk.write("f", 0, filled(100, 2)));
  disk.skip_sync(0);
  ASSERT_TRUE(disk.sync("f"));
  ASSERT_TRUE(disk.sync_directory(""));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kMissing);
  ASSERT_TRUE(disk.sync("f"));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kCovered);

  disk.skip_sync(0);
  ASSERT_TRUE(disk.sync_directory(""));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kIdle);

  ASSERT_TRUE(disk.create("g", true));
  disk.skip_sync(0);
  ASSERT_TRUE(disk.sync_directory(""));
  ASSERT_TRUE(disk.sync("f"));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kMissing);
  ASSERT_TRUE(disk.sync_directory(""));
  EXPECT_EQ(disk.skipped_sync(), SkippedSync::kCovered);
}

TEST(SimDisk, NoLaterSyncBringsBackWhatAFailedOneLost) {
  std::set<bool> outcomes;  // whether the first write is there after all
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SimDisk disk({seed});
    make_durable(disk, "f", filled(1024, 1));
    ASSERT_TRUE(disk.write("f", 0, filled(512, 2)));
    disk.set_error_rates(0, 1);
    EXPECT_EQ(code_of(disk.sync("f")), Code::kIo);
    disk.set_error_rates(0, 0);
    ASSERT_TRUE(disk.write("f", 512, filled(512, 3)));
    ASSERT_TRUE(disk.sync("f"));
    auto expected = filled(1024, 2);
    std::fill(expected.begin() + 512, expected.end(), std::byte{3});
    EXPECT_EQ(contents(disk, "f"), expected);
    disk.crash();
    const auto left = contents(disk, "f");
    outcomes.insert(left == expected);
    std::fill(expected.begin(), expected.begin() + 512, left[0]);
    EXPECT_EQ(left, expected) << "what came later is synced";
  }
  EXPECT_EQ(outcomes, (std::set<bool>{false, true}));
}

TEST(SimDisk, CapacityIsALimit) {
  SimDisk disk({1, 10'000});
  ASSERT_TRUE(disk.create("f", true));
  ASSERT_TRUE(disk.write("f", 0, filled(6'000, 1)));
  EXPECT_EQ(disk.free_bytes(), 4'000u);
  EXPECT_EQ(code_of(disk.write("f", 6'000, filled(4'001, 1))), Code::kNoSpace);
  EXPECT_EQ(code_of(disk.resize("f", 10'001)), Code::kNoSpace);
  EXPECT_EQ(disk.size_bytes("f").value_or(0), 6'000u);
  ASSERT_TRUE(disk.write("f", 0, filled(10'000, 1)));
  ASSERT_TRUE(disk.create("g", true));
  EXPECT_EQ(code_of(disk.write("g", 0, filled(1, 1))), Code::kNoSpace);
  ASSERT_TRUE(disk.unlink("f"));
  ASSERT_TRUE(disk.write("g", 0, filled(1, 1)));
  disk.set_capacity_bytes(0);
  EXPECT_EQ(disk.free_bytes(), 0u);
  EXPECT_EQ(code_of(disk.write("g", 1, filled(1, 1))), Code::kNoSpace);
}

TEST(SimDisk, RotFlipsOneBitAndStays) {
  SimDisk disk({});
  make_durable(disk, "f", filled(10'000, 0));
  disk.rot("f", 7'777, 3);
  auto expected = filled(10'000, 0);
  expected[7'777] = std::byte{8};
  EXPECT_EQ(contents(disk, "f"), expected);
  disk.crash();
  EXPECT_EQ(contents(disk, "f"), expected);
}

TEST(SimDisk, ErrorsComeAtTheirRate) {
  SimDisk disk({1, 4ull << 30, 0, 10});
  ASSERT_TRUE(disk.create("f", true));
  int failed = 0;
  for (int i = 0; i < 1'000; ++i) failed += !disk.write("f", 0, filled(10, 1));
  EXPECT_GT(failed, 50);
  EXPECT_LT(failed, 200);
  disk.set_error_rates(0, 0);
  ASSERT_TRUE(disk.write("f", 0, filled(10, 1)));
  disk.set_error_rates(2, 0);
  int bad_reads = 0;
  std::vector<std::byte> buffer(10);
  std::uint64_t got = 0;
  for (int i = 0; i < 100; ++i) bad_reads += !disk.read("f", 0, buffer, &got);
  EXPECT_GT(bad_reads, 20);
}

// RocksDB appends thousands of small records: an append must not cost what the file already holds.
TEST(SimDisk, AppendsAndReadsCostTheirSize) {
  const auto started = std::chrono::steady_clock::now();
  SimDisk disk({});
  ASSERT_TRUE(disk.create("log", true));
  const auto record = filled(100, 1);
  std::vector<std::byte> buffer(100);
  std::uint64_t got = 0;
  for (std::uint64_t i = 0; i < 200'000; ++i) {
    ASSERT_TRUE(disk.write("log", i * 100, record));
    ASSERT_TRUE(disk.read("log", i * 50, buffer, &got));
    if (i % 100 == 0) {
      ASSERT_TRUE(disk.sync("log"));
    }
  }
  // 0.1 s here; the square of the number of appends would be minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(20));
}

}  // namespace
}  // namespace kvtier
