// Server: a whole kvtierd inside a process: engine thread, control thread, workers, disk. main.cc
// runs one; tests run them beside a client.
#pragma once

#include <functional>
#include <memory>

#include "base/result.h"
#include "daemon/options.h"

namespace kvtier {

struct ServerOptions {
  DaemonOptions daemon;
  int listening_socket = -1;  // inherited by socket activation; -1: make one at daemon.socket_path
  bool handle_signals = false;  // SIGTERM and SIGINT drain and stop
};

class Server {
 public:
  // Opens the store (kBusy: another daemon has it), recovers, listens. Blocks until it serves.
  [[nodiscard]] static Result<std::unique_ptr<Server>> start(const ServerOptions& options);
  ~Server();  // stop(), then wait()

  // Begins to drain and stop; returns at once. Any thread.
  void stop();
  // Ends everything at once without draining, as a crash would but for the process: tests.
  void abandon();
  // Blocks until it has stopped (by stop(), a signal, or an admin's request).
  void wait();

 private:
  Server();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvtier
