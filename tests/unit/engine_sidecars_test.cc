// Sidecars that wait for their turn: few are read at once, abstracts before base renditions, none
// in vain; and a directory is whole whatever a lane sets off that ends at once. The disk begins no
// read until the test lets it.
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "base/log.h"
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::SimSequence;

class EngineSidecars : public FaultyDiskFixture {
 protected:
  using FaultyDiskFixture::FaultyDiskFixture;
  // A sequence of so many segments whose sidecars of these kinds are on the disk, and nothing in
  // memory.
  void store(const char* name, std::uint32_t segments, const std::vector<const char*>& kinds) {
    auto written = client->create(space, {}, name);
    seal_all(*written, make_ids(8 * segments, ++salt), 8);
    for (const char* kind : kinds) want(*written, kind);
    world.settle();
    written.reset();
    world.kill();
    restart();
  }
  std::uint32_t want(const SimSequence& sequence, const char* kind) {
    const sim::Reply reply = client->control(
        Json{{"op", "abstract_want"}, {"handle", sequence.handle}, {"abstract", kind}});
    EXPECT_TRUE(reply.ok()) << kind;
    return reply.ok() ? reply.body["lane"].get<std::uint32_t>() : 0;
  }
  std::size_t shown(const SimSequence& sequence, std::uint32_t lane) {
    std::size_t count = 0;
    for (const DirectoryEntry& entry : sequence.read_directory().entries)
      count += entry.abstract_offsets[lane] != kNoAbstract ? 1 : 0;
    return count;
  }
  void let_go() {
    FaultyDiskFixture::let_go();
    world.settle();
  }
  void expect_nothing_left() {
    const AbstractTable& table = state().abstract_table;
    for (const AbstractTable::Loads* loads : {&table.loads, &table.base_loads}) {
      EXPECT_TRUE(loads->waiting.empty());
      EXPECT_EQ(loads->under_way, 0u);
      EXPECT_EQ(loads->bytes, 0u);
      EXPECT_EQ(loads->arena_bytes, 0u);
    }
    EXPECT_EQ(table.base_promised_bytes, 0u);
    EXPECT_EQ(state().io->outstanding(), 0u);
    for (const auto& [id, segment] : state().segments.all)
      for (const SegmentAbstract& abstract : segment->abstracts)
        EXPECT_NE(abstract.state, AbstractState::kWorking) << id.value;
  }

  std::uint32_t salt = 0;
};

TEST_F(EngineSidecars, FewAreReadAtOnceAndAbstractsBeforeBaseRenditions) {
  constexpr std::uint32_t kSegments = 100;
  store("chat", kSegments, {"box/pages:16", "base:44/tokens"});
  auto chat = client->attach(space, "chat", false);
  ASSERT_NE(chat, nullptr);
  hold(IoOp::kRead);
  const std::uint32_t boxes = want(*chat, "box/pages:16");
  const std::uint32_t bases = want(*chat, "base:44/tokens");
  const AbstractTable& table = state().abstract_table;
  EXPECT_EQ(state().io->outstanding(), kSidecarLoadsMax) << "what others wait behind";
  EXPECT_EQ(table.loads.under_way, kSidecarLoadsMax);
  EXPECT_EQ(table.loads.waiting.size(), kSegments - kSidecarLoadsMax);
  EXPECT_EQ(table.base_loads.under_way, 0u);
  EXPECT_EQ(table.base_loads.waiting.size(), kSegments);
  let_go();
  EXPECT_EQ(shown(*chat, boxes), kSegments);
  EXPECT_EQ(shown(*chat, bases), kSegments);
  EXPECT_EQ(state().metrics.abstracts_loaded, 2 * kSegments);
  EXPECT_EQ(state().metrics.abstracts_rebuilt, 0u);
  expect_nothing_left();
}

