// The catalogue on the real file system: what is written is read back after a reopen, damage is
// reported row by row, failures stop writing until resume().
#include "tiers/catalogue.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/fault.h"
#include "base/limits.h"

namespace kvtier {
namespace {

struct Loaded {
  std::map<std::uint64_t, SpaceRow> spaces;
  std::map<std::uint64_t, SegmentRow> segments;
  std::map<std::uint64_t, SequenceRow> sequences;
  std::map<std::string, ObjectRow> objects;
  std::map<std::string, std::uint64_t> numbers;
  std::vector<std::pair<std::string, Status>> damaged;
};

Loaded load(Catalogue& catalogue) {
  Loaded all;
  CatalogueVisitor visitor;
  visitor.space = [&](SpaceRow row) { all.spaces[row.id.value] = std::move(row); };
  visitor.segment = [&](SegmentRow row) { all.segments[row.id.value] = std::move(row); };
  visitor.sequence = [&](SequenceRow row) { all.sequences[row.id.value] = std::move(row); };
  visitor.object = [&](ObjectRow row) { all.objects[row.key] = std::move(row); };
  visitor.number = [&](std::string_view name, std::uint64_t value) {
    all.numbers[std::string(name)] = value;
  };
  visitor.damaged = [&](std::string key, Status status) {
    all.damaged.emplace_back(std::move(key), status);
  };
  const auto loaded = catalogue.load(visitor);
  EXPECT_TRUE(loaded) << loaded.error().message();
  return all;
}

SpaceRow make_space(std::uint64_t id) {
  SpaceRow row;
  row.id = {id};
  row.digest = {id, id * 3};
  row.model = "model " + std::to_string(id);
  row.runtime = "transformers-5/1";
  row.detail = std::string("rope\0theta", 10);
  row.geometry.layers.assign(
      2, LayerGeometry{.kv_heads = 2, .query_heads = 6, .k_row_bytes = 256, .v_row_bytes = 256});
  row.private_only = true;
  row.created_unix_ns = 77;
  return row;
}

SegmentRow make_segment(std::uint64_t id) {
  SegmentRow row;
  row.id = {id};
  row.space = {9};
  row.parent = {id - 1};
  row.parent_visible = 2000;
  row.start_token = id * 2048;
  row.tokens = kSegmentTokensMax;
  row.file_bytes = 1 << 20;
  row.created_unix_ns = 5;
  row.last_used_unix_ns = 6;
  for (std::uint64_t i = 0; i < kSegmentTokensMax / kBlockTokens; ++i)
    row.blocks.push_back({id * 1000 + i, ~i});
  row.bad = id % 2 == 0;
  return row;
}

SequenceRow make_sequence(std::uint64_t id, std::uint32_t parts) {
  SequenceRow row;
  row.id = {id};
  row.space = {9};
  row.name = "chat";
  for (std::uint32_t i = 0; i < parts; ++i) row.parts.push_back({{i + 1}, i % kSegmentTokensMax});
  row.log_generation = 4;
  row.pinned = true;
  row.expires_unix_s = 1;
  row.created_unix_ns = 2;
  row.last_used_unix_ns = 3;
  return row;
}

class CatalogueTest : public testing::Test {
 protected:
  CatalogueTest() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "kvt-catalogue-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    path_ = root_ + "/deep/catalogue";
  }
  ~CatalogueTest() override {
    EXPECT_TRUE(arm_faults(""));
    std::filesystem::remove_all(root_);
  }
  std::unique_ptr<Catalogue> open(bool read_only = false) {
    auto opened = Catalogue::open({.path = path_, .env = nullptr, .read_only = read_only});
    EXPECT_TRUE(opened) << opened.error().message();
    return opened ? std::move(*opened) : nullptr;
  }

