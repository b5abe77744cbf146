// The engine end to end over a simulated disk: what a client stores is what it reads, before and
// after crashes.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::FetchResult;
using sim::Reply;
using sim::SimClient;
using sim::SimWorld;

class EngineTest : public EngineFixture {};

TEST_F(EngineTest, SealedTokensComeBackFromMemory) {
  const auto ids = make_ids(300);
  auto sequence = client->create(space, {}, "chat");
  ASSERT_NE(sequence, nullptr);
  seal_all(*sequence, ids, 128);
  EXPECT_EQ(sequence->read_directory().tokens, 300u);
  EXPECT_EQ(sequence->read_directory().entries.size(), 3u);
  std::uint64_t disk = 0;
  expect_all(*client, *sequence, ids, &disk);
  EXPECT_EQ(disk, 0u);
  EXPECT_EQ(state().metrics.leased_bytes, 0u);
}

TEST_F(EngineTest, SealedTokensSurviveAPowerCut) {
  const auto ids = make_ids(200);
  {
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, ids, 100);
  }
  crash();
  auto sequence = client->attach(space, "chat", false);
  ASSERT_NE(sequence, nullptr);
  EXPECT_EQ(sequence->tokens_sealed, 200u);
  std::uint64_t disk = 0;
  expect_all(*client, *sequence, ids, &disk);
  EXPECT_GT(disk, 0u);
}

TEST_F(EngineTest, CommittedTailSurvivesAPowerCut) {
  const auto ids = make_ids(90);
  {
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, {ids.begin(), ids.begin() + 50}, 50);
    client->append(*sequence, geometry, ids, 50, 20);
    const Completion first = client->commit(*sequence);
    ASSERT_EQ(first.status, 0);
    EXPECT_EQ(first.value1, 70u);
    client->append(*sequence, geometry, ids, 70, 20);
    EXPECT_EQ(client->commit(*sequence).value1, 90u);
  }
  crash();
  auto sequence = client->attach(space, "chat", true);
  ASSERT_NE(sequence, nullptr);
  EXPECT_EQ(sequence->tokens_sealed, 50u);
  ASSERT_EQ(sequence->count, 40u);
  EXPECT_EQ(client->check_tail(*sequence, geometry, ids, 50, 40), "");
  // It goes on from there.
  ASSERT_EQ(client->seal(*sequence).status, 0);
  expect_all(*client, *sequence, ids);
}

TEST_F(EngineTest, UncommittedTokensMayBeLostAndNothingElse) {
  const auto ids = make_ids(60);
  {
    auto sequence = client->create(space, {}, "chat");
    client->append(*sequence, geometry, ids, 0, 30);
    ASSERT_EQ(client->commit(*sequence).status, 0);
    client->append(*sequence, geometry, ids, 30, 30);
  }
  crash();
  auto sequence = client->attach(space, "chat", true);
  ASSERT_NE(sequence, nullptr);
  EXPECT_EQ(sequence->count, 30u);
}

TEST_F(EngineTest, PrefixIsFoundTokenByToken) {
  auto ids = make_ids(300);
  {
    auto sequence = client->create(space, {}, "");
    seal_all(*sequence, ids, 128);
  }
  ids[277] ^= 1;
  Reply reply;
  auto sequence = client->create(space, ids, "", false, &reply);
  ASSERT_NE(sequence, nullptr);
  EXPECT_EQ(reply.body["tokens"], 277);
  EXPECT_EQ(reply.body["reason"], "differs");
  EXPECT_EQ(reply.body["stored_token"], ids[277] ^ 1);
  expect_all(*client, *sequence, sim::first_of(ids, 277));
  // It goes on with its own tokens, and those are found too.
  client->append(*sequence, geometry, ids, 277, 23);
  ASSERT_EQ(client->seal(*sequence).status, 0);
  expect_all(*client, *sequence, ids);
  auto again = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 300);
  EXPECT_EQ(reply.body["reason"], "all");
  crash();
  again = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 300);
  expect_all(*client, *again, ids);
}

TEST_F(EngineTest, ShortPrefixWithoutAWholeBlockIsFound) {
  const auto ids = make_ids(40);
  auto sequence = client->create(space, {}, "");
  seal_all(*sequence, ids, 40);
  Reply reply;
  auto again = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 40);
  auto other = client->create(space, make_ids(40, 3), "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 0);
  EXPECT_EQ(reply.body["reason"], "nothing");
}

