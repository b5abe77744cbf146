// What the engine leaves on the disk and takes from it: failed seals, damage, sidecars, removal,
// wiping and the disk limit.
#include <gtest/gtest.h>

#include "daemon/reclaim.h"
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::FetchResult;
using sim::Reply;
using sim::SimClient;
using sim::SimSequence;

class EngineDisk : public EngineFixture {};

TEST_F(EngineDisk, ADamagedChunkIsAMissAndNeverServed) {
  const auto ids = make_ids(64);
  {
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, ids, 64);
  }
  world.crash();
  const std::string path = "segments/" + world.disk().list("segments")->at(0);
  world.disk().rot(path, world.disk().size_bytes(path).value() - 4096 + 5, 3);  // in the last chunk
  restart();
  auto sequence = client->attach(space, "chat", false);
  const auto directory = sequence->read_directory();
  const FetchResult got = client->fetch(*sequence, SimClient::all_entries(directory, geometry));
  std::size_t misses = 0;
  const auto hashes = sim::prefix_hashes(ids);
  for (const FetchEntry& entry : got.entries) {
    misses += entry.status == static_cast<std::int16_t>(Code::kMiss);
    if (entry.status == 0) {
      EXPECT_EQ(client->check_chunk(entry, directory.entries[0], geometry, hashes), "");
    }
  }
  EXPECT_EQ(misses, 1u);
  EXPECT_EQ(got.completion.count, got.entries.size() - 1);
  EXPECT_EQ(state().metrics.chunks_bad, 1u);
  // Nobody is given it as a prefix any more; storing it again heals it.
  Reply reply;
  auto again = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 0);
  seal_all(*again, ids, 64);
  auto third = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 64);
  expect_all(*client, *third, ids);
}

TEST_F(EngineDisk, FailedSealsChangeNothing) {
  const auto ids = make_ids(50);
  auto sequence = client->create(space, {}, "chat");
  client->append(*sequence, geometry, ids, 0, 50);
  for (const char* point :
       {"seal.copied", "seal.written", "seal.synced", "seal.directory_synced", "seal.published"}) {
    ASSERT_TRUE(arm_faults(std::string(point) + "=fail"));
    EXPECT_EQ(client->seal(*sequence).status, static_cast<std::int32_t>(Code::kIo)) << point;
    world.settle();
    EXPECT_EQ(sequence->read_directory().tokens, 0u) << point;
    EXPECT_TRUE(world.disk().list("segments")->empty()) << point;
    EXPECT_EQ(state().arena->stats().used_bytes, 0u) << point;
  }
  for (const char* point : {"commit.appended", "commit.synced", "log.created"}) {
    ASSERT_TRUE(arm_faults(std::string(point) + "=fail"));
    EXPECT_EQ(client->commit(*sequence).status, static_cast<std::int32_t>(Code::kIo)) << point;
  }
  ASSERT_TRUE(arm_faults(""));
  EXPECT_EQ(client->commit(*sequence).value1, 50u);
  ASSERT_EQ(client->seal(*sequence).status, 0);
  expect_all(*client, *sequence, ids);
  EXPECT_TRUE(world.disk().list("logs")->empty());
}

