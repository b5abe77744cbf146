// Rings in one thread: order, full, empty, positions that wrap, and a peer that writes impossible
// indices.
#include "client/ipc/ring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/random.h"
#include "client/ipc/deadline.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kCapacity = 8;

struct SmallRing {
  RingIndices indices{};
  alignas(64) std::array<Submission, kCapacity> entries{};
  RingWriter<Submission> writer{&indices, entries.data(), kCapacity, -1};
  RingReader<Submission> reader{&indices, entries.data(), kCapacity};
};

Submission numbered(std::uint64_t number) {
  Submission entry{};
  entry.user_data = number;
  entry.op = static_cast<std::uint16_t>(number);
  entry.value1 = ~number;
  return entry;
}
bool is_numbered(const Submission& entry, std::uint64_t number) {
  return entry.user_data == number && entry.op == static_cast<std::uint16_t>(number) &&
         entry.value1 == ~number;
}

bool readable(int fd) {
  pollfd poll_fd{fd, POLLIN, 0};
  return ::poll(&poll_fd, 1, 0) == 1;
}

TEST(Ring, EmptyGivesNothing) {
  auto ring = std::make_unique<SmallRing>();
  std::array<Submission, 4> out;
  EXPECT_FALSE(ring->reader.ready());
  EXPECT_EQ(ring->reader.pop(out).value(), 0u);
  EXPECT_EQ(ring->writer.room().value(), kCapacity);
}

TEST(Ring, FullTakesNoMoreAndRoomComesBack) {
  auto ring = std::make_unique<SmallRing>();
  std::vector<Submission> many;
  for (std::uint64_t i = 0; i < kCapacity + 3; ++i) many.push_back(numbered(i));
  EXPECT_EQ(ring->writer.push(many).value(), kCapacity);
  EXPECT_EQ(ring->writer.push(many[0]).value(), 0u);
  EXPECT_EQ(ring->writer.room().value(), 0u);
  std::array<Submission, 3> out;
  ASSERT_EQ(ring->reader.pop(out).value(), 3u);
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(is_numbered(out[i], i));
  EXPECT_EQ(ring->writer.room().value(), 3u);
  EXPECT_EQ(ring->writer.push(std::span<const Submission>(many).subspan(kCapacity)).value(), 3u);
  std::array<Submission, 16> rest;
  std::uint64_t expected = 3;
  while (ring->reader.ready()) {
    const std::uint32_t count = ring->reader.pop(rest).value();
    for (std::uint32_t i = 0; i < count; ++i) EXPECT_TRUE(is_numbered(rest[i], expected++));
  }
  EXPECT_EQ(expected, kCapacity + 3);
}

TEST(Ring, KeepsOrderOverManyRoundsOfRandomBatches) {
  auto ring = std::make_unique<SmallRing>();
  Random random(20);
  std::uint64_t pushed = 0;
  std::uint64_t popped = 0;
  while (popped < 20'000) {
    std::vector<Submission> batch;
    const std::uint64_t wanted = random.below(kCapacity + 2);
    for (std::uint64_t i = 0; i < wanted; ++i) batch.push_back(numbered(pushed + i));
    const std::uint64_t fits = std::min<std::uint64_t>(wanted, kCapacity - (pushed - popped));
    ASSERT_EQ(ring->writer.push(batch).value(), fits);
    pushed += fits;
    std::array<Submission, kCapacity> out;
    const std::uint32_t count =
        ring->reader.pop(std::span<Submission>(out).first(random.below(kCapacity + 1))).value();
    for (std::uint32_t i = 0; i < count; ++i) ASSERT_TRUE(is_numbered(out[i], popped + i));
    popped += count;
    ASSERT_LE(popped, pushed);
  }
}

TEST(Ring, ReaderRefusesImpossibleTails) {
  std::array<Submission, 4> out;
  const std::uint64_t kBad[] = {2 + kCapacity + 1, 1, UINT64_MAX, std::uint64_t{1} << 63};
  for (const std::uint64_t bad : kBad) {
    auto ring = std::make_unique<SmallRing>();
    for (std::uint64_t i = 0; i < 2; ++i) ASSERT_EQ(ring->writer.push(numbered(i)).value(), 1u);
    ASSERT_EQ(ring->reader.pop(out).value(), 2u);
    ASSERT_FALSE(ring->reader.ready());  // now it has seen the tail
    ring->indices.tail = bad;
    EXPECT_TRUE(ring->reader.ready()) << "a wait must end, so that pop can tell";
    EXPECT_EQ(ring->reader.pop(out).error().code, Code::kProtocol) << bad;
    EXPECT_TRUE(ring->reader.broken());
    EXPECT_FALSE(ring->reader.begin_sleep());
    ring->indices.tail = 3;  // too late: broken for good
    EXPECT_EQ(ring->reader.pop(out).error().code, Code::kProtocol);
  }
}

