// The daemon starts by itself on first use: a real kvtierd, and the example program as its client.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/json.h"
#include "base/unique_fd.h"
#include "client/autostart.h"
#include "client/ipc/paths.h"
#include "kvtier/kvtier.h"

namespace kvtier {
namespace {

class Autostart : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvtier-start-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    socket_ = root_ + "/run/kvtierd.sock";
    ::setenv("KVTIER_SOCKET", socket_.c_str(), 1);
    ::setenv("KVTIER_STORE_PATH", (root_ + "/store").c_str(), 1);
    ::setenv("KVTIER_HOST_ARENA_BYTES", "1073741824", 1);
    ::setenv("KVTIER_DAEMON", KVTIERD, 1);
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      wait_gone();
    }
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  void wait_gone() {
    for (int i = 0; i < 1000 && ::kill(pid_, 0) == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_NE(::kill(pid_, 0), 0);
  }
  kvt_client* connect(bool autostart, std::uint32_t timeout_ms = 30000) {
    kvt_client_options options;
    kvt_client_options_init(&options);
    options.autostart = autostart ? 1 : 0;
    options.timeout_ms = timeout_ms;
    kvt_client* client = nullptr;
    EXPECT_EQ(kvt_client_open(&options, &client), KVT_OK) << kvt_last_error();
    return client;
  }
  Json request(kvt_client* client, const char* json) {
    char* reply = nullptr;
    EXPECT_EQ(kvt_client_request(client, json, &reply), KVT_OK) << kvt_last_error();
    const Json parsed = reply != nullptr ? Json::parse(reply) : Json();
    kvt_free(reply);
    return parsed;
  }
  static kvt_space* open_small_space(kvt_client* client) {
    kvt_layer layer{};
    layer.kv_heads = layer.query_heads = 1;
    layer.k_row_bytes = layer.v_row_bytes = 64;
    kvt_space_options options;
    kvt_space_options_init(&options);
    options.model = "m";
    options.runtime = "r";
    options.layers = &layer;
    options.layer_count = 1;
    kvt_space* space = nullptr;
    EXPECT_EQ(kvt_space_open(client, &options, &space), KVT_OK) << kvt_last_error();
    return space;
  }
  static void append_one(kvt_sequence* sequence) {
    const kvt_token token{};
    const std::array<float, 16> row{};
    const kvt_rows data{row.data(), 64, 64};
    EXPECT_EQ(kvt_sequence_append(sequence, &token, 1), KVT_OK) << kvt_last_error();
    EXPECT_EQ(kvt_sequence_write(sequence, 0, 0, 1, &data, &data), KVT_OK) << kvt_last_error();
  }
  void note_pid(kvt_client* client) {
    pid_ = request(client, R"({"op": "status"})")["pid"].get<pid_t>();
  }
  // Returns when every thread of it has stopped: a signal takes a moment to arrive.
  void stop_daemon() {
    ::kill(pid_, SIGSTOP);
    const auto running = [this] {
      for (const auto& task :
           std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/task")) {
        std::ifstream file(task.path() / "stat");
        std::string text;
        std::getline(file, text);
        if (text.find(") T ") == std::string::npos) return true;
      }
      return false;
    };
    for (int i = 0; i < 1000 && running(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  static std::string output_of(const std::string& command) {
    std::FILE* pipe = ::popen(command.c_str(), "r");
    std::string text;
    std::array<char, 4096> part;
    for (std::size_t n; (n = std::fread(part.data(), 1, part.size(), pipe)) > 0;)
      text.append(part.data(), n);
    EXPECT_EQ(::pclose(pipe), 0) << text;
    return text;
  }

  std::string root_, socket_;
  pid_t pid_ = 0;
};

TEST_F(Autostart, TheExampleStoresAndResumesAcrossADaemonKilled) {
  const std::string first = output_of(std::string(EXAMPLE) + " book 3000 2>&1");
  EXPECT_TRUE(first.starts_with("0 tokens are stored") ||
              first.find("\n0 tokens are stored") != std::string::npos)
      << first;
  float some = 0, exactly = 1;  // the budget finds what the queries look for
  const std::size_t told = first.find("token 3003");
  ASSERT_NE(told, std::string::npos) << first;
  ASSERT_EQ(std::sscanf(first.c_str() + told, "token 3003: attention gives %f, exactly %f", &some,
                        &exactly),
            2)
      << first;
  EXPECT_NEAR(some, exactly, 0.01) << first;
  kvt_client* client = connect(false);
  note_pid(client);
  EXPECT_NE(pid_, ::getpid());
  struct stat info {};
  ASSERT_EQ(::stat((root_ + "/run").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_NE(::getsid(pid_), ::getsid(0)) << "the daemon has a session of its own";
  ::kill(pid_, SIGKILL);
  wait_gone();
  kvt_client_close(client);

  const std::string second = output_of(std::string(EXAMPLE) + " book 3000 2>&1");
  EXPECT_NE(second.find("3004 tokens are stored"), std::string::npos) << second;
  client = connect(false);
  note_pid(client);
  request(client, R"({"op": "stop"})");
  wait_gone();
  pid_ = 0;
  kvt_client_close(client);
}

TEST_F(Autostart, TheExampleRefusesWhatIsNoNumberOfTokens) {
  for (const char* arguments : {"", " book many", " book 0", " book -3", " book 1 2"}) {
    const std::string said = output_of(std::string(EXAMPLE) + arguments + " 2>&1 || [ $? = 2 ]");
    EXPECT_EQ(said.rfind("usage: ", 0), 0u) << arguments << said;
  }
}

TEST_F(Autostart, ManyClientsStartOneDaemon) {
  std::array<kvt_client*, 4> clients{};
  std::array<std::thread, 4> threads;
  for (std::size_t i = 0; i < threads.size(); ++i)
    threads[i] = std::thread([&, i] { clients[i] = connect(true); });
  for (std::thread& thread : threads) thread.join();
  note_pid(clients[0]);
  for (kvt_client* client : clients) {
    EXPECT_EQ(request(client, R"({"op": "status"})")["pid"].get<pid_t>(), pid_);
    kvt_client_close(client);
  }
}

// One that ends gives its socket up before its store.
TEST_F(Autostart, ADaemonWaitsForTheOneBeforeItToEnd) {
  ASSERT_EQ(::mkdir((root_ + "/store").c_str(), 0700), 0);
  UniqueFd before(::open((root_ + "/store/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::flock(before.get(), LOCK_EX | LOCK_NB), 0);
  std::thread ends([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // beyond a client's own patience
    before.reset();
  });
  kvt_client* client = connect(true);
  ends.join();
  ASSERT_NE(client, nullptr);
  note_pid(client);
  kvt_client_close(client);
  const auto start = std::chrono::steady_clock::now();
  const std::string said = output_of(std::string(KVTIERD) + " 2>&1 || [ $? = 2 ]");
  EXPECT_NE(said.find("another kvtierd serves this store"), std::string::npos) << said;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(2900))
      << "none is waited for that serves the socket";
}

TEST_F(Autostart, ADaemonThatCannotRunSaysWhy) {
  ::setenv("KVTIER_STORE_PATH", "/proc/kvtier-cannot-be", 1);
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.timeout_ms = 15000;
  kvt_client* client = nullptr;
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(kvt_client_open(&options, &client), KVT_ERROR_NOT_FOUND);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1000))
      << "its end is seen, not waited out";
  const std::string text = kvt_last_error();
  EXPECT_NE(text.find("ended at once: cannot make the store's directory"), std::string::npos)
      << text;
  EXPECT_NE(text.find("kvtierd.log"), std::string::npos);
  EXPECT_FALSE(last_line_of(daemon_log_path(socket_)).empty());
}

TEST_F(Autostart, ALargeLogIsPutAside) {
  ::setenv("KVTIER_STORE_PATH", "/proc/kvtier-cannot-be", 1);
  const std::string log = daemon_log_path(socket_);
  ASSERT_EQ(::mkdir((root_ + "/run").c_str(), 0700), 0);
  std::ofstream(log) << std::string((1 << 20) + 1, 'x') << "\n";
  kvt_client_options options;
  kvt_client_options_init(&options);
  kvt_client* client = nullptr;
  for (int start = 0; start < 2; ++start) {
    EXPECT_EQ(kvt_client_open(&options, &client), KVT_ERROR_NOT_FOUND);
    const std::string text = kvt_last_error();
    EXPECT_NE(text.find("ended at once: cannot make the store's directory"), std::string::npos)
        << text;
    EXPECT_EQ(std::filesystem::file_size(log + ".1"), (1u << 20) + 2) << start;
    EXPECT_LT(std::filesystem::file_size(log), 10'000u) << start;
  }
}

TEST_F(Autostart, AStoppedDaemonIsAFastError) {
  kvt_client* client = connect(true);
  note_pid(client);
  kvt_space* space = open_small_space(client);
  kvt_sequence* sequence = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, nullptr, nullptr, 0, nullptr, &sequence), KVT_OK)
      << kvt_last_error();
  std::array<kvt_token, 1000> tokens{};
  std::array<float, 16000> rows{};
  const kvt_rows data{rows.data(), 64000, 64};
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(kvt_sequence_append(sequence, tokens.data(), 1000), KVT_OK) << kvt_last_error();
    ASSERT_EQ(kvt_sequence_write(sequence, 0, 0, 1000, &data, &data), KVT_OK) << kvt_last_error();
  }
  ASSERT_EQ(kvt_sequence_commit(sequence), KVT_OK) << kvt_last_error();
  ASSERT_EQ(kvt_sequence_read(sequence, 0, 0, 100, rows.data(), rows.data() + 8000), KVT_OK)
      << kvt_last_error();
  stop_daemon();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(kvt_sequence_read(sequence, 0, 0, 100, rows.data(), rows.data() + 8000),
            KVT_ERROR_DAEMON_LOST);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(200));
  ::kill(pid_, SIGCONT);
  EXPECT_EQ(kvt_sequence_read(sequence, 0, 0, 100, rows.data(), rows.data() + 8000), KVT_OK)
      << kvt_last_error();
  EXPECT_EQ(kvt_sequence_close(sequence), KVT_OK) << kvt_last_error();
  kvt_space_close(space);
  kvt_client_close(client);
}

TEST_F(Autostart, ATruncateWaitsForTheDisk) {
  kvt_client_close(connect(true));
  kvt_client* client = connect(false, 1000);
  note_pid(client);
  kvt_space* space = open_small_space(client);
  kvt_sequence* sequence = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, nullptr, nullptr, 0, nullptr, &sequence), KVT_OK)
      << kvt_last_error();
  append_one(sequence);
  ASSERT_EQ(kvt_sequence_commit(sequence), KVT_OK) << kvt_last_error();
  stop_daemon();  // as a disk that does
  std::thread waiting(
      [&] { EXPECT_EQ(kvt_sequence_truncate(sequence, 0), KVT_OK) << kvt_last_error(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  ::kill(pid_, SIGCONT);
  waiting.join();
  EXPECT_EQ(kvt_sequence_close(sequence), KVT_OK) << kvt_last_error();
  kvt_space_close(space);
  kvt_client_close(client);
}

// Its name is free again as soon as the daemon gets round to it.
TEST_F(Autostart, ACloseBehindAnotherThreadsRequestIsNotLost) {
  kvt_client_close(connect(true));
  kvt_client* client = connect(false, 1000);
  note_pid(client);
  kvt_space* space = open_small_space(client);
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = "chat";
  kvt_sequence *chat = nullptr, *cut = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, &options, nullptr, 0, nullptr, &chat), KVT_OK)
      << kvt_last_error();
  ASSERT_EQ(kvt_sequence_create(space, nullptr, nullptr, 0, nullptr, &cut), KVT_OK)
      << kvt_last_error();
  append_one(cut);
  ASSERT_EQ(kvt_sequence_commit(cut), KVT_OK) << kvt_last_error();
  stop_daemon();  // as a disk that does
  std::thread waiting(
      [&] { EXPECT_EQ(kvt_sequence_truncate(cut, 0), KVT_OK) << kvt_last_error(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_EQ(kvt_sequence_close(chat), KVT_OK) << kvt_last_error();
  ::kill(pid_, SIGCONT);
  waiting.join();
  ASSERT_EQ(kvt_sequence_open(space, "chat", 0, 1, &chat), KVT_OK) << kvt_last_error();
  EXPECT_EQ(kvt_sequence_close(chat), KVT_OK) << kvt_last_error();
  EXPECT_EQ(kvt_sequence_close(cut), KVT_OK) << kvt_last_error();
  kvt_space_close(space);
  kvt_client_close(client);
}

TEST_F(Autostart, ALongRequestFindsOutThatTheDaemonDied) {
  kvt_client* client = connect(true);
  note_pid(client);
  ::kill(pid_, SIGKILL);
  wait_gone();
  request(client, R"({"op": "gc"})");
  note_pid(client);
  kvt_client_close(client);
}

TEST_F(Autostart, ADropStoresAndStartsNoDaemon) {
  kvt_client* client = connect(true);
  note_pid(client);
  kvt_space* space = open_small_space(client);
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = "chat";
  kvt_sequence* sequence = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, &options, nullptr, 0, nullptr, &sequence), KVT_OK)
      << kvt_last_error();
  append_one(sequence);
  EXPECT_EQ(kvt_sequence_drop(sequence), KVT_OK) << kvt_last_error();
  ASSERT_EQ(kvt_sequence_open(space, "chat", 0, 1, &sequence), KVT_OK) << kvt_last_error();
  EXPECT_EQ(kvt_sequence_length(sequence), 1u);
  append_one(sequence);
  kvt_sequence* committed = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, nullptr, nullptr, 0, nullptr, &committed), KVT_OK)
      << kvt_last_error();
  append_one(committed);
  ASSERT_EQ(kvt_sequence_commit(committed), KVT_OK) << kvt_last_error();
  ::kill(pid_, SIGKILL);
  wait_gone();
  const auto start = std::chrono::steady_clock::now();
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(kvt_sequence_drop(committed), KVT_ERROR_DAEMON_LOST);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(kvt_sequence_drop(sequence), KVT_ERROR_DAEMON_LOST);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("with 1 tokens that are not stored"),
            std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  kvt_client* other = nullptr;
  kvt_client_options alone;
  kvt_client_options_init(&alone);
  alone.autostart = 0;
  EXPECT_EQ(kvt_client_open(&alone, &other), KVT_ERROR_NOT_FOUND) << "it started one";
  pid_ = 0;
  kvt_space_close(space);
  kvt_client_close(client);
}

// The daemon opens it all the same, later: it must not stay open for writing by nobody.
TEST_F(Autostart, AnOpenThatGaveUpKeepsNobodyOut) {
  kvt_client_close(connect(true));
  kvt_client* client = connect(false, 300);
  note_pid(client);
  kvt_space* space = open_small_space(client);
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = "chat";
  kvt_sequence *sequence = nullptr, *reader = nullptr;
  ASSERT_EQ(kvt_sequence_create(space, &options, nullptr, 0, nullptr, &sequence), KVT_OK)
      << kvt_last_error();
  ASSERT_EQ(kvt_sequence_close(sequence), KVT_OK) << kvt_last_error();
  stop_daemon();
  EXPECT_EQ(kvt_sequence_open(space, "chat", 0, 1, &sequence), KVT_ERROR_TIMEOUT);
  EXPECT_EQ(kvt_sequence_open(space, "chat", 0, 0, &reader), KVT_ERROR_TIMEOUT);
  ::kill(pid_, SIGCONT);
  ASSERT_EQ(kvt_sequence_open(space, "chat", 0, 1, &sequence), KVT_OK) << kvt_last_error();
  request(client, R"({"op": "stats"})");  // what is late has come with this
  EXPECT_EQ(request(client, R"({"op": "stats"})")["daemon"]["open_sequences"], 1);
  EXPECT_EQ(kvt_sequence_close(sequence), KVT_OK) << kvt_last_error();
  kvt_space_close(space);
  kvt_client_close(client);
}

}  // namespace
}  // namespace kvtier
