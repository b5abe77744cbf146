// Files that are newer than every row of the catalogue: kept, said, and removed when asked for.
#include <gtest/gtest.h>

#include "base/log.h"
#include "daemon/reclaim.h"
#include "tests/sim/sim_objects.h"
#include "tests/unit/engine_fixture.h"
#include "tiers/catalogue_env_sim.h"
#include "tiers/object_format.h"

namespace kvtier {
namespace {

class KeptFilesTest : public EngineFixture {
 protected:
  std::size_t files(const char* directory) { return world.disk().list(directory)->size(); }
  // A file that no row names, as of an opaque value.
  void put_value(std::uint64_t number) {
    ASSERT_TRUE(world.disk().create(object_path(number), true));
    ASSERT_TRUE(world.disk().resize(object_path(number), kObjectHeaderBytes));
  }
  // Seals `segments` more and commits a tail; then the catalogue is as it was before.
  void lose_rows(std::uint32_t segments, const std::string& name = "chat") {
    auto chat = client->create(space, {}, name);
    seal(*chat, ids, 100);
    world.settle();
    const SequenceRow before = find_sequence_by_name(state(), name)->row;
    const std::uint64_t next_segment = state().segments.next_id;
    const std::uint64_t next_log = state().sequences.next_log;
    for (std::uint32_t i = 0; i < segments; ++i) seal(*chat, ids, 100);
    client->append(*chat, geometry, ids, chat->tokens_sealed, 20);
    ASSERT_EQ(client->commit(*chat).status, 0);
    world.settle();
    const std::uint64_t last = state().segments.next_id;
    client.reset();
    world.kill();
    CatalogueOptions options;
    options.path = "catalogue";
    options.env = make_sim_catalogue_env(world.disk(), world.clock());
    auto catalogue = Catalogue::open(options);
    ASSERT_TRUE(catalogue);
    CatalogueBatch batch;
    for (std::uint64_t id = next_segment; id < last; ++id) batch.remove_segment(SegmentId{id});
    batch.put_sequence(before);
    batch.put_number("next_segment", next_segment);
    batch.put_number("next_log", next_log);
    ASSERT_TRUE((*catalogue)->write(std::move(batch), true));
  }

