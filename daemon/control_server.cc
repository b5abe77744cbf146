#include "daemon/control_server.h"

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer knows no fences; what Asio orders by them, its locks order too.
#define BOOST_ASIO_DISABLE_FENCED_BLOCK 1
#endif

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstring>
#include <deque>
#include <unordered_set>
#include <utility>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log_limit.h"
#include "client/ipc/frame.h"
#include "daemon/control_ops.h"
#include "daemon/version.h"

namespace kvtier {
namespace {

namespace asio = boost::asio;
using Descriptor = asio::posix::stream_descriptor;

// A reply on its way from the engine's thread to the control thread: descriptors duplicated, so
// that they outlive the engine's callback.
struct Reply {
  Json body;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
  bool close_after = false;
};

Json error_body(const Status& status) {
  std::string text = refusal_text(status);
  if (status.os_error != 0) text += std::string(" (") + ::strerror(status.os_error) + ")";
  return Json{{"ok", false}, {"code", static_cast<int>(status.code)}, {"error", std::move(text)}};
}

std::uint64_t file_bytes(int fd) {
  struct stat info {};
  return fd >= 0 && ::fstat(fd, &info) == 0 ? static_cast<std::uint64_t>(info.st_size) : 0;
}

std::vector<UniqueFd> duplicate(const std::vector<int>& fds) {
  std::vector<UniqueFd> copies;
  for (const int fd : fds) copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return copies;
}

}  // namespace

class Connection;

struct ControlServer::State : std::enable_shared_from_this<ControlServer::State> {
  State(Engine& engine_, Mailbox& mailbox_, UnixListener listener_, ControlServerOptions options_)
      : engine(engine_),
        mailbox(mailbox_),
        listener(std::move(listener_)),
        options(std::move(options_)),
        acceptor(loop, listener.socket.get()),
        signals(loop) {}

  void accept();
  void accept_all();
  void watch_signals();

  Engine& engine;
  Mailbox& mailbox;
  UnixListener listener;
  ControlServerOptions options;
  asio::io_context loop{1};
  Descriptor acceptor;  // the listener's socket, borrowed
  asio::signal_set signals;
  asio::executor_work_guard<asio::io_context::executor_type> keep{
      loop.get_executor()};                                     // until stop()
  std::unordered_set<std::shared_ptr<Connection>> connections;  // control thread
  bool stopping = false;                                        // control thread
};

// Requests of one connection that may wait; what comes behind them stays in the socket.
constexpr std::size_t kRequestsQueued = 2;

// One client of the socket. Everything but the lambdas given to the mailbox runs on the control
// thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<ControlServer::State> server, UniqueFd socket)
      : server_(std::move(server)),
        parser_(FrameLimits{kRequestJsonBytesMax, 0}),
        socket_(server_->loop, socket.release()),
        process_(server_->loop) {}

  void start() {
    read();
    Result<UniqueFd> process = peer_pidfd(socket_.native_handle());
    if (!process) return;
    process_.assign(process->release());
    process_.async_wait(Descriptor::wait_read,
                        [self = shared_from_this()](const boost::system::error_code& failed) {
                          if (!failed) self->close();
                        });
  }

  void close() {
    if (std::exchange(closed_, true)) return;
    boost::system::error_code ignored;
    socket_.close(ignored);
    process_.close(ignored);
    if (session_.valid()) {
      server_->mailbox.post(
          [&engine = server_->engine, session = session_] { engine.close_session(session); });
      session_ = {};
    }
    server_->connections.erase(shared_from_this());
  }

 private:
  void read() {
    paused_ = waiting_.size() > kRequestsQueued;
    if (paused_) return watch_hangup();
    socket_.async_wait(Descriptor::wait_read,
                       [self = shared_from_this()](const boost::system::error_code& failed) {
                         if (failed || self->closed_) return;
                         if (self->receive()) self->read();
                       });
  }

  // Who does not read does not see the end of the stream: a client that is gone would keep its
  // leases until its requests are through.
  void watch_hangup() {
    if (std::exchange(hangup_watched_, true)) return;
    socket_.async_wait(Descriptor::wait_error,
                       [self = shared_from_this()](const boost::system::error_code& failed) {
                         self->hangup_watched_ = false;
                         if (!failed && self->paused_) self->close();
                       });
  }

