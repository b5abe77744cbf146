// SIGKILL to the daemon at named fault points, again and again, over one store. After each: the
// client that lived through it goes on with the same handles and loses nothing; after the next
// start everything that was committed is there, bit for bit; and at the end the whole store passes
// the offline check.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <map>
#include <string>

#include "base/random.h"
#include "tests/support/daemon_process.h"
#include "tests/support/known_objects.h"
#include "tests/support/known_rows.h"
#include "tiers/catalogue.h"
#include "tiers/io.h"
#include "tiers/store_check.h"

namespace kvtier::testing {
namespace {

constexpr const char* kPoints[] = {"seal.copied",
                                   "seal.written",
                                   "seal.synced",
                                   "seal.directory_synced",
                                   "seal.published",
                                   "commit.appended",
                                   "commit.synced",
                                   "log.created",
                                   "catalogue.write",
                                   "catalogue.written",
                                   "io.write",
                                   "io.sync",
                                   "io.open",
                                   "io.read",
                                   "io.rename",
                                   "io.sync_directory",
                                   "io.unlink",
                                   "io.allocate",
                                   "object.copied",
                                   "object.written",
                                   "object.synced",
                                   "object.published",
                                   "*"};

struct Committed {
  std::uint64_t seed = 0;
  std::uint64_t tokens = 0;
};

class CrashLoop {
 public:
  explicit CrashLoop(std::uint64_t seed) : random_(seed), objects_(seed) {
    settings_.store = directory_.path() + "/store";
    settings_.socket = directory_.path() + "/sockets/kvtierd.sock";
    settings_.settings = {"host.arena_bytes=32MiB", "host.leased_bytes_per_client_max=16MiB",
                          "host.abstracts_bytes=8MiB"};
  }

  // `point`: where the daemon is to die.
  void round(int number, std::size_t point) {
    SCOPED_TRACE("round " + std::to_string(number));
    settings_.faults = fault(kPoints[point]);
    SCOPED_TRACE(settings_.faults);
    killed_ = false;
    if (daemon_.start(settings_)) work(number);
    note_end();
    if (killed_) ++deaths_[point];
    daemon_.kill_now();
    settings_.faults.clear();
    ASSERT_TRUE(daemon_.start(settings_));
    if (number % 4 == 0) check_all();
    daemon_.kill_now();
  }

  // Rounds in which the daemon died at this point.
  [[nodiscard]] int deaths(std::size_t point) const { return deaths_[point]; }

  void finish() {
    ASSERT_TRUE(daemon_.start(settings_));
    check_all();
    ASSERT_TRUE(daemon_.stop());
    EXPECT_GT(objects_.acknowledged(), 0u);
    check_store_offline();
  }

 private:
  std::string fault(const std::string& point) {
    const std::uint64_t visit = point == "*" ? 1 + random_.below(300) : 1 + random_.below(4);
    return point + "=kill@" + std::to_string(visit);
  }

  // While the daemon of the round has ended and no other was started.
  void note_end() {
    killed_ = killed_ || (daemon_.ended() && WIFSIGNALED(daemon_.last_status()) &&
                          WTERMSIG(daemon_.last_status()) == SIGKILL);
  }

  // A client appends and commits until the daemon dies or the work is done; then it goes on with
  // the next daemon.
  void work(int number) {
    kvt_client* client = nullptr;
    kvt_space* space = nullptr;
    if (open_known_client(settings_.socket, &client) != KVT_OK) return;
    const bool objects_first = random_.one_in(2);
    if (objects_first) objects_.set_some(client);
    if (open_known_space(client, &space) == KVT_OK)
      write_sequence(space, "s" + std::to_string(number % 12));
    if (!objects_first) objects_.set_some(client);
    kvt_space_close(space);
    kvt_client_close(client);
  }

  void write_sequence(kvt_space* space, const std::string& name) {
    Committed& known = committed_[name];
    kvt_sequence* sequence = nullptr;
    if (known.tokens > 0) {
      if (kvt_sequence_open(space, name.c_str(), 0, 1, &sequence) != KVT_OK) return;
      ASSERT_GE(kvt_sequence_length(sequence), known.tokens);
      maybe_uncertain(name, kvt_sequence_length(sequence));
    } else {
      if (!open_or_create(space, name, &sequence)) return;
    }
    for (int i = 0; i < 6; ++i) {
      const std::uint32_t count = static_cast<std::uint32_t>(
          random_.one_in(3) ? 1 + random_.below(1024) : 1 + random_.below(40));
      kvt_status status = append_known(sequence, known.seed, count);
      if (status == KVT_OK) status = kvt_sequence_commit(sequence);
      if (status != KVT_OK && !survive(sequence, known)) break;
      known.tokens = kvt_sequence_length(sequence);
    }
    kvt_sequence_close(sequence);
  }

  // Named before, but perhaps without a commit that was acknowledged: then it may be there or not.
  bool open_or_create(kvt_space* space, const std::string& name, kvt_sequence** sequence) {
    Committed& known = committed_[name];
    if (known.seed != 0 && kvt_sequence_open(space, name.c_str(), 0, 1, sequence) == KVT_OK)
      return true;
    if (known.seed == 0) known.seed = ++next_seed_;
    kvt_sequence_options options;
    kvt_sequence_options_init(&options);
    options.name = name.c_str();
    return kvt_sequence_create(space, &options, nullptr, 0, nullptr, sequence) == KVT_OK;
  }

