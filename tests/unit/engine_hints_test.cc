// Reads that wait for their turn: what was only hinted at is not read when it was taken back, and
// does not hold up whoever comes to need it. The disk begins no read until the test lets it, and
// the scheduler lets one begin at a time.
#include <gtest/gtest.h>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::SimClient;
using sim::SimSequence;

class EngineHints : public FaultyDiskFixture {
 protected:
  EngineHints() : FaultyDiskFixture(one_read_at_a_time()) {}
  static sim::SimWorldOptions one_read_at_a_time() {
    sim::SimWorldOptions options;
    options.io_bytes_in_flight_max = 4096;
    return options;
  }
  void SetUp() override {
    FaultyDiskFixture::SetUp();
    auto written = client->create(space, {}, "chat");
    seal_all(*written, ids, 128);
    written = client->create(space, {}, "other");
    seal_all(*written, make_ids(64, 1), 64);
    written.reset();
    crash();  // nothing is in memory
    chat = client->attach(space, "chat", false);
    ASSERT_NE(chat, nullptr);
    const auto all = SimClient::all_entries(chat->read_directory(), geometry);
    ASSERT_GE(all.size(), 24u);
    // Every other chunk, so that none are read together. The first brings the segment's metadata.
    for (std::size_t i = 0; i < all.size(); i += 2) entries.push_back(all[i]);
    const sim::FetchResult first = client->fetch(*chat, {entries[0]});
    ASSERT_EQ(first.completion.status, 0);
    client->release(first.completion.value0);
    world.settle();
    reads_before = state().metrics.reads;
    hold(IoOp::kRead);
    // The only one that begins.
    begun = ask({entries[1]}, Op::kFetch);
  }
  // Each request has an argument area of its own.
  std::uint64_t ask(const std::vector<FetchEntry>& wanted, Op op) { return ask(*chat, wanted, op); }
  std::uint64_t ask(SimSequence& of, const std::vector<FetchEntry>& wanted, Op op) {
    const std::uint64_t asked = client->start_fetch(of, wanted, op, arguments);
    arguments += 4096;
    for (int i = 0; i < 5; ++i) world.turn();
    return asked;
  }
  void cancel(std::uint64_t asked) {
    Submission request{};
    request.op = static_cast<std::uint16_t>(Op::kCancel);
    request.value0 = asked;
    client->submit(request);
    EXPECT_EQ(client->wait(asked).status, static_cast<std::int32_t>(Code::kCancelled));
  }
  std::uint64_t reads() { return state().metrics.reads - reads_before; }
  void expect_nothing_left() {
    EXPECT_TRUE(state().fetch.jobs.empty());
    EXPECT_TRUE(state().fetch.fills.empty());
    EXPECT_EQ(state().io->outstanding(), 0u);
    EXPECT_EQ(find_session(state(), client->session())->in_flight, 0u);
  }

  const std::vector<std::uint32_t> ids = make_ids(128);
  std::unique_ptr<SimSequence> chat;
  std::vector<FetchEntry> entries;
  std::uint64_t arguments = 0;
  std::uint64_t reads_before = 0;
  std::uint64_t begun = 0;
};

TEST_F(EngineHints, WhatIsTakenBackIsNotRead) {
  const std::uint64_t hint = ask({entries.begin() + 2, entries.begin() + 10}, Op::kPrefetch);
  EXPECT_EQ(state().fetch.fills.size(), 9u);
  cancel(hint);
  EXPECT_EQ(state().fetch.fills.size(), 1u) << "the one that has begun";
  let_go();
  const Completion first = client->wait(begun);
  EXPECT_EQ(first.status, 0);
  client->release(first.value0);
  world.settle();
  EXPECT_EQ(reads(), 1u);
  expect_nothing_left();
  expect_all(*client, *chat, ids);
}

