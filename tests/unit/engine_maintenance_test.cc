// Workers beside the engine, over the simulated disk: verify, repair, gc, background verification,
// export and import read and write the store that the engine has.
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/engine_fixture.h"
#include "tiers/segment_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier {
namespace {

using sim::Reply;
using sim::SimClient;

class EngineMaintenance : public EngineFixture {
 protected:
  // Three segments of a closed sequence.
  void SetUp() override {
    EngineFixture::SetUp();
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, ids, 100);
    ASSERT_TRUE(close(*sequence));
  }
  Json request(Json body) {
    const Reply reply = client->control(std::move(body));
    EXPECT_TRUE(reply.ok()) << reply.status.message();
    return reply.body;
  }
  std::vector<SegmentId> segments() {
    std::vector<SegmentId> out;
    for (const SequencePart& part : find_sequence_by_name(state(), "chat")->parts)
      out.push_back(part.segment->row.id);
    return out;
  }
  // A bit of the last chunk, in front of its padding.
  void rot(SegmentId segment) {
    const std::string path = segment_path(segment);
    world.disk().rot(path, *world.disk().size_bytes(path) - kDiskAlign + 5, 3);
  }
  // The tokens are there and every row of them is served.
  void expect_chat(std::uint64_t tokens) {
    auto sequence = client->attach(space, "chat", true);
    ASSERT_NE(sequence, nullptr);
    EXPECT_EQ(sequence->tokens_sealed, tokens);
    expect_all(*client, *sequence, sim::first_of(ids, tokens));
    close(*sequence);
  }

  const std::vector<std::uint32_t> ids = make_ids(300);
};

TEST_F(EngineMaintenance, VerifyNamesTheStoreAsOneWord) {
  state().options.store_path = "/my store";
  state().metrics.rows_damaged = 1;
  EXPECT_NE(request({{"op", "verify"}}).dump().find("repair --store '/my store'`"),
            std::string::npos);
}

TEST_F(EngineMaintenance, VerifyReadsEveryChunkAndNamesWhatRots) {
  const Json sound = request({{"op", "verify"}});
  EXPECT_EQ(sound["sound"], true);
  EXPECT_EQ(sound["segments"], 3);
  EXPECT_EQ(sound["chunks"], 3 * 2 * 2 * 13) << "layers, heads, chunks of 8 tokens";
  EXPECT_GE(sound["bytes"], 300 * 2 * 2 * 64);
  rot(segments()[1]);
  const Json damaged = request({{"op", "verify"}});
  EXPECT_EQ(damaged["sound"], false);
  ASSERT_EQ(damaged["problems"].size(), 1u);
  EXPECT_EQ(damaged["problems"][0]["object"], segment_path(segments()[1]));
  EXPECT_EQ(state().metrics.segments_bad, 1u);
}

// Logs are looked at last: by then another one may have taken the place of what was there.
TEST_F(EngineMaintenance, ALogThatIsSealedMeanwhileIsNoDamage) {
  seal_all(*client->create(space, {}, "long"), make_ids(300, 2), 5);  // 60 to look at before
  auto talk = client->create(space, {}, "talk");
  const std::vector<std::uint32_t> others = make_ids(40, 1);
  for (const char* op : {"verify", "repair"}) {
    client->append(*talk, geometry, others, talk->tokens_sealed, 20);
    ASSERT_EQ(client->commit(*talk).status, 0);
    const sim::SimClient::Answer answer = client->start_control(Json{{"op", op}});
    ASSERT_EQ(client->seal(*talk).status, 0);
    ASSERT_TRUE(world.disk().list("logs")->empty());
    ASSERT_EQ(*answer, nullptr);
    const Reply reply = client->wait(answer);
    ASSERT_TRUE(reply.ok()) << reply.status.message();
    EXPECT_EQ(reply.body["problems"].size(), 0u) << reply.body.dump(1);
  }
}

