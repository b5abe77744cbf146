#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/log.h"
#include "base/unique_fd.h"
#include "client/autostart.h"
#include "client/ipc/paths.h"
#include "client/last_error.h"
#include "client/objects.h"
#include "client/process.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kBackoffMsMin = 50;
constexpr std::uint32_t kBackoffMsMax = 2000;
// How long a call waits for a daemon that somebody else restarts.
constexpr std::uint32_t kRestartMs = 1000;
constexpr std::uint32_t kSpinUsMax = 1000;

std::string program_name() {
  return program_invocation_short_name != nullptr ? program_invocation_short_name : "client";
}

// A daemon that is being killed still takes connections, and resets them.
bool nobody_there(const Status& status) {
  return status.code == Code::kNotFound || status.code == Code::kDaemonLost;
}

// What kvtierd writes in front of the line that says why it ends.
constexpr const char* kOwnLine = "kvtierd: ";

// Whether that line leaves no hope: a daemon that found another one in its place may be followed by
// that other's answer.
bool is_refusal(const std::string& line) {
  return line.starts_with(kOwnLine) && line.find("another kvtierd serves") == std::string::npos;
}

std::uint64_t file_bytes(const std::string& path) {
  std::error_code absent;
  const std::uintmax_t bytes = std::filesystem::file_size(path, absent);
  return absent ? 0 : bytes;
}

// Tells the end of a process that is no child of ours; a zombie that nobody waits for has ended,
// too.
class ProcessWatch {
 public:
  explicit ProcessWatch(pid_t pid)
      : pid_(pid), fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  [[nodiscard]] bool ended() const {
    if (!fd_.valid()) return ::kill(pid_, 0) != 0;  // gone already, or a kernel without pidfd
    pollfd watched{fd_.get(), POLLIN, 0};
    return ::poll(&watched, 1, 0) == 1;
  }

 private:
  pid_t pid_;
  UniqueFd fd_;
};

}  // namespace

Client::Client(ClientOptions options)
    : options_(std::move(options)),
      stamp_(process_stamp()),
      objects_(std::make_unique<Objects>(this)) {}

Client::~Client() = default;

Result<std::shared_ptr<Client>> Client::open(ClientOptions options) {
  if (options.socket_path.empty()) options.socket_path = default_socket_path();
  if (options.name.empty()) options.name = program_name();
  if (options.timeout_ms == 0) options.timeout_ms = 10'000;
  options.spin_us = std::min(options.spin_us, kSpinUsMax);
  std::shared_ptr<Client> client(new Client(std::move(options)));
  auto connection = client->connect(Deadline::after_ms(0));
  if (!connection && connection.error().code == Code::kNotFound && !client->options_.autostart)
    return error_with(Code::kNotFound,
                      "nobody listens at %s: run `kvtier start`, or allow autostart",
                      client->options_.socket_path.c_str());
  if (!connection) return error(connection.error());
  std::lock_guard<std::mutex> lock(client->mutex_);
  client->connection_ = *std::move(connection);
  return client;
}

Result<void> Client::check_process() noexcept {
  if (process_stamp() == stamp_) return {};
  // The child's copy of the socket would keep the parent's connection alive after the parent's
  // death. No lock: the parent's threads may have held it at the fork, and the child has only this
  // thread.
  if (connection_ != nullptr) connection_->close_socket_in_child();
  return error(Code::kFork, "opened before fork(): open a new client in the child");
}

Result<std::shared_ptr<Connection>> Client::connect_once(const Deadline& deadline) {
  return Connection::open(options_.socket_path, options_.name, deadline, options_.spin_us);
}