  // Takes what is there; false where the connection ended.
  bool receive() {
    std::vector<std::byte> room(256 * 1024);
    for (;;) {
      std::vector<UniqueFd> fds;
      const Result<Received> received = receive_some(socket_.native_handle(), room, &fds);
      if (!received || received->closed) {
        close();
        return false;
      }
      if (received->bytes == 0) return true;
      const Result<void> fed = parser_.feed({room.data(), received->bytes}, std::move(fds));
      while (auto message = parser_.next()) waiting_.push_back(std::move(*message));
      if (!fed) {
        static LogLimit limit;
        limit.warn(RealClock().now_ns(), static_cast<int>(fed.error().code),
                   "control: %s; connection closed", fed.error().message());
      }
      next_request();
      if (closed_) return false;
      if (!fed) {
        close();
        return false;
      }
      if (waiting_.size() > kRequestsQueued) return true;
    }
  }

  void next_request() {
    if (busy_ || waiting_.empty()) return;
    busy_ = true;
    ControlMessage message = std::move(waiting_.front());
    waiting_.pop_front();
    if (paused_) read();
    const Result<std::string> op = json_string(message.body, "op", "", 64);
    id_ = message.body.contains("id") ? message.body["id"] : Json(nullptr);
    if (!greeted_) {
      if (!op || *op != "hello") return close();
      return hello(message);
    }
    server_->mailbox.post(
        [self = shared_from_this(),
         request = ControlRequest{std::move(message.body), std::move(message.payload)}]() mutable {
          self->server_->engine.control(
              self->session_in_engine_, std::move(request),
              [self](Result<ControlReply> reply) { self->answer_from_engine(std::move(reply)); });
        });
  }

  // On the engine's thread.
  void answer_from_engine(Result<ControlReply> reply) {
    Reply out;
    if (reply) {
      out.body = Json{{"ok", true}};
      out.body.update(reply->body);
      out.payload = std::move(reply->payload);
      out.fds = duplicate(reply->fds);
    } else {
      out.body = error_body(reply.error());
    }
    send_later(std::move(out));
  }

  void send_later(Reply reply) {
    asio::post(server_->loop,
               [self = shared_from_this(), reply = std::make_shared<Reply>(std::move(reply))] {
                 self->send(std::move(*reply));
               });
  }

  void hello(const ControlMessage& message) {
    const Result<std::uint64_t> version = json_uint(message.body, "version", 0);
    const Result<std::string> name = json_string(message.body, "name", "", kNameBytesMax);
    const Result<std::uint64_t> pid = json_uint(message.body, "pid", 0, UINT32_MAX);
    const Result<bool> data = json_bool(message.body, "data", false);
    if (!version || !name || !pid || !data)
      return refuse_hello(
          error_body({Code::kInvalid, 0, "hello needs version, name, pid and data"}));
    if (*version != kProtocolVersion) {
      Json body = error_body({Code::kVersion, 0, nullptr});
      body["error"] = "client speaks protocol " + std::to_string(*version) + ", this kvtierd " +
                      std::to_string(kProtocolVersion) + ": install the same version of both";
      return refuse_hello(std::move(body));
    }
    server_->mailbox.post([self = shared_from_this(), name = *name,
                           pid = static_cast<std::uint32_t>(*pid),
                           data = *data] { self->open_in_engine(name, pid, data); });
  }

  void refuse_hello(Json body) { send({std::move(body), {}, {}, true}); }

  // On the engine's thread.
  void open_in_engine(const std::string& name, std::uint32_t pid, bool data) {
    const auto broken = [server = server_, weak = weak_from_this()] {
      asio::post(server->loop, [weak] {
        if (const auto self = weak.lock()) self->close();
      });
    };
    const Result<SessionId> session = server_->engine.open_session(name, pid, data, broken);
    if (!session) return send_later({error_body(session.error()), {}, {}, true});
    session_in_engine_ = *session;
    const SessionFds fds = server_->engine.session_fds(*session);
    Reply reply;
    reply.body = Json{{"ok", true},
                      {"version", kProtocolVersion},
                      {"daemon_version", kVersion},
                      {"pid", ::getpid()},
                      {"epoch", server_->options.epoch},
                      {"arena_bytes", file_bytes(fds.arena)},
                      {"abstracts_bytes", file_bytes(fds.abstracts)},
                      {"limits", limits()}};
    if (data)
      reply.fds =
          duplicate({fds.control, fds.arena, fds.abstracts, fds.daemon_bell, fds.client_bell});
    asio::post(server_->loop, [self = shared_from_this(), session = *session,
                               reply = std::make_shared<Reply>(std::move(reply))] {
      self->session_ = session;
      self->greeted_ = true;
      if (self->closed_) {  // the peer left while the engine made its session
        self->closed_ = false;
        return self->close();
      }
      self->send(std::move(*reply));
    });
  }