// Its row names the new one, with fewer tokens, before the old one is gone.
TEST_F(EngineMaintenance, ALogThatIsCutMeanwhileIsNoDamage) {
  auto talk = client->create(space, {}, "talk");
  const StoredSequence& sequence = *find_sequence_by_name(state(), "talk");
  const std::vector<std::uint32_t> others = make_ids(40, 1);
  for (const char* op : {"verify", "repair"}) {
    client->append(*talk, geometry, others, talk->count, 40 - talk->count);
    ASSERT_EQ(client->commit(*talk).status, 0);
    const SimClient::Answer cut =
        client->start_control({{"op", "truncate"}, {"handle", talk->handle}, {"tokens", 10}});
    ASSERT_TRUE(
        world.run_until([&] { return sequence.row.log_generation != sequence.log.generation; }));
    EXPECT_EQ(sequence.log.tokens, 40u);
    EXPECT_EQ(request({{"op", op}})["problems"], Json::array());
    ASSERT_TRUE(client->wait(cut).ok());
    EXPECT_EQ(sequence.log.tokens, 10u);
    talk->count = 10;
  }
}

TEST_F(EngineMaintenance, ASegmentWhoseFileIsPutBackIsServedAgain) {
  const std::string path = segment_path(segments()[1]);
  for (const char* op : {"verify", "repair"}) {
    ASSERT_TRUE(world.disk().rename(path, "aside"));
    EXPECT_EQ(request({{"op", "verify"}})["sound"], false);
    EXPECT_EQ(find_segment(state(), segments()[1])->state, SegmentState::kLost);
    EXPECT_EQ(match(ids), 100u);
    ASSERT_TRUE(world.disk().rename("aside", path));
    const Json looked = request({{"op", op}});
    EXPECT_EQ(looked.value("dropped", 0), 0) << looked.dump(1);
    EXPECT_EQ(looked["problems"][0]["severity"], "note") << looked.dump(1);
    EXPECT_EQ(find_segment(state(), segments()[1])->state, SegmentState::kOnDisk);
    EXPECT_EQ(match(ids), 300u);
    EXPECT_EQ(state().metrics.segments_missing, 0u);
  }
  EXPECT_EQ(request({{"op", "verify"}})["problems"], Json::array());
  ASSERT_TRUE(world.disk().sync_directory("segments"));
  crash();
  expect_chat(300);
}

TEST_F(EngineMaintenance, RepairEndsTheSequenceBeforeWhatRots) {
  rot(segments()[1]);
  const Json repaired = request({{"op", "repair"}});
  EXPECT_EQ(repaired["dropped"], 1);
  EXPECT_EQ(repaired["segments_behind"], 1);
  EXPECT_EQ(request({{"op", "verify"}})["sound"], true);
  expect_chat(100);
}

// A compaction counts on the segments that it has made: nothing of the sequence is lost to it.
TEST_F(EngineMaintenance, RepairLeavesWhatACompactionUnderWayHasMade) {
  const std::vector<std::uint32_t> many = make_ids(3000, 1);
  auto book = client->create(space, {}, "book");
  seal_all(*book, many, 500);
  ASSERT_TRUE(close(*book));
  request({{"op", "rm"}, {"target", "chat"}});
  const StoredSequence& target = *find_sequence_by_name(state(), "book");
  const SimClient::Answer gc = client->start_control({{"op", "gc"}});
  SegmentId made;
  ASSERT_TRUE(world.run_until([&] {  // its first segment is there, the copy for the next waits
    for (const auto& [id, sequence] : state().sequences.all)
      if (sequence->internal && !sequence->working && sequence->parts.size() == 1)
        made = sequence->parts[0].segment->row.id;
    return made.valid() && target.parts[5].segment->busy != 0;
  }));
  world.hold_jobs();
  rot(made);
  const Json repaired = request({{"op", "repair"}});
  EXPECT_EQ(repaired["dropped"], 0) << repaired.dump(1);
  EXPECT_EQ(repaired["left"], 1);
  ASSERT_EQ(*gc, nullptr);
  world.let_jobs_go();
  EXPECT_EQ(client->wait(gc).body["segments_compacted"], 6);
  EXPECT_EQ(target.parts[0].segment->row.id, made);
  EXPECT_EQ(target.tokens(), 3000u);
}

