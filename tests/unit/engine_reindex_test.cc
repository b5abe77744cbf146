// Reindexing over a simulated disk: sidecars that are gone or damaged are there again, bit for bit,
// without a view and under one, and nothing stays in the arena that nobody wants.
#include <gtest/gtest.h>

#include <map>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

using sim::Reply;
using sim::SimSequence;

class Reindex : public EngineFixture {
 protected:
  void SetUp() override {
    EngineFixture::SetUp();
    auto sequence = client->create(space, {}, "chat");
    seal_all(*sequence, make_ids(300), 100);
    for (const char* kind : {"box/pages:16", "mean/pages:16"}) want(*sequence, kind);
    world.settle();
    close(*sequence);
    world.settle();
  }
  void want(const SimSequence& sequence, const char* kind) {
    ASSERT_TRUE(client
                    ->control(Json{
                        {"op", "abstract_want"}, {"handle", sequence.handle}, {"abstract", kind}})
                    .ok());
  }
  std::map<std::string, std::vector<std::byte>> sidecars() {
    std::map<std::string, std::vector<std::byte>> out;
    const auto names = world.disk().list("sidecars");
    for (const std::string& name : *names) out[name] = contents("sidecars/" + name);
    return out;
  }
  std::vector<std::byte> contents(const std::string& path) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(*world.disk().size_bytes(path)));
    std::uint64_t got = 0;
    EXPECT_TRUE(world.disk().read(path, 0, bytes, &got));
    EXPECT_EQ(got, bytes.size());
    return bytes;
  }
  // One is deleted, one has a wrong byte.
  void harm(const std::map<std::string, std::vector<std::byte>>& files) {
    ASSERT_TRUE(world.disk().unlink("sidecars/" + files.begin()->first));
    const auto& [name, bytes] = *files.rbegin();
    std::vector<std::byte> wrong(bytes.begin(), bytes.begin() + 512);
    wrong[100] ^= std::byte{1};
    ASSERT_TRUE(world.disk().write("sidecars/" + name, 0, wrong));
    ASSERT_FALSE(sidecars() == files);
  }
  Json reindex(Json body) {
    body["op"] = "reindex";
    const Reply reply = client->control(std::move(body));
    EXPECT_TRUE(reply.ok());
    world.settle();
    return client->control(Json{{"op", "reindex_state"}}).body;
  }
};

TEST_F(Reindex, HealsWhatIsGoneOrDamagedWithoutAView) {
  const auto files = sidecars();
  ASSERT_EQ(files.size(), 6u) << "three segments, two kinds";
  const std::uint64_t bytes = state().segments.sidecar_bytes;
  harm(files);
  const Json end = reindex(Json{{"target", "chat"}});
  EXPECT_EQ(end["running"], false);
  EXPECT_EQ(end["segments"], 3);
  EXPECT_EQ(end["abstracts"], 6);
  EXPECT_EQ(end["built"], 6);
  EXPECT_EQ(end["left"], 0);
  EXPECT_EQ(end["unwritten"].get<int>() + end["failed"].get<int>() + end["gone"].get<int>(), 0);
  EXPECT_TRUE(sidecars() == files);
  EXPECT_EQ(state().abstracts->used_bytes(), 0u) << "nobody wants them";
  EXPECT_EQ(state().segments.sidecar_bytes, bytes);
}

TEST_F(Reindex, HealsWhatWasGoneAtTheStart) {
  const auto files = sidecars();
  world.kill();
  harm(files);
  restart();
  EXPECT_EQ(reindex(Json{{"all", true}})["built"], 6);
  EXPECT_TRUE(sidecars() == files);
}

TEST_F(Reindex, StatsSayWhatIsLeftToDo) {
  auto sequence = client->attach(space, "chat", false);
  const auto left = [&](const char* what) {
    return client->control(Json{{"op", "stats"}}).body["abstracts"][what];
  };
  want(*sequence, "ball/pages:16");  // has no sidecars
  EXPECT_EQ(left("waiting"), 3);
  world.settle();
  EXPECT_EQ(left("waiting"), 0);
  EXPECT_EQ(left("loads_waiting"), 0);
  want(*sequence, "box/pages:16");
  EXPECT_EQ(left("loads_waiting"), 3);
  EXPECT_EQ(left("waiting"), 0);
  world.settle();
  EXPECT_EQ(left("loads_waiting"), 0);
  close(*sequence);
}

