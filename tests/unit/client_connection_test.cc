// Connections as the control server sees them: many requests sent ahead, a ring that was broken, a
// peer that goes away with requests behind it.
#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
#include <thread>

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

}  // namespace
}  // namespace kvtier::testing