// A batch that is said to have failed is there after all: the catalogue says another thing than the
// engine until a commit says anew which log counts. Whoever closed the sequence meanwhile.
TEST_F(EngineDisk, ACommitAfterAReopenSettlesARowInDoubt) {
  const auto ids = make_ids(40);
  for (const std::string way : {"seal", "truncate", "rm"}) {
    SCOPED_TRACE(way);
    auto chat = client->create(space, {}, way);
    seal(*chat, ids, 10);
    client->append(*chat, geometry, ids, 10, 20);
    ASSERT_EQ(client->commit(*chat).value1, 30u);
    if (way == "rm") {
      ASSERT_TRUE(close(*chat));
    }
    ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
    const Code failed =
        way == "seal" ? static_cast<Code>(client->seal(*chat).status)
        : way == "rm"
            ? client->control(Json{{"op", "rm"}, {"target", way}}).status.code
            : client->control(Json{{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 5}})
                  .status.code;
    EXPECT_EQ(failed, Code::kIo);
    ASSERT_TRUE(arm_faults(""));
    if (way != "rm") {
      ASSERT_TRUE(close(*chat));
    }
    world.clock().advance_ns(1'000'000'000);
    world.settle();
    ASSERT_FALSE(state().read_only);
    chat = client->attach(space, way, true);
    ASSERT_NE(chat, nullptr);
    ASSERT_EQ(chat->tokens_sealed + chat->count, 30u);
    client->append(*chat, geometry, ids, 30, 10);
    ASSERT_EQ(client->commit(*chat).value1, 40u);
    EXPECT_EQ(state().metrics.logs_torn, 0u);
    world.kill();
    restart();
    chat = client->attach(space, way, true);
    ASSERT_NE(chat, nullptr);
    ASSERT_EQ(chat->tokens_sealed + chat->count, 40u);
    EXPECT_EQ(client->check_tail(*chat, geometry, ids, 10, 30), "");
    expect_all(*client, *chat, sim::first_of(ids, 10));
  }
}

// Nor does it go on saying so: a name that is free again, or an end that was refused, would come
// back.
TEST_F(EngineDisk, ARowInDoubtIsSettledBeforeTheStoreTakesWrites) {
  const auto ids = make_ids(40);
  auto old = client->create(space, {}, "old");
  auto other = client->create(space, {}, "other");
  for (SimSequence* chat : {old.get(), other.get()}) {
    client->append(*chat, geometry, ids, 0, 20);
    ASSERT_EQ(client->commit(*chat).value1, 20u);
  }
  const auto fail = [&](const Json& request) {
    ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
    EXPECT_EQ(client->control(request).status.code, Code::kIo);
    ASSERT_TRUE(arm_faults(""));
    world.clock().advance_ns(1'000'000'000);
    world.settle();
    ASSERT_FALSE(state().read_only);
  };
  const std::uint64_t end = world.clock().wall_ns() / 1'000'000'000 + 60;
  fail({{"op", "rename"}, {"target", "old"}, {"name", "new"}});
  fail({{"op", "pin"}, {"target", "other"}});
  fail({{"op", "expire"}, {"target", "old"}, {"at_unix_s", end}});
  ASSERT_TRUE(client->control({{"op", "rename"}, {"target", "other"}, {"name", "new"}}).ok());
  client->append(*old, geometry, ids, 20, 20);
  ASSERT_EQ(client->commit(*old).value1, 40u);
  world.kill();
  world.clock().advance_ns(120'000'000'000);
  restart();
  world.settle();
  for (const std::string name : {"old", "new"}) {
    const StoredSequence* found = find_sequence_by_name(state(), name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_FALSE(found->row.pinned);
    EXPECT_EQ(found->row.expires_unix_s, 0u);
    auto chat = client->attach(space, name, true);
    ASSERT_NE(chat, nullptr);
    EXPECT_EQ(chat->tokens_sealed + chat->count, name == "old" ? 40u : 20u);
  }
}

// Its old name is no other's until its new one is durable.
TEST_F(EngineDisk, ARenameThatFailsHasItsNameBack) {
  for (const bool is_private : {false, true}) {
    SCOPED_TRACE(is_private);
    auto chat = client->create(space, {}, is_private ? "mine" : "old", is_private);
    const std::string name = is_private ? "mine" : "old";
    ASSERT_TRUE(client->control({{"op", "rename"}, {"target", name}, {"name", "new"}}).ok());
    EXPECT_EQ(find_sequence_by_name(state(), name), nullptr);
    ASSERT_TRUE(client->control({{"op", "rename"}, {"target", "new"}, {"name", name}}).ok());
    ASSERT_NE(client->create(space, {}, "new"), nullptr) << "the name is free";
    ASSERT_TRUE(client->control({{"op", "rename"}, {"target", "new"}, {"name", ""}}).ok());
  }
  sim::SimClient tool(world, "tool", false);
  ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
  const auto renamed = tool.start_control({{"op", "rename"}, {"target", "old"}, {"name", "new"}});
  Reply reply;
  EXPECT_EQ(client->create(space, {}, "old", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kExists);
  EXPECT_EQ(tool.wait(renamed).status.code, Code::kIo);
  EXPECT_EQ(find_sequence_by_name(state(), "new"), nullptr);
  EXPECT_NE(find_sequence_by_name(state(), "old"), nullptr);
}

// Two of several clients' changes of one row are under way, and the catalogue refuses the n-th.
TEST_F(EngineDisk, ChangesUnderWayGoBackToTheLastDurableOne) {
  ASSERT_NE(client->create(space, {}, "old"), nullptr);
  const SequenceId id = find_sequence_by_name(state(), "old")->row.id;
  const auto rename = [](const char* from, const char* to) {
    return Json{{"op", "rename"}, {"target", from}, {"name", to}};
  };
  const std::uint64_t soon = world.clock().wall_ns() / 1'000'000'000 + 3600;
  const Json pin{{"op", "pin"}, {"target", "old"}};
  const Json expire{{"op", "expire"}, {"target", "old"}, {"at_unix_s", soon}};
  struct Case {
    Json first, second;
    int refused;
    std::string name;
    bool pinned;
  };
  for (const Case& each : {Case{pin, rename("old", "x"), 2, "old", true},
                           Case{expire, rename("old", "x"), 1, "old", false},
                           Case{rename("old", "x"), pin, 1, "old", false},
                           Case{rename("old", "x"), rename("x", "y"), 1, "old", false},
                           Case{rename("old", "x"), rename("x", "y"), 2, "x", false},
                           Case{rename("old", "x"), rename("x", "old"), 1, "old", false},
                           Case{rename("old", "x"), rename("x", "old"), 2, "x", false},
                           Case{rename("old", "x"), rename("x", "y"), 9, "y", false}}) {
    SCOPED_TRACE(each.first.dump() + each.second.dump() + std::to_string(each.refused));
    sim::SimClient one(world, "one", false), two(world, "two", false);
    ASSERT_TRUE(arm_faults("catalogue.written=fail@" + std::to_string(each.refused)));
    Json second = each.second;
    if (each.second == pin) second["target"] = "x";
    const auto first = one.start_control(each.first);
    while (find_sequence(state(), id)->row_changes == 0) ASSERT_TRUE(world.turn());
    const auto next = two.start_control(second);
    while (find_sequence(state(), id)->row_changes == 1) ASSERT_TRUE(world.turn());
    ASSERT_EQ(find_sequence(state(), id)->row_changes, 2u);
    EXPECT_EQ(one.wait(first).status.code, each.refused == 1 ? Code::kIo : Code::kOk);
    EXPECT_EQ(two.wait(next).status.code, each.refused <= 2 ? Code::kIo : Code::kOk);
    ASSERT_TRUE(arm_faults(""));
    world.clock().advance_ns(1'000'000'000);
    world.settle();
    ASSERT_FALSE(state().read_only);
    for (int start = 0; start < 2; ++start) {
      for (const std::string name : {"old", "x", "y"}) {
        const StoredSequence* found = find_sequence_by_name(state(), name);
        ASSERT_EQ(found != nullptr, name == each.name) << name << start;
        if (found == nullptr) continue;
        EXPECT_EQ(found->row.id, id);
        EXPECT_EQ(found->row.name, name);
        EXPECT_EQ(found->row.pinned, each.pinned);
        EXPECT_EQ(found->row.expires_unix_s, 0u);
      }
      if (start == 1) break;
      world.kill();
      restart();
    }
    ASSERT_TRUE(client->control({{"op", "pin"}, {"target", each.name}, {"pinned", false}}).ok());
    ASSERT_TRUE(client->control(rename(each.name.c_str(), "old")).ok());
  }
}

// A file that was read from the page cache may be another one on the disk.
TEST_F(EngineDisk, ALogThatWasReadPastNoCacheGoesOnInANewFile) {
  const auto ids = make_ids(30);
  for (const bool direct : {true, false}) {
    const std::string name = direct ? "direct" : "cached";
    auto chat = client->create(space, {}, name);
    client->append(*chat, geometry, ids, 0, 20);
    ASSERT_EQ(client->commit(*chat).value1, 20u);
    world.kill();
    restart();
    state().options.direct_io = direct;
    const auto generation = [&] { return find_sequence_by_name(state(), name)->log.generation; };
    const std::uint64_t before = generation();
    chat = client->attach(space, name, true);
    client->append(*chat, geometry, ids, 20, 10);
    ASSERT_EQ(client->commit(*chat).value1, 30u);
    EXPECT_EQ(generation() == before, direct);
  }
}

// It may have been published in the catalogue all the same.
TEST_F(EngineDisk, AFailedSealWhoseRowIsInDoubtLeavesNothing) {
  const auto ids = make_ids(128);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 128);
  ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
  EXPECT_EQ(client->seal(*chat).status, static_cast<std::int32_t>(Code::kIo));
  ASSERT_TRUE(arm_faults(""));
  EXPECT_EQ(world.disk().list("segments")->size(), 1u) << "a row that stays may name it";
  world.clock().advance_ns(1'000'000'000);
  world.settle();
  ASSERT_FALSE(state().read_only);
  EXPECT_TRUE(world.disk().list("segments")->empty());
  ASSERT_EQ(client->seal(*chat).status, 0);
  ASSERT_TRUE(close(*chat));
  ASSERT_TRUE(client->control({{"op", "rm"}, {"target", "chat"}, {"wipe", true}}).ok());
  world.kill();
  restart();
  EXPECT_EQ(match(ids), 0u);
  EXPECT_TRUE(world.disk().list("segments")->empty());
}

// As an older kvtier could leave them.
TEST_F(EngineDisk, OfTwoRowsWithOneNameTheLaterHasIt) {
  ASSERT_NE(client->create(space, {}, "first"), nullptr);
  ASSERT_NE(client->create(space, {}, "second"), nullptr);
  StoredSequence& second = *find_sequence_by_name(state(), "second");
  const SequenceId first = find_sequence_by_name(state(), "first")->row.id;
  second.row.name = "first";
  post_sequence_row(state(), second, true, [](Result<void> posted) { EXPECT_TRUE(posted); });
  const SequenceId later = second.row.id;
  world.settle();
  world.kill();
  restart();
  ASSERT_NE(find_sequence_by_name(state(), "first"), nullptr);
  EXPECT_EQ(find_sequence_by_name(state(), "first")->row.id, later);
  ASSERT_NE(find_sequence(state(), first), nullptr);
  EXPECT_EQ(find_sequence(state(), first)->row.name, "");
}

TEST_F(EngineDisk, AbstractsComeBackFromSidecarsAndAreRebuilt) {
  const auto want_boxes = [&](const SimSequence& sequence) {
    const Reply reply = client->control(
        Json{{"op", "abstract_want"}, {"handle", sequence.handle}, {"abstract", "box/pages:16"}});
    ASSERT_TRUE(reply.ok());
    EXPECT_EQ(reply.body["lane"], 0u);
  };
  const auto ids = make_ids(100);
  {
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, ids, 100);
    world.settle();
    want_boxes(*sequence);
    world.settle();
    EXPECT_NE(sequence->read_directory().entries[0].abstract_offsets[0], kNoAbstract);
  }
  const AbstractLayout layout(geometry, *parse_abstract_spec("box/pages:16"), 100, 7);
  std::vector<std::byte> first;
  for (int round = 0; round < 3; ++round) {
    world.settle();
    world.kill();
    if (round == 2) {
      const std::string path = "sidecars/" + world.disk().list("sidecars")->at(0);
      ASSERT_TRUE(world.disk().unlink(path));
    }
    restart();
    auto sequence = client->attach(space, "chat", false);
    EXPECT_EQ(sequence->read_directory().entries[0].abstract_offsets[0], kNoAbstract);
    want_boxes(*sequence);
    world.settle();
    const std::uint64_t offset = sequence->read_directory().entries[0].abstract_offsets[0];
    ASSERT_NE(offset, kNoAbstract) << round;
    std::vector<std::byte> bytes(client->abstracts() + offset,
                                 client->abstracts() + offset + layout.size_bytes());
    if (round == 0) first = bytes;
    EXPECT_EQ(bytes, first) << round;
    EXPECT_EQ(state().metrics.abstracts_loaded, round == 2 ? 0u : 1u);
    EXPECT_EQ(state().metrics.abstracts_rebuilt, round == 2 ? 1u : 0u);
    client.reset();
    EXPECT_EQ(state().abstracts->used_bytes(), 0u);
  }
  // Boxes hold their keys: K of token 0, layer 0, head 0 lies inside unit 0's box.
  EXPECT_EQ(first.size(), layout.size_bytes());
}

TEST_F(EngineDisk, RemovedSequencesFreeTheirDisk) {
  const auto ids = make_ids(200);
  auto trunk = client->create(space, {}, "trunk");
  seal_all(*trunk, ids, 100);
  Reply reply = client->control(Json{{"op", "fork"},
                                     {"space", space},
                                     {"name", "trunk"},
                                     {"tokens", 100},
                                     {"new_name", "branch"}});
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(client->control(Json{{"op", "rm"}, {"target", "trunk"}}).status.code, Code::kBusy);
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", trunk->handle}}).ok());
  reply = client->control(Json{{"op", "rm"}, {"target", "trunk"}, {"wipe", true}});
  ASSERT_TRUE(reply.ok());
  EXPECT_GT(reply.body["bytes_freed"].get<std::uint64_t>(), 0u);
  world.settle();
  EXPECT_EQ(world.disk().list("segments")->size(), 1u);
  crash();
  EXPECT_EQ(client->attach(space, "trunk", false), nullptr);
  auto branch = client->attach(space, "branch", false);
  ASSERT_NE(branch, nullptr);
  expect_all(*client, *branch, sim::first_of(ids, 100));
  EXPECT_EQ(state().metrics.segments_missing, 0u);
}

TEST_F(EngineDisk, WipedTokensAreNoCacheForOthers) {
  const auto ids = make_ids(150);
  auto chat = client->create(space, {}, "chat");
  seal_all(*chat, ids, 50);
  // The third segment stays as a cache without a sequence.
  ASSERT_TRUE(
      client->control(Json{{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 90}}).ok());
  chat->tokens_sealed = 90;
  chat->half = 0;
  client->append(*chat, geometry, ids, 90, 5);
  ASSERT_EQ(client->commit(*chat).status, 0);
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", chat->handle}}).ok());
  world.settle();
  EXPECT_EQ(world.disk().list("segments")->size(), 3u);
  EXPECT_EQ(world.disk().list("logs")->size(), 1u);
  ASSERT_TRUE(client->control(Json{{"op", "rm"}, {"target", "chat"}, {"wipe", true}}).ok());
  world.settle();
  for (const char* folder : {"segments", "sidecars", "logs"})
    EXPECT_TRUE(world.disk().list(folder)->empty()) << folder;
  Reply reply;
  ASSERT_NE(client->create(space, ids, "next", false, &reply), nullptr);
  EXPECT_EQ(reply.body["tokens"].get<std::uint64_t>(), 0u);
  crash();
  EXPECT_EQ(state().metrics.segments_missing, 0u);
  ASSERT_NE(client->create(space, ids, "again", false, &reply), nullptr);
  EXPECT_EQ(reply.body["tokens"].get<std::uint64_t>(), 0u);
}

TEST_F(EngineDisk, DiskLimitEvictsUnusedSegmentsSuffixFirst) {
  const auto old_ids = make_ids(256, 1);
  {
    auto old = client->create(space, {}, "old");
    seal_all(*old, old_ids, 128);
    ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", old->handle}}).ok());
  }
  auto& segments = state().segments.all;
  ASSERT_EQ(segments.size(), 2u);
  // Without its sequence it stays as a cache of prefixes.
  StoredSequence& stored = *find_sequence_by_name(state(), "old");
  bool removed = false;
  remove_sequence(state(), stored, LogFile::kUnlink,
                  [&](Result<void> result) { removed = result.has_value(); });
  world.settle();
  ASSERT_TRUE(removed);
  ASSERT_EQ(segments.size(), 2u);
  state().options.disk_bytes_max = store_bytes(state()) + 4096;
  const auto ids = make_ids(128, 2);
  auto sequence = client->create(space, {}, "new");
  seal_all(*sequence, ids, 128);
  world.settle();
  EXPECT_EQ(segments.size(), 2u);
  EXPECT_EQ(state().metrics.segments_evicted, 1u);
  Reply reply;
  auto prefix = client->create(space, old_ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 128) << "the prefix is still there, its suffix went";
  // Now everything is in use: no room.
  client->append(*sequence, geometry, make_ids(256, 2), 128, 128);
  state().options.disk_bytes_max = store_bytes(state());
  EXPECT_EQ(state().metrics.no_room, 0u);
  EXPECT_EQ(client->seal(*sequence).status, static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_EQ(state().metrics.no_room, 1u);
  state().options.disk_bytes_max = 1ull << 30;
  EXPECT_EQ(client->seal(*sequence).status, 0);
}

}  // namespace
}  // namespace kvtier