// The writer stamps an entry before it moves the tail: a reader that is faster must not take the
// tail for one that went back.
TEST(Ring, AStampedEntryIsThereBeforeTheTailSaysSo) {
  auto ring = std::make_unique<SmallRing>();
  std::array<Submission, 4> out;
  ASSERT_EQ(ring->writer.push(numbered(0)).value(), 1u);
  ring->indices.tail = 0;  // as it is in the middle of that push
  EXPECT_TRUE(ring->reader.ready());
  ASSERT_EQ(ring->reader.pop(out).value(), 1u);
  EXPECT_TRUE(is_numbered(out[0], 0));
  EXPECT_FALSE(ring->reader.ready());
  EXPECT_EQ(ring->reader.pop(out).value(), 0u);
  EXPECT_TRUE(ring->reader.begin_sleep());
  ring->reader.end_sleep();
  ring->indices.tail = 1;
  EXPECT_EQ(ring->reader.pop(out).value(), 0u) << "taken already";
  ring->indices.tail = 0;
  EXPECT_EQ(ring->reader.pop(out).error().code, Code::kProtocol) << "now it went back";
}

TEST(Ring, AnEntryWithoutStampCountsWhenTheTailSaysSo) {
  auto ring = std::make_unique<SmallRing>();
  std::array<Submission, 4> out;
  ring->entries[0] = numbered(7);
  EXPECT_EQ(ring->reader.pop(out).value(), 0u);
  ring->indices.tail = 1;
  ASSERT_EQ(ring->reader.pop(out).value(), 1u);
  EXPECT_TRUE(is_numbered(out[0], 7));
}

TEST(Ring, WriterRefusesImpossibleHeads) {
  for (const std::uint64_t bad :
       {std::uint64_t{kCapacity} + 1, UINT64_MAX, std::uint64_t{1} << 63}) {
    auto ring = std::make_unique<SmallRing>();
    for (std::uint64_t i = 0; i < kCapacity; ++i)
      ASSERT_EQ(ring->writer.push(numbered(i)).value(), 1u);
    ring->indices.head = bad;
    EXPECT_EQ(ring->writer.push(numbered(9)).error().code, Code::kProtocol) << bad;
    ring->indices.head = 1;
    EXPECT_EQ(ring->writer.push(numbered(9)).error().code, Code::kProtocol);
    EXPECT_EQ(ring->writer.room().error().code, Code::kProtocol);
  }
}

TEST(Ring, WriterRefusesAHeadThatGoesBack) {
  auto ring = std::make_unique<SmallRing>();
  std::array<Submission, 4> out;
  ASSERT_EQ(ring->writer.push(numbered(0)).value(), 1u);
  ASSERT_EQ(ring->writer.push(numbered(1)).value(), 1u);
  ASSERT_EQ(ring->reader.pop(out).value(), 2u);
  ASSERT_EQ(ring->writer.room().value(), kCapacity);
  ring->indices.head = 1;
  EXPECT_EQ(ring->writer.room().error().code, Code::kProtocol);
}

// The own index lives in private memory: what the peer writes over its copy in shared memory
// changes nothing.
TEST(Ring, OwnIndexIsNeverReadBack) {
  auto ring = std::make_unique<SmallRing>();
  std::array<Submission, 4> out;
  ring->indices.head = 0;
  ASSERT_EQ(ring->writer.push(numbered(0)).value(), 1u);
  ASSERT_EQ(ring->reader.pop(out).value(), 1u);
  ring->indices.head = 77;  // the reader's own
  ASSERT_EQ(ring->writer.push(numbered(1)).value(), 1u);
  ASSERT_EQ(ring->reader.pop(out).value(), 1u);
  EXPECT_TRUE(is_numbered(out[0], 1));
  EXPECT_EQ(ring->indices.head.load(), 2u);
}

TEST(Ring, RingsTheDoorbellOncePerSleep) {
  const UniqueFd doorbell = make_doorbell().value();
  auto ring = std::make_unique<SmallRing>();
  RingWriter<Submission> writer(&ring->indices, ring->entries.data(), kCapacity, doorbell.get());
  ASSERT_EQ(writer.push(numbered(0)).value(), 1u);
  EXPECT_FALSE(readable(doorbell.get())) << "nobody sleeps";
  EXPECT_FALSE(ring->reader.begin_sleep()) << "something is there";
  ring->reader.end_sleep();
  std::array<Submission, 4> out;
  ASSERT_EQ(ring->reader.pop(out).value(), 1u);
  EXPECT_TRUE(ring->reader.begin_sleep());
  ASSERT_EQ(writer.push(numbered(1)).value(), 1u);
  EXPECT_TRUE(readable(doorbell.get()));
  drain_doorbell(doorbell.get());
  ASSERT_EQ(writer.push(numbered(2)).value(), 1u);
  EXPECT_FALSE(readable(doorbell.get())) << "one sleep costs one ring";
  ring->reader.end_sleep();
}

