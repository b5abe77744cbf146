// A disk that takes its time with the names of new files, or with a large one that is read: whoever
// waits for them waits, and nobody else. The engine's Io is a faulty one over the simulated disk
// that holds what it is told to.
#include <gtest/gtest.h>

#include "daemon/file_reads.h"
#include "tests/sim/sim_objects.h"
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::ObjectCall;
using sim::SimClient;
using sim::SimObjects;
using sim::SimSequence;

class EngineSlowDisk : public FaultyDiskFixture {
 protected:
  void SetUp() override {
    FaultyDiskFixture::SetUp();
    // Another client's sequence, all of it in memory.
    reader = std::make_unique<SimClient>(world, "reader");
    ids = make_ids(64);
    in_memory = client->create(space, {}, "in memory");
    seal(*in_memory, ids, 64);
    world.settle();
  }
  // Turns until a directory is being synced, and shows that the other client is served meanwhile.
  void expect_others_served() {
    ASSERT_TRUE(world.run_until([this] { return disk->hits() != 0; }))
        << "no directory is synced by a request";
    auto sequence = reader->attach(space, "in memory", false);
    ASSERT_NE(sequence, nullptr);
    const auto directory = sequence->read_directory();
    const auto hashes = sim::prefix_hashes(ids);
    for (int round = 0; round < 20; ++round) {
      const sim::FetchResult got =
          reader->fetch(*sequence, SimClient::all_entries(directory, geometry));
      ASSERT_EQ(got.completion.status, 0);
      ASSERT_EQ(got.completion.bytes_disk, 0u);
      for (const FetchEntry& entry : got.entries)
        ASSERT_EQ(reader->check_chunk(entry, directory.entries[0], geometry, hashes), "");
      reader->release(got.completion.value0);
    }
  }
  std::uint64_t submit(Op op, const SimSequence& sequence) {
    Submission request{};
    request.op = static_cast<std::uint16_t>(op);
    request.sequence = sequence.handle;
    request.half = sequence.half;
    request.count = sequence.count;
    request.value1 = sequence.tokens_sealed;
    return client->submit(request);
  }

  std::unique_ptr<SimClient> reader;
  std::vector<std::uint32_t> ids;
  std::unique_ptr<SimSequence> in_memory;
};

TEST_F(EngineSlowDisk, ASealAndAFirstCommitHoldUpNobodyElse) {
  for (const Op op : {Op::kSeal, Op::kCommit}) {
    const bool seals = op == Op::kSeal;
    auto sequence = client->create(space, {}, seals ? "sealed" : "committed");
    client->append(*sequence, geometry, make_ids(40, 3), 0, 40);
    hold(IoOp::kSyncDirectory);
    const std::uint64_t asked = submit(op, *sequence);
    expect_others_served();
    Completion completion{};
    EXPECT_FALSE(client->poll(asked, &completion)) << "acknowledged before its name was durable";
    EXPECT_EQ(sequence->read_directory().tokens, 0u);
    let_go();
    EXPECT_EQ(client->wait(asked).status, 0);
    world.settle();
  }
  crash();
  for (const char* name : {"sealed", "committed"}) {
    auto sequence = client->attach(space, name, true);
    ASSERT_NE(sequence, nullptr) << name;
    EXPECT_EQ(sequence->tokens_sealed + sequence->count, 40u) << name;
  }
}

TEST_F(EngineSlowDisk, OpaqueKeysHoldUpNobodyElse) {
  SimObjects objects(*client);
  ASSERT_TRUE(objects.ready());
  hold(IoOp::kSyncDirectory);
  ObjectCall call;
  call.op = Op::kObjectSet;
  call.key = "k";
  call.value = std::string(9000, 'v');
  objects.start(&call);
  expect_others_served();
  EXPECT_FALSE(objects.poll(&call));
  let_go();
  objects.wait(&call);
  EXPECT_EQ(call.code, Code::kOk);
  world.crash();
  restart();
  SimObjects after(*client);
  EXPECT_EQ(after.call(Op::kObjectGet, "k").got, call.value);
}