// Its header is that of another model's log: several findings, mended once.
TEST_F(EngineMaintenance, ALogIsMendedOnceForAllThatIsFound) {
  auto talk = client->create(space, {}, "talk");
  client->append(*talk, geometry, ids, 0, 20);
  ASSERT_EQ(client->commit(*talk).status, 0);
  ASSERT_TRUE(close(*talk));
  const SequenceRow& row = find_sequence_by_name(state(), "talk")->row;
  ASSERT_TRUE(world.disk().write(
      tail_log_path(row.id, row.log_generation), 0,
      encode_tail_log_header({row.id, SpaceId{space + 1}, row.log_generation, 7, {}})));
  world.kill();
  restart();
  const Json repaired = request({{"op", "repair"}});
  EXPECT_EQ(repaired["problems"].size(), 4u) << repaired.dump(1);
  EXPECT_EQ(repaired["dropped"], 1);
  EXPECT_EQ(repaired["left"], 0);
  EXPECT_EQ(repaired["sequences_cut"].size(), 1u);
  EXPECT_EQ(request({{"op", "verify"}})["problems"], Json::array());
}

TEST_F(EngineMaintenance, ALogThatGoesWhileAnotherIsMendedWasNotDropped) {
  for (const char* name : {"one", "two"}) {
    auto talk = client->create(space, {}, name);
    client->append(*talk, geometry, ids, 0, 20);
    ASSERT_EQ(client->commit(*talk).status, 0);
    ASSERT_TRUE(close(*talk));
    const SequenceRow& row = find_sequence_by_name(state(), name)->row;
    world.disk().rot(tail_log_path(row.id, row.log_generation), 5, 3);
  }
  const StoredSequence& one = *find_sequence_by_name(state(), "one");
  const StoredSequence& two = *find_sequence_by_name(state(), "two");
  const SimClient::Answer repair = client->start_control({{"op", "repair"}});
  ASSERT_TRUE(world.run_until([&] { return one.working || two.working; }));
  const SimClient::Answer rm =
      client->start_control({{"op", "rm"}, {"target", one.working ? "two" : "one"}});
  const Reply repaired = client->wait(repair);
  EXPECT_TRUE(client->wait(rm).ok());
  EXPECT_EQ(repaired.body["problems"].size(), 2u) << repaired.body.dump(1);
  EXPECT_EQ(repaired.body["dropped"], 1);
  EXPECT_EQ(repaired.body["left"], 0);
}

// What it holds no more was never acknowledged.
TEST_F(EngineMaintenance, ATornLogThatCannotBeSealedIsNoDamageLeft) {
  auto talk = client->create(space, {}, "talk");
  client->append(*talk, geometry, ids, 0, 20);
  ASSERT_EQ(client->commit(*talk).status, 0);
  ASSERT_TRUE(close(*talk));
  const SequenceRow& row = find_sequence_by_name(state(), "talk")->row;
  const std::string path = tail_log_path(row.id, row.log_generation);
  ASSERT_TRUE(world.disk().write(path, *world.disk().size_bytes(path),
                                 std::vector<std::byte>(4096, std::byte{1})));
  world.kill();
  restart();
  state().options.tail_bytes_max = 0;
  const Json repaired = request({{"op", "repair"}});
  ASSERT_EQ(repaired["problems"].size(), 1u) << repaired.dump(1);
  EXPECT_NE(repaired.dump().find("; not mended: "), std::string::npos) << repaired.dump(1);
  EXPECT_EQ(repaired["left"], 0);
}

