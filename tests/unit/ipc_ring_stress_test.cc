// Two threads and two processes play ping-pong over both rings, with every wait asleep: a lost
// wake-up is a timeout.
//
// The client keeps a random number of requests under way, the daemon answers each; both check order
// and contents of every entry. Random pauses, from a few cycles to a real sleep, move the two
// against each other.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "base/random.h"
#include "client/ipc/ring.h"
#include "client/ipc/wait.h"

namespace kvtier {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::uint64_t kMessages = 300'000;
#else
constexpr std::uint64_t kMessages = 1'500'000;
#endif
constexpr std::uint64_t kLostMs = 20'000;  // a wait that takes so long is a lost wake-up
// A game has at least kMessages / 700 = 428 waits; most sleep, some find their entry there already.
constexpr std::uint64_t kSleptMin = 100;

void jitter(Random& random) {
  if (random.one_in(2000)) {
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(200)));
  } else if (random.one_in(4)) {
    for (std::uint64_t i = random.below(200); i > 0; --i) AdaptiveSpin::relax();
  }
}

struct Side {
  int doorbell = -1;  // this side's own
  int socket = -1;
  SpinMode spin = SpinMode::kNever;
  std::uint64_t window_max = 1;
};

// Sends kMessages and takes their answers. An empty text, or what went wrong.
std::string play_client(ClientRings rings, const Side& side, WaitStats* stats) {
  Random random(1);
  Waiter waiter({side.spin, 50});
  std::uint64_t sent = 0;
  std::uint64_t answered = 0;
  std::array<Completion, 64> completions;
  while (answered < kMessages) {
    std::array<Submission, 64> batch{};
    const std::uint64_t window = 1 + random.below(side.window_max);
    const std::uint64_t under_way = sent - answered;
    std::uint64_t count = under_way < window ? window - under_way : 0;
    count = std::min({count, std::uint64_t{batch.size()}, kMessages - sent});
    for (std::uint64_t i = 0; i < count; ++i) {
      batch[i].user_data = sent + i;
      batch[i].value0 = ~(sent + i);
      batch[i].reserved0 = (sent + i) * 3;
    }
    const auto pushed = rings.submissions.push(std::span<const Submission>(batch).first(count));
    if (!pushed || *pushed != count) return "push failed";
    sent += count;
    jitter(random);
    if (waiter.wait(rings.completions, side.doorbell, side.socket, Deadline::after_ms(kLostMs)) !=
        WaitOutcome::kReady)
      return "client: lost wake-up or hang-up at " + std::to_string(answered);
    const auto popped = rings.completions.pop(completions);
    if (!popped) return "client: broken ring";
    for (std::uint32_t i = 0; i < *popped; ++i, ++answered)
      if (completions[i].user_data != answered || completions[i].value1 != answered * 5)
        return "wrong completion at " + std::to_string(answered);
  }
  *stats = waiter.stats();
  return "";
}

std::string play_daemon(DaemonRings rings, const Side& side, WaitStats* stats) {
  Random random(2);
  Waiter waiter({side.spin, 50});
  std::uint64_t seen = 0;
  std::array<Submission, 64> submissions;
  while (seen < kMessages) {
    if (waiter.wait(rings.submissions, side.doorbell, side.socket, Deadline::after_ms(kLostMs)) !=
        WaitOutcome::kReady)
      return "daemon: lost wake-up or hang-up at " + std::to_string(seen);
    const auto popped =
        rings.submissions.pop(std::span<Submission>(submissions).first(1 + random.below(64)));
    if (!popped) return "daemon: broken ring";
    std::array<Completion, 64> completions{};
    for (std::uint32_t i = 0; i < *popped; ++i, ++seen) {
      const Submission& entry = submissions[i];
      if (entry.user_data != seen || entry.value0 != ~seen || entry.reserved0 != seen * 3)
        return "wrong submission at " + std::to_string(seen);
      completions[i].user_data = seen;
      completions[i].value1 = seen * 5;
    }
    jitter(random);
    const auto pushed =
        rings.completions.push(std::span<const Completion>(completions).first(*popped));
    if (!pushed || *pushed != *popped) return "daemon: push failed";
  }
  *stats = waiter.stats();
  return "";
}

struct Pair {
  Memfd memory =
      make_memfd("ring stress", sizeof(ControlLayout), MemfdAccess::kSharedWrite, false).value();
  UniqueFd daemon_doorbell = make_doorbell().value();
  UniqueFd client_doorbell = make_doorbell().value();
  UniqueFd client_socket;
  UniqueFd daemon_socket;
  Pair() {
    int sockets[2];
    KVT_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
    client_socket = UniqueFd(sockets[0]);
    daemon_socket = UniqueFd(sockets[1]);
  }
  [[nodiscard]] ControlLayout* control() {
    return reinterpret_cast<ControlLayout*>(memory.mapping.data());
  }
};

void run_threads(SpinMode spin, std::uint64_t window_max, WaitStats* client_stats,
                 WaitStats* daemon_stats) {
  Pair pair;
  std::string daemon_outcome;
  std::thread daemon([&] {
    const Side side{pair.daemon_doorbell.get(), pair.daemon_socket.get(), spin, window_max};
    daemon_outcome = play_daemon(make_daemon_rings(pair.control(), pair.client_doorbell.get()),
                                 side, daemon_stats);
  });
  const Side side{pair.client_doorbell.get(), pair.client_socket.get(), spin, window_max};
  EXPECT_EQ(play_client(make_client_rings(pair.control(), pair.daemon_doorbell.get()), side,
                        client_stats),
            "");
  daemon.join();
  EXPECT_EQ(daemon_outcome, "");
}