TEST_F(EngineTest, ForkTruncateAndDirectoryOfReaders) {
  const auto ids = make_ids(250);
  auto sequence = client->create(space, {}, "trunk");
  seal_all(*sequence, ids, 100);
  auto reader = client->attach(space, "trunk", false);
  Reply reply = client->control(Json{{"op", "fork"},
                                     {"space", space},
                                     {"handle", sequence->handle},
                                     {"tokens", 130},
                                     {"new_name", "branch"},
                                     {"write", true}});
  ASSERT_TRUE(reply.ok());
  auto branch = client->opened(std::move(reply));
  EXPECT_EQ(branch->tokens_sealed, 130u);
  auto branch_ids = std::vector<std::uint32_t>(ids.begin(), ids.begin() + 130);
  for (std::uint32_t i = 0; i < 40; ++i) branch_ids.push_back(40000 + i);
  client->append(*branch, geometry, branch_ids, 130, 40);
  ASSERT_EQ(client->seal(*branch).status, 0);
  expect_all(*client, *branch, branch_ids);
  reply = client->control(Json{{"op", "truncate"}, {"handle", sequence->handle}, {"tokens", 117}});
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reader->read_directory().tokens, 117u);
  EXPECT_EQ(reader->read_directory().entries.back().visible_tokens, 17u);
  expect_all(*client, *branch, branch_ids);
  crash();
  auto trunk = client->attach(space, "trunk", true);
  EXPECT_EQ(trunk->tokens_sealed, 117u);
  expect_all(*client, *trunk, sim::first_of(ids, 117));
  branch = client->attach(space, "branch", false);
  ASSERT_EQ(branch->tokens_sealed, 170u);
  expect_all(*client, *branch, branch_ids);
}

TEST_F(EngineTest, TruncatedTailStaysCutAfterACrash) {
  const auto ids = make_ids(100);
  auto sequence = client->create(space, {}, "chat");
  client->append(*sequence, geometry, ids, 0, 80);
  ASSERT_EQ(client->commit(*sequence).status, 0);
  const Reply reply =
      client->control(Json{{"op", "truncate"}, {"handle", sequence->handle}, {"tokens", 33}});
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply.body["tail_tokens"], 33);
  crash();
  sequence = client->attach(space, "chat", true);
  ASSERT_EQ(sequence->count, 33u);
  EXPECT_EQ(client->check_tail(*sequence, geometry, ids, 0, 33), "");
}