  const std::vector<std::uint32_t> ids = make_ids(1000);
};

TEST_F(KeptFilesTest, TheLogNamesTheStoreAsOneWord) {
  lose_rows(4);
  restart();
  state().options.store_path = "/my store";
  set_log_level(LogLevel::kWarn);
  CatalogueBatch batch;
  ::testing::internal::CaptureStderr();
  settle_kept_files(state(), &batch);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("repair --store '/my store'`"), std::string::npos) << log;
}

TEST_F(KeptFilesTest, RowsThatWereLostTakeNoFileWithThem) {
  lose_rows(4);
  put_value(7);
  for (int start = 0; start < 3; ++start) {
    restart();
    EXPECT_EQ(files("segments"), 5u) << start;
    EXPECT_EQ(files("logs"), 1u) << start;
    EXPECT_EQ(state().kept_files.all.size(), 5u) << start;
    EXPECT_GT(state().kept_files.total_bytes, 5 * 4096u);
    EXPECT_TRUE(rows_were_lost(state())) << start;
    EXPECT_EQ(files("objects"), 1u) << start << ": its row may be lost too";
    EXPECT_GE(store_bytes(state()), state().kept_files.total_bytes);
    // Others go on beside them, under new ids.
    auto chat = client->create(space, {}, "new" + std::to_string(start));
    seal(*chat, ids, 100);
    EXPECT_EQ(state().metrics.files_dropped, 0u);
    world.settle();
    ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", chat->handle}}).ok());
    ASSERT_TRUE(
        client->control(Json{{"op", "rm"}, {"target", "new" + std::to_string(start)}}).ok());
    world.settle();
    world.kill();
  }
  restart();
  ASSERT_TRUE(client->control(Json{{"op", "gc"}}).ok());
  world.settle();
  EXPECT_EQ(files("segments"), 1u);
  EXPECT_EQ(files("logs"), 0u);
  world.crash();
  restart();
  EXPECT_EQ(files("objects"), 0u);
  EXPECT_TRUE(state().kept_files.all.empty());
  auto chat = client->attach(space, "chat", false);
  ASSERT_NE(chat, nullptr);
  EXPECT_EQ(chat->tokens_sealed, 100u);
}

// From its kept log a repair of the catalogue would make it anew.
TEST_F(KeptFilesTest, TheLogsOfASequenceGoWithIt) {
  for (const bool wipe : {false, true}) {
    const std::string name = wipe ? "wiped" : "removed";
    lose_rows(1, name);
    restart();
    ASSERT_EQ(files("logs"), 1u);
    const std::uint64_t bytes = state().kept_files.total_bytes, newer = state().kept_files.newer;
    ASSERT_TRUE(client->control(Json{{"op", "rm"}, {"target", name}, {"wipe", wipe}}).ok());
    world.settle();
    EXPECT_EQ(files("logs"), 0u);
    EXPECT_LT(state().kept_files.total_bytes, bytes);
    EXPECT_EQ(state().kept_files.newer, newer - 1);
    world.kill();
    restart();
    EXPECT_EQ(state().kept_files.newer, newer - 1);
    ASSERT_TRUE(client->control(Json{{"op", "gc"}}).ok());
    world.settle();
    client.reset();
    world.kill();
    restart();
  }
}

// Logs alone can tell that rows were lost: segments are judged after they were counted.
TEST_F(KeptFilesTest, LogsThatAreKeptProtectOlderSegments) {
  lose_rows(1);
  const std::string segment = "segments/" + world.disk().list("segments")->back();
  const std::uint64_t size = *world.disk().size_bytes(segment);
  ASSERT_TRUE(world.disk().resize(segment, size - 4096));  // not kept for itself
  const TailLogName log = *tail_log_name_of(world.disk().list("logs")->at(0));
  const std::string first = tail_log_path(log.sequence, log.generation);
  std::vector<std::byte> bytes(*world.disk().size_bytes(first));
  std::uint64_t got = 0;
  ASSERT_TRUE(world.disk().read(first, 0, bytes, &got));
  TailLogHeader header = *parse_tail_log_header(ByteSpan(bytes).first(kTailLogHeaderBytes));
  for (int i = 0; i < 2; ++i) {
    ++header.generation;
    const std::vector<std::byte> head = encode_tail_log_header(header);
    std::copy(head.begin(), head.end(), bytes.begin());
    const std::string path = tail_log_path(header.sequence, header.generation);
    ASSERT_TRUE(world.disk().create(path, true));
    ASSERT_TRUE(world.disk().write(path, 0, bytes));
  }
  restart();
  EXPECT_EQ(files("logs"), 3u);
  EXPECT_EQ(files("segments"), 2u);
}

TEST_F(KeptFilesTest, TheDiskLimitTakesThemWhenNothingElseIsUnused) {
  lose_rows(1);
  restart();
  EXPECT_EQ(files("segments"), 2u);
  const std::uint64_t kept = state().kept_files.total_bytes;
  const Json disk = client->control(Json{{"op", "stats"}}).body["disk"];
  EXPECT_EQ(disk.value("kept_files", 0u), 2u);
  EXPECT_EQ(disk.value("kept_bytes", 0u), kept);
  sim::SimObjects objects(*client);
  ASSERT_TRUE(objects.ready());
  ASSERT_EQ(objects.call(Op::kObjectSet, "key", "value").code, Code::kOk);
  world.settle();
  const std::uint64_t segment = state().segments.all.begin()->second->row.file_bytes;
  auto chat = client->create(space, {}, "");
  state().options.disk_bytes_max = store_bytes(state()) + segment - 4096;  // the value is enough
  seal(*chat, ids, 100);
  EXPECT_EQ(state().metrics.objects.evicted, 1u);
  EXPECT_EQ(state().kept_files.total_bytes, kept);
  world.settle();
  state().options.disk_bytes_max = store_bytes(state());
  seal(*chat, ids, 100);
  EXPECT_TRUE(state().kept_files.all.empty());
  EXPECT_EQ(state().metrics.sequences_evicted, 0u);
}

TEST_F(KeptFilesTest, TheDiskLimitSparesThemWhereRowsWereLost) {
  lose_rows(4);
  restart();
  auto chat = client->create(space, {}, "more");
  state().options.disk_bytes_max = store_bytes(state());
  client->append(*chat, geometry, ids, 0, 100);
  EXPECT_EQ(client->seal(*chat).status, static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_EQ(files("segments"), 5u);
}

// Crashes that leave a whole file each, one after another, are no loss of rows: what the last one
// left half written goes as ever.
TEST_F(KeptFilesTest, WhatSeveralCrashesLeftIsNoLossOfRows) {
  for (std::uint64_t crash = 0; crash < 4; ++crash) {
    lose_rows(1, "chat" + std::to_string(crash));
    restart();
    EXPECT_EQ(state().kept_files.newer, 2 * (crash + 1)) << "a segment and a log each";
    EXPECT_FALSE(rows_were_lost(state()));
    auto chat = client->create(space, {}, "after" + std::to_string(crash));
    seal(*chat, ids, 100);  // newer rows than those files
    world.settle();
  }
  const std::string half = segment_path(SegmentId{state().segments.next_id});
  client.reset();
  world.kill();
  ASSERT_TRUE(world.disk().create(half, true));
  restart();
  EXPECT_EQ(state().kept_files.newer, 8u);
  EXPECT_EQ(world.disk().size_bytes(half).has_value(), false);
}

// What a crash leaves half written tells nobody anything.
TEST_F(KeptFilesTest, WhatIsNotWholeGoes) {
  lose_rows(1);
  const std::string path = "segments/" + world.disk().list("segments")->back();
  const std::uint64_t size = *world.disk().size_bytes(path);
  ASSERT_TRUE(world.disk().resize(path, size - 4096));
  const std::string log = "logs/" + world.disk().list("logs")->at(0);
  ASSERT_TRUE(world.disk().resize(log, 4096));  // its head alone
  restart();
  EXPECT_EQ(files("segments"), 1u);
  EXPECT_EQ(files("logs"), 0u);
  EXPECT_TRUE(state().kept_files.all.empty());
  EXPECT_EQ(files("sidecars"), 1u);
  EXPECT_EQ(state().metrics.files_dropped, 3u) << "segment, its sidecar, log";
}

}  // namespace
}  // namespace kvtier
