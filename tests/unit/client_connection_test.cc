// Connections as the control server sees them: many requests sent ahead, a ring that was broken, a
// peer that goes away with requests behind it.
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "client/connection.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/ring.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"
#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class Connections : public ClientTest {
 protected:
  // A data connection by hand.
  struct Raw {
    ControlChannel channel;
    Mapping control;
    UniqueFd bell;
  };
  void connect(Raw* raw) {
    auto socket = connect_unix(daemon_->socket(), Deadline::after_ms(5000));
    ASSERT_TRUE(socket);
    raw->channel = ControlChannel(std::move(*socket));
    auto hello = raw->channel.call(Json{{"op", "hello"},
                                        {"version", kProtocolVersion},
                                        {"name", "raw"},
                                        {"pid", 1},
                                        {"data", true}},
                                   {}, 5, Deadline::after_ms(5000));
    ASSERT_TRUE(hello);
    auto control = Mapping::map(hello->fds[0].get(), sizeof(ControlLayout), true);
    ASSERT_TRUE(control);
    raw->control = std::move(*control);
    raw->bell = std::move(hello->fds[3]);
  }
  std::size_t clients() { return request({{"op", "status"}})["clients"].size(); }
};

TEST_F(Connections, RequestsSentAheadAreAllAnsweredInOrder) {
  Raw raw;
  connect(&raw);
  constexpr std::uint64_t kRequests = 150;  // as many as fit into a socket that nobody reads
  for (std::uint64_t i = 0; i < kRequests; ++i)
    ASSERT_TRUE(
        raw.channel.send(Json{{"op", "ls"}, {"id", 1000 + i}}, {}, {}, Deadline::after_ms(10'000)));
  for (std::uint64_t i = 0; i < kRequests; ++i) {
    const auto reply = raw.channel.receive(Deadline::after_ms(10'000));
    ASSERT_TRUE(reply) << "reply " << i << ": " << reply.error().message();
    ASSERT_EQ(reply->body["id"].get<std::uint64_t>(), 1000 + i);
    ASSERT_TRUE(reply->body["ok"].get<bool>());
  }
}

TEST_F(Connections, ABrokenRingEndsItsConnectionOnly) {
  Raw raw;
  connect(&raw);
  EXPECT_EQ(clients(), 2u);
  auto* layout = reinterpret_cast<ControlLayout*>(raw.control.data());
  layout->submission.tail.store(1u << 30);  // more than a ring can hold
  ring_doorbell(raw.bell.get());
  pollfd watched{raw.channel.socket(), POLLIN, 0};
  EXPECT_EQ(::poll(&watched, 1, 5000), 1) << "the connection stays";
  const auto ended = raw.channel.receive(Deadline::after_ms(1000));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Code::kDaemonLost);
  EXPECT_EQ(clients(), 1u);
  EXPECT_EQ(request({{"op", "stats"}})["requests"]["rings_broken"], 1);
}

// Its session ends at once, not when what it has asked for is done. The process lives on: only the
// socket tells.
TEST_F(Connections, APeerThatGoesIsNoticedBehindALongRequest) {
  TestShape shape;
  shape.layers = shape.kv_heads = 4;
  shape.dim = 128;
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "large");
  Model model(shape);
  model.append_many(sequence, 1, 4096);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
  const auto export_to = [this](int number) {
    return Json{{"op", "export"},
                {"target", "large"},
                {"path", root_ + "/" + std::to_string(number)},
                {"id", number}};
  };
  const auto begin = steady_clock::now();
  EXPECT_EQ(request(export_to(0))["tokens"], 4096);
  const auto one = steady_clock::now() - begin;
  Raw raw;
  connect(&raw);
  ASSERT_EQ(clients(), 2u);
  for (int i = 1; i <= 5; ++i)
    ASSERT_TRUE(raw.channel.send(export_to(i), {}, {}, Deadline::after_ms(10'000)));
  std::this_thread::sleep_for(one / 10);  // the daemon is at the first, and has read the others
  raw.channel.close();
  const auto gone = steady_clock::now();
  while (clients() != 1 && steady_clock::now() - gone < one * 6)
    std::this_thread::sleep_for(milliseconds(2));
  EXPECT_LT(steady_clock::now() - gone, one / 2)
      << "an export takes " << std::chrono::duration_cast<milliseconds>(one).count() << " ms";
}

// Answers at once, but a "verify" when it is let go, or after 5 s.
class BusyDaemon {
 public:
  explicit BusyDaemon(const std::string& path) {
    auto listener = listen_unix(path);
    KVT_CHECK(listener);
    listener_ = std::move(*listener);
    thread_ = std::thread([this] { run(); });
  }
  ~BusyDaemon() {
    stop_ = true;
    thread_.join();
    remove_listener(&listener_);
  }
  void wait_busy() {
    while (!busy_) std::this_thread::sleep_for(milliseconds(1));
  }
  bool busy() const { return busy_; }
  int closes() const { return closes_; }
  void let_go() { busy_ = false; }

 private:
  struct Peer {
    ControlChannel channel;
    Json waiting;  // the answer to its "verify"
    steady_clock::time_point since;
  };
  void run() {
    std::vector<Peer> peers;
    while (!stop_) {
      if (auto socket = accept_unix(listener_.socket.get()))
        peers.push_back({ControlChannel(std::move(*socket)), {}, {}});
      for (Peer& peer : peers) serve(&peer);
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
  void serve(Peer* peer) {
    const Deadline deadline = Deadline::after_ms(1000);
    if (!peer->waiting.is_null()) {  // those behind it wait, too
      if (busy_ && steady_clock::now() - peer->since < std::chrono::seconds(5)) return;
      busy_ = false;
      ASSERT_TRUE(peer->channel.send(peer->waiting, {}, {}, deadline));
      peer->waiting = {};
    }
    const auto message = peer->channel.receive(Deadline::after_ms(0));
    if (!message) return;
    Json reply{{"ok", true}, {"id", message->body["id"]}};
    const std::string op = message->body["op"];
    if (op == "close") ++closes_;
    if (op == "verify") {
      peer->waiting = reply;
      peer->since = steady_clock::now();
      busy_ = true;
    } else if (op == "hello" && message->body["data"] == true) {
      reply["arena_bytes"] = 4096;
      reply["limits"] = Json::object();
      std::vector<Memfd> memory;
      std::vector<int> fds;
      for (const std::size_t bytes : {sizeof(ControlLayout), std::size_t{4096}, std::size_t{4096},
                                      std::size_t{4096}, std::size_t{4096}}) {
        memory.push_back(*make_memfd("busy", bytes, MemfdAccess::kSharedWrite, false));
        fds.push_back(memory.back().fd.get());
      }
      ASSERT_TRUE(peer->channel.send(reply, {}, fds, deadline));
    } else {
      ASSERT_TRUE(peer->channel.send(reply, {}, {}, deadline));
    }
  }

  UnixListener listener_;
  std::atomic<bool> stop_ = false, busy_ = false;
  std::atomic<int> closes_ = 0;
  std::thread thread_;
};

TEST_F(Connections, ALongRequestHoldsUpNoOtherThread) {
  kvt_client_close(client_);
  client_ = nullptr;
  daemon_->stop();
  BusyDaemon busy(daemon_->socket());
  client_ = open_client();
  std::thread verify([&] { EXPECT_TRUE(request({{"op", "verify"}})["ok"]); });
  busy.wait_busy();
  EXPECT_TRUE(request({{"op", "status"}})["ok"]);
  EXPECT_TRUE(busy.busy()) << "it waited";
  busy.let_go();
  verify.join();
}

TEST_F(Connections, AnotherThreadsRequestIsWaitedForUntilTheDeadline) {
  daemon_->stop();
  BusyDaemon busy(daemon_->socket());
  const auto connection =
      Connection::open(daemon_->socket(), "test", Deadline::after_ms(5000)).value();
  std::thread first([&] {
    EXPECT_TRUE(connection->call({{"op", "verify"}}, {}, 0, Deadline::never()));
  });
  busy.wait_busy();
  const auto second = connection->call({{"op", "status"}}, {}, 0, Deadline::after_ms(50));
  EXPECT_TRUE(busy.busy()) << "it waited";
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kTimeout);
  EXPECT_NE(std::string(second.error().message()).find("another thread"), std::string::npos);
  busy.let_go();
  first.join();
  EXPECT_TRUE(connection->call({{"op", "status"}}, {}, 0, Deadline::after_ms(5000)));
}

TEST_F(Connections, WhatIsToldBehindAnotherThreadsRequestIsSentAfterIt) {
  daemon_->stop();
  BusyDaemon busy(daemon_->socket());
  const auto connection =
      Connection::open(daemon_->socket(), "test", Deadline::after_ms(5000)).value();
  std::thread first([&] {
    EXPECT_TRUE(connection->call({{"op", "verify"}}, {}, 0, Deadline::never()));
  });
  busy.wait_busy();
  const Json close{{"op", "close"}, {"handle", 7}};
  EXPECT_TRUE(connection->tell(close, Deadline::after_ms(50)));
  EXPECT_TRUE(busy.busy()) << "it waited";
  EXPECT_EQ(busy.closes(), 0);
  busy.let_go();
  first.join();
  for (int i = 0; i < 2000 && busy.closes() == 0; ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(busy.closes(), 1);
  EXPECT_TRUE(connection->tell(close, Deadline::after_ms(5000)));
  EXPECT_EQ(busy.closes(), 2);
}

TEST_F(Connections, ALossIsSaidToWhoeverAsksAgain) {
  daemon_->stop();
  auto busy = std::make_unique<BusyDaemon>(daemon_->socket());
  const auto connection =
      Connection::open(daemon_->socket(), "test", Deadline::after_ms(5000)).value();
  Submission seal{};
  seal.op = static_cast<std::uint16_t>(Op::kSeal);
  const Ticket ticket = connection->submit(seal, Deadline::after_ms(1000)).value();
  busy.reset();
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(connection->wait(ticket, Deadline::after_ms(5000), true).error().code,
              Code::kDaemonLost);
}

}  // namespace
}  // namespace kvtier::testing