// It shows what the disk has, is kept while the daemon runs, and has no row.
TEST_F(EngineMaintenance, RepairCutsAPrivateSequenceInMemoryAlone) {
  std::vector<std::uint32_t> longer = ids;
  longer.resize(360, 7);
  auto secret = client->create(space, ids, "secret", true);
  ASSERT_NE(secret, nullptr);
  ASSERT_EQ(secret->tokens_sealed, 300u);
  seal(*secret, longer, 60);
  ASSERT_TRUE(close(*secret));
  rot(segments()[1]);
  const Json repaired = request({{"op", "repair"}});
  EXPECT_EQ(repaired["sequences_cut"].size(), 2u) << repaired.dump(1);
  expect_chat(100);
  ASSERT_NE(secret = client->attach(space, "secret", true), nullptr);
  EXPECT_EQ(secret->tokens_sealed, 100u);
  EXPECT_EQ(state().segments.all.size(), 1u);
  close(*secret);
  crash();
  EXPECT_EQ(find_sequence_by_name(state(), "secret"), nullptr);
  expect_chat(100);
}

TEST_F(EngineMaintenance, NothingIsDroppedForAWarning) {
  const std::string path = segment_path(segments()[1]);
  world.disk().rot(path, *world.disk().size_bytes(path) - 1, 3);  // padding
  const Json verified = request({{"op", "verify"}});
  EXPECT_EQ(verified["sound"], true);
  ASSERT_EQ(verified["problems"].size(), 1u) << verified.dump(1);
  EXPECT_EQ(verified["problems"][0]["severity"], "warning");
  EXPECT_EQ(request({{"op", "repair"}})["dropped"], 0);
  EXPECT_EQ(state().metrics.segments_bad, 0u);
  expect_chat(300);
}

TEST_F(EngineMaintenance, GcMakesOneSegmentOfThreeThatTheDiskHas) {
  const std::vector<SegmentId> before = segments();
  const std::uint64_t bytes = state().segments.disk_bytes;
  const Json done = request({{"op", "gc"}});
  EXPECT_EQ(done["segments_compacted"], 3);
  EXPECT_GT(done["bytes_freed"], 0);
  EXPECT_EQ(done["bytes_freed"], bytes - state().segments.disk_bytes);
  ASSERT_EQ(segments().size(), 1u);
  for (const SegmentId old : before) EXPECT_FALSE(world.disk().exists(segment_path(old)));
  crash();
  EXPECT_EQ(segments().size(), 1u);
  expect_chat(300);
}

// Less than half of it is shown, and what follows has no room beside that.
TEST_F(EngineMaintenance, GcRewritesASegmentThatIsHalfDead) {
  const std::vector<std::uint32_t> many = make_ids(2900, 1);
  auto book = client->create(space, {}, "book");
  seal(*book, many, 2048);
  request({{"op", "truncate"}, {"handle", book->handle}, {"tokens", 900}});
  book->tokens_sealed = 900;
  seal(*book, many, 2000);
  ASSERT_TRUE(close(*book));
  request({{"op", "rm"}, {"target", "chat"}});
  const auto dead = [&] { return request({{"op", "stats"}})["disk"]["dead_bytes"].get<int>(); };
  EXPECT_GT(dead(), 0);
  EXPECT_EQ(request({{"op", "gc"}})["segments_compacted"], 2);
  EXPECT_EQ(dead(), 0);
  crash();
  auto again = client->attach(space, "book", false);
  ASSERT_NE(again, nullptr);
  expect_all(*client, *again, many);
}

TEST_F(EngineMaintenance, GcLeavesTheSequenceAsItIsWhereASegmentRots) {
  const std::vector<SegmentId> before = segments();
  rot(before[2]);
  EXPECT_EQ(request({{"op", "gc"}})["segments_compacted"], 0);
  EXPECT_EQ(segments(), before);
}

