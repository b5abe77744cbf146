// Connection: one life of the socket and the rings between this client and one daemon process.
//
// When the daemon goes away a connection is lost for good (kDaemonLost); the Client makes a new
// one. Whoever waits for a completion dispatches for all: the first waiter polls the ring, others
// sleep until it has news for them or leaves the place to them. No thread of its own. Any thread;
// requests of one sequence come from one thread at a time, as kvtier.h says.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"
#include "client/argument_area.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/ring.h"
#include "client/ipc/wait.h"
#include "client/timed_mutex.h"

namespace kvtier {

// What this connection may use: `limits` of the reply to hello.
struct ConnectionLimits {
  std::uint64_t fetch_entries = kFetchEntriesMax;
  std::uint64_t submission_entries = kSubmissionEntries;
  std::uint64_t leased_bytes = 0;
  std::uint64_t staging_bytes = 0;
  std::uint64_t sequence_tokens = kSequenceTokensMax;
};

// Names a request under way; 0: none.
using Ticket = std::uint64_t;

class Connection {
 public:
  // Connects and says hello. kNotFound: nobody listens. `spin_us`: how long waits spin before they
  // sleep; 0: chosen by the number of cores.
  [[nodiscard]] static Result<std::shared_ptr<Connection>> open(const std::string& socket_path,
                                                                const std::string& name,
                                                                const Deadline& deadline,
                                                                std::uint32_t spin_us = 0);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // One control request; those of other threads go first, up to the deadline. The daemon's text of
  // a refusal becomes the thread's error text. Blocks.
  [[nodiscard]] Result<ControlMessage> call(Json request, ByteSpan payload,
                                            std::size_t fds_expected, const Deadline& deadline);
  // One that must reach the daemon, whose reply holds nothing: where others' requests take longer
  // than the deadline it is sent behind them, without a reply.
  [[nodiscard]] Result<void> tell(Json request, const Deadline& deadline);

  // Queues a request that completes; sets its user_data. Blocks while too many are under way.
  [[nodiscard]] Result<Ticket> submit(Submission submission, const Deadline& deadline);
  // Queues one that does not complete (release, cancel).
  [[nodiscard]] Result<void> post(Submission submission, const Deadline& deadline);
  // Waits for a completion and takes it. On kTimeout, and on kDaemonLost because the daemon is
  // stopped, the request is abandoned; with `keep` it may be waited for again.
  [[nodiscard]] Result<Completion> wait(Ticket ticket, const Deadline& deadline, bool keep = false);
  // True: complete (take it by wait, which will not block). Dispatches what has come. Never blocks.
  [[nodiscard]] bool poll(Ticket ticket);
  // Nobody will wait for it: what it brings (a lease) is given back when it completes. `argument`:
  // its block, or none.
  void abandon(Ticket ticket) noexcept;

  // A block of the argument area. With `block` false kBusy where few are free, so that what can be
  // left out takes none from what cannot; else waits for one.
  [[nodiscard]] Result<std::uint64_t> take_arguments(std::uint64_t size_bytes, bool block,
                                                     const Deadline& deadline);
  void give_arguments_back(std::uint64_t offset) noexcept;
  [[nodiscard]] std::byte* arguments(std::uint64_t offset) noexcept {
    return control_layout_->arguments + offset;
  }
  // The block goes back when the request completes or is abandoned, whichever is last.
  void tie_arguments(Ticket ticket, std::uint64_t offset) noexcept;

  // Leases that nobody is waiting for lie until somebody looks: all of this connection together may
  // hold a quarter of leased_bytes, so that who waits for rows gets room. False: there is no room;
  // else give_back_ahead() of as many bytes when the lease is back.
  [[nodiscard]] bool take_ahead(std::uint64_t size_bytes) noexcept;
  void give_back_ahead(std::uint64_t size_bytes) noexcept { ahead_bytes_ -= size_bytes; }

  // While wanted, the doorbell rings for completions that nobody waits for: event_fd() becomes
  // readable. `news`, an eventfd or -1, becomes readable when another thread dispatched the
  // completion of an object request, or on loss.
  void watch_completions(bool wanted, int news);
  [[nodiscard]] int event_fd() const noexcept { return client_bell_.get(); }
  // Takes what has come and makes the event unreadable until more does. Nothing where another
  // thread waits for completions: it does both, and its wake-up is not taken from it.
  void clear_event();

