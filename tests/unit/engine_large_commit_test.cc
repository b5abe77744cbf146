// Commits of several records, which workers encode and which are written at once into room that the
// file was given before; where there is none, and where the file system cannot give it.
#include <gtest/gtest.h>

#include "daemon/reclaim.h"
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kFirst = 10, kTokens = 700;  // 2.9 MB: three records

class EngineLargeCommit : public FaultyDiskFixture {
 protected:
  EngineLargeCommit() : FaultyDiskFixture(options()) {
    for (LayerGeometry& layer : geometry.layers) layer.k_row_bytes = layer.v_row_bytes = 512;
  }
  static sim::SimWorldOptions options() {
    sim::SimWorldOptions options;
    options.host_bytes = 32ull << 20;
    return options;
  }
  // What the power cut left: all of what was acknowledged, a part of what was not, nothing else.
  void expect_committed(const std::string& name, std::uint64_t least) {
    const sim::Reply verified = client->control({{"op", "verify"}});
    ASSERT_TRUE(verified.ok());
    EXPECT_TRUE(verified.body["sound"].get<bool>()) << dump_json(verified.body);
    auto chat = client->attach(space, name, true);
    ASSERT_NE(chat, nullptr);
    EXPECT_GE(chat->count, least);
    EXPECT_LE(chat->count, kTokens);
    ASSERT_EQ(client->seal(*chat).status, 0);
    expect_all(*client, *chat, sim::first_of(ids, chat->tokens_sealed));
    ASSERT_TRUE(close(*chat));
  }
  std::uint64_t log_file_bytes() {
    std::uint64_t bytes = 0;
    const std::vector<std::string> logs = world.disk().list("logs").value();
    for (const std::string& file : logs) bytes += *world.disk().size_bytes("logs/" + file);
    return bytes;
  }
  // All files of its logs, and nothing else, count as logs.
  void expect_counted(const std::string& name) {
    EXPECT_EQ(find_sequence_by_name(state(), name)->log.file_bytes, log_file_bytes());
    EXPECT_EQ(state().sequences.commit_bytes_reserved, 0u);
  }

  const std::vector<std::uint32_t> ids = make_ids(kTokens);
};

TEST_F(EngineLargeCommit, IsThereAfterAPowerCut) {
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, kTokens);
  ASSERT_EQ(client->commit(*chat).status, 0);
  chat.reset();
  crash();
  expect_committed("chat", kTokens);
}

// Anywhere in it: any of its records may be there without those before it, and that is no damage.
TEST_F(EngineLargeCommit, APowerCutInItsMiddleIsNoDamage) {
  std::uint64_t torn = 0;
  for (std::uint64_t round = 0; round < 60 && !HasFatalFailure(); ++round) {
    SCOPED_TRACE(round);
    const std::string name = "chat " + std::to_string(round);
    auto chat = client->create(space, {}, name);
    client->append(*chat, geometry, ids, 0, kFirst);
    ASSERT_EQ(client->commit(*chat).status, 0);
    client->append(*chat, geometry, ids, kFirst, kTokens - kFirst);
    client->start_commit(*chat);
    for (std::uint64_t i = 0; i < round; ++i) world.turn();
    chat.reset();
    crash();
    expect_committed(name, kFirst);
    torn += state().metrics.logs_torn;
    ASSERT_TRUE(client->control({{"op", "rm"}, {"target", name}}).ok());
  }
  EXPECT_GT(torn, 5u) << "too few of the cuts were in the middle";
}

TEST_F(EngineLargeCommit, AFileSystemThatCannotGiveRoomIsWrittenAllTheSame) {
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, kTokens);
  disk->set_plan({.data_at = 0, .count = UINT64_MAX, .status = {}, .data_op = IoOp::kAllocate});
  ASSERT_EQ(client->commit(*chat).status, 0);
  EXPECT_EQ(disk->hits(), 1u);
  expect_counted("chat");
  ASSERT_EQ(client->seal(*chat).status, 0);
  EXPECT_EQ(disk->hits(), 2u);
  expect_all(*client, *chat, ids);
  client->append(*chat, geometry, make_ids(2 * kTokens), kTokens, kTokens);
  ASSERT_EQ(client->commit(*chat).status, 0);
  chat.reset();
  crash();
  chat = client->attach(space, "chat", true);
  ASSERT_EQ(chat->count, kTokens);
  EXPECT_EQ(client->check_tail(*chat, geometry, make_ids(2 * kTokens), kTokens, kTokens), "");
}

// What it left on the disk counts, and its tokens stay for the next commit, which needs no more
// room than that.
TEST_F(EngineLargeCommit, AFullDiskLosesNothingAndIsCounted) {
  for (const IoOp op : {IoOp::kAllocate, IoOp::kWrite, IoOp::kSync}) {
    SCOPED_TRACE(static_cast<int>(op));
    auto chat = client->create(space, {}, "chat");
    client->append(*chat, geometry, ids, 0, kFirst);
    ASSERT_EQ(client->commit(*chat).status, 0);
    client->append(*chat, geometry, ids, kFirst, kTokens - kFirst);
    const std::uint64_t before = store_bytes(state());
    disk->set_plan({.data_at = 0, .status = {Code::kNoSpace, 28, nullptr}, .data_op = op});
    EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kNoSpace));
    world.settle();
    EXPECT_EQ(disk->hits(), 1u);
    EXPECT_GT(store_bytes(state()), before);
    expect_counted("chat");
    disk->set_plan({});
    if (op != IoOp::kAllocate) state().options.disk_bytes_max = store_bytes(state());
    ASSERT_EQ(client->commit(*chat).value1, kTokens);
    state().options.disk_bytes_max = 1ull << 30;
    world.settle();
    expect_counted("chat");
    chat.reset();
    crash();
    expect_committed("chat", kTokens);
    ASSERT_TRUE(client->control({{"op", "rm"}, {"target", "chat"}}).ok());
    world.settle();
  }
}