  [[nodiscard]] Json limits() const {
    return Json{{"clients", kClientsMax},
                {"open_sequences", kOpenSequencesMax},
                {"fetch_entries", kFetchEntriesMax},
                {"submission_entries", kSubmissionEntries},
                {"completion_entries", kCompletionEntries},
                {"argument_bytes", kArgumentBytes},
                {"staging_bytes", kObjectBytesMax},
                {"sequence_tokens", kSequenceTokensMax},
                {"leased_bytes", server_->options.leased_bytes_per_client_max}};
  }

  void send(Reply reply) {
    if (closed_) return;
    Json body;
    body["id"] = id_;
    body.update(reply.body);
    std::vector<int> fds;
    for (const UniqueFd& fd : reply.fds) fds.push_back(fd.get());
    const Result<void> queued = writer_.enqueue(body, std::move(reply.payload), fds);
    if (!queued)
      static_cast<void>(writer_.enqueue(Json{{"id", id_},
                                             {"ok", false},
                                             {"code", static_cast<int>(queued.error().code)},
                                             {"error", "the reply is too large: ask for less"}}));
    close_after_ = reply.close_after;
    flush();
  }

  void flush() {
    const Result<bool> done = writer_.flush(socket_.native_handle());
    if (!done) return close();
    if (!*done) {
      socket_.async_wait(Descriptor::wait_write,
                         [self = shared_from_this()](const boost::system::error_code& failed) {
                           if (!failed && !self->closed_) self->flush();
                         });
      return;
    }
    if (close_after_) return close();
    busy_ = false;
    next_request();
  }

  std::shared_ptr<ControlServer::State> server_;
  FrameParser parser_;
  FrameWriter writer_;
  Descriptor socket_;
  Descriptor process_;  // pidfd of the peer, where there is one
  std::deque<ControlMessage> waiting_;
  Json id_;
  SessionId session_;            // control thread
  SessionId session_in_engine_;  // engine thread
  bool greeted_ = false, busy_ = false, closed_ = false, close_after_ = false;
  bool paused_ = false;  // nothing is read until what waits has become less
  bool hangup_watched_ = false;
};

void ControlServer::State::accept() {
  acceptor.async_wait(Descriptor::wait_read,
                      [self = shared_from_this()](const boost::system::error_code& failed) {
                        if (failed || self->stopping) return;
                        self->accept_all();
                        self->accept();
                      });
}

void ControlServer::State::accept_all() {
  for (;;) {
    Result<UniqueFd> socket = accept_unix(listener.socket.get());
    if (!socket) {
      if (socket.error().code == Code::kPermission) continue;
      return;
    }
    if (connections.size() >= options.connections_max) {
      static LogLimit limit;
      limit.warn(RealClock().now_ns(), 0, "control: %zu connections are open; one more was closed",
                 connections.size());
      continue;
    }
    auto connection = std::make_shared<Connection>(shared_from_this(), std::move(*socket));
    connections.insert(connection);
    connection->start();
  }
}

void ControlServer::State::watch_signals() {
  if (!options.on_terminate) return;
  signals.add(SIGTERM);
  signals.add(SIGINT);
  signals.async_wait([self = shared_from_this()](const boost::system::error_code& failed, int) {
    if (!failed) self->options.on_terminate();
  });
}

ControlServer::ControlServer(Engine& engine, Mailbox& mailbox, UnixListener listener,
                             ControlServerOptions options)
    : state_(std::make_shared<State>(engine, mailbox, std::move(listener), std::move(options))) {}

ControlServer::~ControlServer() {
  // What the engine posted after the loop had ended refers to connections, and they to us.
  state_->loop.restart();
  state_->loop.poll();
  remove_listener(&state_->listener);
}

void ControlServer::run() {
  state_->accept();
  state_->watch_signals();
  state_->loop.run();
}

void ControlServer::stop() {
  asio::post(state_->loop, [state = state_] {
    state->stopping = true;
    state->acceptor.release();  // the descriptor is the listener's
    state->signals.cancel();
    state->keep.reset();
    while (!state->connections.empty()) {
      const std::shared_ptr<Connection> connection = *state->connections.begin();
      connection->close();
    }
  });
}

}  // namespace kvtier