  [[nodiscard]] bool lost() const noexcept { return lost_.load(std::memory_order_acquire); }
  // Notices a hang-up that nobody waited for. Never blocks.
  bool check_alive() noexcept;
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }
  [[nodiscard]] const ConnectionLimits& limits() const noexcept { return limits_; }
  [[nodiscard]] const std::byte* arena() const noexcept { return arena_.data(); }
  [[nodiscard]] std::uint64_t arena_bytes() const noexcept { return arena_.size_bytes(); }
  [[nodiscard]] const std::byte* abstracts() const noexcept { return abstracts_.data(); }
  [[nodiscard]] std::uint64_t abstracts_bytes() const noexcept { return abstracts_.size_bytes(); }
  // In a forked child: closes the child's copy of the socket, so that the parent's death is still
  // seen. Touches nothing else.
  void close_socket_in_child() noexcept;

 private:
  struct Slot {
    Ticket ticket = 0;  // 0: free
    Completion completion{};
    std::uint64_t arguments = kNoArguments;
    std::uint16_t op = 0;
    bool done = false;
    bool abandoned = false;
  };
  static constexpr std::uint64_t kNoArguments = UINT64_MAX;
  static constexpr std::uint32_t kSlotBits = 10;
  static_assert((1u << kSlotBits) == kSubmissionEntries);

  Connection() = default;
  Result<void> hello(const std::string& name, const Deadline& deadline);
  Result<void> take_hello(ControlMessage reply);
  Result<void> push(const Submission& submission, const Deadline& deadline);  // mutex_ held
  void dispatch();                                                            // mutex_ held, poller
  void complete(const Completion& completion);                                // mutex_ held
  void free_slot(Slot* slot);                                                 // mutex_ held
  Result<ControlMessage> call_in_turn(std::unique_lock<TimedMutex>* turn, const Json& request,
                                      ByteSpan payload, std::size_t fds_expected,
                                      const Deadline& deadline);
  void say_untold();  // control_mutex_ held
  void leave_turn(std::unique_lock<TimedMutex> turn);
  // Of calls that gave up before their reply came; false: none.
  bool close_late_handles(const Deadline& deadline);  // control_mutex_ held
  void mark_lost();                                   // mutex_ held
  // One turn of waiting: polls the ring or sleeps behind the poller. False: the daemon is stopped.
  bool wait_turn(std::unique_lock<std::mutex>* lock, const Deadline& deadline);
  void leave_poll();  // mutex_ held, poller
  bool daemon_stopped() const noexcept;
  Slot* slot_of(Ticket ticket) noexcept;

  // constant after open
  Mapping control_, arena_, abstracts_;
  ControlLayout* control_layout_ = nullptr;
  UniqueFd daemon_bell_, client_bell_;
  ConnectionLimits limits_;
  std::uint64_t epoch_ = 0;
  std::int64_t daemon_pid_ = 0;
  int socket_ = -1;  // borrowed from channel_

  TimedMutex control_mutex_;
  ControlChannel channel_;  // guarded by control_mutex_

  std::atomic<std::uint64_t> ahead_bytes_{0};
  std::atomic<bool> lost_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  RingWriter<Submission> submissions_;     // guarded by mutex_
  std::vector<Slot> slots_;                // guarded by mutex_
  std::vector<std::uint32_t> free_slots_;  // guarded by mutex_
  std::vector<std::uint64_t>
      pending_releases_;         // guarded by mutex_: leases that came for abandoned requests
  std::vector<Json> untold_;     // guarded by mutex_: by tell, behind somebody's call
  ArgumentArea area_;            // guarded by mutex_
  std::uint64_t submitted_ = 0;  // guarded by mutex_
  bool polling_ = false;         // guarded by mutex_
  bool watched_ = false;         // guarded by mutex_
  int news_ = -1;                // guarded by mutex_, borrowed
  RingReader<Completion> completions_;  // the poller's
  Waiter waiter_;                       // the poller's
};

}  // namespace kvtier