TEST(RingStress, TwoThreadsAsleep) {
  WaitStats client;
  WaitStats daemon;
  run_threads(SpinMode::kNever, 700, &client, &daemon);
  EXPECT_EQ(client.spun + daemon.spun, 0u);
  EXPECT_GT(client.slept + daemon.slept, kSleptMin) << "a test of sleeping must sleep";
}

TEST(RingStress, TwoThreadsSpinning) {
  WaitStats client;
  WaitStats daemon;
  run_threads(SpinMode::kAlways, 700, &client, &daemon);
  EXPECT_GT(client.spun + daemon.spun, 0u);
}

TEST(RingStress, TwoProcessesAsleep) {
  Pair pair;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // The mapping is not inherited on purpose: map it as a client or daemon does.
    auto mapping = Mapping::map(pair.memory.fd.get(), sizeof(ControlLayout), true);
    pair.client_socket.reset();
    if (!mapping) ::_exit(2);
    auto* control = reinterpret_cast<ControlLayout*>(mapping->data());
    const Side side{pair.daemon_doorbell.get(), pair.daemon_socket.get(), SpinMode::kNever, 700};
    WaitStats stats;
    const std::string outcome =
        play_daemon(make_daemon_rings(control, pair.client_doorbell.get()), side, &stats);
    if (!outcome.empty()) std::fprintf(stderr, "%s\n", outcome.c_str());
    ::_exit(outcome.empty() ? 0 : 1);
  }
  pair.daemon_socket.reset();
  WaitStats stats;
  const Side side{pair.client_doorbell.get(), pair.client_socket.get(), SpinMode::kNever, 700};
  const std::string outcome =
      play_client(make_client_rings(pair.control(), pair.daemon_doorbell.get()), side, &stats);
  pair.client_socket.reset();  // ends the child's wait if we failed
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(outcome, "");
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_GT(stats.slept, kSleptMin) << "a test of sleeping must sleep";
}

// One push and one begin_sleep, set off together, many times. Either the reader sees the entry, or
// the writer sees the sleeper and clears its flag. Weaker orders fail here within a second; the
// games above hardly ever hit their window.
TEST(RingStress, PublishingAndFallingAsleepNeverMissEachOther) {
  Pair pair;
  RingIndices& indices = pair.control()->submission;
  ClientRings client = make_client_rings(pair.control(), pair.daemon_doorbell.get());
  DaemonRings daemon = make_daemon_rings(pair.control(), -1);
  std::atomic<std::uint64_t> started{0};
  std::atomic<std::uint64_t> pushed{0};
  const auto await = [](const std::atomic<std::uint64_t>& value, std::uint64_t wanted) {
    for (int i = 0; value.load(std::memory_order_acquire) < wanted; ++i) {
      if (i > 1000) std::this_thread::yield();
    }
  };
  constexpr std::uint64_t kRounds = kMessages / 5;
  std::thread writer([&] {
    Random random(3);
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      await(started, round);
      for (std::uint64_t i = random.below(8); i > 0; --i) AdaptiveSpin::relax();
      KVT_CHECK(client.submissions.push(Submission{}).value() == 1);
      pushed.store(round, std::memory_order_release);
    }
  });
  Random random(4);
  std::uint64_t asleep = 0;
  std::uint64_t lost = 0;
  std::array<Submission, 1> out;
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    started.store(round, std::memory_order_release);  // the writer hears of it some 100 ns later
    for (std::uint64_t i = random.below(100); i > 0; --i) AdaptiveSpin::relax();
    const bool sleeps = daemon.submissions.begin_sleep();
    await(pushed, round);
    if (sleeps) ++asleep;
    if (sleeps && indices.reader_sleeps.load() != 0) ++lost;
    daemon.submissions.end_sleep();
    ASSERT_EQ(daemon.submissions.pop(out).value(), 1u);
  }
  writer.join();
  EXPECT_EQ(lost, 0u);
  EXPECT_GT(asleep, 0u);
  RecordProperty("asleep_per_1000", static_cast<int>(asleep * 1000 / kRounds));
}

// Kills a process that holds the other end while we sleep. How long the wait outlived it.
std::chrono::nanoseconds wait_for_death() {
  Pair pair;
  const pid_t child = ::fork();
  KVT_CHECK(child >= 0);
  if (child == 0) {
    pair.client_socket.reset();
    ::pause();
    ::_exit(0);
  }
  pair.daemon_socket.reset();
  ClientRings rings = make_client_rings(pair.control(), pair.daemon_doorbell.get());
  std::chrono::steady_clock::time_point killed;
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    killed = std::chrono::steady_clock::now();
    ::kill(child, SIGKILL);
  });
  Waiter waiter;
  const WaitOutcome outcome = waiter.wait(rings.completions, pair.client_doorbell.get(),
                                          pair.client_socket.get(), Deadline::after_ms(kLostMs));
  const auto ended = std::chrono::steady_clock::now();
  killer.join();
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(outcome, WaitOutcome::kHangup);
  EXPECT_EQ(waiter.stats().hangups, 1u);
  EXPECT_GE(ended, killed);
  return ended - killed;
}

// The peer dies: the wait ends at once, by the socket. The best of some: a busy machine must not
// fail this.
TEST(RingStress, DeadPeerEndsTheWait) {
  std::chrono::nanoseconds best = std::chrono::hours(1);
  for (int i = 0; i < 5; ++i) best = std::min(best, wait_for_death());
  EXPECT_LT(best, std::chrono::milliseconds(100));
}

}  // namespace
}  // namespace kvtier
