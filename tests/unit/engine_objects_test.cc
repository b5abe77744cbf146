// Opaque keys in the engine over a simulated disk: order, damage, limits, failures, and what a
// client may not do.
#include <gtest/gtest.h>

#include "base/fault.h"
#include "base/log.h"
#include "daemon/engine_state.h"
#include "tests/sim/sim_objects.h"
#include "tiers/object_format.h"

namespace kvtier {
namespace {

using sim::ObjectCall;
using sim::Reply;
using sim::SimClient;
using sim::SimObjects;
using sim::SimWorld;

class EngineObjectsTest : public ::testing::Test {
 protected:
  void SetUp() override { restart(); }
  void TearDown() override { static_cast<void>(arm_faults("")); }

  void restart() {
    objects.reset();
    client.reset();
    ASSERT_TRUE(world.start());
    client = std::make_unique<SimClient>(world, "test");
    objects = std::make_unique<SimObjects>(*client);
    ASSERT_TRUE(objects->ready());
  }
  void crash() {
    world.crash();
    restart();
  }
  EngineState& state() { return world.engine().state(); }
  Code set(const std::string& key, const std::string& value) {
    return objects->call(Op::kObjectSet, key, value).code;
  }
  Code remove(const std::string& key) { return objects->call(Op::kObjectDelete, key).code; }
  // The value, or the name of the code.
  std::string get(const std::string& key) {
    const ObjectCall call = objects->call(Op::kObjectGet, key);
    return call.got ? *call.got : code_name(call.code);
  }
  std::uint64_t missed(ObjectMiss why) {
    return state().metrics.objects.misses[static_cast<std::size_t>(why)];
  }
  std::vector<std::string> files() { return *world.disk().list("objects"); }
  Reply control(const char* op) { return client->control(Json{{"op", op}}); }