TEST_F(EngineHints, WhatSomebodyElseWaitsForIsRead) {
  const std::uint64_t hint = ask({entries.begin() + 2, entries.begin() + 10}, Op::kPrefetch);
  const std::uint64_t other = ask({entries[4], entries[7]}, Op::kFetch);
  cancel(hint);
  let_go();
  const Completion got = client->wait(other);
  EXPECT_EQ(got.status, 0);
  EXPECT_EQ(got.count, 2u);
  client->release(got.value0);
  client->release(client->wait(begun).value0);
  world.settle();
  EXPECT_EQ(reads(), 3u);
  expect_nothing_left();
  expect_all(*client, *chat, ids);
}

// Neighbours are one read: it goes on for whoever waits for any of them, and once.
TEST_F(EngineHints, AMergedReadIsDroppedWhenNobodyWaitsForAnyOfIt) {
  const auto all = SimClient::all_entries(chat->read_directory(), geometry);
  const std::vector<FetchEntry> run(all.begin() + 8, all.begin() + 14);
  const std::uint64_t before =
      ask({entries[9]}, Op::kPrefetch);  // or it began: it exceeds the bound
  const std::uint64_t hint = ask(run, Op::kPrefetch);
  const std::uint64_t other = ask({all[10]}, Op::kPrefetch);
  const std::size_t fills = state().fetch.fills.size();
  EXPECT_EQ(fills, 8u);
  cancel(hint);
  EXPECT_EQ(state().fetch.fills.size(), fills) << "one of them is wanted";
  cancel(other);
  EXPECT_EQ(state().fetch.fills.size(), 2u);
  EXPECT_EQ(state().fetch.hinted_bytes, 4096u);
  const std::uint64_t again = ask(run, Op::kFetch);
  let_go();
  const Completion got = client->wait(again);
  EXPECT_EQ(got.count, run.size());
  client->release(got.value0);
  client->release(client->wait(begun).value0);
  EXPECT_EQ(client->wait(before).status, 0);
  world.settle();
  EXPECT_EQ(reads(), 3u);
  EXPECT_EQ(state().fetch.hinted_bytes, 0u);
  expect_nothing_left();
  expect_all(*client, *chat, ids);
}

// What is being filled cannot be evicted: guesses leave most of the arena to others.
TEST_F(EngineHints, HintsFillAQuarterOfTheArenaAtMost) {
  state().fetch.hinted_bytes = state().arena->size_bytes() / 4 - 4096;
  const std::uint64_t hint = ask({entries.begin() + 2, entries.begin() + 10}, Op::kPrefetch);
  EXPECT_LE(state().fetch.hinted_bytes, state().arena->size_bytes() / 4);
  EXPECT_LE(state().fetch.fills.size(), 2u);
  const std::uint64_t demand = ask({entries[5], entries[6]}, Op::kFetch);
  let_go();
  EXPECT_EQ(client->wait(hint).status, static_cast<std::int32_t>(Code::kFull));
  const Completion got = client->wait(demand);
  EXPECT_EQ(got.count, 2u) << "a demand has its slots all the same";
  client->release(got.value0);
  client->release(client->wait(begun).value0);
  world.settle();
  state().fetch.hinted_bytes -= state().arena->size_bytes() / 4 - 4096;
  EXPECT_EQ(state().fetch.hinted_bytes, 0u);
  expect_nothing_left();
}

TEST_F(EngineHints, WhoComesToNeedItDoesNotWaitForTheRest) {
  const std::uint64_t hint = ask({entries.begin() + 2, entries.begin() + 12}, Op::kPrefetch);
  const std::uint64_t demand = ask({entries[11]}, Op::kFetch);
  EXPECT_EQ(state().metrics.chunk_fill_joins, 1u);
  let_go();
  const Completion got = client->wait(demand);
  EXPECT_EQ(got.status, 0);
  EXPECT_LE(reads(), 3u) << "it waited behind hints";
  client->release(got.value0);
  client->release(client->wait(begun).value0);
  EXPECT_EQ(client->wait(hint).status, 0);
  world.settle();
  EXPECT_EQ(reads(), 11u) << "each once";
  expect_nothing_left();
  expect_all(*client, *chat, ids);
}