Result<std::shared_ptr<Connection>> Client::start_and_connect(const Deadline& deadline) {
  const std::string log = daemon_log_path(options_.socket_path);
  const std::uint64_t log_begin = file_bytes(log);
  KVT_TRY(const std::string program, find_daemon(options_.daemon_path));
  KVT_TRY(const pid_t pid, spawn_daemon(program, options_.socket_path));
  KVT_LOG(kInfo, "started %s, pid %d", program.c_str(), static_cast<int>(pid));
  const ProcessWatch process(pid);
  // Where several clients start one at the same time, one daemon wins and the others end: go on for
  // a while after the end of ours.
  auto gone_since = Deadline::Clock::time_point::max();
  std::string said;
  while (!deadline.passed()) {
    auto connection = connect_once(deadline);
    if (connection || !nobody_there(connection.error())) return connection;
    const auto now = Deadline::Clock::now();
    if (gone_since == Deadline::Clock::time_point::max()) {
      if (process.ended()) {
        gone_since = now;
        said = last_line_of(log, log_begin);
        if (is_refusal(said)) break;
      }
    } else if (now - gone_since > std::chrono::milliseconds(kRestartMs)) {
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  if (!said.empty())
    return error_with(Code::kNotFound, "%s ended at once: %s (its log: %s)", program.c_str(),
                      said.c_str() + (said.starts_with(kOwnLine) ? std::strlen(kOwnLine) : 0),
                      log.c_str());
  said = last_line_of(log, log_begin);  // what earlier daemons wrote is no reason
  return error_with(Code::kNotFound, "%s was started but does not answer at %s; %s %s%s",
                    program.c_str(), options_.socket_path.c_str(),
                    said.empty() ? "it wrote nothing to" : "the last line of", log.c_str(),
                    said.empty() ? "" : (": " + said).c_str());
}

Result<std::shared_ptr<Connection>> Client::connect(const Deadline& somebody_else_starts_it) {
  const Deadline deadline = this->deadline();
  for (;;) {
    auto connection = connect_once(deadline);
    if (connection || !nobody_there(connection.error())) return connection;
    const bool dying = connection.error().code == Code::kDaemonLost;
    if (!dying && options_.autostart) return start_and_connect(deadline);
    if ((!dying && somebody_else_starts_it.passed()) || deadline.passed()) return connection;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Result<std::shared_ptr<Connection>> Client::connection(Patience patience) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return error(Code::kStale, "the client was closed");
    if (!connection_->lost()) return connection_;
  }
  std::unique_lock<std::mutex> reconnecting(reconnect_mutex_, std::defer_lock);
  if (patience == Patience::kFull)
    reconnecting.lock();
  else if (!reconnecting.try_lock())
    return error(Code::kDaemonLost,
                 "the daemon went away; another thread connects again: try again");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return error(Code::kStale, "the client was closed");
    if (!connection_->lost()) return connection_;
  }
  if (patience == Patience::kQuick && Deadline::Clock::now() < next_try_)
    return error(Code::kDaemonLost,
                 "the daemon went away and does not answer yet: try again; `kvtier status` "
                 "tells whether it runs");
  std::this_thread::sleep_until(next_try_);
  auto fresh = patience == Patience::kQuick
                   ? connect_once(Deadline::after_ms(kQuickMs))
                   : connect(Deadline::after_ms(std::min(kRestartMs, options_.timeout_ms)));
  if (!fresh) {
    describe_error(fresh.error());
    backoff_ms_ = std::clamp(backoff_ms_ * 2, kBackoffMsMin, kBackoffMsMax);
    next_try_ = Deadline::Clock::now() + std::chrono::milliseconds(backoff_ms_);
    return error(Code::kDaemonLost,
                 "the daemon went away and cannot be reached: `kvtier start`, then try again; "
                 "`kvtier doctor` names what is in the way");
  }
  backoff_ms_ = 0;
  KVT_LOG(kInfo, "connected to the daemon again");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return error(Code::kStale, "the client was closed");
    connection_ = *fresh;
  }
  return fresh;
}

std::shared_ptr<Connection> Client::current() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return connection_;
}

void Client::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  connection_.reset();
}

// Long ones (verify, export, warm) take as long as they take: their end is the daemon's answer or
// its death. Other threads' requests do not wait for them.
Result<ControlMessage> Client::request_alone(Json body) const {
  auto socket = connect_unix(options_.socket_path, deadline());
  if (!socket && nobody_there(socket.error()))
    return error(Code::kDaemonLost, "the daemon went away: try again");
  if (!socket) return error(socket.error());
  KVT_TRY_VOID(check_peer(socket->get()));
  ControlChannel channel(*std::move(socket));
  const Json hello{{"op", "hello"},
                   {"version", kProtocolVersion},
                   {"name", options_.name},
                   {"pid", ::getpid()},
                   {"data", false}};
  auto reply = channel.call(hello, {}, 0, deadline());
  if (reply) reply = channel.call(std::move(body), {}, 0, Deadline::never());
  if (!channel.error_text().empty()) set_error_text("%s", channel.error_text().c_str());
  return reply;
}

Result<std::string> Client::request(const std::string& text) {
  KVT_TRY(Json body, parse_json(text));
  if (!body.is_object()) return error(Code::kInvalid, "a request is a JSON object with an \"op\"");
  KVT_TRY(const std::string op, json_string(body, "op", ""));
  if (op.empty()) return error(Code::kInvalid, "a request is a JSON object with an \"op\"");
  KVT_TRY(std::shared_ptr<Connection> connection, this->connection(Patience::kFull));
  const bool is_long = op == "verify" || op == "repair" || op == "export" || op == "import" ||
                       op == "warm" || op == "gc" || op == "rm";
  // It goes over a socket of its own: nobody else finds out that the daemon of this one died.
  if (is_long && !connection->check_alive()) {
    KVT_TRY(connection, this->connection(Patience::kFull));
  }
  KVT_TRY(ControlMessage reply, is_long ? request_alone(std::move(body))
                                        : connection->call(std::move(body), {}, 0, deadline()));
  reply.body.erase("id");
  return dump_json(reply.body);
}

}  // namespace kvtier