  std::string root_, path_;
};

TEST_F(CatalogueTest, EveryKindOfRowComesBack) {
  {
    auto catalogue = open();
    CatalogueBatch batch;
    EXPECT_TRUE(batch.empty());
    batch.put_space(make_space(9));
    batch.put_segment(make_segment(1));
    batch.put_segment(make_segment(2));
    batch.put_sequence(make_sequence(7, 3));
    batch.put_object({.key = std::string("k\0y", 3), .file = 8, .value_bytes = 9, .checksum = 10});
    batch.put_number("next_segment", UINT64_MAX);
    EXPECT_FALSE(batch.empty());
    ASSERT_TRUE(catalogue->write(std::move(batch), true));
  }
  auto catalogue = open();
  const Loaded all = load(*catalogue);
  EXPECT_TRUE(all.damaged.empty());
  ASSERT_EQ(all.spaces.size(), 1u);
  const SpaceRow& space = all.spaces.at(9);
  EXPECT_EQ(space.digest, (BlockHash{9, 27}));
  EXPECT_EQ(space.detail.size(), 10u);
  EXPECT_EQ(space.geometry, make_space(9).geometry);
  EXPECT_TRUE(space.private_only);
  ASSERT_EQ(all.segments.size(), 2u);
  const SegmentRow& segment = all.segments.at(2);
  EXPECT_EQ(segment.parent, SegmentId{1});
  EXPECT_EQ(segment.parent_visible, 2000u);
  EXPECT_EQ(segment.start_token, 4096u);
  EXPECT_EQ(segment.blocks, make_segment(2).blocks);
  EXPECT_TRUE(segment.bad);
  EXPECT_FALSE(all.segments.at(1).bad);
  const SequenceRow& sequence = all.sequences.at(7);
  EXPECT_EQ(sequence.name, "chat");
  ASSERT_EQ(sequence.parts.size(), 3u);
  EXPECT_EQ(sequence.parts[2].segment, SegmentId{3});
  EXPECT_EQ(sequence.parts[2].visible_tokens, 2u);
  EXPECT_EQ(sequence.log_generation, 4u);
  EXPECT_EQ(all.objects.at(std::string("k\0y", 3)).checksum, 10u);
  EXPECT_EQ(all.numbers.at("next_segment"), UINT64_MAX);
}

TEST_F(CatalogueTest, LaterEntriesWinAndRemovedRowsAreGone) {
  auto catalogue = open();
  CatalogueBatch batch;
  batch.put_segment(make_segment(1));
  batch.put_segment(make_segment(2));
  batch.remove_segment({1});
  batch.put_number("n", 1);
  batch.put_number("n", 2);
  batch.put_object({.key = "o"});
  batch.put_sequence(make_sequence(3, 0));
  batch.put_space(make_space(4));
  ASSERT_TRUE(catalogue->write(std::move(batch), false));
  CatalogueBatch second;
  second.remove_object("o");
  second.remove_sequence({3});
  ASSERT_TRUE(catalogue->write(std::move(second), true));
  const Loaded all = load(*catalogue);
  EXPECT_EQ(all.segments.size(), 1u);
  EXPECT_TRUE(all.segments.contains(2));
  EXPECT_EQ(all.numbers.at("n"), 2u);
  EXPECT_TRUE(all.objects.empty() && all.sequences.empty());
}

TEST_F(CatalogueTest, TheLongestSequenceFits) {
  {
    auto catalogue = open();
    CatalogueBatch batch;
    batch.put_sequence(make_sequence(1, kSequenceSegmentsMax));
    ASSERT_TRUE(catalogue->write(std::move(batch), true));
  }
  const Loaded all = load(*open());
  ASSERT_EQ(all.sequences.at(1).parts.size(), kSequenceSegmentsMax);
  EXPECT_EQ(all.sequences.at(1).parts.back().segment.value, kSequenceSegmentsMax);
}

TEST_F(CatalogueTest, OpensFiveThousandSegmentsQuickly) {
  {
    auto catalogue = open();
    for (std::uint64_t id = 1; id <= 5000; ++id) {
      CatalogueBatch batch;
      batch.put_segment(make_segment(id));
      ASSERT_TRUE(catalogue->write(std::move(batch), id % 500 == 0));
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  auto catalogue = open();
  std::size_t blocks = 0;
  for (const auto& [id, row] : load(*catalogue).segments) blocks += row.blocks.size();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(blocks, 160'000u);
  RecordProperty("open_ms", static_cast<int>(took.count() * 1000));
  EXPECT_LT(took.count(), 2.0);  // bench `open` holds it to its goal
}

TEST_F(CatalogueTest, ASecondOpenIsBusyAndAReadOnlyOneSeesTheRows) {
  auto catalogue = open();
  CatalogueBatch batch;
  batch.put_number("n", 5);
  ASSERT_TRUE(catalogue->write(std::move(batch), true));
  const auto second = Catalogue::open({.path = path_, .env = nullptr, .read_only = false});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kBusy);
  CatalogueBatch more;  // into the log that the second one would have written anew
  more.put_number("n", 6);
  ASSERT_TRUE(catalogue->write(std::move(more), true));
  catalogue.reset();

  std::map<std::string, std::filesystem::file_time_type> before;
  for (const auto& file : std::filesystem::directory_iterator(path_))
    before[file.path()] = file.last_write_time();
  auto reader = open(true);
  EXPECT_EQ(load(*reader).numbers.at("n"), 6u);
  EXPECT_EQ(reader->write({}, true).error().code, Code::kReadOnly);
  EXPECT_EQ(reader->resume().error().code, Code::kReadOnly);
  reader.reset();
  std::map<std::string, std::filesystem::file_time_type> after;
  for (const auto& file : std::filesystem::directory_iterator(path_))
    after[file.path()] = file.last_write_time();
  EXPECT_EQ(before, after) << "a read-only open must not write";
}

TEST_F(CatalogueTest, LogsOfManyStartsBecomeATable) {
  std::size_t most = 0;
  for (std::uint64_t start = 1; start <= 100; ++start) {
    auto catalogue = open();
    ASSERT_EQ(load(*catalogue).numbers.size(), start - 1);
    CatalogueBatch batch;
    batch.put_number("n" + std::to_string(start), start);
    ASSERT_TRUE(catalogue->write(std::move(batch), true));
    std::size_t logs = 0;
    for (const auto& file : std::filesystem::directory_iterator(path_))
      logs += file.path().extension() == ".log";
    most = std::max(most, logs);
  }
  EXPECT_GT(most, 16u);
  EXPECT_LT(most, 40u);
}

TEST_F(CatalogueTest, ReadOnlyOpenOfNothingIsNotFoundAndMakesNothing) {
  const auto opened = Catalogue::open({.path = path_, .env = nullptr, .read_only = true});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(CatalogueTest, AFailedWriteStopsWritingUntilResume) {
  auto catalogue = open();
  ASSERT_TRUE(arm_faults("catalogue.write=fail"));
  CatalogueBatch batch;
  batch.put_number("lost", 1);
  EXPECT_EQ(catalogue->write(std::move(batch), true).error().code, Code::kIo);
  CatalogueBatch refused;
  refused.put_number("refused", 1);
  EXPECT_EQ(catalogue->write(std::move(refused), true).error().code, Code::kIo);
  ASSERT_TRUE(catalogue->resume());
  CatalogueBatch taken;
  taken.put_number("taken", 1);
  ASSERT_TRUE(catalogue->write(std::move(taken), true));
  const Loaded all = load(*catalogue);
  EXPECT_EQ(all.numbers.size(), 1u);
  EXPECT_TRUE(all.numbers.contains("taken"));
}

TEST_F(CatalogueTest, TheStoreIsNamedAsOneWord) {
  EXPECT_EQ(with_store_named("`kvtier repair --store PATH` mends it", "/my store"),
            "`kvtier repair --store '/my store'` mends it");
}

TEST_F(CatalogueTest, DiskBytesGrow) {
  auto catalogue = open();
  const std::uint64_t before = catalogue->disk_bytes();
  CatalogueBatch batch;
  batch.put_sequence(make_sequence(1, kSequenceSegmentsMax));
  ASSERT_TRUE(catalogue->write(std::move(batch), true));
  EXPECT_GE(catalogue->disk_bytes(), before + kSequenceSegmentsMax * 12);
}

}  // namespace
}  // namespace kvtier
