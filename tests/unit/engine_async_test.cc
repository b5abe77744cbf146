// The engine's asynchronous corners: what waits behind work that fails, answers that come when
// their asker is gone, sequences that nobody may name yet.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "daemon/reclaim.h"
#include "tests/unit/engine_fixture.h"
#include "tiers/export_format.h"
#include "tiers/segment_format.h"

namespace kvtier {
namespace {

using sim::Reply;
using sim::SimClient;

class EngineAsyncTest : public EngineFixture {
 protected:
  // Sends a request without waiting for its answer.
  std::shared_ptr<Reply> send(SimClient& from, Json body) {
    auto reply = std::make_shared<Reply>();
    reply->status = {Code::kTimeout, 0, "no answer"};
    body = parse_json(dump_json(body)).value();
    world.engine().control(from.session(), {std::move(body), {}},
                           [reply](Result<ControlReply> result) {
                             reply->status = result ? Status{} : result.error();
                             if (result) reply->body = std::move(result->body);
                           });
    return reply;
  }
  // The sequence's row goes, that of its segment cannot.
  void remove_but_for_the_row(const std::string& name) {
    ASSERT_TRUE(arm_faults("catalogue.write=fail@2"));
    const auto reply = send(*client, {{"op", "rm"}, {"target", name}});
    while (state().metrics.catalogue_failures == 0) ASSERT_TRUE(world.turn());
    ASSERT_TRUE(arm_faults(""));
  }
};

// Whatever of the catalogue's queue goes with the daemon.
TEST_F(EngineAsyncTest, WhatACreateWasAnsweredIsThereInTheNextDaemon) {
  for (int round = 0; round < 20 && !HasFatalFailure(); ++round) {
    const std::string name = "chat " + std::to_string(round);
    auto chat = client->create(space, {}, name);
    ASSERT_NE(chat, nullptr);
    chat.reset();
    world.kill();
    restart();
    EXPECT_NE(client->attach(space, name, true), nullptr) << round;
  }
}

TEST_F(EngineAsyncTest, WhoGoesBeforeACreateIsAnsweredIsToldNothingElse) {
  auto other = std::make_unique<SimClient>(world, "other");
  const std::uint64_t its_space = other->open_space(geometry);
  const auto reply = send(*other, {{"op", "create"}, {"space", its_space}, {"name", "chat"}});
  while (find_sequence_by_name(state(), "chat") == nullptr ||
         find_sequence_by_name(state(), "chat")->open.empty())
    ASSERT_TRUE(world.turn());
  other.reset();
  world.settle();
  EXPECT_EQ(reply->status.code, Code::kCancelled);
  EXPECT_NE(client->attach(space, "chat", true), nullptr);
}

// Whether its row was refused or only reported so: the name is free at once, and nobody has it in
// the next daemon either.
TEST_F(EngineAsyncTest, ANameWhoseRowFailsIsRefused) {
  { ASSERT_NE(client->create(space, {}, "source"), nullptr); }
  SimClient tool(world, "tool", false);
  const Json fork{{"op", "fork"}, {"name", "source"}, {"new_name", "chat"}};
  Json session_fork = fork;
  session_fork["space"] = space;
  for (const char* fault : {"catalogue.write=fail@1", "catalogue.written=fail@1"}) {
    for (int way = 0; way < 3; ++way) {
      SCOPED_TRACE(std::string(fault) + ", way " + std::to_string(way));
      ASSERT_TRUE(arm_faults(fault));
      Reply reply;
      if (way == 0)
        EXPECT_EQ(client->create(space, {}, "chat", false, &reply), nullptr);
      else
        reply = way == 1 ? client->control(session_fork) : tool.control(fork);
      EXPECT_EQ(reply.status.code, Code::kIo);
      ASSERT_TRUE(arm_faults(""));
      EXPECT_EQ(find_sequence_by_name(state(), "chat"), nullptr);
      world.clock().advance_ns(1'000'000'000);
      world.settle();
      EXPECT_FALSE(state().read_only);
      auto again = client->create(space, {}, "again");
      ASSERT_NE(again, nullptr);
      ASSERT_TRUE(close(*again));
      ASSERT_TRUE(client->control(Json{{"op", "rm"}, {"target", "again"}}).ok());
    }
  }
  crash();
  EXPECT_EQ(find_sequence_by_name(state(), "chat"), nullptr);
  EXPECT_NE(client->attach(space, "source", true), nullptr);
}

// Somebody has opened it before its row failed: it goes with them, with the row that was written
// all the same.
TEST_F(EngineAsyncTest, ANameWhoseRowFailsGoesWithItsLastReader) {
  SimClient other(world, "other");
  const std::uint64_t its_space = other.open_space(geometry);
  auto source = client->create(space, {}, "source");
  ASSERT_TRUE(close(*source));
  world.settle();
  SimClient tool(world, "tool", false);  // whose row is synced
  ASSERT_TRUE(arm_faults("catalogue.written=fail@1"));
  const auto created = send(tool, {{"op", "fork"}, {"name", "source"}, {"new_name", "chat"}});
  while (find_sequence_by_name(state(), "chat") == nullptr) ASSERT_TRUE(world.turn());
  const auto opened =
      send(other, {{"op", "attach"}, {"space", its_space}, {"name", "chat"}, {"write", false}});
  world.settle();
  ASSERT_TRUE(arm_faults(""));
  EXPECT_EQ(created->status.code, Code::kIo);
  ASSERT_EQ(opened->status.code, Code::kOk);
  EXPECT_NE(find_sequence_by_name(state(), "chat"), nullptr);
  ASSERT_TRUE(other.control({{"op", "close"}, {"handle", opened->body["handle"]}}).ok());
  EXPECT_EQ(find_sequence_by_name(state(), "chat"), nullptr);
  world.clock().advance_ns(2'000'000'000);
  world.settle();
  EXPECT_FALSE(state().read_only);
  world.kill();  // a power cut could lose the row by itself
  restart();
  EXPECT_EQ(find_sequence_by_name(state(), "chat"), nullptr);
}

TEST_F(EngineAsyncTest, WhenASequenceWasLastUsedIsThereInTheNextDaemon) {
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, make_ids(20), 0, 20);
  ASSERT_EQ(client->commit(*chat).status, 0);
  ASSERT_TRUE(close(*chat));
  world.settle();
  world.clock().advance_ns(3600'000'000'000);
  auto reader = client->attach(space, "chat", false);
  ASSERT_NE(reader, nullptr);
  ASSERT_TRUE(close(*reader));
  const std::uint64_t used = find_sequence_by_name(state(), "chat")->row.last_used_unix_ns;
  world.settle();
  world.kill();
  restart();
  EXPECT_EQ(find_sequence_by_name(state(), "chat")->row.last_used_unix_ns, used);
}

TEST_F(EngineAsyncTest, AStoreThatTakesNoWritesSaysSo) {
  const auto ids = make_ids(20);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 20);
  ASSERT_EQ(client->commit(*chat).status, 0);
  state().read_only = true;
  state().next_resume_ns = UINT64_MAX;
  Reply reply;
  EXPECT_EQ(client->create(space, {}, "other", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kReadOnly);
  EXPECT_EQ(find_sequence_by_name(state(), "other"), nullptr);
  EXPECT_TRUE(state().sequences.rows_left.empty()) << "nothing was written";
  EXPECT_NE(client->create(space, {}, ""), nullptr) << "what has no name needs no row";
  const std::uint64_t logs = world.disk().list("logs")->size();
  reply = client->control(Json{{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 10}});
  EXPECT_EQ(reply.status.code, Code::kReadOnly);
  EXPECT_EQ(world.disk().list("logs")->size(), logs) << "a log that no row can name";
}

// Two forks wait for the committed tail to be sealed. The seal of the first fails: the second must
// be served all the same.
TEST_F(EngineAsyncTest, AFailedSealWithoutAWriterDropsNobodysRequest) {
  const auto ids = make_ids(60);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 60);
  ASSERT_EQ(client->commit(*chat).status, 0);
  ASSERT_TRUE(close(*chat));
  ASSERT_TRUE(arm_faults("seal.copied=fail"));
  const auto fork = [&](const char* name) {
    return send(*client, {{"op", "fork"}, {"name", "chat"}, {"new_name", name}});
  };
  const auto first = fork("first"), second = fork("second");
  world.settle();
  EXPECT_EQ(first->status.code, Code::kIo);
  EXPECT_TRUE(second->ok()) << second->status.message();
  auto made = client->attach(space, "second", false);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(made->tokens_sealed, 60u);
}

// The attach waits behind a seal; when its turn comes, its session is gone, and so is the
// sequence with its last one. For AddressSanitizer.
TEST_F(EngineAsyncTest, AnAttachWhoseSessionIsGone) {
  const auto ids = make_ids(60);
  SimClient reader(world, "reader");
  auto late = std::make_unique<SimClient>(world, "late");
  auto writer = client->create(space, {}, "", true);
  client->append(*writer, geometry, ids, 0, 60);
  Submission request{};
  request.op = static_cast<std::uint16_t>(Op::kSeal);
  request.sequence = writer->handle;
  request.count = 60;
  client->submit(request);
  world.engine().step();  // the seal is with its worker
  auto open = reader.attach(space, writer->id, false);
  ASSERT_NE(open, nullptr);
  world.engine().close_session(client->session());
  const auto attach =
      send(*late, {{"op", "attach"}, {"space", space}, {"sequence", writer->id}, {"write", true}});
  world.engine().close_session(late->session());
  world.engine().close_session(reader.session());
  world.settle();
  EXPECT_EQ(attach->status.code, Code::kCancelled);
  EXPECT_TRUE(state().sequences.all.empty());
  EXPECT_TRUE(state().segments.all.empty());
}

// Metadata is evicted while chunks are read; whoever asks for it again and the read that kept a
// copy both bring it back.
TEST_F(EngineAsyncTest, MetadataThatComesBackTwice) {
  const auto ids = make_ids(64);
  {
    auto chat = client->create(space, {}, "chat");
    seal(*chat, ids, 64);
  }
  for (int round = 0; round < 20; ++round) {
    crash();
    auto chat = client->attach(space, "chat", false);
    Segment& segment = *state().segments.all.begin()->second;
    bool loaded = false;
    load_meta(state(), segment, IoPriority::kDemand, [&](Result<void>) { loaded = true; });
    ASSERT_TRUE(world.run_until([&] { return loaded; }));
    const auto wanted = SimClient::all_entries(chat->read_directory(), geometry);
    const std::uint64_t fetch = client->start_fetch(*chat, wanted, Op::kFetch, 0);
    ASSERT_TRUE(world.run_until([&] { return !state().fetch.fills.empty(); }));
    ASSERT_TRUE(segment.meta_listed);  // as keep_meta() evicts
    state().segments.meta_bytes -= segment.meta->memory_bytes();
    state().segments.meta_order.erase(segment.meta_place);
    segment.meta_listed = false;
    segment.meta.reset();
    loaded = false;
    load_meta(state(), segment, IoPriority::kDemand,
              [&](Result<void> r) { loaded = r.has_value(); });
    const Completion done = client->wait(fetch);
    EXPECT_EQ(done.status, 0);
    EXPECT_EQ(done.count, wanted.size());
    world.settle();
    EXPECT_TRUE(loaded);
    EXPECT_NE(segment.meta, nullptr);
    EXPECT_EQ(state().segments.meta_order.size(), 1u);
  }
}

// Repair finds the segment missing and cuts the sequences that show it. One that is being removed
// stays removed.
TEST_F(EngineAsyncTest, RepairBringsNothingBackThatIsBeingRemoved) {
  std::uint32_t met = 0;
  for (std::uint32_t round = 0; round < 12; ++round) {
    const std::string name = "chat" + std::to_string(round);
    auto chat = client->create(space, {}, name);
    seal(*chat, make_ids(40, round), 40);
    ASSERT_TRUE(close(*chat));
    const Segment& segment = *find_sequence_by_name(state(), name)->parts[0].segment;
    ASSERT_TRUE(world.disk().unlink(segment_path(segment.row.id)));
    const auto repair = send(*client, {{"op", "repair"}});
    const auto rm = send(*client, {{"op", "rm"}, {"target", name}});
    world.settle();
    ASSERT_TRUE(repair->ok()) << repair->status.message();
    ASSERT_TRUE(rm->ok()) << rm->status.message();
    met += repair->body["problems"].dump().find("in use") != std::string::npos;
    crash();
    EXPECT_EQ(client->attach(space, name, false), nullptr) << name << " is back";
  }
  EXPECT_GT(met, 0u) << "no repair met a removal";
}

// Nobody can name a sequence that an import or a compaction is at work on, and no timer takes it.
TEST_F(EngineAsyncTest, InternalSequencesAreNobodys) {
  const auto ids = make_ids(100);
  auto chat = client->create(space, {}, "");
  seal(*chat, ids, 60);
  client->append(*chat, geometry, ids, 60, 20);
  ASSERT_EQ(client->commit(*chat).status, 0);
  ASSERT_TRUE(close(*chat));
  StoredSequence& sequence = *find_sequence(state(), SequenceId{chat->id});
  sequence.internal = true;
  const Json requests[] = {{{"op", "attach"}, {"space", space}, {"sequence", chat->id}},
                           {{"op", "fork"}, {"sequence", chat->id}},
                           {{"op", "rm"}, {"target", chat->id}},
                           {{"op", "rename"}, {"target", chat->id}, {"name", "mine"}},
                           {{"op", "export"}, {"target", chat->id}, {"path", "/nowhere/x"}}};
  for (const Json& request : requests)
    EXPECT_EQ(client->control(request).status.code, Code::kNotFound) << request.dump();
  EXPECT_TRUE(client->control({{"op", "ls"}}).body["sequences"].empty());
  sequence.row.expires_unix_s = 1;
  world.clock().advance_ns(3600'000'000'000);
  world.settle();
  ASSERT_EQ(find_sequence(state(), SequenceId{chat->id}), &sequence) << "it expired";
  EXPECT_EQ(sequence.tokens_sealed, 60u) << "its idle tail was sealed";
  state().options.disk_bytes_max = 1;
  EXPECT_FALSE(reserve_disk(state(), 4096));
  world.settle();
  ASSERT_EQ(find_sequence(state(), SequenceId{chat->id}), &sequence) << "it was evicted";
  sequence.internal = false;
  EXPECT_EQ(client->control({{"op", "ls"}}).body["sequences"].size(), 1u);
}

// Every sequence that exists while the request runs and did not before is internal.
TEST_F(EngineAsyncTest, ImportAndCompactionMakeThemInternal) {
  const auto ids = make_ids(100);
  auto chat = client->create(space, {}, "chat");
  seal(*chat, ids, 50);
  seal(*chat, ids, 50);
  ASSERT_TRUE(close(*chat));
  const std::string file = std::filesystem::temp_directory_path() /
                           ("kvtier-async-" + std::to_string(::getpid()) + ".kvx");
  ExportDescription description;
  const SpaceRow& row = state().spaces.begin()->second->row;
  description.fingerprint = {row.model, row.runtime, row.detail, row.geometry};
  description.tokens = 50;
  description.segments = 1;
  std::vector<std::byte> bytes;
  ExportWriter writer(
      [&](ByteSpan more) -> Result<void> {
        bytes.insert(bytes.end(), more.begin(), more.end());
        return {};
      },
      CodecId::kRaw);
  ASSERT_TRUE(writer.begin(description));
  ASSERT_TRUE(writer.begin_segment({0, std::vector<TokenRecord>(50), {}, {}}));
  const std::vector<std::byte> chunk(static_cast<std::size_t>(geometry.chunk_bytes(0)));
  for (std::uint32_t i = 0; i < PlaneLayout(geometry, 50).chunks_total(); ++i)
    ASSERT_TRUE(writer.add_chunk(chunk));
  ASSERT_TRUE(writer.finish());
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  for (const Json& request :
       {Json{{"op", "import"}, {"path", file}, {"name", "new"}}, Json{{"op", "gc"}}}) {
    const std::size_t before = state().sequences.all.size();
    const std::uint64_t first_new = state().sequences.next_id;
    const auto reply = send(*client, request);
    bool seen = false;
    while (reply->status.code == Code::kTimeout && world.turn()) {
      for (const auto& [id, sequence] : state().sequences.all) {
        if (id.value < first_new || !sequence->row.name.empty()) continue;
        seen = true;
        ASSERT_TRUE(sequence->internal) << request.dump();
      }
    }
    EXPECT_TRUE(seen) << request.dump();
    EXPECT_TRUE(reply->ok()) << request.dump() << reply->status.message();
    world.settle();
    const bool import = request["op"] == "import";
    EXPECT_EQ(state().sequences.all.size(), before + (import ? 1 : 0));
  }
  std::filesystem::remove(file);
  EXPECT_EQ(client->attach(space, "chat", false)->read_directory().entries.size(), 1u);
  EXPECT_EQ(client->attach(space, "new", false)->tokens_sealed, 50u);
}

// As if it had never been: its name is free, and nothing of it comes back.
TEST_F(EngineAsyncTest, ASequenceOfAFailedRequestGoes) {
  const auto ids = make_ids(60);
  auto chat = client->create(space, {}, "chat");
  seal(*chat, ids, 60);
  SimClient full(world, "full");
  find_session(state(), full.session())->open_count = kOpenSequencesMax;
  Reply reply;
  for (const bool is_private : {false, true}) {
    EXPECT_EQ(full.create(space, ids, "mine", is_private, &reply), nullptr);
    EXPECT_EQ(reply.status.code, Code::kFull);
    world.settle();
    EXPECT_EQ(client->attach(space, "mine", false, &reply), nullptr);
    EXPECT_EQ(reply.status.code, Code::kNotFound);
  }
  const Json fork{{"op", "fork"}, {"name", "chat"}, {"new_name", "mine"}};
  EXPECT_EQ(full.control(fork).status.code, Code::kFull);
  world.settle();
  EXPECT_NE(client->create(space, ids, "mine"), nullptr);
  find_session(state(), full.session())->open_count = 0;
}

TEST_F(EngineAsyncTest, PrivateRowsAreNotLeftInMemory) {
  const auto ids = make_ids(90);
  auto chat = client->create(space, {}, "", true);
  seal(*chat, ids, 90);
  const std::byte* arena = client->arena();
  const std::size_t size = state().arena->size_bytes();
  const auto any = [&] {
    return std::any_of(arena, arena + size, [](std::byte byte) { return byte != std::byte{0}; });
  };
  EXPECT_TRUE(any());
  ASSERT_TRUE(close(*chat));
  EXPECT_FALSE(any());
}

// A row that could not be removed may still name its file: the file stays, and is served.
TEST_F(EngineAsyncTest, AFileStaysWhereItsRowMayStay) {
  const auto ids = make_ids(64);
  {
    auto chat = client->create(space, {}, "chat");
    seal(*chat, ids, 64);
    ASSERT_TRUE(close(*chat));
    remove_but_for_the_row("chat");
  }
  EXPECT_EQ(world.disk().list("segments")->size(), 1u);
  crash();
  EXPECT_EQ(state().metrics.segments_missing, 0u);
  Reply reply;
  auto again = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 64);
}

// The catalogue takes writes again: row and file go, and what they took is no room until then.
TEST_F(EngineAsyncTest, AFileGoesWhenItsRowCanBeRemoved) {
  auto chat = client->create(space, {}, "chat");
  seal(*chat, make_ids(64), 64);
  ASSERT_TRUE(close(*chat));
  remove_but_for_the_row("chat");
  state().options.disk_bytes_max = store_bytes(state());
  EXPECT_FALSE(reserve_disk(state(), 1));
  ASSERT_EQ(world.disk().list("segments")->size(), 1u);
  world.settle();
  EXPECT_FALSE(state().read_only);
  EXPECT_EQ(world.disk().list("segments")->size(), 0u);
  EXPECT_TRUE(reserve_disk(state(), 1));
}

// The row of a space could not be written: whoever opens it next writes it, or all that is
// committed in it would go at the next start.
TEST_F(EngineAsyncTest, ASpaceHasItsRowBeforeItIsUsed) {
  ASSERT_TRUE(arm_faults("catalogue.write=fail@1"));
  EXPECT_EQ(client->open_space(geometry, "another model"), 0u);
  ASSERT_TRUE(arm_faults(""));
  ASSERT_TRUE(arm_faults("catalogue.write=fail"));
  EXPECT_NE(client->open_space(geometry, "another model", true), 0u)
      << "a client that wants nothing on disk does not ask it";
  ASSERT_TRUE(arm_faults(""));
  world.settle();
  const std::uint64_t other = client->open_space(geometry, "another model");
  ASSERT_NE(other, 0u);
  const auto ids = make_ids(64);
  {
    auto chat = client->create(other, {}, "chat");
    seal(*chat, ids, 64);
    ASSERT_TRUE(close(*chat));
  }
  crash();
  ASSERT_NE(find_sequence_by_name(state(), "chat"), nullptr);
  Reply reply;
  auto again =
      client->create(client->open_space(geometry, "another model"), ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 64);
}

TEST_F(EngineAsyncTest, ASpaceThatWasOpenedIsThereAfterAPowerCut) {
  const std::uint64_t other = client->open_space(geometry, "another model");
  ASSERT_NE(other, 0u);
  crash();
  EXPECT_NE(find_space(state(), SpaceId{other}), nullptr);
}

// A space was private when this client opened it, and who opened it to keep something failed.
TEST_F(EngineAsyncTest, ASequenceThatStaysHasTheRowOfItsSpace) {
  const std::uint64_t other = client->open_space(geometry, "another model", true);
  ASSERT_NE(other, 0u);
  SimClient second(world, "second");
  ASSERT_TRUE(arm_faults("catalogue.write=fail"));
  EXPECT_EQ(second.open_space(geometry, "another model"), 0u);
  ASSERT_TRUE(arm_faults(""));
  world.settle();
  {
    auto chat = client->create(other, {}, "chat");
    ASSERT_NE(chat, nullptr);
    seal(*chat, make_ids(64), 64);
    ASSERT_TRUE(close(*chat));
  }
  crash();
  EXPECT_NE(find_sequence_by_name(state(), "chat"), nullptr);
}

// Whatever a client asks for.
TEST_F(EngineAsyncTest, WhatComesOfPrivateIsPrivate) {
  const std::uint64_t other = client->open_space(geometry, "another model", true);
  auto created = client->create(other, {}, "created");
  ASSERT_NE(created, nullptr);
  EXPECT_TRUE(find_sequence_by_name(state(), "created")->is_private);
  auto secret = client->create(space, {}, "secret", true);
  seal(*secret, make_ids(64), 64);
  ASSERT_TRUE(client
                  ->control(Json{{"op", "fork"},
                                 {"space", space},
                                 {"name", "secret"},
                                 {"tokens", 64},
                                 {"new_name", "forked"}})
                  .ok());
  EXPECT_TRUE(find_sequence_by_name(state(), "forked")->is_private);
  EXPECT_TRUE(world.disk().list("segments")->empty());
}

}  // namespace
}  // namespace kvtier