TEST_F(EngineSlowDisk, ADirectoryThatCannotBeSyncedFailsWhatWaitsForIt) {
  auto sequence = client->create(space, {}, "chat");
  client->append(*sequence, geometry, make_ids(40, 3), 0, 40);
  for (const Op op : {Op::kSeal, Op::kCommit}) {
    disk->set_plan({.data_at = 0, .data_op = IoOp::kSyncDirectory});
    EXPECT_EQ(client->wait(submit(op, *sequence)).status, static_cast<std::int32_t>(Code::kIo));
    EXPECT_EQ(disk->hits(), 1u);
    world.settle();
    EXPECT_EQ(world.disk().list("segments")->size(), 1u) << "only the one in memory";
    EXPECT_TRUE(world.disk().list("logs")->empty());
  }
  SimObjects objects(*client);
  disk->set_plan({.data_at = 0, .data_op = IoOp::kSyncDirectory});
  EXPECT_EQ(objects.call(Op::kObjectSet, "k", "v").code, Code::kIo);
  world.settle();
  EXPECT_TRUE(world.disk().list("objects")->empty());
  disk->set_plan({});
  EXPECT_EQ(client->wait(submit(Op::kSeal, *sequence)).status, 0);
  EXPECT_EQ(objects.call(Op::kObjectSet, "k", "v").code, Code::kOk);
}

// What it cannot read then, the next seal reads.
TEST_F(EngineSlowDisk, ATruncateThatIsDoneIsAnsweredAsDone) {
  auto sequence = client->create(space, {}, "chat");
  seal_all(*sequence, make_ids(240, 3), 80);
  crash();  // no metadata is in memory
  sequence = client->attach(space, "chat", true);
  ASSERT_NE(sequence, nullptr);
  disk->set_plan({.data_at = 0, .count = UINT64_MAX, .data_op = IoOp::kRead});
  const auto cut =
      client->control(Json{{"op", "truncate"}, {"handle", sequence->handle}, {"tokens", 70}});
  EXPECT_TRUE(cut.ok()) << cut.body.dump();
  ASSERT_EQ(sequence->read_directory().tokens, 70u);
  auto now = make_ids(70, 3);
  for (const std::uint32_t id : make_ids(80, 9)) now.push_back(id);
  sequence->tokens_sealed = 70;
  client->append(*sequence, geometry, now, 70, 80);
  EXPECT_EQ(client->seal(*sequence).status, static_cast<std::int32_t>(Code::kIo));
  disk->set_plan({});
  ASSERT_EQ(client->seal(*sequence).status, 0);
  expect_all(*client, *sequence, now);
  sim::Reply reply;
  ASSERT_NE(client->create(space, now, "next", false, &reply), nullptr);
  EXPECT_EQ(reply.body["tokens"].get<std::uint64_t>(), 150u) << "its blocks have other hashes";
}

class LargeRows : public FaultyDiskFixture {
 protected:
  LargeRows() {
    for (LayerGeometry& layer : geometry.layers) layer.k_row_bytes = layer.v_row_bytes = 1024;
  }
};

TEST_F(LargeRows, ATailLogIsReadInPiecesThatLeaveRoomForOthers) {
  const auto ids = make_ids(1000);  // 8 MB
  {
    auto sequence = client->create(space, {}, "long");
    client->append(*sequence, geometry, ids, 0, 1000);
    ASSERT_EQ(client->commit(*sequence).status, 0);
  }
  world.kill();
  restart();
  hold(IoOp::kRead);
  const auto answer = client->start_control(
      Json{{"op", "attach"}, {"space", space}, {"name", "long"}, {"write", true}});
  for (int i = 0; i < 20; ++i) world.turn();
  EXPECT_EQ(state().io->outstanding(), kPiecesAtOnce);
  EXPECT_EQ(state().io->stats().bytes_in_flight, kPiecesAtOnce * kReadBytesMax);
  let_go();
  const auto sequence = client->opened(client->wait(answer));
  ASSERT_NE(sequence, nullptr);
  EXPECT_EQ(client->check_tail(*sequence, geometry, ids, 0, 1000), "");
}

}  // namespace
}  // namespace kvtier