TEST(Doorbell, NeverBlocks) {
  const UniqueFd doorbell = make_doorbell().value();
  drain_doorbell(doorbell.get());  // nothing to drain
  const std::uint64_t nearly_full = UINT64_MAX - 1;
  ASSERT_EQ(::write(doorbell.get(), &nearly_full, sizeof(nearly_full)), 8);
  ring_doorbell(doorbell.get());  // the counter is full
  EXPECT_TRUE(readable(doorbell.get()));
  drain_doorbell(doorbell.get());
  EXPECT_FALSE(readable(doorbell.get()));
}

// The peer shares the open file: it can make it blocking, and must not hang us by that.
TEST(Doorbell, DrainDoesNotBlockWhereThePeerMadeItBlocking) {
  const UniqueFd doorbell = make_doorbell().value();
  ASSERT_EQ(::fcntl(doorbell.get(), F_SETFL, 0), 0);
  drain_doorbell(doorbell.get());
  SUCCEED();  // else the test's time limit ends it
}

TEST(SharedCopy, CopiesEveryLengthAtEveryAlignment) {
  std::array<unsigned char, 64> source{};
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<unsigned char>(i + 1);
  for (std::size_t offset = 0; offset < 9; ++offset) {
    for (std::size_t bytes = 0; bytes <= 40; ++bytes) {
      alignas(8) std::array<unsigned char, 64> shared{};
      std::array<unsigned char, 64> back{};
      copy_to_shared(shared.data() + offset, source.data(), bytes);
      copy_from_shared(back.data(), shared.data() + offset, bytes);
      EXPECT_EQ(std::memcmp(back.data(), source.data(), bytes), 0);
      EXPECT_EQ(back[bytes], 0);
      EXPECT_EQ(shared[offset + bytes], 0);
    }
  }
}

// A model of what a reader may take decides for random tails; the reader must agree exactly.
TEST(Ring, ReaderAgreesWithTheModelOnRandomTails) {
  Random random(7);
  std::uint64_t broken_count = 0;
  for (int round = 0; round < 20'000; ++round) {
    auto ring = std::make_unique<SmallRing>();
    std::uint64_t head = 0;
    for (int step = 0; step < 6; ++step) {
      const std::uint64_t tail =
          random.one_in(4) ? random.next() : head + random.below(kCapacity + 3);
      ring->indices.tail = tail;
      std::array<Submission, kCapacity> out;
      const auto popped = ring->reader.pop(out);
      if (tail - head > kCapacity) {
        ASSERT_FALSE(popped);
        ++broken_count;
        break;
      }
      ASSERT_EQ(popped.value(), tail - head);
      head = tail;
    }
  }
  EXPECT_GT(broken_count, 1000u);
}

// Another thread writes random bytes over all that a client may write while the daemon's side
// works. The daemon sees garbage entries or a broken ring; it never reads or writes outside and
// never goes on after a broken ring.
TEST(Ring, SurvivesRandomBytesOverTheControlMemory) {
  constexpr std::size_t kRingBytes = offsetof(ControlLayout, arguments);
  auto memory =
      make_memfd("ring attack", sizeof(ControlLayout), MemfdAccess::kSharedWrite, false).value();
  auto* control = reinterpret_cast<ControlLayout*>(memory.mapping.data());
  std::atomic<bool> stop{false};
  std::thread attacker([&] {
    Random random(99);
    while (!stop.load(std::memory_order_relaxed)) {
      // Mostly plausible indices, else the ring breaks at once and nothing behind the check is
      // tried.
      if (random.one_in(2))
        control->submission.tail.store(random.below(2048), std::memory_order_relaxed);
      if (random.one_in(2))
        control->completion.head.store(random.below(2048), std::memory_order_relaxed);
      const std::uint64_t word = random.next();
      const std::size_t offset =
          random.one_in(4) ? random.below(96) * 8 : random.below(kRingBytes / 8) * 8;
      copy_to_shared(memory.mapping.data() + offset, &word, sizeof(word));
    }
  });
  Random random(5);
  std::uint64_t popped_total = 0;
  std::uint64_t broken_total = 0;
  const Deadline deadline = Deadline::after_ms(1500);
  while (!deadline.passed()) {
    DaemonRings rings = make_daemon_rings(control, -1);
    for (int step = 0; step < 50; ++step) {
      std::array<Submission, 64> out;
      const auto popped = rings.submissions.pop(out);
      if (popped) popped_total += *popped;
      std::array<Completion, 64> completions{};
      const auto pushed =
          rings.completions.push(std::span<const Completion>(completions).first(random.below(65)));
      ASSERT_LE(popped.value_or(0), out.size());
      ASSERT_LE(pushed.value_or(0), completions.size());
      ASSERT_EQ(!popped, rings.submissions.broken());
      ASSERT_EQ(!pushed, rings.completions.broken());
      if (!popped) ++broken_total;
      if (!pushed) ++broken_total;
      if (!popped || (!pushed && random.one_in(4))) break;
    }
  }
  stop = true;
  attacker.join();
  EXPECT_GT(popped_total, 100u) << "the attack must get past the index check";
  EXPECT_GT(broken_total, 10u);
}

}  // namespace
}  // namespace kvtier