// Where its checksum is to be found is read for a hint at first, behind all other hints.
TEST_F(EngineHints, MetadataDoesNotWaitForTheRestEither) {
  auto other = client->attach(space, "other", false);
  ASSERT_NE(other, nullptr);
  const FetchEntry wanted = SimClient::all_entries(other->read_directory(), geometry)[0];
  const std::uint64_t hints = ask({entries.begin() + 2, entries.begin() + 12}, Op::kPrefetch);
  const std::uint64_t hint = ask(*other, {wanted}, Op::kPrefetch);
  const std::uint64_t loads = state().metrics.meta_loads;
  const std::uint64_t demand = ask(*other, {wanted}, Op::kFetch);
  EXPECT_EQ(state().metrics.meta_loads, loads) << "it joined";
  let_go();
  const Completion got = client->wait(demand);
  EXPECT_EQ(got.status, 0);
  EXPECT_LE(reads(), 3u) << "it waited behind hints";
  client->release(got.value0);
  client->release(client->wait(begun).value0);
  EXPECT_EQ(client->wait(hints).status, 0);
  EXPECT_EQ(client->wait(hint).status, 0);
  world.settle();
  expect_nothing_left();
}

// Ids of leases can be guessed: the one of a fetch that still waits is none of the client's.
TEST_F(EngineHints, ALeaseThatWasNotGivenOutCannotBeReleased) {
  const std::uint64_t asked = ask({entries[0], entries[5]}, Op::kFetch);  // resident, and missing
  std::uint64_t lease = 0;
  for (const auto& [id, job] : state().fetch.jobs)
    if (job->user_data == asked) lease = job->lease;
  ASSERT_NE(lease, 0u) << "it has what is resident";
  for (const std::uint64_t guess : {lease, (lease >> 32 << 32) | 2, std::uint64_t{1} << 32 | 1}) {
    Submission request{};
    request.op = static_cast<std::uint16_t>(Op::kRelease);
    request.value0 = guess;
    EXPECT_EQ(client->wait(client->submit(request)).status, static_cast<std::int32_t>(Code::kStale))
        << std::hex << guess;
  }
  let_go();
  const Completion got = client->wait(asked);
  EXPECT_EQ(got.status, 0);
  EXPECT_EQ(got.count, 2u);
  EXPECT_EQ(got.value0, lease);
  EXPECT_NE(find_session(state(), client->session())->leased_bytes, 0u);
  client->release(lease);
  client->release(client->wait(begun).value0);
  world.settle();
  EXPECT_EQ(find_session(state(), client->session())->leased_bytes, 0u);
  EXPECT_EQ(state().metrics.leased_bytes, 0u);
  expect_nothing_left();
  expect_all(*client, *chat, ids);
}

TEST_F(EngineHints, HintsOfAClientThatIsGoneAreNotRead) {
  auto dying = std::make_unique<SimClient>(world, "dying");
  ASSERT_EQ(dying->open_space(geometry), space);
  auto its = dying->attach(space, "chat", false);
  ASSERT_NE(its, nullptr);
  static_cast<void>(
      dying->start_fetch(*its, {entries.begin() + 2, entries.begin() + 10}, Op::kPrefetch, 0));
  for (int i = 0; i < 5; ++i) world.turn();
  EXPECT_EQ(state().fetch.fills.size(), 9u);
  its.reset();
  dying.reset();
  for (int i = 0; i < 5; ++i) world.turn();
  EXPECT_EQ(state().fetch.fills.size(), 1u);
  let_go();
  client->release(client->wait(begun).value0);
  world.settle();
  EXPECT_EQ(reads(), 1u);
  expect_nothing_left();
}

}  // namespace
}  // namespace kvtier
