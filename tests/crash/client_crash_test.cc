// Clients that die (dying_client.h): SIGKILL in the middle of any call, with a forked child that
// keeps the socket. Each child begins with another call, and most are killed in it.
// Their leases are back soon after the kernel closed the socket, a sequence can be written by the
// next client, and another client never sees an error. And a client that writes random bytes over
// all it may write harms nobody else.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/random.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/ring.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"
#include "tests/crash/dying_client.h"
#include "tests/support/daemon_process.h"
#include "tests/support/known_rows.h"

namespace kvtier::testing {
namespace {

constexpr std::uint64_t kFirstSeed = 100;  // of children
// From here on each call must have been done, and died in.
constexpr std::uint64_t kEnoughRounds = 2 * kCallCount;

class ClientCrash : public ::testing::Test {
 protected:
  void expect_all_calls(const Told& told, std::uint64_t rounds);
  // One child, from its start to when its session is gone.
  void one_child(Told* told, std::uint64_t number, std::size_t first, int moment, Random* random);

  void SetUp() override {
    settings_.store = directory_.path() + "/store";
    settings_.socket = directory_.path() + "/sockets/kvtierd.sock";
    settings_.settings = {"host.arena_bytes=32MiB", "host.leased_bytes_per_client_max=16MiB",
                          "host.abstracts_bytes=8MiB"};
    ASSERT_TRUE(daemon_.start(settings_));
    ASSERT_EQ(open_known_client(settings_.socket, &client_), KVT_OK) << kvt_last_error();
    ASSERT_EQ(open_known_space(client_, &space_), KVT_OK) << kvt_last_error();
    kvt_sequence_options options;
    kvt_sequence_options_init(&options);
    options.name = "bystander";
    ASSERT_EQ(kvt_sequence_create(space_, &options, nullptr, 0, nullptr, &sequence_), KVT_OK)
        << kvt_last_error();
    for (int i = 0; i < 5; ++i)
      ASSERT_EQ(append_known(sequence_, 1, 1000), KVT_OK) << kvt_last_error();
    ASSERT_EQ(kvt_sequence_commit(sequence_), KVT_OK) << kvt_last_error();
  }
  void TearDown() override {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    kvt_client_close(client_);
    EXPECT_TRUE(daemon_.stop()) << "the daemon did not end well";
  }

  void expect_bystander_well() {
    kvt_status status = KVT_OK;
    EXPECT_EQ(check_known(sequence_, 1, &status), "");
  }

