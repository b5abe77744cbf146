// What the engine decides by itself: what goes when the disk limit is reached, what clients' hints
// change, the write budget, loads that are slower than computing, idle tails, and the reasons that
// it gives for misses.
#include <gtest/gtest.h>

#include <algorithm>

#include "daemon/reclaim.h"
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::Reply;
using sim::SimClient;
using sim::SimSequence;

class EnginePolicyTest : public EngineFixture {
 protected:
  std::uint64_t misses(MissReason reason) {
    return state().metrics.misses[static_cast<std::size_t>(reason)];
  }
  Json stats() { return client->control(Json{{"op", "stats"}}).body; }
  void pass_seconds(std::uint64_t seconds) {
    world.clock().advance_ns(seconds * 1'000'000'000);
    world.settle();
  }
  // A sequence of `ids` in segments of 128, closed again; its id.
  std::uint64_t store(const std::vector<std::uint32_t>& ids, const std::string& name) {
    auto sequence = client->create(space, {}, name);
    EXPECT_NE(sequence, nullptr);
    seal_all(*sequence, ids, 128);
    EXPECT_TRUE(close(*sequence));
    pass_seconds(1);
    return sequence->id;
  }
  bool there(std::uint64_t id) { return find_sequence(state(), SequenceId{id}) != nullptr; }
  // Room for `sequences` of 128 tokens more.
  void limit_disk(std::uint64_t sequences) {
    std::uint64_t one = 0;
    for (const auto& [id, segment] : state().segments.all)
      one = std::max(one, segment->row.file_bytes + 8192);
    state().options.disk_bytes_max = store_bytes(state()) + one * sequences + 4096;
  }
};

TEST_F(EnginePolicyTest, NamelessSequencesGoByLastUseAndNamedAndPinnedStay) {
  const std::uint64_t named = store(make_ids(128, 1), "named");
  const std::uint64_t old = store(make_ids(128, 2), "");
  const std::uint64_t pinned = store(make_ids(128, 3), "");
  ASSERT_TRUE(client->control(Json{{"op", "pin"}, {"target", pinned}, {"pinned", true}}).ok());
  const std::uint64_t young = store(make_ids(128, 4), "");
  limit_disk(0);
  const std::uint64_t newest = store(make_ids(128, 5), "");
  EXPECT_FALSE(there(old));
  EXPECT_TRUE(there(named) && there(pinned) && there(young) && there(newest));
  EXPECT_EQ(state().metrics.sequences_evicted, 1u);
  EXPECT_EQ(match(make_ids(128, 2)), 0u);
  EXPECT_EQ(misses(MissReason::kEvicted), 1u) << "the miss says why";
  // Durable: a restart does not bring it back, and loses none of the others.
  crash();
  EXPECT_FALSE(there(old));
  EXPECT_TRUE(there(named) && there(pinned) && there(young) && there(newest));
}

TEST_F(EnginePolicyTest, HintsRankAboveLastUse) {
  const std::uint64_t resumes = store(make_ids(128, 1), "");
  const std::uint64_t plain = store(make_ids(128, 2), "");
  const std::uint64_t finished = store(make_ids(128, 3), "");
  const auto hint = [&](std::uint64_t id, const char* text) {
    return client->control(Json{{"op", "hint"}, {"target", id}, {"hint", text}});
  };
  ASSERT_TRUE(hint(resumes, "will_resume").ok());
  ASSERT_TRUE(hint(finished, "finished").ok());
  EXPECT_EQ(hint(plain, "perhaps").status.code, Code::kInvalid);
  limit_disk(0);
  store(make_ids(128, 4), "kept");
  EXPECT_FALSE(there(finished)) << "the newest of all, but its client has finished";
  EXPECT_TRUE(there(resumes) && there(plain));
  limit_disk(0);
  store(make_ids(128, 5), "kept too");
  EXPECT_FALSE(there(plain));
  EXPECT_TRUE(there(resumes)) << "the oldest of all, but its client will come back";
}

TEST_F(EnginePolicyTest, WhatWasMatchedAgainOutlivesAScan) {
  const auto popular = make_ids(128, 1);
  for (std::uint32_t salt = 1; salt <= 4; ++salt) {
    const std::uint64_t id = store(make_ids(128, salt), "");
    bool removed = false;
    remove_sequence(state(), *find_sequence(state(), SequenceId{id}), LogFile::kUnlink,
                    [&](Result<void>) { removed = true; });
    world.settle();
    ASSERT_TRUE(removed);
    if (salt == 1) {
      EXPECT_EQ(match(popular), 128u);
    }
  }
  limit_disk(0);
  store(make_ids(128, 7), "a");
  store(make_ids(128, 8), "b");
  EXPECT_EQ(match(popular), 128u) << "used again: not in probation";
  EXPECT_EQ(match(make_ids(128, 2)), 0u);
}

TEST_F(EnginePolicyTest, GcCountsWhatItRemoves) {
  const std::uint64_t id = store(make_ids(256, 1), "");
  store(make_ids(128, 2), "stays");
  remove_sequence(state(), *find_sequence(state(), SequenceId{id}), LogFile::kUnlink,
                  [](Result<void>) {});
  world.settle();
  ASSERT_EQ(state().segments.all.size(), 3u) << "as a cache";
  const std::uint64_t bytes = state().segments.disk_bytes;
  const Reply gc = client->control(Json{{"op", "gc"}});
  ASSERT_TRUE(gc.ok());
  EXPECT_EQ(gc.body["segments_removed"], 2);
  EXPECT_EQ(gc.body["bytes_freed"], bytes - state().segments.disk_bytes);
  EXPECT_EQ(state().segments.all.size(), 1u);
}

TEST_F(EnginePolicyTest, ASpentWriteBudgetStopsWhatCanWaitAndNothingElse) {
  store(make_ids(128, 1), "first");
  EXPECT_GT(state().metrics.sidecar_bytes, 0u);
  state().options.disk_write_bytes_per_day = 4096;
  const std::uint64_t sidecars = state().metrics.sidecar_bytes;
  store(make_ids(256, 2), "second");
  EXPECT_EQ(match(make_ids(256, 2)), 256u) << "asked for: written all the same";
  EXPECT_EQ(state().metrics.sidecar_bytes, sidecars);
  Json got = stats();
  EXPECT_TRUE(got["writes"]["budget_spent"].get<bool>());
  EXPECT_GT(got["writes"]["declined"].get<std::uint64_t>(), 0u);
  EXPECT_NE(got["off"].dump().find("write budget is spent"), std::string::npos);
  const Reply gc = client->control(Json{{"op", "gc"}});
  ASSERT_TRUE(gc.ok());
  EXPECT_TRUE(gc.body["merging_declined"].get<bool>());
  // The count of the day survives an orderly stop; the next day begins at nothing.
  const std::uint64_t today = got["writes"]["today_bytes"].get<std::uint64_t>();
  bool drained = false;
  world.engine().drain([&] { drained = true; });
  world.settle();
  ASSERT_TRUE(drained);
  client.reset();
  world.kill();
  restart();
  EXPECT_GE(stats()["writes"]["today_bytes"].get<std::uint64_t>(), today);
  pass_seconds(86'400);
  EXPECT_LT(stats()["writes"]["today_bytes"].get<std::uint64_t>(), today);
}

TEST_F(EnginePolicyTest, ADaemonThatIsKilledForgetsNothingThatWasWrittenBeforeItsLastSeal) {
  const auto today = [this] { return stats()["writes"]["today_bytes"].get<std::uint64_t>(); };
  store(make_ids(128, 1), "first");
  const std::uint64_t before = today();
  ASSERT_GT(before, 0u);
  store(make_ids(128, 2), "second");
  client.reset();
  world.kill();
  restart();
  EXPECT_GE(today(), before);
}

TEST_F(EnginePolicyTest, WhereWritesAreScarceOneShotPrefixesAreAdmittedOnTheirSecondUse) {
  store(make_ids(128, 1), "first");
  // As kvt_sequence_close does; the segment that came of it, or 0.
  const auto close_short = [&](std::uint32_t salt, const std::string& name) {
    const auto ids = make_ids(100, salt);
    auto sequence = client->create(space, {}, name);
    client->append(*sequence, geometry, ids, 0, 100);
    Submission seal{};
    seal.op = static_cast<std::uint16_t>(Op::kSeal);
    seal.sequence = sequence->handle;
    seal.count = 100;
    seal.value0 = 1;
    const Completion done = client->wait(client->submit(seal));
    EXPECT_EQ(done.status, 0);
    EXPECT_TRUE(client->control(Json{{"op", "close"}, {"handle", sequence->handle}}).ok());
    world.settle();
    return done.value0;
  };
  EXPECT_NE(close_short(2, ""), 0u) << "plenty left of the day's budget";
  state().options.disk_write_bytes_per_day = state().write_budget.bytes + 1;
  const std::uint64_t segments = state().segments.all.size();
  EXPECT_EQ(close_short(3, ""), 0u);
  EXPECT_EQ(match(make_ids(100, 3)), 0u);
  EXPECT_EQ(state().segments.all.size(), segments);
  EXPECT_EQ(stats()["writes"]["one_shot_declined_tokens"], 100);
  EXPECT_NE(close_short(3, ""), 0u) << "the second use";
  EXPECT_EQ(match(make_ids(100, 3)), 100u);
  EXPECT_NE(close_short(4, "named"), 0u) << "named: always";
  EXPECT_EQ(close_short(5, ""), 0u);
  state().options.admission = false;
  EXPECT_NE(close_short(6, ""), 0u);
}

TEST_F(EnginePolicyTest, ALoadThatIsSlowerThanComputingIsDeclinedAndSaysSo) {
  const auto ids = make_ids(256, 1);
  store(ids, "prefix");
  crash();                               // nothing of it is in memory
  state().cost.read_bytes_per_s = 1000;  // a disk of long ago
  Reply reply;
  auto used = client->create(space, ids, "", false, &reply);
  ASSERT_NE(used, nullptr);
  EXPECT_EQ(reply.body["tokens"], 256) << "no client has said how fast it computes";
  ASSERT_TRUE(
      client
          ->control(
              Json{{"op", "close"}, {"handle", used->handle}, {"compute_ns_per_token", 1'000'000}})
          .ok());
  auto declined = client->create(space, ids, "", false, &reply);
  ASSERT_NE(declined, nullptr);
  EXPECT_EQ(reply.body["tokens"], 0);
  EXPECT_EQ(reply.body["reason"], "slower");
  EXPECT_EQ(misses(MissReason::kSlower), 1u);
  const Json got = stats();
  EXPECT_EQ(got["cost"]["declined_tokens"], 256);
  EXPECT_EQ(got["recent_misses"][0]["reason"], "slower");
  EXPECT_NE(got["recent_misses"][0]["detail"].get<std::string>().find("computing 0.26 s"),
            std::string::npos);
  // What was named is loaded whatever it takes; so is everything where the setting says so.
  EXPECT_NE(client->attach(space, "prefix", false), nullptr);
  state().options.decline_slow_loads = false;
  auto allowed = client->create(space, ids, "", false, &reply);
  EXPECT_EQ(reply.body["tokens"], 256);
}

TEST_F(EnginePolicyTest, TheDiskIsTimed) {
  store(make_ids(2000, 1), "long");
  crash();
  ASSERT_TRUE(client->control(Json{{"op", "warm"}, {"target", "long"}}).ok());
  EXPECT_EQ(state().cost.reads_in_flight, 0u);
  EXPECT_GT(state().cost.window_bytes + state().cost.windows, 0u);
}

TEST_F(EnginePolicyTest, MissesSayWhy) {
  const auto ids = make_ids(128, 1);
  store(ids, "here");
  auto other = ids;
  other[100] = 49'999;
  EXPECT_EQ(match(other), 100u);
  EXPECT_EQ(misses(MissReason::kDiffers), 1u);
  Json newest = stats()["recent_misses"][0];
  EXPECT_EQ(newest["reason"], "differs");
  EXPECT_EQ(newest["tokens_found"], 100);
  EXPECT_EQ(newest["asked_token"], 49'999);
  EXPECT_EQ(newest["stored_token"], ids[100]);
  EXPECT_EQ(match(make_ids(128, 9)), 0u);
  EXPECT_EQ(misses(MissReason::kNoMatch), 1u);
  const std::uint64_t first = space;
  space = client->open_space(geometry, "another model");
  ASSERT_NE(space, first);
  EXPECT_EQ(match(ids), 0u);
  EXPECT_EQ(misses(MissReason::kOtherSpace), 1u);
  newest = stats()["recent_misses"][0];
  EXPECT_EQ(newest["reason"], "other_space");
  EXPECT_NE(newest["detail"].get<std::string>().find("model"), std::string::npos);
}

TEST_F(EnginePolicyTest, AnIdleCommittedTailBecomesASegment) {
  const auto ids = make_ids(90, 1);
  auto sequence = client->create(space, {}, "chat");
  client->append(*sequence, geometry, ids, 0, 90);
  ASSERT_EQ(client->commit(*sequence).status, 0);
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", sequence->handle}}).ok());
  world.settle();
  EXPECT_EQ(match(ids), 0u) << "a tail is no prefix yet";
  pass_seconds(state().options.idle_seal_s + 1);
  for (int i = 0; i < 4; ++i) pass_seconds(1);
  EXPECT_EQ(state().upkeep.idle_seals, 1u);
  EXPECT_EQ(match(ids), 90u);
  EXPECT_EQ(find_sequence_by_name(state(), "chat")->row.log_generation, 0u);
  crash();
  auto again = client->attach(space, "chat", false);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->tokens_sealed, 90u);
}

// ---- what counts towards the disk limit ----

TEST_F(EnginePolicyTest, TailLogsCountBeforeAnybodyHasReadThem) {
  const auto ids = make_ids(100);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 100);
  ASSERT_EQ(client->commit(*chat).status, 0);
  const std::uint64_t used = store_bytes(state());
  ASSERT_GT(used, 8192u);
  crash();
  EXPECT_FALSE(find_sequence_by_name(state(), "chat")->log.loaded);
  EXPECT_EQ(store_bytes(state()), used);
}

// Two seals that go on at once have room for one: the limit holds at every moment.
TEST_F(EnginePolicyTest, SealsUnderWayHaveTheirRoom) {
  const auto ids = make_ids(128);
  SimClient other(world, "other");
  std::unique_ptr<SimSequence> both[] = {client->create(space, {}, "one"),
                                         other.create(space, {}, "two")};
  SimClient* const clients[] = {client.get(), &other};
  std::uint64_t waits[2] = {};
  {
    auto first = client->create(space, {}, "before");
    client->append(*first, geometry, make_ids(128, 7), 0, 128);
    ASSERT_EQ(client->seal(*first).status, 0);
  }
  world.settle();
  limit_disk(1);
  const std::uint64_t sidecars = state().segments.sidecar_bytes;
  for (int i = 0; i < 2; ++i) {
    clients[i]->append(*both[i], geometry, ids, 0, 128);
    Submission seal{};
    seal.op = static_cast<std::uint16_t>(Op::kSeal);
    seal.sequence = both[i]->handle;
    seal.count = 128;
    waits[i] = clients[i]->submit(seal);
  }
  while (world.turn()) {  // a sidecar is made behind the seal, and counts in the next one's room
    const std::uint64_t later = state().segments.sidecar_bytes - sidecars;
    EXPECT_LE(store_bytes(state()) - later, state().options.disk_bytes_max);
  }
  const std::int32_t one = client->wait(waits[0]).status, two = other.wait(waits[1]).status;
  EXPECT_EQ(std::min(one, two), 0);
  EXPECT_EQ(std::max(one, two), static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_EQ(state().seals.reserved_bytes, 0u);
}

TEST_F(EnginePolicyTest, CommitsHaveTheLimitToo) {
  const auto ids = make_ids(100);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 10);
  ASSERT_EQ(client->commit(*chat).status, 0);
  client->append(*chat, geometry, ids, 10, 80);
  state().options.disk_bytes_max = store_bytes(state()) + 4096;
  EXPECT_EQ(client->commit(*chat).status, static_cast<std::int32_t>(Code::kNoSpace));
  EXPECT_EQ(state().metrics.no_room, 1u);
  EXPECT_FALSE(find_sequence_by_name(state(), "chat")->log.suspect) << "nothing was written";
  state().options.disk_bytes_max = 1ull << 30;
  EXPECT_EQ(client->commit(*chat).value1, 90u);
  EXPECT_EQ(state().sequences.commit_bytes_reserved, 0u);
  crash();
  chat = client->attach(space, "chat", true);
  ASSERT_EQ(chat->count, 90u);
  EXPECT_EQ(client->check_tail(*chat, geometry, ids, 0, 90), "");
}

// Each of its records is padded for itself: of so many tokens, the last record's few bytes above a
// page take one more than all in one record would.
TEST_F(EnginePolicyTest, ACommitOfManyRecordsReservesAllThatItWrites) {
  const auto ids = make_ids(1911);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 1911);
  Submission commit{};
  commit.op = static_cast<std::uint16_t>(Op::kCommit);
  commit.sequence = chat->handle;
  commit.count = 1911;
  const std::uint64_t wait = client->submit(commit);
  std::uint64_t reserved = 0;
  while (world.turn()) reserved = std::max(reserved, state().sequences.commit_bytes_reserved);
  ASSERT_EQ(client->wait(wait).status, 0);
  EXPECT_EQ(reserved, find_sequence_by_name(state(), "chat")->log.end_offset);
}

