// ControlServer: the daemon's socket side: accepts, says hello, carries requests to the engine and
// replies back.
//
// Runs on one thread of its own (run()), on Boost.Asio, which lives only in control_server.cc. The
// engine's state is never touched from here: requests go through the engine's mailbox, replies come
// back through the event loop. Requests of a connection are answered one after the other. A
// connection whose peer's process is gone (socket closed, or its pidfd says so although a forked
// child keeps the socket) is closed at once, and the engine told.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/mailbox.h"
#include "base/result.h"
#include "client/ipc/unix_socket.h"
#include "daemon/engine.h"

namespace kvtier {

struct ControlServerOptions {
  std::uint64_t epoch = 0;  // drawn at start, below 2^53
  std::uint32_t connections_max = 128;
  std::uint64_t leased_bytes_per_client_max = 0;  // for hello's limits
  std::function<void()> on_terminate;  // SIGTERM or SIGINT arrived; called on the control thread
};

class ControlServer {
 public:
  // Takes the listener. `engine` and `mailbox` must outlive run().
  ControlServer(Engine& engine, Mailbox& mailbox, UnixListener listener,
                ControlServerOptions options);
  ~ControlServer();

  // Serves until stop(); the control thread.
  void run();
  // Closes all connections and ends run(). Any thread.
  void stop();

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace kvtier