  // Attached again to a daemon that has been started: on a busy machine it may take its time.
  void wait_for_bystander() {
    std::string problem;
    for (int i = 0; i < 100; ++i) {
      kvt_status status = KVT_OK;
      problem = check_known(sequence_, 1, &status);
      if (status != KVT_ERROR_TIMEOUT && status != KVT_ERROR_BUSY) break;
      ::usleep(100'000);
    }
    EXPECT_EQ(problem, "");
  }

  Json request(const char* text) {
    char* reply = nullptr;
    EXPECT_EQ(kvt_client_request(client_, text, &reply), KVT_OK) << kvt_last_error();
    auto parsed = parse_json(reply == nullptr ? "{}" : reply);
    kvt_free(reply);
    return parsed ? *parsed : Json::object();
  }

  std::uint64_t leased_bytes() {
    return request(R"({"op":"stats"})")["host"]["leased_bytes"].get<std::uint64_t>();
  }
  std::size_t clients() { return request(R"({"op":"status"})")["clients"].size(); }

  ScratchDirectory directory_;
  DaemonSettings settings_;
  DaemonProcess daemon_;
  kvt_client* client_ = nullptr;
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
  std::array<std::uint32_t, kCallCount + 1> died_in_{};
  std::vector<std::int64_t> took_ms_;  // until the session of a dead client was gone
};

void ClientCrash::expect_all_calls(const Told& told, std::uint64_t rounds) {
  for (std::size_t call = 0; call < kCallCount; ++call) {
    std::printf("%-10s %u whole, died in %u\n", call_name(call), told.finished[call].load(),
                died_in_[call]);
    EXPECT_EQ(told.failed[call], 0u) << call_name(call) << ": " << told.reason[call];
    if (rounds >= kEnoughRounds) {
      EXPECT_GT(told.finished[call], 0u) << call_name(call);
      EXPECT_GT(died_in_[call], 0u) << call_name(call);
    }
  }
  const auto reclaimed =
      request(R"({"op":"stats"})")["chunks"]["leases_reclaimed"].get<std::uint64_t>();
  std::printf("%llu leases reclaimed\n", static_cast<unsigned long long>(reclaimed));
  if (rounds >= 100) {
    EXPECT_GT(reclaimed, 0u) << "no client died with a lease";
  }
}

// When a child dies.
enum Moment : int { kConnecting, kAnywhere, kInFirstCall };

// An eighth dies while it connects, a quarter in any call after its first one, which takes its time
// where the disk does, and all others in the first.
int draw_moment(Random* random) {
  const std::uint64_t drawn = random->below(8);
  return drawn == 0 ? kConnecting : drawn < 3 ? kAnywhere : kInFirstCall;
}

void wait_and_kill(pid_t child, const Told& told, std::size_t first, int moment, Random* random) {
  const std::uint32_t before = told.finished[first];
  const auto ready = [&] {
    if (moment == kConnecting) return true;
    if (moment == kAnywhere) return told.finished[first] != before;
    return told.current != kCallCount;
  };
  for (int wait = 0; wait < 100'000 && !ready(); ++wait) ::usleep(50);
  // Of a call that was never done nobody knows how long it takes.
  const std::uint64_t took_us = told.took_us[first] == 0 ? 1000 : told.took_us[first].load();
  ::usleep(static_cast<useconds_t>(random->below(moment == kInFirstCall ? took_us : 60'000)));
  ::kill(child, SIGKILL);  // not its children: one of them holds the socket
}

void ClientCrash::one_child(Told* told, std::uint64_t number, std::size_t first, int moment,
                            Random* random) {
  told->connected = 0;
  told->current = kCallCount;
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    live(settings_.socket, {.directory = directory_.path(), .seed = kFirstSeed + number}, first,
         told);
  }
  ::setpgid(child, child);
  wait_and_kill(child, *told, first, moment, random);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
      << "the child ended by itself: status " << status;
  ++died_in_[told->current];
  const auto died = std::chrono::steady_clock::now();
  while (clients() > 1 && std::chrono::steady_clock::now() - died < std::chrono::seconds(5))
    ::usleep(1000);
  took_ms_.push_back(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - died)
          .count());
  EXPECT_EQ(clients(), 1u) << "the session of a dead client lives on";
  EXPECT_LT(took_ms_.back(), 1000);
  EXPECT_EQ(leased_bytes(), 0u);
  if (number % 10 == 0) expect_bystander_well();
  ::kill(-child, SIGKILL);
  while (::waitpid(-child, nullptr, WNOHANG) > 0) {
  }
}

TEST_F(ClientCrash, LeasesComeBackAndNobodyElseNotices) {
  const auto rounds = number_from_environment("KVT_CRASH_LOOPS", 100);
  Random random(number_from_environment("KVT_CRASH_SEED", 1));
  write_presets(directory_.path());
  void* const memory =
      ::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  Told* const told = new (memory) Told;
  std::uint64_t number = 0;
  for (; number < rounds && !HasFailure(); ++number)
    one_child(told, number, number % kCallCount, draw_moment(&random), &random);
  // Where chance has left a call out, it is drawn again.
  for (std::size_t call = 0; call < kCallCount && rounds >= kEnoughRounds; ++call)
    while (number < 3 * rounds && !HasFailure() &&
           (told->finished[call] == 0 || died_in_[call] == 0))
      one_child(told, number++, call, told->finished[call] == 0 ? kAnywhere : kInFirstCall,
                &random);
  expect_bystander_well();
  // 100 ms is what we promise; one in ten may meet a machine that is busy with something else.
  ASSERT_FALSE(took_ms_.empty());
  std::sort(took_ms_.begin(), took_ms_.end());
  const std::int64_t most_ms = took_ms_[took_ms_.size() * 9 / 10];
  EXPECT_LE(most_ms, 100);
  std::printf("leases back after %lld ms (median), %lld ms (90th percentile), %lld ms (longest)\n",
              static_cast<long long>(took_ms_[took_ms_.size() / 2]),
              static_cast<long long>(most_ms), static_cast<long long>(took_ms_.back()));
  std::printf("%llu children\n", static_cast<unsigned long long>(number));
  expect_all_calls(*told, rounds);
  ::munmap(memory, sizeof(Told));
}

// A session by hand, so that its memory can be filled with anything.
struct Chaos {
  ControlChannel channel;
  Mapping control, tail, staging;
  std::vector<FetchEntry> stored;  // chunks that it may read
  std::uint32_t reading = 0;       // the handle that they are named by
  UniqueFd bell;
  std::uint64_t sent = 0;  // requests, whether the daemon has come to them or not
};
constexpr std::uint64_t kChaosStagingBytes = 64 << 10;
constexpr std::uint64_t kChaosSessions = 16;  // of one daemon

Result<Mapping> map_whole(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return error(Code::kIo);
  return Mapping::map(fd, static_cast<std::size_t>(about.st_size), true);
}

// Every chunk that a directory shows.
std::vector<FetchEntry> chunks_of(const Mapping& directory) {
  DirectoryHeader header;
  std::memcpy(static_cast<void*>(&header), directory.data(), sizeof header);
  std::vector<FetchEntry> chunks;
  for (std::uint32_t i = 0; i < header.segments; ++i) {
    DirectoryEntry shown;
    std::memcpy(&shown, directory.data() + sizeof header + i * sizeof shown, sizeof shown);
    for (std::uint16_t layer = 0; layer < kKnownLayers; ++layer)
      for (std::uint16_t group = 0; group < kKnownHeads; ++group)
        for (std::uint32_t chunk = 0; chunk * kChunkTokensDefault < shown.visible_tokens; ++chunk) {
          FetchEntry entry{};
          entry.segment = shown.segment;
          entry.layer = layer;
          entry.group = group;
          entry.chunk = static_cast<std::uint16_t>(chunk);
          chunks.push_back(entry);
        }
  }
  return chunks;
}

bool open_chaos(const std::string& socket, Chaos* chaos, std::uint64_t space) {
  Result<UniqueFd> connected = connect_unix(socket, Deadline::after_ms(5000));
  if (!connected) return false;
  chaos->channel = ControlChannel(std::move(*connected));
  auto hello = chaos->channel.call(Json{{"op", "hello"},
                                        {"version", kProtocolVersion},
                                        {"name", "chaos"},
                                        {"pid", 1},
                                        {"data", true}},
                                   {}, 5, Deadline::after_ms(5000));
  if (!hello) return false;
  auto control = Mapping::map(hello->fds[0].get(), sizeof(ControlLayout), true);
  chaos->bell = std::move(hello->fds[3]);
  auto made = chaos->channel.call(Json{{"op", "create"}, {"space", space}}, {}, 2,
                                  Deadline::after_ms(5000));
  auto shared = chaos->channel.call(Json{{"op", "staging"}, {"bytes", kChaosStagingBytes}}, {}, 1,
                                    Deadline::after_ms(5000));
  auto attached = chaos->channel.call(
      Json{{"op", "attach"}, {"space", space}, {"name", "bystander"}, {"write", false}}, {}, 1,
      Deadline::after_ms(5000));
  if (!control || !made || !shared || !attached) return false;
  chaos->reading = attached->body["handle"].get<std::uint32_t>();
  auto directory = Mapping::map(attached->fds[0].get(), kDirectoryBytes, false);
  if (!directory) return false;
  chaos->stored = chunks_of(*directory);
  auto tail = map_whole(made->fds[1].get());
  auto staging = map_whole(shared->fds[0].get());
  if (!tail || !staging) return false;
  chaos->control = std::move(*control);
  chaos->tail = std::move(*tail);
  chaos->staging = std::move(*staging);
  return true;
}

void submit(Chaos* chaos, const Submission& request) {
  auto* layout = reinterpret_cast<ControlLayout*>(chaos->control.data());
  layout->submissions[chaos->sent % kSubmissionEntries] = request;
  ++chaos->sent;
}

// Fetches that are right, and releases of ids that may be those of their leases, given or not.
void hold_leases(Chaos* chaos, Random* random) {
  auto* layout = reinterpret_cast<ControlLayout*>(chaos->control.data());
  if (random->one_in(2)) {
    const std::size_t count = 1 + random->below(8);
    const std::uint64_t offset = random->below(64) * 8 * sizeof(FetchEntry);
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(layout->arguments + offset + i * sizeof(FetchEntry),
                  &chaos->stored[random->below(chaos->stored.size())], sizeof(FetchEntry));
    Submission fetch{};
    fetch.op = static_cast<std::uint16_t>(Op::kFetch);
    fetch.sequence = chaos->reading;
    fetch.count = static_cast<std::uint32_t>(count);
    fetch.argument_offset = offset;
    submit(chaos, fetch);
  }
  if (random->one_in(2)) {
    Submission release{};
    release.op = static_cast<std::uint16_t>(Op::kRelease);
    release.value0 = (1 + random->below(3)) << 32 | (1 + random->below(4));
    submit(chaos, release);
  }
}

void scribble(Chaos* chaos, Random* random) {
  auto* layout = reinterpret_cast<ControlLayout*>(chaos->control.data());
  for (int i = 0; i < 200; ++i)
    for (const Mapping* memory : {&chaos->control, &chaos->tail, &chaos->staging}) {
      const std::uint64_t value = random->next();
      std::memcpy(memory->data() + (random->below(memory->size_bytes() - 8) & ~7ull), &value, 8);
    }
  // Requests that look right, with random fields: more gets past the first check.
  Submission request{};
  request.op = static_cast<std::uint16_t>(random->below(14));
  request.sequence = static_cast<std::uint32_t>(random->below(4) == 0 ? random->next()
                                                                      : 0x10000 + random->below(3));
  request.count =
      static_cast<std::uint32_t>(random->below(3) == 0 ? random->next() : random->below(5000));
  request.half = static_cast<std::uint32_t>(random->below(3));
  request.argument_offset =
      random->below(2) == 0 ? random->next() : random->below(kArgumentBytes) & ~7ull;
  // As a part of the staging memory: inside, across its end, anywhere.
  request.value0 = random->one_in(4) ? random->next() : random->below(2 * kChaosStagingBytes);
  request.value1 = random->one_in(4) ? random->next() : random->below(kChaosStagingBytes);
  // A key that another session has set, as most of the arguments are zeros.
  if (random->one_in(3)) {
    request.count = 1;
    request.argument_offset = random->below(kArgumentBytes) & ~7ull;
  }
  submit(chaos, request);
  hold_leases(chaos, random);
  layout->submission.tail.store(random->one_in(20) ? random->next() : chaos->sent);
  ring_doorbell(chaos->bell.get());
}

struct ChaosCounts {
  void add(const Json& stats) {
    const auto number = [&](const char* section, const char* name) {
      return stats[section][name].get<std::uint64_t>();
    };
    sets += number("objects", "sets");
    gets += number("objects", "gets");
    given += number("chunks", "leases_given");
    ended += number("chunks", "leases_ended");
    reclaimed += number("chunks", "leases_reclaimed");
    refused += number("requests", "malformed") + number("requests", "rings_broken");
  }
  std::uint64_t sets = 0, gets = 0, given = 0, ended = 0, reclaimed = 0, refused = 0;
};

TEST_F(ClientCrash, RandomBytesOverAllThatAClientMayWrite) {
  const auto seconds = number_from_environment("KVT_CHAOS_SECONDS", 60);
  Random random(number_from_environment("KVT_CRASH_SEED", 1));
  const std::uint64_t space = request(R"({"op":"ls"})")["spaces"][0]["space"].get<std::uint64_t>();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::uint64_t sessions = 0;
  ChaosCounts done;
  while (std::chrono::steady_clock::now() < end && !HasFailure()) {
    // A new daemon has nothing in memory: fetches wait for the disk.
    if (sessions % kChaosSessions == 0) {
      if (sessions != 0) done.add(request(R"({"op":"stats"})"));
      ASSERT_TRUE(daemon_.stop()) << "the daemon did not end well";
      ASSERT_TRUE(daemon_.start(settings_));
    }
    Chaos chaos;
    ASSERT_TRUE(open_chaos(settings_.socket, &chaos, space))
        << "the daemon refuses connections after " << sessions;
    ++sessions;
    for (int i = 0; i < 50; ++i) {
      scribble(&chaos, &random);
      ::usleep(100);  // the daemon comes to it before the next tears it, mostly
    }
    if (sessions % kChaosSessions == 0) {
      wait_for_bystander();
      expect_bystander_well();
    }
  }
  expect_bystander_well();
  done.add(request(R"({"op":"stats"})"));
  EXPECT_GT(sessions, 3u);
  std::printf(
      "%llu sessions; values set %llu, got %llu; leases given %llu, ended %llu, reclaimed %llu\n",
      static_cast<unsigned long long>(sessions), static_cast<unsigned long long>(done.sets),
      static_cast<unsigned long long>(done.gets), static_cast<unsigned long long>(done.given),
      static_cast<unsigned long long>(done.ended), static_cast<unsigned long long>(done.reclaimed));
  EXPECT_GT(done.sets, 0u) << "no value went through staging";
  EXPECT_GT(done.gets, 0u) << "no value went through staging";
  EXPECT_GT(done.given, 0u) << "nothing was leased";
  EXPECT_GT(done.ended, done.reclaimed) << "no id of a lease was guessed";
  EXPECT_GT(done.reclaimed, 0u) << "no client went with a lease";
  EXPECT_GT(done.refused, 0u);
}

}  // namespace
}  // namespace kvtier::testing