TEST_F(EngineTest, OneWriterManyReadersAndWrongSpaces) {
  auto writer = client->create(space, {}, "chat");
  Reply reply;
  EXPECT_EQ(client->attach(space, "chat", true, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kBusy);
  EXPECT_NE(client->attach(space, "chat", false), nullptr);
  EXPECT_NE(client->attach(space, "chat", false), nullptr);
  const std::uint64_t other = client->open_space(geometry, "another model");
  EXPECT_EQ(client->attach(other, "chat", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kWrongSpace);
  EXPECT_EQ(client->create(space, {}, "chat", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kExists);
  EXPECT_EQ(client->create(space, {}, "12345", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kInvalid);
}

TEST_F(EngineTest, PrivateSequencesNeverTouchTheDisk) {
  const auto ids = make_ids(90);
  const std::uint64_t used = world.disk().used_bytes();
  auto sequence = client->create(space, {}, "", true);
  seal_all(*sequence, ids, 45);
  EXPECT_EQ(client->commit(*sequence).status, static_cast<std::int32_t>(Code::kUnsupported));
  expect_all(*client, *sequence, ids);
  EXPECT_TRUE(world.disk().list("segments")->empty());
  EXPECT_LT(world.disk().used_bytes(), used + 65536);
  Reply reply;
  auto other = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 0) << "a private sequence is nobody's prefix";
  EXPECT_GT(state().arena->stats().pinned_bytes, 0u);
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", sequence->handle}}).ok());
  world.settle();
  EXPECT_EQ(state().arena->stats().pinned_bytes, 0u);
  EXPECT_TRUE(state().segments.all.empty());
}

TEST_F(EngineTest, EvictionUnderASmallArenaAndJoinedReads) {
  sim::SimWorldOptions small;
  small.host_bytes = 2ull << 20;
  SimWorld tiny(small);
  ASSERT_TRUE(tiny.start());
  SimClient writer(tiny, "writer"), reader(tiny, "reader");
  const std::uint64_t id = writer.open_space(geometry);
  const auto ids = make_ids(1536);
  auto sequence = writer.create(id, {}, "chat");
  while (sequence->tokens_sealed < ids.size()) {
    writer.append(*sequence, geometry, ids, sequence->tokens_sealed, 128);
    ASSERT_EQ(writer.seal(*sequence).status, 0);
  }
  auto other = reader.attach(id, "chat", false);
  const auto directory = other->read_directory();
  const auto wanted = SimClient::all_entries(directory, geometry);
  const auto hashes = sim::prefix_hashes(ids);
  for (int round = 0; round < 3; ++round) {
    for (std::size_t at = 0; at < wanted.size(); at += 64) {
      const std::vector<FetchEntry> part(wanted.begin() + static_cast<std::ptrdiff_t>(at),
                                         wanted.begin() + static_cast<std::ptrdiff_t>(at + 64));
      // Both ask at once for the same chunks.
      const std::uint64_t first = writer.start_fetch(*sequence, part, Op::kFetch, 0);
      const std::uint64_t second = reader.start_fetch(*other, part, Op::kFetch, 0);
      const Completion one = writer.wait(first), two = reader.wait(second);
      ASSERT_EQ(one.status, 0);
      ASSERT_EQ(two.status, 0);
      ASSERT_EQ(two.count, 64u);
      std::vector<FetchEntry> got(64);
      std::memcpy(got.data(), reader.layout()->arguments, 64 * sizeof(FetchEntry));
      for (const FetchEntry& entry : got)
        for (const DirectoryEntry& where : directory.entries)
          if (where.segment == entry.segment) {
            ASSERT_EQ(reader.check_chunk(entry, where, geometry, hashes), "");
          }
      writer.release(one.value0);
      reader.release(two.value0);
    }
  }
  const Metrics& metrics = tiny.engine().state().metrics;
  EXPECT_GT(metrics.chunk_fill_joins, 0u);
  EXPECT_GT(tiny.engine().state().arena->stats().evictions, 0u);
  tiny.settle();
  EXPECT_EQ(metrics.leased_bytes, 0u);
}

TEST_F(EngineTest, LeasesBoundTheClientAndEndWithIt) {
  const auto ids = make_ids(128);
  auto sequence = client->create(space, {}, "chat");
  seal_all(*sequence, ids, 128);
  SimClient other(world, "other");
  auto reader = other.attach(space, "chat", false);
  state().options.leased_bytes_per_client_max = 10 * 4096;
  const auto wanted = SimClient::all_entries(reader->read_directory(), geometry);
  const FetchResult got = other.fetch(*reader, {wanted.begin(), wanted.begin() + 20});
  EXPECT_EQ(got.completion.status, static_cast<std::int32_t>(Code::kFull));
  EXPECT_EQ(got.completion.count, 10u);
  EXPECT_EQ(got.entries[15].status, static_cast<std::int16_t>(Code::kFull));
  EXPECT_EQ(state().arena->stats().leased_bytes, 10 * 4096u);
  world.engine().close_session(other.session());
  EXPECT_EQ(state().arena->stats().leased_bytes, 0u);
  EXPECT_EQ(state().metrics.leases_reclaimed, 1u);
}

TEST_F(EngineTest, MalformedRequestsAreRefusedAndTheRingGoesOn) {
  auto sequence = client->create(space, {}, "chat");
  Submission request{};
  request.op = 99;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kInvalid));
  request.op = static_cast<std::uint16_t>(Op::kFetch);
  request.sequence = sequence->handle;
  request.count = 5000;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kTooLarge));
  request.count = 8;
  request.argument_offset = kArgumentBytes - 64;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kInvalid));
  request.argument_offset = 0;
  request.sequence = 77;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kInvalid));
  request = {};
  request.reserved0 = 1;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kInvalid));
  std::vector<FetchEntry> entries(3);
  entries[0].segment = 12345;
  entries[1].layer = 900;
  const FetchResult got = client->fetch(*sequence, entries);
  EXPECT_EQ(got.completion.count, 0u);
  for (const FetchEntry& entry : got.entries)
    EXPECT_EQ(entry.status, static_cast<std::int16_t>(Code::kInvalid));
  request = {};
  request.op = static_cast<std::uint16_t>(Op::kSeal);
  request.sequence = sequence->handle;
  request.count = 4000;
  EXPECT_EQ(client->wait(client->submit(request)).status,
            static_cast<std::int32_t>(Code::kTooLarge));
  request = {};
  EXPECT_EQ(client->wait(client->submit(request)).status, 0) << "a no-op still completes";
}