TEST_F(EngineSidecars, WhatNobodyWantsAnyMoreIsNotRead) {
  store("chat", 100, {"box/pages:16"});
  auto chat = client->attach(space, "chat", false);
  hold(IoOp::kRead);
  want(*chat, "box/pages:16");
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", chat->handle}}).ok());
  let_go();
  EXPECT_EQ(disk->data_operations(), 0u) << "more were begun";
  EXPECT_EQ(state().abstracts->used_bytes(), 0u);
  expect_nothing_left();
  // Another view has them all.
  chat = client->attach(space, "chat", false);
  const std::uint32_t lane = want(*chat, "box/pages:16");
  world.settle();
  EXPECT_EQ(shown(*chat, lane), 100u);
}

TEST_F(EngineSidecars, AStopWaitsForTheReadsUnderWayAlone) {
  store("chat", 100, {"box/pages:16"});
  auto chat = client->attach(space, "chat", false);
  hold(IoOp::kRead);
  want(*chat, "box/pages:16");
  bool drained = false;
  world.engine().drain([&] { drained = true; });
  let_go();
  EXPECT_TRUE(drained);
  EXPECT_EQ(state().metrics.abstracts_loaded, kSidecarLoadsMax);
}

class SmallArena : public EngineSidecars {
 protected:
  SmallArena() : EngineSidecars(sixteen_kilobytes()) {}
  static sim::SimWorldOptions sixteen_kilobytes() {
    sim::SimWorldOptions options;
    options.abstracts_bytes = 16 << 10;
    return options;
  }
};

TEST_F(SmallArena, WhatHasNoRoomIsNotRead) {
  constexpr std::uint32_t kSegments = 100;
  store("chat", kSegments, {});  // boxes are built by the seal
  auto chat = client->attach(space, "chat", false);
  disk->set_plan({.data_op = IoOp::kRead});
  const std::uint32_t lane = want(*chat, "box/pages:16");
  world.settle();
  const AbstractLayout layout(geometry, *parse_abstract_spec("box/pages:16"), 8, 1);
  const std::size_t fit = (16 << 10) / layout.size_bytes();
  ASSERT_LT(fit, kSegments);
  EXPECT_EQ(shown(*chat, lane), fit);
  EXPECT_EQ(disk->data_operations(), fit);
  EXPECT_EQ(state().metrics.abstracts_full, kSegments - fit);
  const auto entries = chat->read_directory().entries;
  for (std::size_t i = 0; i < entries.size(); ++i)
    EXPECT_EQ(entries[i].abstract_offsets[lane] != kNoAbstract, i < fit) << "older ones first";
  expect_nothing_left();
}

// One that is there and cannot be used is named in the log, whatever is wrong with it.
TEST_F(EngineSidecars, WhatCannotBeUsedIsNamedAndBuiltAgain) {
  const auto open_fails = [this] {
    disk->set_plan({.namespace_at = 0, .status = {Code::kPermission, 13, nullptr}});
  };
  const auto read_fails = [this] { disk->set_plan({.data_at = 0, .data_op = IoOp::kRead}); };
  const auto cut = [this] {
    const std::string path = "sidecars/" + world.disk().list("sidecars")->at(0);
    const FileId file = *state().io->io().open(path, {.mode = OpenMode::kWrite});
    ASSERT_TRUE(state().io->io().resize(file, 100));
    state().io->io().close(file);
  };
  const std::vector<std::pair<std::function<void()>, std::string>> cases = {
      {open_fails, ": permission"}, {read_fails, ": cannot be read"}, {cut, ": of a wrong length"}};
  store("chat", 1, {"box/pages:16"});
  for (const auto& [harm, reason] : cases) {
    SCOPED_TRACE(reason);
    auto chat = client->attach(space, "chat", false);
    ASSERT_NE(chat, nullptr);
    harm();
    set_log_level(LogLevel::kInfo);
    ::testing::internal::CaptureStderr();
    const std::uint32_t lane = want(*chat, "box/pages:16");
    world.settle();
    const std::string log = ::testing::internal::GetCapturedStderr();
    set_log_level(LogLevel::kWarn);
    EXPECT_NE(log.find("sidecars/"), std::string::npos) << log;
    EXPECT_NE(log.find(reason), std::string::npos) << log;
    EXPECT_EQ(shown(*chat, lane), 1u);
    EXPECT_EQ(state().metrics.abstracts_rebuilt, 1u);
    chat.reset();
    world.kill();
    restart();
  }
}

