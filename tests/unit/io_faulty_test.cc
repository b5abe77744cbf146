// The faulty wrapper: counts, kinds, and the loop over n that it is for.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "tiers/io_faulty.h"
#include "tiers/sim_disk.h"

namespace kvtier {
namespace {

class FaultyIoTest : public testing::Test {
 protected:
  FaultyIoTest() : io_(make_sim_io(disk_, clock_)) {}

  FileId file() { return io_.open("f", {OpenMode::kCreateNew, false}).value_or(FileId{}); }
  std::vector<std::byte> on_disk() {
    std::vector<std::byte> bytes(disk_.size_bytes("f").value_or(0));
    std::uint64_t got = 0;
    EXPECT_TRUE(disk_.read("f", 0, bytes, &got));
    return bytes;
  }

  SimDisk disk_{SimDiskOptions{}};
  VirtualClock clock_;
  FaultyIo io_;
  std::vector<std::byte> bytes_ = std::vector<std::byte>(16'384, std::byte{7});
};

TEST_F(FaultyIoTest, FailDoesNothing) {
  const FileId id = file();
  io_.set_plan({FaultKind::kFail, 1, UINT64_MAX, 1, 3, {Code::kNoSpace, 28, nullptr}});
  EXPECT_TRUE(write_fully(io_, id, 0, ByteSpan(bytes_).first(10)));
  const auto failed = write_fully(io_, id, 10, ByteSpan(bytes_).first(10));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Code::kNoSpace);
  EXPECT_EQ(on_disk().size(), 10u);
  EXPECT_TRUE(sync_fully(io_, id));
  EXPECT_EQ(io_.data_operations(), 3u);
  EXPECT_EQ(io_.hits(), 1u);
}

TEST_F(FaultyIoTest, FailWithoutAnErrorDoesNothingAndSaysOk) {
  const FileId id = file();
  io_.set_plan({.data_at = 0, .status = {}});
  EXPECT_TRUE(write_fully(io_, id, 0, bytes_));
  EXPECT_EQ(io_.hits(), 1u);
  EXPECT_TRUE(on_disk().empty());
}

TEST_F(FaultyIoTest, ShortTransfersHalfAndFails) {
  const FileId id = file();
  io_.set_plan({FaultKind::kShort, 0});
  EXPECT_FALSE(write_fully(io_, id, 0, bytes_));
  EXPECT_EQ(on_disk().size(), 8'192u);
}

TEST_F(FaultyIoTest, LateDoesItAndFails) {
  const FileId id = file();
  io_.set_plan({FaultKind::kLate, 0, 0});
  EXPECT_FALSE(write_fully(io_, id, 0, bytes_));
  EXPECT_EQ(on_disk(), bytes_);
  EXPECT_FALSE(io_.make_directory("d"));
  EXPECT_TRUE(disk_.exists("d"));
  EXPECT_EQ(io_.hits(), 2u);
}

TEST_F(FaultyIoTest, DelayLetsALaterOneOvertake) {
  const FileId id = file();
  ASSERT_TRUE(write_fully(io_, id, 0, bytes_));
  io_.set_plan({FaultKind::kDelay, 0, UINT64_MAX, 1, 5});
  std::string order;
  for (const char name : {'a', 'b'}) {
    IoRequest request;
    request.file = id;
    request.pieces = {{bytes_.data(), 1}};
    request.done = [&order, name](Result<void> result) { order += result ? name : '!'; };
    io_.submit(std::move(request));
  }
  EXPECT_EQ(io_.in_flight(), 2u);
  while (io_.in_flight() > 0) {
    io_.poll();
    io_.wait();
  }
  EXPECT_EQ(order, "ba");
}

TEST_F(FaultyIoTest, CountHitsThatMany) {
  const FileId id = file();
  io_.set_plan({FaultKind::kFail, 1, UINT64_MAX, UINT64_MAX});
  EXPECT_TRUE(sync_fully(io_, id));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(sync_fully(io_, id));
  EXPECT_EQ(io_.hits(), 5u);
}

TEST_F(FaultyIoTest, OnlyOperationsOfOneKindCount) {
  const FileId id = file();
  io_.set_plan({.data_at = 1, .data_op = IoOp::kSync});
  EXPECT_TRUE(write_fully(io_, id, 0, bytes_));
  EXPECT_TRUE(sync_fully(io_, id));
  EXPECT_TRUE(write_fully(io_, id, 0, bytes_));
  EXPECT_FALSE(sync_fully(io_, id));
  EXPECT_EQ(io_.hits(), 1u);
}

TEST_F(FaultyIoTest, DelaysEndWhenToldTo) {
  io_.set_plan({.kind = FaultKind::kDelay,
                .data_at = 0,
                .delay_polls = UINT32_MAX,
                .data_op = IoOp::kSyncDirectory});
  bool done = false;
  IoRequest request;
  request.op = IoOp::kSyncDirectory;
  request.done = [&done](Result<void> result) { done = result.has_value(); };
  io_.submit(std::move(request));
  for (int i = 0; i < 100; ++i) io_.poll();
  EXPECT_FALSE(done);
  EXPECT_EQ(disk_.syncs(), 0u);
  io_.end_delays();
  while (io_.in_flight() > 0) {
    io_.poll();
    io_.wait();
  }
  EXPECT_TRUE(done);
  EXPECT_EQ(disk_.syncs(), 1u);
}

// What a caller does with it: publish a file by temporary name; at every n either the old or the
// new contents are there.
TEST_F(FaultyIoTest, TheLoopOverN) {
  const auto publish = [](Io& io, ByteSpan bytes) -> Result<void> {
    static_cast<void>(io.unlink("new"));
    KVT_TRY(const FileId id, io.open("new", {OpenMode::kCreateNew, false}));
    const auto written = write_fully(io, id, 0, bytes);
    const auto synced = written ? sync_fully(io, id) : written;
    io.close(id);
    KVT_TRY_VOID(synced);
    KVT_TRY_VOID(io.rename("new", "f"));
    return io.sync_directory("");
  };
  ASSERT_TRUE(publish(io_, as_bytes("old")));
  std::uint64_t runs = 0;
  for (const bool names : {false, true}) {
    for (std::uint64_t n = 0;; ++n, ++runs) {
      FaultPlan plan;
      (names ? plan.namespace_at : plan.data_at) = n;
      io_.set_plan(plan);
      const auto result = publish(io_, as_bytes("new"));
      if (io_.hits() == 0) {
        EXPECT_TRUE(result);
        break;
      }
      const auto bytes = on_disk();
      ASSERT_EQ(bytes.size(), 3u);
      EXPECT_TRUE(std::memcmp(bytes.data(), "old", 3) == 0 ||
                  std::memcmp(bytes.data(), "new", 3) == 0);
    }
  }
  EXPECT_EQ(runs, 6u);  // write, sync; unlink, open, rename, sync of the directory
}

}  // namespace
}  // namespace kvtier
