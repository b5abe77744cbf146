// Clients that die: SIGKILL in the middle of any call, with a forked child that keeps the socket.
// Each child begins with another call; all of them count in shared memory what they have done.
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
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/random.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/ring.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"
#include "tests/support/daemon_process.h"
#include "tests/support/known_rows.h"

namespace kvtier::testing {
namespace {

constexpr std::size_t kCallCount = 9;
constexpr std::uint64_t kFirstSeed = 100;  // of children: the rest by kCallCount is the first call

// What the children of a test tell, in memory that they share with it: how often each call was
// done, how often it failed and why, and which one was under way.
struct Told {
  std::atomic<std::uint32_t> connected{0};
  std::atomic<std::uint32_t> current{kCallCount};  // kCallCount: none
  std::atomic<std::uint32_t> finished[kCallCount]{};
  std::atomic<std::uint32_t> failed[kCallCount]{};
  char reason[kCallCount][120]{};
};

class ClientCrash : public ::testing::Test {
 protected:
  // `enough`: there were so many rounds that each call must have been done.
  void expect_all_calls(const Told& told, const std::array<std::uint32_t, kCallCount + 1>& died_in,
                        bool enough);

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
};

// ---- what a child does for ever: all calls ----

struct Life {
  kvt_client* client = nullptr;
  kvt_space* space = nullptr;
  std::string preset_ahead;
  std::uint64_t seed = 0;
  std::uint32_t turn = 0;
};

// Closes at the end of a call what it opened.
struct Opened {
  ~Opened() {
    kvt_view_close(view);
    kvt_sequence_close(fork);
    kvt_sequence_close(sequence);
  }
  kvt_sequence *sequence = nullptr, *fork = nullptr;
  kvt_view* view = nullptr;
};

bool open_shared(const Life& life, Opened* opened) {
  return kvt_sequence_open(life.space, "bystander", 0, 0, &opened->sequence) == KVT_OK;
}

bool open_view(const Life& life, const char* preset, Opened* opened) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = preset;
  options.budget = 128;
  return open_shared(life, opened) &&
         kvt_view_open(opened->sequence, &options, &opened->view) == KVT_OK;
}

std::vector<float> some_queries(const Life& life, std::uint32_t layer) {
  std::vector<float> q(kKnownHeads * 2 * kKnownDim);
  for (std::uint32_t i = 0; i < q.size(); ++i)
    q[i] = 4 * known_value(life.seed, layer, i, life.turn, 0, false);
  return q;
}

bool attend(const Life& life, kvt_view* view) {
  std::vector<float> out(kKnownHeads * 2 * kKnownDim);
  for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer) {
    const std::vector<float> q = some_queries(life, layer);
    if (kvt_view_attend(view, layer, 1, q.data(), 0.3f, out.data(), nullptr) != KVT_OK)
      return false;
  }
  return true;
}

bool live_read(Life& life) {
  Opened opened;
  kvt_status status = KVT_OK;
  return open_shared(life, &opened) && check_known(opened.sequence, 1, &status).empty();
}

bool live_attend(Life& life) {
  Opened opened;
  return open_view(life, "quest", &opened) && attend(life, opened.view);
}

// Between guess and step the client computes and holds what has come.
bool live_look_ahead(Life& life) {
  Opened opened;
  if (!open_view(life, life.preset_ahead.c_str(), &opened) || !attend(life, opened.view))
    return false;
  ++life.turn;
  for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer)
    if (kvt_view_look_ahead(opened.view, layer, some_queries(life, layer).data(), 0.3f) != KVT_OK)
      return false;
  ::usleep(10'000);
  return attend(life, opened.view);
}

bool live_match(Life& life) {
  std::vector<std::uint32_t> ids;
  for (std::uint64_t t = 0; t < 1000; ++t) ids.push_back(known_token(1, t).id);
  kvt_match match{};
  return kvt_space_match(life.space, ids.data(), ids.size(), &match) == KVT_OK &&
         match.tokens == ids.size();
}

bool live_fork(Life& life) {
  Opened opened;
  return open_shared(life, &opened) &&
         kvt_sequence_fork(opened.sequence, 100, nullptr, &opened.fork) == KVT_OK;
}

bool create(const Life& life, const char* name, std::uint32_t tokens, Opened* opened) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = name;
  return kvt_sequence_create(life.space, &options, nullptr, 0, nullptr, &opened->sequence) ==
             KVT_OK &&
         append_known(opened->sequence, life.seed, tokens) == KVT_OK;
}

bool live_commit(Life& life) {
  Opened opened;
  return create(life, nullptr, 700, &opened) && kvt_sequence_commit(opened.sequence) == KVT_OK;
}

bool live_truncate(Life& life) {
  Opened opened;
  return create(life, nullptr, 300, &opened) && kvt_sequence_commit(opened.sequence) == KVT_OK &&
         kvt_sequence_truncate(opened.sequence, 200) == KVT_OK;
}