// To show a new segment asks for a lane that cannot be built, which ends at once; who waited for a
// lane goes on then, and takes another segment's abstract out of directories that show both.
TEST_F(EngineSidecars, ALaneThatEndsAtOnceLeavesDirectoriesWhole) {
  store("first", 3, {"box/pages:16"});
  const auto ids = make_ids(200, 77);
  auto story = client->create(space, {}, "story");
  seal(*story, ids, 100);
  const std::uint32_t boxes = want(*story, "box/pages:16");
  want(*story, "low-rank:10/tokens");  // nobody has said how the model turns its keys
  auto reader = client->attach(space, "story", false);
  ASSERT_NE(reader, nullptr);
  world.settle();
  ASSERT_EQ(state().metrics.rotation_unknown, 1u);
  ASSERT_EQ(shown(*story, boxes), 1u);
  ASSERT_EQ(shown(*reader, boxes), 1u);
  // The job waits for a lane that is being read, of a sequence that goes meanwhile.
  auto first = client->attach(space, "first", false);
  hold(IoOp::kRead);
  want(*first, "box/pages:16");
  ASSERT_EQ(state().abstract_table.loads.under_way, 3u);
  ASSERT_TRUE(client->control(Json{{"op", "reindex"}, {"all", true}}).ok());
  ASSERT_EQ(state().abstract_table.settled.size(), 1u);
  ASSERT_TRUE(client->control(Json{{"op", "close"}, {"handle", first->handle}}).ok());
  ASSERT_TRUE(client->control(Json{{"op", "rm"}, {"target", "first"}}).ok());
  client->append(*story, geometry, ids, 100, 100);
  ASSERT_EQ(client->seal(*story).status, 0);
  EXPECT_EQ(state().metrics.rotation_unknown, 2u);
  EXPECT_EQ(state().reindex.gone, 3u) << "the job went on";
  let_go();
  for (const SimSequence* one : {story.get(), reader.get()}) {
    EXPECT_EQ(one->read_directory().header->version % 2, 0u);
    EXPECT_EQ(one->read_directory().tokens, 200u);
    EXPECT_EQ(shown(*one, boxes), 2u);
  }
  EXPECT_FALSE(state().reindex.running);
  EXPECT_EQ(state().reindex.built, 1u);
  expect_nothing_left();
  expect_all(*client, *reader, ids);
}

// verify names one that is missing, and not one that is on its way.
TEST_F(EngineSidecars, OneThatIsBeingWrittenIsNotMissing) {
  store("chat", 1, {});
  hold(IoOp::kWrite);
  ASSERT_TRUE(client->control(Json{{"op", "reindex"}, {"all", true}}).ok());
  const SegmentAbstract& lane = state().segments.all.begin()->second->abstracts.at(0);
  for (int i = 0; i < 1000 && lane.writes == 0; ++i) world.turn();
  ASSERT_EQ(lane.writes, 1u);
  sim::Reply reply = client->control(Json{{"op", "verify"}});
  EXPECT_EQ(reply.body["problems"].size(), 0u) << reply.body.dump(1);
  let_go();
  const std::string path = "sidecars/" + world.disk().list("sidecars")->at(0);
  ASSERT_TRUE(world.disk().unlink(path).has_value());
  reply = client->control(Json{{"op", "verify"}});
  EXPECT_EQ(reply.body["sound"], true);
  ASSERT_EQ(reply.body["problems"].size(), 1u) << reply.body.dump(1);
  EXPECT_EQ(reply.body["problems"][0]["object"], path);
  EXPECT_EQ(reply.body["problems"][0]["severity"], "warning");
  EXPECT_EQ(client->control(Json{{"op", "repair"}}).body["dropped"], 0) << "nothing is there";
}

}  // namespace
}  // namespace kvtier
