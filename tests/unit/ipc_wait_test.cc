// Waiting for a ring: outcomes, when it spins, and how long.
#include "client/ipc/wait.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>

#include <memory>
#include <thread>

#include "client/ipc/ring.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kCapacity = 8;

struct Fixture {
  RingIndices indices{};
  alignas(64) std::array<Completion, kCapacity> entries{};
  UniqueFd doorbell = make_doorbell().value();
  UniqueFd ours;
  UniqueFd theirs;
  RingWriter<Completion> writer{&indices, entries.data(), kCapacity, doorbell.get()};
  RingReader<Completion> reader{&indices, entries.data(), kCapacity};
  Fixture() {
    int sockets[2];
    KVT_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
    ours = UniqueFd(sockets[0]);
    theirs = UniqueFd(sockets[1]);
  }
  WaitOutcome wait(Waiter& waiter, std::uint64_t ms) {
    return waiter.wait(reader, doorbell.get(), ours.get(), Deadline::after_ms(ms));
  }
};

WaiterOptions asleep() { return {SpinMode::kNever, 50}; }

TEST(Waiter, ReadyAtOnce) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  ASSERT_EQ(f->writer.push(Completion{}).value(), 1u);
  EXPECT_EQ(f->wait(waiter, 0), WaitOutcome::kReady);
  EXPECT_EQ(waiter.stats().ready, 1u);
  EXPECT_EQ(waiter.stats().slept, 0u);
}

TEST(Waiter, TimesOutAndNotBefore) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(f->wait(waiter, 30), WaitOutcome::kTimeout);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(30));
  EXPECT_EQ(waiter.stats().timeouts, 1u);
  EXPECT_EQ(waiter.stats().slept, 1u);
  EXPECT_EQ(f->indices.reader_sleeps.load(), 0u) << "awake again";
}

TEST(Waiter, WakesForAnEntry) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(f->writer.push(Completion{}).value(), 1u);
  });
  EXPECT_EQ(f->wait(waiter, 10'000), WaitOutcome::kReady);
  other.join();
  EXPECT_EQ(waiter.stats().slept, 1u);
}

TEST(Waiter, SpuriousRingsDoNotEndTheWait) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  ring_doorbell(f->doorbell.get());
  EXPECT_EQ(f->wait(waiter, 20), WaitOutcome::kTimeout);
}

TEST(Waiter, HangupEndsTheWaitButNotBeforeTheLastEntries) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  ASSERT_EQ(f->writer.push(Completion{}).value(), 1u);
  f->theirs.reset();
  EXPECT_EQ(f->wait(waiter, 10'000), WaitOutcome::kReady);
  std::array<Completion, 4> out;
  ASSERT_EQ(f->reader.pop(out).value(), 1u);
  EXPECT_EQ(f->wait(waiter, 10'000), WaitOutcome::kHangup);
  EXPECT_EQ(waiter.stats().hangups, 1u);
}

// A control reply that nobody has read yet is no reason to end a wait for the ring.
TEST(Waiter, BytesOnTheSocketAreNoHangup) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  ASSERT_EQ(::send(f->theirs.get(), "x", 1, 0), 1);
  EXPECT_EQ(f->wait(waiter, 20), WaitOutcome::kTimeout);
}

TEST(Waiter, BrokenRingEndsTheWait) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter(asleep());
  f->indices.tail = 1000;
  EXPECT_EQ(f->wait(waiter, 10'000), WaitOutcome::kReady);
  std::array<Completion, 4> out;
  EXPECT_EQ(f->reader.pop(out).error().code, Code::kProtocol);
}

TEST(Waiter, SpinsWhereForced) {
  auto f = std::make_unique<Fixture>();
  Waiter waiter({SpinMode::kAlways, 2'000'000});
  EXPECT_TRUE(waiter.spins());
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(f->writer.push(Completion{}).value(), 1u);
  });
  EXPECT_EQ(f->wait(waiter, 10'000), WaitOutcome::kReady);
  other.join();
  EXPECT_EQ(waiter.stats().spun, 1u);
  EXPECT_EQ(waiter.stats().slept, 0u);
}

TEST(AdaptiveSpin, FollowsTheWaits) {
  AdaptiveSpin spin({SpinMode::kAlways, 50});
  for (int i = 0; i < 100; ++i) spin.note_wait(4'000);
  EXPECT_GE(spin.budget_ns(), 7'000u);
  EXPECT_LE(spin.budget_ns(), 8'100u) << "twice the average";
  for (int i = 0; i < 100; ++i) spin.note_wait(40'000);
  EXPECT_EQ(spin.budget_ns(), 50'000u) << "never above the maximum";
  for (int i = 0; i < 100; ++i) spin.note_wait(10'000'000);
  EXPECT_EQ(spin.budget_ns(), 6'250u) << "long waits are not worth a long spin";
  for (int i = 0; i < 100; ++i) spin.note_wait(100);
  EXPECT_LE(spin.budget_ns(), 300u);
}

TEST(AdaptiveSpin, NeverWhereTurnedOff) {
  AdaptiveSpin spin({SpinMode::kNever, 50});
  EXPECT_FALSE(spin.allowed());
  spin.note_wait(1'000'000);
  EXPECT_EQ(spin.budget_ns(), 0u);
}

// With few CPUs spinning would take them from the computation next door.
TEST(AdaptiveSpin, AutoLooksAtTheAffinityMask) {
  std::thread narrow([] {
    cpu_set_t before;
    ASSERT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
    EXPECT_EQ(AdaptiveSpin({}).allowed(), CPU_COUNT(&before) >= 4);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &before)) {
        CPU_SET(cpu, &one);
        break;
      }
    }
    ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_FALSE(AdaptiveSpin({}).allowed());
    EXPECT_TRUE(AdaptiveSpin({SpinMode::kAlways, 50}).allowed());
  });
  narrow.join();
}

}  // namespace
}  // namespace kvtier
