// Client: a handle of the daemon that outlives the daemon's deaths.
//
// Holds the live Connection and makes a new one when the last was lost, starting the daemon where
// it may. Spaces and sequences ask for the connection at every call and re-open themselves on a new
// one. Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "client/connection.h"

namespace kvtier {

struct ClientOptions {
  std::string socket_path;
  std::string daemon_path;
  std::string name;
  bool autostart = true;
  std::uint32_t timeout_ms = 10'000;
  std::uint32_t spin_us = 0;  // 0: chosen by the number of cores
};

// How long a call may take to get a lost connection back.
enum class Patience {
  kQuick,  // reading: at most kQuickMs, starts nothing
  kFull,   // everything else: up to the timeout of the options, starts the daemon
};
inline constexpr std::uint32_t kQuickMs = 60;

class Objects;

class Client {
 public:
  [[nodiscard]] static Result<std::shared_ptr<Client>> open(ClientOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // The live connection; a new one where the last was lost. After a failure quick tries fail at
  // once for a while (back-off, 50 ms to 2 s) and full ones wait for its end. kDaemonLost, kStale
  // after close.
  [[nodiscard]] Result<std::shared_ptr<Connection>> connection(Patience patience);
  // The connection as it is, maybe lost. Null after close.
  [[nodiscard]] std::shared_ptr<Connection> current() const;
  // Gives up the connection: everything opened through it answers kStale from now on.
  void close();

  // An admin request as JSON text; the reply's JSON text without id.
  [[nodiscard]] Result<std::string> request(const std::string& json);

  [[nodiscard]] Deadline deadline() const noexcept {
    return Deadline::after_ms(options_.timeout_ms);
  }
  [[nodiscard]] Objects& objects() noexcept { return *objects_; }
  // kFork in a child of the process that opened it. Costs one load.
  [[nodiscard]] Result<void> check_process() noexcept;

 private:
  explicit Client(ClientOptions options);
  // Starts the daemon where that is allowed; else waits until the deadline for somebody to do it.
  Result<std::shared_ptr<Connection>> connect(const Deadline& somebody_else_starts_it);
  Result<std::shared_ptr<Connection>> connect_once(const Deadline& deadline);
  Result<std::shared_ptr<Connection>> start_and_connect(const Deadline& deadline);
  Result<ControlMessage> request_alone(Json body) const;  // on a connection of its own

  const ClientOptions options_;
  const std::uint64_t stamp_;
  std::unique_ptr<Objects> objects_;  // constant after construction
  std::mutex reconnect_mutex_;        // held while a new connection is made
  mutable std::mutex mutex_;
  std::shared_ptr<Connection> connection_;  // guarded by mutex_
  bool closed_ = false;                     // guarded by mutex_
  std::uint32_t backoff_ms_ = 0;            // guarded by reconnect_mutex_
  Deadline::Clock::time_point next_try_{};  // guarded by reconnect_mutex_
};

}  // namespace kvtier