// What the client sends must go on where the stored tokens end: else its half before was not
// sealed.
TEST_F(EngineTest, TokensThatDoNotFollowAreRefused) {
  const auto ids = make_ids(100);
  auto sequence = client->create(space, {}, "chat");
  client->append(*sequence, geometry, ids, 0, 100);
  for (const Op op : {Op::kSeal, Op::kCommit}) {
    Submission request{};
    request.op = static_cast<std::uint16_t>(op);
    request.sequence = sequence->handle;
    request.count = 100;
    request.value1 = 2048;  // the other half is full, its client says
    EXPECT_EQ(client->wait(client->submit(request)).status,
              static_cast<std::int32_t>(Code::kCancelled));
  }
  EXPECT_EQ(client->commit(*sequence).value1, 100u);
  ASSERT_EQ(client->seal(*sequence).status, 0);
  expect_all(*client, *sequence, ids);
}

// A wiped file is never served again: not what continues it either, and not after a crash.
TEST_F(EngineTest, TokensRenamePinAndStop) {
  const auto ids = make_ids(150);
  auto sequence = client->create(space, {}, "chat");
  seal_all(*sequence, ids, 60);
  const Reply tokens = client->control(
      Json{{"op", "tokens"}, {"handle", sequence->handle}, {"first", 55}, {"count", 90}});
  ASSERT_TRUE(tokens.ok());
  ASSERT_EQ(tokens.payload.size(), 90 * sizeof(TokenRecord));
  for (std::uint32_t i = 0; i < 90; ++i) {
    TokenRecord record;
    std::memcpy(&record, tokens.payload.data() + i * sizeof(record), sizeof(record));
    EXPECT_EQ(record.id, ids[55 + i]);
    EXPECT_EQ(record.position, 55 + i);
  }
  ASSERT_TRUE(client->control(Json{{"op", "rename"}, {"target", "chat"}, {"name", "talk"}}).ok());
  ASSERT_TRUE(client->control(Json{{"op", "pin"}, {"target", "talk"}, {"pinned", true}}).ok());
  EXPECT_EQ(client->control(Json{{"op", "rm"}, {"target", "talk"}}).status.code, Code::kPermission);
  crash();
  EXPECT_EQ(client->attach(space, "chat", false), nullptr);
  EXPECT_NE(client->attach(space, "talk", false), nullptr);
  EXPECT_TRUE(state().sequences.all.begin()->second->row.pinned);
  EXPECT_EQ(client->control(Json{{"op", "nonsense"}}).status.code, Code::kUnsupported);
  EXPECT_EQ(client->control(Json{{"op", "match"}, {"space", 4}}).status.code, Code::kNotFound);
  ASSERT_TRUE(client->control(Json{{"op", "stop"}}).ok());
  EXPECT_TRUE(world.engine().stop_requested());
  bool drained = false;
  world.engine().drain([&] { drained = true; });
  world.settle();
  EXPECT_TRUE(drained);
}

TEST_F(EngineTest, APrefixWhoseMetadataIsAboveWhatIsKeptIsFound) {
  constexpr std::uint32_t kSegments = 100;
  auto ids = make_ids(64 * kSegments);
  {
    auto sequence = client->create(space, {}, "long");
    seal_all(*sequence, ids, 64);
  }
  // More that begin anew than are looked at one by one.
  for (std::uint32_t i = 1; i <= 40; ++i)
    seal(*client->create(space, {}, "other " + std::to_string(i)), make_ids(64, i), 64);
  crash();
  state().segments.meta_bytes_max = 1;  // of one segment only
  EXPECT_EQ(match(ids), ids.size());
  EXPECT_EQ(state().segments.meta_order.size(), 1u);
  ids.back() = 50001;
  EXPECT_EQ(match(ids), ids.size() - 1);
}