  SimWorld world{sim::SimWorldOptions{}};
  std::unique_ptr<SimClient> client;
  std::unique_ptr<SimObjects> objects;
};

TEST_F(EngineObjectsTest, WhatIsSetSurvivesAPowerCut) {
  const std::string large(9000, 'x');
  EXPECT_EQ(set("a", "one"), Code::kOk);
  EXPECT_EQ(set("b", large), Code::kOk);
  EXPECT_EQ(set("empty", ""), Code::kOk);
  EXPECT_EQ(set("a", "two"), Code::kOk);
  EXPECT_EQ(remove("b"), Code::kOk);
  EXPECT_EQ(set("c", large), Code::kOk);
  EXPECT_EQ(files().size(), 3u) << "an overwrite and a delete give their files back";
  EXPECT_EQ(state().objects.disk_bytes, 2 * 4096u + 4096u + 4096u + 3 * 4096u);
  crash();
  EXPECT_EQ(get("a"), "two");
  EXPECT_EQ(get("b"), "miss");
  EXPECT_EQ(get("c"), large);
  EXPECT_EQ(get("empty"), "");
  EXPECT_EQ(state().objects.disk_bytes, 2 * 4096u + 4096u + 4096u + 3 * 4096u);
  EXPECT_EQ(state().objects.reserved_bytes, 0u);
  EXPECT_EQ(state().metrics.objects.recovered, 3u);
}

TEST_F(EngineObjectsTest, RequestsOfOneKeyAreCarriedOutInOrder) {
  std::vector<ObjectCall> calls;
  const auto add = [&](Op op, const std::string& value = "") {
    ObjectCall call;
    call.op = op;
    call.key = "k";
    call.value = value;
    calls.push_back(call);
  };
  add(Op::kObjectGet);
  add(Op::kObjectSet, "1");
  add(Op::kObjectGet);
  add(Op::kObjectSet, std::string(12'000, '2'));
  add(Op::kObjectExists);
  add(Op::kObjectGet);
  add(Op::kObjectDelete);
  add(Op::kObjectDelete);
  add(Op::kObjectGet);
  add(Op::kObjectSet, "3");
  add(Op::kObjectGet);
  for (ObjectCall& call : calls) objects->start(&call);
  for (ObjectCall& call : calls) objects->wait(&call);
  const Code codes[] = {Code::kMiss, Code::kOk,   Code::kOk,   Code::kOk, Code::kOk, Code::kOk,
                        Code::kOk,   Code::kMiss, Code::kMiss, Code::kOk, Code::kOk};
  for (std::size_t i = 0; i < calls.size(); ++i) EXPECT_EQ(calls[i].code, codes[i]) << i;
  EXPECT_EQ(calls[2].got, "1");
  EXPECT_EQ(calls[4].value_bytes, 12'000u);
  EXPECT_EQ(calls[5].got, std::string(12'000, '2'));
  EXPECT_EQ(calls[10].got, "3");
  EXPECT_EQ(state().objects.all.size(), 1u);
}

TEST_F(EngineObjectsTest, SetsShareCatalogueBatches) {
  std::vector<ObjectCall> calls(SimObjects::kSlots);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i].op = Op::kObjectSet;
    calls[i].key = "k" + std::to_string(i);
    calls[i].value = "v";
    objects->start(&calls[i]);
  }
  for (ObjectCall& call : calls) {
    objects->wait(&call);
    EXPECT_EQ(call.code, Code::kOk);
  }
  EXPECT_LT(state().metrics.objects.batches, calls.size());
}

TEST_F(EngineObjectsTest, DamageIsACountedMissAndASetHealsIt) {
  ASSERT_EQ(set("a", std::string(5000, 'a')), Code::kOk);
  ASSERT_EQ(set("b", std::string(5000, 'b')), Code::kOk);
  ASSERT_EQ(set("c", "c"), Code::kOk);
  const std::vector<std::string> names = files();
  world.disk().rot("objects/" + names[0], 4096 + 4999, 3);
  ASSERT_TRUE(world.disk().unlink("objects/" + names[1]));
  ASSERT_TRUE(world.disk().resize("objects/" + names[2], 4096));
  EXPECT_EQ(get("a"), "miss");
  EXPECT_EQ(get("a"), "miss");
  EXPECT_EQ(objects->call(Op::kObjectExists, "a").code, Code::kMiss);
  EXPECT_EQ(missed(ObjectMiss::kChecksum), 3u);
  EXPECT_EQ(get("b"), "miss");
  EXPECT_EQ(get("c"), "miss");
  EXPECT_EQ(missed(ObjectMiss::kLost), 2u);
  EXPECT_EQ(state().metrics.objects.bad, 3u);
  for (const char* key : {"a", "b", "c"}) EXPECT_EQ(set(key, key), Code::kOk);
  for (const char* key : {"a", "b", "c"}) EXPECT_EQ(get(key), key);
  EXPECT_EQ(files().size(), 3u);
  crash();
  for (const char* key : {"a", "b", "c"}) EXPECT_EQ(get(key), key);
}

TEST_F(EngineObjectsTest, FilesThatAreSwappedDoNotPass) {
  ASSERT_EQ(set("a", "first value"), Code::kOk);
  ASSERT_EQ(set("b", "other value"), Code::kOk);
  const std::vector<std::string> names = files();
  const std::string a = "objects/" + names[0], b = "objects/" + names[1];
  ASSERT_TRUE(world.disk().rename(a, "objects/x"));
  ASSERT_TRUE(world.disk().rename(b, a));
  ASSERT_TRUE(world.disk().rename("objects/x", b));
  EXPECT_EQ(get("a"), "miss");
  EXPECT_EQ(get("b"), "miss");
  EXPECT_EQ(missed(ObjectMiss::kChecksum), 2u);
}

TEST_F(EngineObjectsTest, RecoveryDropsFilesWithoutRowsAndCountsRowsWithoutFiles) {
  ASSERT_EQ(set("a", "1"), Code::kOk);
  ASSERT_EQ(set("b", "2"), Code::kOk);
  const std::string b = "objects/" + files()[1];
  ASSERT_TRUE(world.disk().create(object_path(77), true));
  world.kill();
  ASSERT_TRUE(world.disk().unlink(b));
  restart();
  EXPECT_EQ(state().metrics.files_dropped, 1u);
  EXPECT_EQ(state().metrics.objects.missing, 1u);
  EXPECT_EQ(state().objects.next_file, 78u);
  EXPECT_EQ(get("a"), "1");
  EXPECT_EQ(get("b"), "miss");
  EXPECT_EQ(set("b", "3"), Code::kOk);
  crash();
  EXPECT_EQ(state().metrics.objects.missing, 0u) << "the row went with the last start";
  EXPECT_EQ(get("b"), "3");
}

TEST_F(EngineObjectsTest, TheDiskLimitEvictsTheColdest) {
  for (const char* key : {"a", "b", "c"}) {
    ASSERT_EQ(set(key, key), Code::kOk);
    world.clock().advance_ns(1000);
  }
  EXPECT_EQ(get("a"), "a");  // used again: b is the coldest
  state().options.disk_bytes_max = state().objects.disk_bytes;
  EXPECT_EQ(set("d", "d"), Code::kOk);
  world.settle();
  EXPECT_EQ(files().size(), 3u);
  EXPECT_EQ(state().objects.disk_bytes, 3 * 2 * 4096u);
  EXPECT_EQ(get("b"), "miss");
  EXPECT_EQ(missed(ObjectMiss::kEvicted), 1u);
  EXPECT_EQ(missed(ObjectMiss::kAbsent), 0u);
  for (const char* key : {"a", "c", "d"}) EXPECT_EQ(get(key), key);
  state().options.disk_bytes_max = 4096;
  EXPECT_EQ(set("e", "e"), Code::kNoSpace);
  crash();
  EXPECT_EQ(get("b"), "miss");
}

TEST_F(EngineObjectsTest, AFullDiskFailsTheSetAndGivesEverythingBack) {
  ASSERT_EQ(set("a", "before"), Code::kOk);
  world.disk().set_capacity_bytes(world.disk().used_bytes() + 5000);
  for (int i = 0; i < 3; ++i) EXPECT_NE(set("b", std::string(12'000, 'x')), Code::kOk);
  world.disk().set_capacity_bytes(1ull << 30);
  world.settle();
  EXPECT_EQ(state().objects.reserved_bytes, 0u);
  EXPECT_EQ(state().objects.writes.bytes, 0u);
  EXPECT_EQ(get("b"), "miss");
}

TEST_F(EngineObjectsTest, AFullDiskDoesNotFillTheLog) {
  world.disk().set_capacity_bytes(world.disk().used_bytes());
  set_log_level(LogLevel::kWarn);
  world.clock().advance_ns(3600'000'000'000);  // since other tests' worlds had such lines
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 50; ++i) EXPECT_NE(set("b", std::string(12'000, 'x')), Code::kOk);
  const std::string log = ::testing::internal::GetCapturedStderr();
  std::size_t lines = 0;
  for (std::size_t at = 0; (at = log.find("was not stored", at)) != std::string::npos; ++at)
    ++lines;
  EXPECT_GE(lines, 1u);
  EXPECT_LE(lines, 2u) << log;
}

TEST_F(EngineObjectsTest, EveryFailedStepOfASetLeavesTheValueBefore) {
  ASSERT_EQ(set("a", "before"), Code::kOk);
  for (const char* point :
       {"object.copied", "object.written", "object.synced", "object.published"}) {
    ASSERT_TRUE(arm_faults(std::string(point) + "=fail"));
    EXPECT_EQ(set("a", "after"), Code::kIo) << point;
    ASSERT_TRUE(arm_faults(""));
    EXPECT_EQ(get("a"), "before") << point;
    EXPECT_EQ(state().objects.reserved_bytes, 0u) << point;
  }
  // The row of the last one may name either: the next batch of any key settles it.
  EXPECT_EQ(files().size(), 2u);
  EXPECT_EQ(state().objects.unsettled.size(), 1u);
  EXPECT_EQ(set("b", "b"), Code::kOk);
  EXPECT_TRUE(state().objects.unsettled.empty());
  EXPECT_EQ(files().size(), 2u);
  crash();
  EXPECT_EQ(get("a"), "before");
  EXPECT_EQ(get("b"), "b");
}

TEST_F(EngineObjectsTest, ADeleteOfARowInDoubtIsADelete) {
  ASSERT_TRUE(arm_faults("object.published=fail"));
  ASSERT_EQ(set("a", "never acknowledged"), Code::kIo);
  ASSERT_TRUE(arm_faults(""));
  EXPECT_EQ(get("a"), "miss");
  EXPECT_EQ(remove("a"), Code::kMiss);
  crash();
  EXPECT_EQ(get("a"), "miss") << "it came back behind an acknowledged delete";
}

TEST_F(EngineObjectsTest, BadRequestsAreRefused) {
  const auto code = [&](Submission request) {
    return static_cast<Code>(client->wait(client->submit(request)).status);
  };
  Submission good{};
  good.op = static_cast<std::uint16_t>(Op::kObjectSet);
  good.count = 1;
  good.value1 = 10;
  EXPECT_EQ(code(good), Code::kOk);
  Submission bad = good;
  bad.count = 0;
  EXPECT_EQ(code(bad), Code::kInvalid);
  bad.count = kObjectKeyBytesMax + 1;
  EXPECT_EQ(code(bad), Code::kTooLarge);
  bad = good;
  bad.argument_offset = kArgumentBytes;
  EXPECT_EQ(code(bad), Code::kInvalid);
  bad = good;
  bad.value1 = kObjectBytesMax + 1;
  EXPECT_EQ(code(bad), Code::kTooLarge);
  const std::uint64_t staging = SimObjects::kSlots * SimObjects::kSlotBytes;
  for (const auto& [offset, bytes] :
       {std::pair<std::uint64_t, std::uint64_t>{staging, 1}, {0, staging + 1}, {UINT64_MAX, 2}}) {
    bad = good;
    bad.value0 = offset;
    bad.value1 = bytes;
    EXPECT_EQ(code(bad), Code::kInvalid) << offset;
  }
  EXPECT_EQ(client->control(Json{{"op", "staging"}, {"bytes", kObjectBytesMax + 1}}).status.code,
            Code::kTooLarge);
  EXPECT_EQ(client->control(Json{{"op", "staging"}, {"bytes", 0}}).status.code, Code::kInvalid);
  ObjectCall call;
  call.op = Op::kObjectSet;
  call.key = "busy";
  objects->start(&call);
  world.engine().step();
  EXPECT_EQ(client->control(Json{{"op", "staging"}, {"bytes", 4096}}).status.code, Code::kBusy);
  objects->wait(&call);
}

TEST_F(EngineObjectsTest, AClientThatDiesMidwayLeavesNothingBehind) {
  auto dying = std::make_unique<SimClient>(world, "dying");
  auto theirs = std::make_unique<SimObjects>(*dying);
  std::vector<ObjectCall> calls(SimObjects::kSlots);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i].op = i % 2 == 0 ? Op::kObjectSet : Op::kObjectGet;
    calls[i].key = "k" + std::to_string(i / 4);
    calls[i].value = i % 2 == 0 ? std::string(10'000, 'v') : "";
    theirs->start(&calls[i]);
  }
  for (int i = 0; i < 9; ++i) world.turn();
  theirs.reset();
  dying.reset();
  world.settle();
  const ObjectTable& table = state().objects;
  EXPECT_EQ(table.reads.bytes + table.writes.bytes + table.reserved_bytes, 0u);
  EXPECT_TRUE(table.reads.waiting.empty() && table.writes.waiting.empty() && table.ready.empty());
  EXPECT_EQ(files().size(), table.order.size());
  EXPECT_EQ(table.all.size(), table.order.size());
}

// Each of those that wait fails at once, and lets the next one begin.
TEST_F(EngineObjectsTest, ALaneOfSetsWhoseClientsAreGoneTakesNoDeepStack) {
  constexpr int kSets = 50'000;
  set_log_level(LogLevel::kError);
  ObjectLane& lane = state().objects.writes;
  ObjectJob large;
  large.buffer_bytes = lane.bytes = kObjectLaneBytesMax;
  for (int i = 0; i < kSets; ++i) {
    auto job = std::make_shared<ObjectJob>();
    job->op = Op::kObjectSet;
    job->key = std::to_string(i);
    job->bytes = 1;
    start_object_request(state(), std::move(job));
  }
  ASSERT_EQ(lane.waiting.size(), std::size_t{kSets});
  leave_lane(state(), lane, large);
  set_log_level(LogLevel::kInfo);
  EXPECT_TRUE(lane.waiting.empty());
  EXPECT_EQ(lane.bytes, 0u);
  EXPECT_TRUE(state().objects.all.empty());
  EXPECT_EQ(set("next", "value"), Code::kOk);
}

}  // namespace
}  // namespace kvtier
