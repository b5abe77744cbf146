// Commits of several records, which workers encode and which are written at once into room that the
// file was given before.
#include <gtest/gtest.h>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kFirst = 10, kTokens = 700;  // 2.9 MB: three records

class EngineLargeCommit : public EngineFixture {
 protected:
  EngineLargeCommit() : EngineFixture(options()) {
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
    expect_all(*client, *chat, ids);
    ASSERT_TRUE(close(*chat));
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

}  // namespace
}  // namespace kvtier