TEST_F(EngineTest, AnOpenBlockWhoseMetadataIsAboveWhatIsKeptGoesOn) {
  state().segments.meta_bytes_max = 1;
  const auto ids = make_ids(120);
  auto chat = client->create(space, {}, "chat");
  seal(*chat, ids, 70);
  seal(*chat, ids, 20);
  ASSERT_TRUE(client->control({{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 85}}).ok());
  chat->tokens_sealed = 85;
  seal(*chat, ids, 15);
  ASSERT_TRUE(close(*chat));
  ASSERT_NE(chat = client->attach(space, "chat", true), nullptr);
  seal(*chat, ids, 20);
  expect_all(*client, *chat, ids);
  EXPECT_EQ(match(ids), 120u);
}

// What a daemon of before took as a name, and this one does not.
TEST_F(EngineTest, ANameThatIsNoneAnyMoreIsFoundAfterARestart) {
  const auto ids = make_ids(128);
  {
    auto sequence = client->create(space, {}, "old");
    seal_all(*sequence, ids, 128);
    StoredSequence& stored = *find_sequence_by_name(state(), "old");
    stored.row.name = " old ";
    state().sequences.names = {{stored.row.name, stored.row.id}};
  }
  ASSERT_TRUE(client->control(Json{{"op", "pin"}, {"target", " old "}, {"pinned", true}}).ok());
  crash();
  auto sequence = client->attach(space, " old ", false);
  ASSERT_NE(sequence, nullptr);
  expect_all(*client, *sequence, ids);
  const auto rename = [&](const char* name) {
    return client->control(Json{{"op", "rename"}, {"target", sequence->id}, {"name", name}});
  };
  EXPECT_EQ(rename(" new").status.code, Code::kInvalid);
  EXPECT_TRUE(rename("new").ok());
  EXPECT_NE(client->attach(space, "new", false), nullptr);
}

TEST_F(EngineTest, CancelledFetchesCompleteOnceAndGiveEverythingBack) {
  const auto ids = make_ids(128);
  {
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, ids, 128);
  }
  crash();
  auto sequence = client->attach(space, "chat", false);
  const auto wanted = SimClient::all_entries(sequence->read_directory(), geometry);
  const std::uint64_t fetch = client->start_fetch(*sequence, wanted, Op::kFetch, 0);
  Submission cancel{};
  cancel.op = static_cast<std::uint16_t>(Op::kCancel);
  cancel.value0 = fetch;
  client->submit(cancel);
  EXPECT_EQ(client->wait(fetch).status, static_cast<std::int32_t>(Code::kCancelled));
  world.settle();
  EXPECT_EQ(state().arena->stats().leased_bytes, 0u);
  EXPECT_TRUE(state().fetch.jobs.empty());
  EXPECT_TRUE(state().fetch.fills.empty());
  EXPECT_EQ(find_session(state(), client->session())->leased_bytes, 0u);
  EXPECT_EQ(find_session(state(), client->session())->in_flight, 0u);
  expect_all(*client, *sequence, ids);
}

TEST_F(EngineTest, AClientThatDiesMidwayLeavesNothingBehind) {
  const auto ids = make_ids(128);
  auto dying = std::make_unique<SimClient>(world, "dying");
  auto sequence = dying->create(space, {}, "chat");
  dying->append(*sequence, geometry, ids, 0, 128);
  Submission seal{};
  seal.op = static_cast<std::uint16_t>(Op::kSeal);
  seal.sequence = sequence->handle;
  seal.count = 128;
  dying->submit(seal);
  for (int i = 0; i < 5; ++i) world.turn();
  dying.reset();
  sequence.reset();
  auto writer = client->attach(space, "chat", true);  // waits for the seal that was under way
  ASSERT_NE(writer, nullptr);
  world.settle();
  EXPECT_EQ(writer->tokens_sealed, 128u);
  expect_all(*client, *writer, ids);
}

}  // namespace
}  // namespace kvtier