bool live_named(Life& life) {
  const std::string name = "child " + std::to_string(life.seed) + " " + std::to_string(life.turn);
  {
    Opened opened;
    if (!create(life, name.c_str(), 50, &opened)) return false;
  }
  char* reply = nullptr;
  const std::string request = R"({"op":"rm","target":")" + name + "\"}";
  const kvt_status status = kvt_client_request(life.client, request.c_str(), &reply);
  kvt_free(reply);
  return status == KVT_OK;
}

bool live_objects(Life& life) {
  const std::string key = "child " + std::to_string(life.seed);
  std::string value(100'000, static_cast<char>('a' + life.turn % 26));
  const std::string before = value;
  for (const std::int32_t verb :
       {KVT_OBJECT_SET, KVT_OBJECT_EXISTS, KVT_OBJECT_GET, KVT_OBJECT_DELETE}) {
    const kvt_object object{key.data(), static_cast<std::uint32_t>(key.size()), 0, value.data(),
                            value.size()};
    std::uint64_t batch = 0;
    if (kvt_objects_submit(life.client, verb, &object, 1, &batch) != KVT_OK) return false;
    kvt_object_result result{};
    std::uint32_t count = 0;
    while (count == 0)
      if (kvt_objects_poll(life.client, &result, 1, 1000, &count) != KVT_OK) return false;
    if (result.status != KVT_OK) return false;
  }
  return value == before;
}

struct Call {
  const char* name;
  bool (*run)(Life&);
};
constexpr Call kCalls[] = {
    {"read", live_read},         {"attend", live_attend}, {"look ahead", live_look_ahead},
    {"match", live_match},       {"fork", live_fork},     {"commit", live_commit},
    {"truncate", live_truncate}, {"named", live_named},   {"objects", live_objects},
};
static_assert(std::size(kCalls) == kCallCount);

[[noreturn]] void live(const std::string& socket, Life life, Told* told) {
  if (::fork() == 0) {  // keeps nothing but what it inherited before the client opened
    ::pause();
    ::_exit(0);
  }
  if (open_known_client(socket, &life.client) != KVT_OK ||
      open_known_space(life.client, &life.space) != KVT_OK)
    ::_exit(1);
  // A forked child of a connected client holds its socket open.
  const pid_t holder = ::fork();
  if (holder == 0) {
    ::sleep(2);
    ::_exit(0);
  }
  told->connected = 1;
  for (std::size_t call = life.seed % kCallCount;; call = (call + 1) % kCallCount, ++life.turn) {
    told->current = static_cast<std::uint32_t>(call);
    if (kCalls[call].run(life)) {
      ++told->finished[call];
      continue;
    }
    ++told->failed[call];
    std::snprintf(told->reason[call], sizeof told->reason[call], "%s", kvt_last_error());
  }
}

void ClientCrash::expect_all_calls(const Told& told,
                                   const std::array<std::uint32_t, kCallCount + 1>& died_in,
                                   bool enough) {
  for (std::size_t call = 0; call < kCallCount; ++call) {
    std::printf("%-10s %u whole, died in %u\n", kCalls[call].name, told.finished[call].load(),
                died_in[call]);
    EXPECT_EQ(told.failed[call], 0u) << kCalls[call].name << ": " << told.reason[call];
    if (enough) {
      EXPECT_GT(told.finished[call], 0u) << kCalls[call].name;
    }
  }
  const auto reclaimed =
      request(R"({"op":"stats"})")["chunks"]["leases_reclaimed"].get<std::uint64_t>();
  std::printf("%llu leases reclaimed\n", static_cast<unsigned long long>(reclaimed));
  if (enough) {
    EXPECT_GT(reclaimed, 0u) << "no client died with a lease";
  }
}

// Most children die in a call, some while they connect; a quarter, over all calls, may end their
// first one, which takes its time where the disk does.
void wait_for_child(const Told& told, std::uint64_t round) {
  const std::atomic<std::uint32_t>& first = told.finished[(kFirstSeed + round) % kCallCount];
  const std::uint32_t before = first;
  const auto ready = [&] {
    if (round % 8 == 0) return true;
    return told.connected != 0 && (round % 4 != 1 || first != before);
  };
  for (int wait = 0; wait < 5000 && !ready(); ++wait) ::usleep(1000);
}

TEST_F(ClientCrash, LeasesComeBackAndNobodyElseNotices) {
  const auto rounds = number_from_environment("KVT_CRASH_LOOPS", 100);
  Random random(number_from_environment("KVT_CRASH_SEED", 1));
  const std::string preset = directory_.path() + "/ahead.toml";
  std::ofstream(preset) << "base = \"quest\"\nfetch = \"ahead\"\n";
  void* const memory =
      ::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  Told* const told = new (memory) Told;
  std::vector<std::int64_t> took_ms;
  std::array<std::uint32_t, kCallCount + 1> died_in{};
  for (std::uint64_t i = 0; i < rounds && !HasFailure(); ++i) {
    told->connected = 0;
    told->current = kCallCount;
    const pid_t child = ::fork();
    if (child == 0) {
      ::setpgid(0, 0);
      live(settings_.socket, {.preset_ahead = preset, .seed = kFirstSeed + i}, told);
    }
    ::setpgid(child, child);
    wait_for_child(*told, i);
    ::usleep(static_cast<useconds_t>(random.below(60'000)));
    ::kill(child, SIGKILL);  // not its children: one of them holds the socket
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << "the child ended by itself: status " << status;
    ++died_in[told->current];
    const auto died = std::chrono::steady_clock::now();
    while (clients() > 1 && std::chrono::steady_clock::now() - died < std::chrono::seconds(5))
      ::usleep(1000);
    took_ms.push_back(std::chrono::duration_cast<std::chrono::milliseconds>(
                          std::chrono::steady_clock::now() - died)
                          .count());
    EXPECT_EQ(clients(), 1u) << "the session of a dead client lives on";
    EXPECT_LT(took_ms.back(), 1000);
    EXPECT_EQ(leased_bytes(), 0u);
    if (i % 10 == 0) expect_bystander_well();
    ::kill(-child, SIGKILL);
    while (::waitpid(-child, nullptr, WNOHANG) > 0) {
    }
  }
  expect_bystander_well();
  // 100 ms is what we promise; one in ten may meet a machine that is busy with something else.
  ASSERT_FALSE(took_ms.empty());
  std::sort(took_ms.begin(), took_ms.end());
  const std::int64_t most_ms = took_ms[took_ms.size() * 9 / 10];
  EXPECT_LE(most_ms, 100);
  std::printf("leases back after %lld ms (median), %lld ms (90th percentile), %lld ms (longest)\n",
              static_cast<long long>(took_ms[took_ms.size() / 2]), static_cast<long long>(most_ms),
              static_cast<long long>(took_ms.back()));
  expect_all_calls(*told, died_in, rounds >= 40);
  ::munmap(memory, sizeof(Told));
}

// A session by hand, so that its memory can be filled with anything.
struct Chaos {
  ControlChannel channel;
  Mapping control, tail, staging;
  UniqueFd bell;
  std::uint64_t sent = 0;  // requests, whether the daemon has come to them or not
};
constexpr std::uint64_t kChaosStagingBytes = 64 << 10;

Result<Mapping> map_whole(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return error(Code::kIo);
  return Mapping::map(fd, static_cast<std::size_t>(about.st_size), true);
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
  if (!control || !made || !shared) return false;
  auto tail = map_whole(made->fds[1].get());
  auto staging = map_whole(shared->fds[0].get());
  if (!tail || !staging) return false;
  chaos->control = std::move(*control);
  chaos->tail = std::move(*tail);
  chaos->staging = std::move(*staging);
  return true;
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
  layout->submissions[chaos->sent % kSubmissionEntries] = request;
  ++chaos->sent;
  layout->submission.tail.store(random->one_in(20) ? random->next() : chaos->sent);
  ring_doorbell(chaos->bell.get());
}

TEST_F(ClientCrash, RandomBytesOverAllThatAClientMayWrite) {
  const auto seconds = number_from_environment("KVT_CHAOS_SECONDS", 60);
  Random random(number_from_environment("KVT_CRASH_SEED", 1));
  const std::uint64_t space = request(R"({"op":"ls"})")["spaces"][0]["space"].get<std::uint64_t>();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::uint64_t sessions = 0;
  while (std::chrono::steady_clock::now() < end && !HasFailure()) {
    Chaos chaos;
    ASSERT_TRUE(open_chaos(settings_.socket, &chaos, space))
        << "the daemon refuses connections after " << sessions;
    ++sessions;
    for (int i = 0; i < 50; ++i) {
      scribble(&chaos, &random);
      ::usleep(100);  // the daemon comes to it before the next tears it, mostly
    }
    expect_bystander_well();
  }
  EXPECT_GT(sessions, 3u);
  const Json objects = request(R"({"op":"stats"})")["objects"];
  std::printf("%llu sessions; values: %s\n", static_cast<unsigned long long>(sessions),
              objects.dump().c_str());
  for (const char* done : {"sets", "gets"})
    EXPECT_GT(objects[done].get<std::uint64_t>(), 0u) << "no value went through staging: " << done;
  EXPECT_GT(request(R"({"op":"stats"})")["requests"]["malformed"].get<std::uint64_t>() +
                request(R"({"op":"stats"})")["requests"]["rings_broken"].get<std::uint64_t>(),
            0u);
}

}  // namespace
}  // namespace kvtier::testing
