// The Io over the simulated disk: time, order, power cuts, and code that does not wait for its
// completions.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tiers/sim_disk.h"

namespace kvtier {
namespace {

std::vector<std::byte> filled(std::size_t size_bytes, int value) {
  return std::vector<std::byte>(size_bytes, static_cast<std::byte>(value));
}

Code code_of(const Result<void>& result) { return result ? Code::kOk : result.error().code; }

// True where the file holds these bytes and no others.
bool holds(const SimDisk& disk, std::string_view path, const std::vector<std::byte>& bytes) {
  std::vector<std::byte> there(disk.size_bytes(path).value_or(0));
  std::uint64_t got = 0;
  return disk.read(path, 0, there, &got) && there == bytes;
}

TEST(SimIo, CompletesWhenTheClockHasPassed) {
  SimDisk disk({1, 4ull << 30, 0, 0, 1'000});
  VirtualClock clock;
  auto io = make_sim_io(disk, clock);
  const FileId file = io->open("f", {OpenMode::kCreateNew, false}).value();
  auto bytes = filled(100, 1);
  std::vector<int> order;
  for (int i = 0; i < 20; ++i) {
    IoRequest request;
    request.op = IoOp::kWrite;
    request.file = file;
    request.offset = static_cast<std::uint64_t>(i) * 100;
    request.pieces = {{bytes.data(), 100}};
    request.done = [&order, i](Result<void> result) {
      EXPECT_TRUE(result);
      order.push_back(i);
    };
    io->submit(std::move(request));
  }
  for (int step = 0; step < 10; ++step) {
    io->poll();
    clock.advance_ns(100);
  }
  EXPECT_GT(order.size(), 5u);
  io->poll();
  clock.advance_ns(1);
  io->poll();
  EXPECT_EQ(order.size(), 20u);
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end())) << "operations in flight have no order";
}

// Code that submits a sync without waiting for its write is found out by some seed.
TEST(SimIo, ASyncDoesNotCoverAWriteInFlight) {
  const auto lost_in = [](bool waits) {
    int lost = 0;
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
      SimDisk disk({seed});
      VirtualClock clock;
      auto io = make_sim_io(disk, clock);
      const FileId file = io->open("f", {OpenMode::kCreateNew, false}).value();
      EXPECT_TRUE(io->sync_directory(""));
      auto bytes = filled(100, 7);
      bool synced = false;
      IoRequest write;
      write.op = IoOp::kWrite;
      write.file = file;
      write.pieces = {{bytes.data(), 100}};
      io->submit(std::move(write));
      while (waits && io->in_flight() > 0)
        if (io->poll() == 0) io->wait();
      IoRequest sync;
      sync.op = IoOp::kSync;
      sync.file = file;
      sync.done = [&](Result<void> result) { synced = result.has_value(); };
      io->submit(std::move(sync));
      while (!synced)
        if (io->poll() == 0) io->wait();
      disk.crash();
      lost += !holds(disk, "f", bytes);
    }
    return lost;
  };
  EXPECT_EQ(lost_in(true), 0);
  EXPECT_GT(lost_in(false), 10);
}

TEST(SimIo, FailsAfterThePowerCutAndANewOneWorks) {
  SimDisk disk({});
  VirtualClock clock;
  auto io = make_sim_io(disk, clock);
  const FileId file = io->open("f", {OpenMode::kCreateNew, false}).value();
  const auto bytes = filled(100, 1);
  ASSERT_TRUE(write_fully(*io, file, 0, bytes));
  ASSERT_TRUE(sync_fully(*io, file));
  ASSERT_TRUE(io->sync_directory(""));
  disk.crash();
  EXPECT_EQ(code_of(write_fully(*io, file, 0, bytes)), Code::kIo);
  EXPECT_FALSE(io->open("f", {}));
  EXPECT_EQ(code_of(io->unlink("f")), Code::kIo);
  io = make_sim_io(disk, clock);
  const auto again = io->open("f", {});
  ASSERT_TRUE(again);
  std::vector<std::byte> read(100);
  EXPECT_TRUE(read_fully(*io, *again, 0, read));
  EXPECT_EQ(read, bytes);
}

TEST(SimIo, AFailedSyncPoisonsTheFile) {
  SimDisk disk({});
  VirtualClock clock;
  auto io = make_sim_io(disk, clock);
  const FileId file = io->open("f", {OpenMode::kCreateNew, false}).value();
  disk.set_error_rates(0, 1);
  EXPECT_EQ(code_of(sync_fully(*io, file)), Code::kIo);
  disk.set_error_rates(0, 0);
  EXPECT_EQ(code_of(sync_fully(*io, file)), Code::kIo);
  const FileId again = io->open("f", {OpenMode::kWrite, false}).value();
  EXPECT_EQ(code_of(sync_fully(*io, again)), Code::kOk);
}

}  // namespace
}  // namespace kvtier