TEST_F(EngineMaintenance, BackgroundVerificationFindsWhatRots) {
  rot(segments()[0]);
  state().options.scrub_mb_per_s = 100;
  for (int i = 0; i < 10; ++i) {
    world.clock().advance_ns(1'000'000'000);
    world.settle();
  }
  EXPECT_GE(state().upkeep.scrubbed_segments, 2u);
  EXPECT_EQ(state().metrics.segments_bad, 1u);
}

TEST_F(EngineMaintenance, AnExportComesBackBitForBit) {
  const std::string path = testing::TempDir() + "kvtier_" + std::to_string(::getpid()) + ".kvx";
  ::unlink(path.c_str());
  request({{"op", "export"}, {"target", "chat"}, {"path", path}});
  request({{"op", "rm"}, {"target", "chat"}});
  request({{"op", "import"}, {"path", path}, {"name", "chat"}});
  ::unlink(path.c_str());
  crash();
  expect_chat(300);
}

// A stop waits for one item of theirs, not for the whole store.
TEST_F(EngineMaintenance, LongRequestsEndEarlyWhenTheDaemonStops) {
  const std::string path = testing::TempDir() + "kvtier_" + std::to_string(::getpid()) + ".kvx";
  ::unlink(path.c_str());
  request({{"op", "export"}, {"target", "chat"}, {"path", path}});
  const std::string cut = path + ".cut";  // an import does not read as far as its end
  std::filesystem::copy_file(path, cut);
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) - 1);
  const std::string other = path + ".other";
  for (const Json& body : {Json{{"op", "verify"}}, Json{{"op", "repair"}}, Json{{"op", "gc"}},
                           Json{{"op", "warm"}, {"target", "chat"}},
                           Json{{"op", "export"}, {"target", "chat"}, {"path", other}},
                           Json{{"op", "import"}, {"path", cut}, {"name", "copy"}},
                           Json{{"op", "import"}, {"path", path}, {"name", "copy"}}}) {
    const SimClient::Answer answer = client->start_control(body);
    bool drained = false;
    world.engine().drain([&] { drained = true; });
    ASSERT_TRUE(world.run_until([&] { return drained; }));
    ASSERT_NE(*answer, nullptr) << body;
    EXPECT_EQ((*answer)->status.code, Code::kCancelled) << body;
    crash();
    EXPECT_EQ(segments().size(), 3u);
    EXPECT_EQ(find_sequence_by_name(state(), "copy"), nullptr);
  }
  EXPECT_FALSE(std::filesystem::exists(other));
  ::unlink(path.c_str());
  ::unlink(cut.c_str());
  expect_chat(300);
}

// The ids of spaces are short enough for a file to be made that meets the one of another model.
TEST_F(EngineMaintenance, AnImportIntoAnotherModelsSpaceIsRefused) {
  const std::string path = testing::TempDir() + "kvtier_" + std::to_string(::getpid()) + ".kvx";
  ::unlink(path.c_str());
  request({{"op", "export"}, {"target", "chat"}, {"path", path}});
  SpaceRow& row = find_space(state(), SpaceId{space})->row;
  const SpaceRow before = row;
  const auto refused = [&] {
    const Reply reply = client->control({{"op", "import"}, {"path", path}, {"name", "copy"}});
    EXPECT_EQ(reply.status.code, Code::kWrongSpace);
    EXPECT_EQ(find_sequence_by_name(state(), "copy"), nullptr);
    return std::string(reply.status.message());
  };
  row.digest.high ^= 1;
  EXPECT_EQ(refused(), "the store has another model under the id of the file's");
  row = before;
  row.geometry.layers.pop_back();
  EXPECT_EQ(refused(), "the store has another layout for the file's model");
  row = before;
  request({{"op", "import"}, {"path", path}, {"name", "copy"}});
  ::unlink(path.c_str());
}