// The log that a cut makes takes the place of one that is longer.
TEST_F(EnginePolicyTest, ACutNeedsNoRoom) {
  const auto ids = make_ids(100);
  auto chat = client->create(space, {}, "chat");
  client->append(*chat, geometry, ids, 0, 100);
  ASSERT_EQ(client->commit(*chat).status, 0);
  const std::uint64_t limit = state().options.disk_bytes_max = store_bytes(state());
  const auto cut =
      client->control(Json{{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 33}});
  ASSERT_TRUE(cut.ok()) << cut.status.message();
  world.settle();
  EXPECT_LT(store_bytes(state()), limit);
  crash();
  chat = client->attach(space, "chat", true);
  ASSERT_EQ(chat->count, 33u);
  EXPECT_EQ(client->check_tail(*chat, geometry, ids, 0, 33), "");
}

// What clients write has a bound of its own, over all of them.
TEST_F(EnginePolicyTest, TailsHaveALimit) {
  auto first = client->create(space, {}, "first");
  ASSERT_NE(first, nullptr);
  const std::uint64_t one = stats()["host"]["tail_bytes_reserved"].get<std::uint64_t>();
  EXPECT_EQ(stats()["host"]["tails"], 1);
  EXPECT_GT(one, 0u);
  state().options.tail_bytes_max = 2 * one;
  seal(*first, make_ids(60), 60);
  auto second = client->create(space, {}, "second");
  ASSERT_NE(second, nullptr);
  Reply reply;
  EXPECT_EQ(client->create(space, {}, "third", false, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kFull);
  EXPECT_NE(std::string(reply.status.message()).find("host.tail_bytes_max"), std::string::npos)
      << reply.status.message();
  EXPECT_EQ(find_sequence_by_name(state(), "third"), nullptr) << "it was not opened";
  ASSERT_NE(client->attach(space, "first", false), nullptr) << "reading needs no tail";
  ASSERT_TRUE(close(*second));
  EXPECT_EQ(stats()["host"]["tails"], 1);
  EXPECT_NE(client->create(space, {}, "third"), nullptr);
  EXPECT_EQ(client->attach(space, "second", true, &reply), nullptr);
  EXPECT_EQ(reply.status.code, Code::kFull);
  EXPECT_EQ(stats()["limits"]["tail_bytes_max"], 2 * one);
}

}  // namespace
}  // namespace kvtier