// Until the new log takes its place the old one is there too: what nobody uses goes for that.
TEST_F(EngineLargeCommit, ACutEvictsWhereTheFileSystemIsFull) {
  auto old = client->create(space, {}, "");
  client->append(*old, geometry, make_ids(2048), 0, 2048);
  ASSERT_EQ(client->seal(*old).status, 0);
  ASSERT_TRUE(close(*old));
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, kFirst);
  ASSERT_EQ(client->commit(*chat).status, 0);
  client->append(*chat, geometry, ids, kFirst, kTokens - kFirst);
  disk->set_plan({.data_at = 0, .status = {Code::kIo, 5, nullptr}, .data_op = IoOp::kSync});
  EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kIo));
  disk->set_plan({});
  world.disk().set_capacity_bytes(world.disk().used_bytes() + (1 << 20));  // the log takes 2.9 MB
  EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_EQ(state().metrics.no_room, 1u);
  world.settle();
  EXPECT_EQ(client->commit(*chat).value1, kTokens);
  world.disk().set_capacity_bytes(1ull << 30);
}

// A first commit that fails leaves no file.
TEST_F(EngineLargeCommit, AFirstCommitWithoutRoomLeavesNothing) {
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, kTokens);
  disk->set_plan(
      {.data_at = 0, .status = {Code::kNoSpace, 28, nullptr}, .data_op = IoOp::kAllocate});
  EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_TRUE(world.disk().list("logs")->empty());
  expect_counted("chat");
  EXPECT_EQ(client->commit(*chat).value1, kTokens);
  expect_counted("chat");
}

// Its row may be on the disk all the same: the file stays, and counts, until another row is.
TEST_F(EngineLargeCommit, ANewLogWhoseRowIsNotWrittenCountsUntilAnotherRowIs) {
  enum class Next { kCommit, kSeal, kRemove, kWipe, kEvict };
  for (const Next next : {Next::kCommit, Next::kSeal, Next::kRemove, Next::kWipe, Next::kEvict}) {
    SCOPED_TRACE(static_cast<int>(next));
    auto chat = client->create(space, {}, next == Next::kEvict ? "" : "chat");
    ASSERT_TRUE(arm_faults("catalogue.write=fail@1"));
    client->append(*chat, geometry, ids, 0, kTokens);
    EXPECT_NE(client->commit(*chat).status, 0);
    ASSERT_TRUE(arm_faults(""));
    EXPECT_EQ(world.disk().list("logs")->size(), 1u);
    EXPECT_GT(log_file_bytes(), 0u);
    EXPECT_EQ(store_bytes(state()), log_file_bytes());
    world.clock().advance_ns(1'000'000'000);
    world.settle();
    ASSERT_FALSE(state().read_only);
    state().options.disk_bytes_max = store_bytes(state());
    if (next == Next::kCommit) {
      EXPECT_EQ(client->commit(*chat).value1, kTokens) << "in place of the other file";
    }
    world.settle();
    const std::uint64_t left = next == Next::kCommit ? 1 : 0;
    if (left != 0) expect_counted("chat");
    state().options.disk_bytes_max = 1ull << 30;
    if (next == Next::kSeal) {
      EXPECT_EQ(client->seal(*chat).status, 0);
    }
    ASSERT_TRUE(close(*chat));
    if (next == Next::kRemove || next == Next::kWipe) {
      const Json rm{{"op", "rm"}, {"target", "chat"}, {"wipe", next == Next::kWipe}};
      ASSERT_TRUE(client->control(rm).ok());
    }
    if (next == Next::kEvict) {
      state().options.disk_bytes_max = 1;
      EXPECT_TRUE(reserve_disk(state(), 1));
      state().options.disk_bytes_max = 1ull << 30;
    }
    world.settle();
    EXPECT_EQ(world.disk().list("logs")->size(), left);
    if (left != 0 || next == Next::kSeal) {
      ASSERT_TRUE(client->control({{"op", "rm"}, {"target", "chat"}}).ok());
    }
    world.settle();
  }
}

// A log that a power cut tore counts whole, until the next commit's file takes its place.
TEST_F(EngineLargeCommit, ATornLogCountsWhole) {
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, kFirst);
  ASSERT_EQ(client->commit(*chat).status, 0);
  client->append(*chat, geometry, ids, kFirst, kTokens - kFirst);
  disk->set_plan({.data_at = 0, .data_op = IoOp::kWrite});
  EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kIo));
  chat.reset();
  world.kill();
  restart();
  chat = client->attach(space, "chat", true);
  ASSERT_EQ(chat->count, kFirst);
  EXPECT_EQ(state().metrics.logs_torn, 1u);
  expect_counted("chat");
}

}  // namespace
}  // namespace kvtier