// What it has made so far is somebody's to remove, and goes by itself.
TEST_F(EngineMaintenance, WhatTheCatalogueDoesNotLetGoOfIsNoLongerInternal) {
  const std::string path = testing::TempDir() + "kvtier_left_" + std::to_string(::getpid());
  ::unlink(path.c_str());
  request({{"op", "export"}, {"target", "chat"}, {"path", path}});
  std::size_t left = 0;
  for (const std::string op : {"import", "gc"}) {
    for (int batch = 1; batch <= 6; ++batch) {
      SCOPED_TRACE(op + " " + std::to_string(batch));
      const std::string name = op + std::to_string(batch);
      if (op == "gc") {
        auto sequence = client->create(space, {}, name);
        seal_all(*sequence, make_ids(300, static_cast<std::uint32_t>(batch)), 100);
        ASSERT_TRUE(close(*sequence));
      }
      ASSERT_TRUE(arm_faults("catalogue.written=fail@" + std::to_string(batch)));
      client->control(Json{{"op", op}, {"path", path}, {"name", name}});
      world.settle();
      ASSERT_TRUE(arm_faults(""));
      world.clock().advance_ns(1'000'000'000);
      world.settle();
      ASSERT_FALSE(state().read_only);
      for (const auto& [id, sequence] : state().sequences.all) {
        EXPECT_FALSE(sequence->internal);
        left += sequence->row.name.empty();
      }
      world.clock().advance_ns(3700'000'000'000);
      world.settle();
      for (const auto& [id, sequence] : state().sequences.all)
        EXPECT_NE(sequence->row.name, "") << "it does not go";
    }
  }
  EXPECT_GE(left, 2u);
  ::unlink(path.c_str());
  expect_chat(300);
}

// Until its row is there it is nobody's to rename or pin: a refused one would keep their name.
TEST_F(EngineMaintenance, AnImportIsNamedWhenItsRowIsThere) {
  const std::string path = testing::TempDir() + "kvtier_row_" + std::to_string(::getpid());
  ::unlink(path.c_str());
  request({{"op", "export"}, {"target", "chat"}, {"path", path}});
  sim::SimClient tool(world, "tool", false);
  const auto imported = tool.start_control({{"op", "import"}, {"path", path}, {"name", "copy"}});
  while (state().sequences.names.count("copy") == 0) ASSERT_TRUE(world.turn());
  ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
  EXPECT_FALSE(client->control({{"op", "pin"}, {"target", "copy"}}).ok());
  EXPECT_EQ(tool.wait(imported).status.code, Code::kIo);
  ASSERT_TRUE(arm_faults(""));
  world.clock().advance_ns(1'000'000'000);
  world.settle();
  for (const auto& [id, sequence] : state().sequences.all)
    EXPECT_EQ(sequence->row.name.empty() ? 0 : state().sequences.names.count(sequence->row.name),
              sequence->row.name.empty() ? 0u : 1u)
        << "a name that is no one's";
  world.clock().advance_ns(3700'000'000'000);
  world.settle();
  EXPECT_EQ(state().sequences.all.size(), 1u);
  ::unlink(path.c_str());
}

// As long as a sequence may be in segments, with what it costs of the stack as small.
class EngineManySegments : public EngineFixture {
 protected:
  static constexpr std::uint32_t kSegments = 2000;
  EngineManySegments() : EngineFixture({.host_bytes = 64ull << 20, .disk = {}}) {}
  // The request on a stack that has no room for a call within a call per segment.
  Reply request(const Json& body) {
    struct Call {
      sim::SimClient* client;
      const Json& body;
      Reply reply;
    } call{client.get(), body, {}};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 512 << 10);
    pthread_t thread;
    const auto run = [](void* given) -> void* {
      auto* to_do = static_cast<Call*>(given);
      to_do->reply = to_do->client->control(to_do->body);
      return nullptr;
    };
    EXPECT_EQ(pthread_create(&thread, &attributes, run, &call), 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    return std::move(call.reply);
  }
};

TEST_F(EngineManySegments, AreReadWithoutRecursion) {
  geometry.layers.resize(1);
  geometry.layers[0].kv_heads = geometry.layers[0].query_heads = 1;
  const std::uint64_t secrets = client->open_space(geometry, "secrets", true);
  auto talk = client->create(secrets, {}, "talk", true);
  ASSERT_NE(talk, nullptr);
  seal_all(*talk, make_ids(kSegments), 1);
  ASSERT_EQ(talk->tokens_sealed, kSegments);
  const Reply tokens =
      request({{"op", "tokens"}, {"handle", talk->handle}, {"first", 0}, {"count", kSegments}});
  EXPECT_EQ(tokens.payload.size(), kSegments * sizeof(TokenRecord)) << tokens.status.message();
  const Reply warm = request({{"op", "warm"}, {"target", "talk"}});
  EXPECT_EQ(warm.body["chunks_resident"], kSegments) << warm.status.message();
}

}  // namespace
}  // namespace kvtier