// What nobody has begun is left to the next daemon.
TEST_F(Reindex, AStopWaitsForTheBuildUnderWayAlone) {
  const auto stop = [this] {
    bool drained = false;
    world.engine().drain([&] { drained = true; });
    ASSERT_TRUE(world.run_until([&] { return drained; }));
  };
  ASSERT_TRUE(client->control(Json{{"op", "reindex"}, {"target", "chat"}}).ok());
  stop();
  EXPECT_EQ(state().reindex.waiting.size(), 5u);
  EXPECT_FALSE(state().reindex.running);
  crash();
  auto sequence = client->attach(space, "chat", false);
  want(*sequence, "ball/pages:16");  // has no sidecars
  stop();
  EXPECT_EQ(state().abstract_table.waiting.size(), 2u);
  EXPECT_EQ(state().metrics.abstracts_rebuilt, 0u);
}

TEST_F(Reindex, OnlyTheKindThatIsNamed) {
  const auto files = sidecars();
  harm(files);  // one of each kind
  EXPECT_EQ(reindex(Json{{"target", "chat"}, {"kind", "box/pages:16"}})["built"], 3);
  EXPECT_FALSE(sidecars() == files);
  EXPECT_EQ(reindex(Json{{"target", "chat"}, {"kind", "mean/pages:16"}})["built"], 3);
  EXPECT_TRUE(sidecars() == files);
  const auto code = [&](Json body) {
    body["op"] = "reindex";
    return client->control(std::move(body)).status.code;
  };
  EXPECT_EQ(code(Json{{"target", "chat"}, {"kind", "ball/pages:16"}}), Code::kNotFound);
  EXPECT_EQ(code(Json{{"target", "chat"}, {"kind", "cube"}}), Code::kInvalid);
  EXPECT_EQ(code(Json{{"target", "nobody"}}), Code::kNotFound);
  EXPECT_EQ(code(Json::object()), Code::kInvalid);
}

TEST_F(Reindex, AViewHasItsAbstractsAgainAndOneJobRunsAtATime) {
  auto sequence = client->attach(space, "chat", false);
  want(*sequence, "box/pages:16");
  world.settle();
  const auto shown = [&] {
    int count = 0;
    for (const DirectoryEntry& entry : sequence->read_directory().entries)
      count += entry.abstract_offsets[0] != kNoAbstract ? 1 : 0;
    return count;
  };
  ASSERT_EQ(shown(), 3);
  const std::uint64_t used = state().abstracts->used_bytes();
  Reply first = client->control(Json{{"op", "reindex"}, {"target", "chat"}});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first.body["running"], true);
  EXPECT_EQ(client->control(Json{{"op", "reindex"}, {"all", true}}).status.code, Code::kBusy);
  // Wanted while it is being built, and by somebody who goes.
  want(*sequence, "mean/pages:16");
  world.settle();
  EXPECT_EQ(shown(), 3);
  EXPECT_GT(state().abstracts->used_bytes(), used);
  close(*sequence);
  world.settle();
  EXPECT_EQ(state().abstracts->used_bytes(), 0u);
  EXPECT_EQ(client->control(Json{{"op", "reindex_state"}}).body["built"], 6);
  // The job does not need who asked.
  ASSERT_TRUE(client->control(Json{{"op", "reindex"}, {"all", true}}).ok());
  client.reset();
  world.settle();
  EXPECT_FALSE(state().reindex.running);
  EXPECT_EQ(state().reindex.built + state().reindex.gone, 6u);
}

TEST_F(Reindex, KeysThatCannotBeReadFailAndTheRestIsBuilt) {
  const std::string name = world.disk().list("segments")->front();
  const std::string path = "segments/" + name;
  std::vector<std::byte> bytes = contents(path);
  world.kill();
  for (std::size_t i = 4096; i < bytes.size(); i += 512) bytes[i] ^= std::byte{0x10};
  ASSERT_TRUE(world.disk().write(path, 0, bytes));
  restart();
  const Json end = reindex(Json{{"all", true}});
  EXPECT_EQ(end["running"], false);
  EXPECT_EQ(end["built"].get<int>() + end["failed"].get<int>() + end["gone"].get<int>(),
            end["abstracts"].get<int>());
  EXPECT_LT(end["built"], 6);
  EXPECT_GE(end["built"], 4);
}

}  // namespace
}  // namespace kvtier