  // More than was acknowledged may be durable; it must be right all the same.
  void maybe_uncertain(const std::string& name, std::uint64_t length) {
    committed_[name].tokens = std::max(committed_[name].tokens, length);
  }

  // The daemon is gone: a new one comes, and the same handle must be able to make everything
  // durable that it holds.
  bool survive(kvt_sequence* sequence, Committed& known) {
    const std::uint64_t held = kvt_sequence_length(sequence);
    EXPECT_GE(held, known.tokens);
    // Its socket was closed before it can be waited for.
    for (int wait = 0; wait < 200 && !daemon_.ended(); ++wait) ::usleep(5000);
    note_end();
    settings_.faults.clear();
    if (!daemon_.start(settings_)) {
      ADD_FAILURE() << "the daemon does not start again";
      return false;
    }
    const kvt_status status = kvt_sequence_commit(sequence);
    EXPECT_EQ(status, KVT_OK) << kvt_last_error();
    EXPECT_GE(kvt_sequence_length(sequence), held) << "tokens of the tail were lost";
    if (status == KVT_OK) known.tokens = kvt_sequence_length(sequence);
    return false;
  }

  void check_all() {
    kvt_client* client = nullptr;
    kvt_space* space = nullptr;
    ASSERT_EQ(open_known_client(settings_.socket, &client), KVT_OK) << kvt_last_error();
    ASSERT_EQ(open_known_space(client, &space), KVT_OK) << kvt_last_error();
    for (const auto& [name, known] : committed_) {
      if (known.tokens == 0) continue;
      kvt_sequence* sequence = nullptr;
      ASSERT_EQ(kvt_sequence_open(space, name.c_str(), 0, 1, &sequence), KVT_OK)
          << name << ": " << kvt_last_error();
      EXPECT_GE(kvt_sequence_length(sequence), known.tokens) << name;
      kvt_status status = KVT_OK;
      EXPECT_EQ(check_known(sequence, known.seed, &status), "") << name;
      kvt_sequence_close(sequence);
    }
    EXPECT_EQ(objects_.check(client), "");
    kvt_space_close(space);
    kvt_client_close(client);
  }

  void check_store_offline() {
    IoOptions options;
    options.root = settings_.store;
    options.backend = "threads";
    auto io = make_io(options);
    ASSERT_TRUE(io);
    CatalogueOptions catalogue_options;
    catalogue_options.path = settings_.store + "/catalogue";
    catalogue_options.read_only = true;
    auto catalogue = Catalogue::open(catalogue_options);
    ASSERT_TRUE(catalogue);
    auto rows = load_store_rows(**catalogue);
    ASSERT_TRUE(rows);
    StoreCheckOptions check;
    check.deep = true;
    const StoreReport report = check_store(**io, &*rows, check);
    EXPECT_TRUE(report.sound());
    EXPECT_GT(report.chunks_checked, 0u);
    for (const Finding& finding : report.findings)
      EXPECT_NE(finding.severity, FindingSeverity::kDamage) << finding.path << ": " << finding.what;
  }

  Random random_;
  KnownObjects objects_;
  ScratchDirectory directory_;
  DaemonSettings settings_;
  DaemonProcess daemon_;
  std::map<std::string, Committed> committed_;
  std::uint64_t next_seed_ = 0;
  bool killed_ = false;  // in this round
  std::array<int, std::size(kPoints)> deaths_{};
};

TEST(DaemonCrash, WhatWasCommittedComesBackBitForBit) {
  const auto rounds = static_cast<int>(number_from_environment("KVT_CRASH_LOOPS", 200));
  const auto seed = number_from_environment("KVT_CRASH_SEED", 1);
  std::printf("seed %llu, %d rounds\n", seed, rounds);
  CrashLoop loop(seed);
  constexpr int kPointCount = static_cast<int>(std::size(kPoints));
  int round = 0;
  for (; round < rounds && !::testing::Test::HasFailure(); ++round)
    loop.round(round, static_cast<std::size_t>(round % kPointCount));
  // A point that was not met, as the visit drawn was one too many, is drawn again.
  const int again = rounds >= kPointCount ? rounds + 10 * kPointCount : 0;
  for (std::size_t point = 0; point < std::size(kPoints); ++point)
    while (loop.deaths(point) == 0 && round < again && !::testing::Test::HasFailure())
      loop.round(round++, point);
  int deaths = 0;
  for (std::size_t point = 0; point < std::size(kPoints); ++point) {
    std::printf("%-22s died %d\n", kPoints[point], loop.deaths(point));
    deaths += loop.deaths(point);
    if (again != 0) {
      EXPECT_GT(loop.deaths(point), 0) << kPoints[point];
    }
  }
  std::printf("died in %d of %d rounds\n", deaths, round);
  // Two of three, as measured.
  EXPECT_GT(deaths, rounds < 100 ? rounds / 3 : rounds / 2) << "the faults did not happen";
  loop.finish();
}

}  // namespace
}  // namespace kvtier::testing
