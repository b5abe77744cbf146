// verify and repair where a file cannot be read just now: no damage, and nothing is dropped.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/fault.h"
#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

class Repair : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    space_ = open_space(TestShape{});
    kvt_sequence* sequence = create_sequence(space_, "kept");
    model_.append_many(sequence, 1, 2300);
    KVT_ASSERT_OK(kvt_sequence_commit(sequence));
    daemon_->kill();  // the rest of the tail stays in its log
    static_cast<void>(kvt_sequence_close(sequence));
    daemon_->start();
    kvt_object object{};
    char value[100] = "a value";
    object.key = "key";
    object.key_bytes = 3;
    object.value = value;
    object.value_bytes = sizeof value;
    std::uint64_t batch = 0;
    KVT_ASSERT_OK(kvt_objects_submit(client_, KVT_OBJECT_SET, &object, 1, &batch));
    kvt_object_result result{};
    std::uint32_t count = 0;
    KVT_ASSERT_OK(kvt_objects_poll(client_, &result, 1, 10'000, &count));
    ASSERT_EQ(result.status, KVT_OK);
  }
  void TearDown() override {
    static_cast<void>(arm_faults(""));
    kvt_space_close(space_);
    ClientTest::TearDown();
  }

  kvt_space* space_ = nullptr;
  Model model_{TestShape{}};
};

TEST_F(Repair, NothingIsDroppedBecauseOfAPassingError) {
  for (const char* point : {"io.open", "io.read"}) {
    int failed = 0;
    for (int visit = 1; visit < 100; ++visit) {
      SCOPED_TRACE(std::string(point) + " " + std::to_string(visit));
      ASSERT_TRUE(arm_faults(std::string(point) + "=fail@" + std::to_string(visit)));
      const Json repaired = request({{"op", "repair"}});
      const bool hit = fault_visits() >= static_cast<std::uint64_t>(visit);
      ASSERT_TRUE(arm_faults(""));
      ASSERT_EQ(repaired["dropped"], 0) << repaired.dump(1);
      for (const Json& problem : repaired["problems"]) {
        EXPECT_EQ(problem["severity"], "unread") << repaired.dump(1);
        ++failed;
      }
      if (!hit) break;
      ASSERT_LT(visit, 99);
    }
    EXPECT_GE(failed, 3) << "the segment, the log, the value";
  }
  const Json verified = request({{"op", "verify"}, {"deep", true}});
  EXPECT_TRUE(verified["sound"].get<bool>()) << verified.dump(1);
  EXPECT_EQ(verified["objects"], 1);
  kvt_sequence* sequence = open_sequence(space_, "kept", true);
  model_.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
}

// Not only repair: a client that meets the error gets it, and the next one is served.
TEST_F(Repair, ASegmentIsNotMarkedBecauseOfAPassingError) {
  kvt_sequence* sequence = open_sequence(space_, "kept", false);
  std::vector<float> k(2 * 64 * 16), v(k.size());
  for (const char* fault : {"io.open=fail@1", "io.read=fail@1", "io.read=fail@2"}) {
    ASSERT_TRUE(arm_faults(fault));
    EXPECT_NE(kvt_sequence_read(sequence, 0, 0, 64, k.data(), v.data()), KVT_OK) << fault;
    ASSERT_TRUE(arm_faults(""));
  }
  model_.expect_rows(sequence, 0, 2048);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  EXPECT_EQ(request({{"op", "stats"}})["damage"]["segments_bad"], 0);
}

}  // namespace
}  // namespace kvtier::testing
