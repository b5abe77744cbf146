#include "client/connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "client/last_error.h"

namespace kvtier {
namespace {

// How long one wait sleeps before it looks whether the daemon was stopped (SIGSTOP) rather than
// slow.
constexpr std::uint64_t kLookMs = 50;

tl::unexpected<Status> turn_error() noexcept {
  return error(Code::kTimeout,
               "another thread's request to the daemon is not answered yet: try again");
}

tl::unexpected<Status> lost_error() noexcept {
  return error(Code::kDaemonLost, "the daemon went away: `kvtier status` tells whether it runs");
}

}  // namespace

Result<std::shared_ptr<Connection>> Connection::open(const std::string& socket_path,
                                                     const std::string& name,
                                                     const Deadline& deadline,
                                                     std::uint32_t spin_us) {
  KVT_TRY(UniqueFd socket, connect_unix(socket_path, deadline));
  KVT_TRY(const pid_t pid, check_peer(socket.get()));
  std::shared_ptr<Connection> connection(new Connection());
  if (spin_us != 0) connection->waiter_ = Waiter({SpinMode::kAlways, spin_us});
  connection->daemon_pid_ = pid;
  connection->socket_ = socket.get();
  connection->channel_ = ControlChannel(std::move(socket));
  KVT_TRY_VOID(connection->hello(name, deadline));
  return connection;
}

Connection::~Connection() = default;

Result<void> Connection::hello(const std::string& name, const Deadline& deadline) {
  Json request{{"op", "hello"},
               {"version", kProtocolVersion},
               {"name", name},
               {"pid", ::getpid()},
               {"data", true}};
  KVT_TRY(ControlMessage reply, call(std::move(request), {}, 5, deadline));
  return take_hello(std::move(reply));
}

Result<void> Connection::take_hello(ControlMessage reply) {
  KVT_TRY(epoch_, json_uint(reply.body, "epoch", 0));
  KVT_TRY(const std::uint64_t arena_bytes, json_uint(reply.body, "arena_bytes", 0));
  KVT_TRY(const std::uint64_t abstracts_bytes, json_uint(reply.body, "abstracts_bytes", 0));
  if (!reply.body.contains("limits") || !reply.body["limits"].is_object())
    return error(Code::kProtocol, "the daemon's hello has no limits");
  const Json& limits = reply.body["limits"];
  KVT_TRY(limits_.fetch_entries,
          json_uint(limits, "fetch_entries", kFetchEntriesMax, kFetchEntriesMax));
  KVT_TRY(limits_.submission_entries, json_uint(limits, "submission_entries", kSubmissionEntries));
  KVT_TRY(limits_.leased_bytes, json_uint(limits, "leased_bytes", 64ull << 20));
  KVT_TRY(limits_.staging_bytes, json_uint(limits, "staging_bytes", 0));
  KVT_TRY(limits_.sequence_tokens, json_uint(limits, "sequence_tokens", kSequenceTokensMax));
  limits_.submission_entries =
      std::min<std::uint64_t>(limits_.submission_entries, kSubmissionEntries);
  if (limits_.fetch_entries == 0 || limits_.submission_entries == 0)
    return error(Code::kProtocol, "the daemon's hello allows no requests");

  KVT_TRY(control_, Mapping::map(reply.fds[0].get(), sizeof(ControlLayout), true));
  KVT_TRY(arena_, Mapping::map(reply.fds[1].get(), arena_bytes, false));
  if (abstracts_bytes != 0) {
    KVT_TRY(abstracts_, Mapping::map(reply.fds[2].get(), abstracts_bytes, false));
  }
  daemon_bell_ = std::move(reply.fds[3]);
  client_bell_ = std::move(reply.fds[4]);
  control_layout_ = reinterpret_cast<ControlLayout*>(control_.data());
  ClientRings rings = make_client_rings(control_layout_, daemon_bell_.get());
  submissions_ = rings.submissions;
  completions_ = rings.completions;
  slots_.resize(static_cast<std::size_t>(limits_.submission_entries));
  for (std::size_t i = slots_.size(); i-- > 0;)
    free_slots_.push_back(static_cast<std::uint32_t>(i));
  pending_releases_.reserve(slots_.size());
  return {};
}

Result<ControlMessage> Connection::call(Json request, ByteSpan payload, std::size_t fds_expected,
                                        const Deadline& deadline) {
  std::unique_lock<TimedMutex> turn = control_mutex_.lock_until(deadline);
  if (!turn) return turn_error();
  auto reply = call_in_turn(&turn, request, payload, fds_expected, deadline);
  leave_turn(std::move(turn));
  return reply;
}

Result<void> Connection::tell(Json request, const Deadline& deadline) {
  std::unique_lock<TimedMutex> turn = control_mutex_.lock_until(deadline);
  Result<void> told;
  if (turn) {
    const auto reply = call_in_turn(&turn, request, {}, 0, deadline);
    if (!reply) told = error(reply.error());
  } else {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      untold_.push_back(std::move(request));
    }
    turn = control_mutex_.lock_until(Deadline::after_ms(0));  // nobody may be left to say it
  }
  leave_turn(std::move(turn));
  return told;
}

void Connection::say_untold() {
  std::vector<Json> untold;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    untold.swap(untold_);
  }
  for (Json& request : untold)
    static_cast<void>(channel_.post(std::move(request), Deadline::after_ms(1000)));
}

// Who adds to untold_ while another has the turn may find it taken and yet be too late for what is
// said here: it is looked at again without the turn.
void Connection::leave_turn(std::unique_lock<TimedMutex> turn) {
  while (turn) {
    say_untold();
    turn.unlock();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (untold_.empty()) return;
    }
    turn = control_mutex_.lock_until(Deadline::after_ms(0));
  }
}

Result<ControlMessage> Connection::call_in_turn(std::unique_lock<TimedMutex>* turn,
                                                const Json& request, ByteSpan payload,
                                                std::size_t fds_expected,
                                                const Deadline& deadline) {
  if (lost()) return lost_error();
  say_untold();
  auto reply = channel_.call(request, payload, fds_expected, deadline);
  if (!channel_.error_text().empty()) set_error_text("%s", channel_.error_text().c_str());
  // What keeps the sequence busy may be what was opened here for a call that gave up.
  bool closed = close_late_handles(deadline);
  while (!reply && reply.error().code == Code::kBusy && fds_expected != 0 &&
         (closed || channel_.handle_may_come())) {
    clear_error_text();
    if (deadline.passed()) return error(Code::kTimeout, "the daemon did not answer in time");
    if (!closed) {  // others' calls go on meanwhile
      turn->unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      *turn = control_mutex_.lock_until(deadline);
      if (!*turn) return turn_error();
    }
    reply = channel_.call(request, payload, fds_expected, deadline);
    if (!channel_.error_text().empty()) set_error_text("%s", channel_.error_text().c_str());
    closed = close_late_handles(deadline);
  }
  if (reply) return reply;
  if (!channel_.usable()) {
    std::lock_guard<std::mutex> ring_lock(mutex_);
    mark_lost();
  }
  return reply;
}

bool Connection::close_late_handles(const Deadline& deadline) {
  const std::vector<std::uint64_t> handles = channel_.take_late_handles();
  for (const std::uint64_t handle : handles)
    static_cast<void>(channel_.call(Json{{"op", "close"}, {"handle", handle}}, {}, 0, deadline));
  return !handles.empty();
}

bool Connection::check_alive() noexcept {
  if (lost()) return false;
  pollfd watched{socket_, POLLRDHUP, 0};
  if (::poll(&watched, 1, 0) <= 0 ||
      (watched.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) == 0)
    return true;
  std::lock_guard<std::mutex> lock(mutex_);
  mark_lost();
  return false;
}

void Connection::close_socket_in_child() noexcept {
  const int socket = std::exchange(socket_, -1);
  if (socket >= 0) ::close(socket);
}

void Connection::mark_lost() {
  if (lost_.exchange(true, std::memory_order_acq_rel)) return;
  KVT_LOG(kInfo, "connection to daemon %lld lost", static_cast<long long>(daemon_pid_));
  changed_.notify_all();
  if (news_ >= 0) ring_doorbell(news_);
}

bool Connection::daemon_stopped() const noexcept {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%lld/stat", static_cast<long long>(daemon_pid_));
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return false;
  char line[512];
  const std::size_t length = std::fread(line, 1, sizeof line - 1, file);
  std::fclose(file);
  line[length] = '\0';
  const char* end = std::strrchr(line, ')');  // the name may hold anything
  return end != nullptr && end[1] == ' ' && (end[2] == 'T' || end[2] == 'Z' || end[2] == 'X');
}

Connection::Slot* Connection::slot_of(Ticket ticket) noexcept {
  Slot& slot = slots_[static_cast<std::size_t>(ticket & ((1u << kSlotBits) - 1)) % slots_.size()];
  return slot.ticket == ticket && ticket != 0 ? &slot : nullptr;
}

void Connection::free_slot(Slot* slot) {
  if (slot->arguments != kNoArguments) area_.give_back(slot->arguments);
  free_slots_.push_back(static_cast<std::uint32_t>(slot - slots_.data()));
  *slot = Slot{};
  changed_.notify_all();
}

Result<void> Connection::push(const Submission& submission, const Deadline& deadline) {
  for (;;) {
    if (lost()) return lost_error();
    auto pushed = submissions_.push(submission);
    if (!pushed) {
      mark_lost();
      return error(pushed.error());
    }
    if (*pushed == 1) return {};
    // Releases need no slot, so the ring can be full for a moment: the daemon takes entries
    // whenever it runs.
    pollfd watched{socket_, POLLRDHUP, 0};
    if (::poll(&watched, 1, 1) > 0) mark_lost();
    if (deadline.passed()) return error(Code::kTimeout, "the daemon takes no requests");
  }
}

Result<Ticket> Connection::submit(Submission submission, const Deadline& deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (free_slots_.empty()) {
    if (lost()) return lost_error();
    if (!wait_turn(&lock, deadline)) return error(Code::kDaemonLost, "the daemon is stopped");
    if (deadline.passed()) return error(Code::kTimeout, "too many requests are under way");
  }
  const std::uint32_t index = free_slots_.back();
  const Ticket ticket = (++submitted_ << kSlotBits) | index;
  submission.user_data = ticket;
  KVT_TRY_VOID(push(submission, deadline));
  free_slots_.pop_back();
  Slot& slot = slots_[index];
  slot = Slot{};
  slot.ticket = ticket;
  slot.op = submission.op;
  return ticket;
}

Result<void> Connection::post(Submission submission, const Deadline& deadline) {
  std::lock_guard<std::mutex> lock(mutex_);
  submission.user_data = 0;
  return push(submission, deadline);
}

void Connection::complete(const Completion& completion) {
  if (completion.user_data == 0) {  // a release or a hint that failed
    KVT_LOG(kDebug, "a request without answer failed: %s",
            code_name(static_cast<Code>(completion.status)));
    return;
  }
  Slot* slot = slot_of(completion.user_data);
  if (slot == nullptr || slot->done) {
    KVT_LOG(kWarn, "the daemon completed a request that is not under way");
    return;
  }
  slot->completion = completion;
  slot->done = true;
  if (news_ >= 0 && slot->op >= static_cast<std::uint16_t>(Op::kObjectSet)) ring_doorbell(news_);
  if (!slot->abandoned) return;
  if (slot->op == static_cast<std::uint16_t>(Op::kFetch) && completion.value0 != 0)
    pending_releases_.push_back(completion.value0);
  free_slot(slot);
}

void Connection::dispatch() {
  std::array<Completion, 64> batch;
  for (;;) {
    auto count = completions_.pop(batch);
    if (!count) {
      mark_lost();
      return;
    }
    if (*count == 0) break;
    for (std::uint32_t i = 0; i < *count; ++i) complete(batch[i]);
  }
  while (!pending_releases_.empty() && !lost()) {
    Submission release{};
    release.op = static_cast<std::uint16_t>(Op::kRelease);
    release.value0 = pending_releases_.back();
    auto pushed = submissions_.push(release);
    if (!pushed || *pushed == 0) break;  // full: the next dispatch tries again
    pending_releases_.pop_back();
  }
}

void Connection::leave_poll() {
  dispatch();
  // Arms the doorbell for those who watch event_fd(); what came in between is dispatched.
  while (watched_ && !lost() && !completions_.begin_sleep()) dispatch();
  polling_ = false;
  changed_.notify_all();
}

bool Connection::wait_turn(std::unique_lock<std::mutex>* lock, const Deadline& deadline) {
  const auto look_at = Deadline::Clock::now() + std::chrono::milliseconds(kLookMs);
  timespec left{};
  const timespec* until = deadline.left(&left);
  const auto slice = until == nullptr ? std::chrono::nanoseconds(kLookMs * 1'000'000)
                                      : std::min(std::chrono::nanoseconds(kLookMs * 1'000'000),
                                                 std::chrono::seconds(until->tv_sec) +
                                                     std::chrono::nanoseconds(until->tv_nsec));
  if (polling_) {
    changed_.wait_for(*lock, slice);
    return true;
  }
  polling_ = true;
  lock->unlock();
  const WaitOutcome outcome =
      waiter_.wait(completions_, client_bell_.get(), socket_,
                   Deadline::after_ns(static_cast<std::uint64_t>(slice.count())));
  const bool stopped =
      outcome == WaitOutcome::kTimeout && Deadline::Clock::now() >= look_at && daemon_stopped();
  lock->lock();
  leave_poll();
  if (outcome == WaitOutcome::kHangup) mark_lost();
  return !stopped;
}

Result<Completion> Connection::wait(Ticket ticket, const Deadline& deadline, bool keep) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    Slot* slot = slot_of(ticket);
    if (slot == nullptr)
      return lost() ? lost_error() : error(Code::kInternal, "no such request is under way");
    if (slot->done) {
      const Completion completion = slot->completion;
      free_slot(slot);
      return completion;
    }
    if (lost()) {
      free_slot(slot);
      return lost_error();
    }
    if (deadline.passed()) {
      slot->abandoned = !keep;
      return error(Code::kTimeout, "the daemon did not answer in time");
    }
    if (!wait_turn(&lock, deadline)) {
      slot->abandoned = !keep;
      return error(Code::kDaemonLost, "the daemon is stopped (SIGSTOP): continue it");
    }
  }
}

bool Connection::poll(Ticket ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!polling_ && !lost()) {
    polling_ = true;
    leave_poll();
  }
  Slot* slot = slot_of(ticket);
  return slot == nullptr || slot->done || lost();
}

void Connection::abandon(Ticket ticket) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  Slot* slot = slot_of(ticket);
  if (slot == nullptr) return;
  slot->abandoned = true;
  if (slot->done || lost()) {
    if (slot->done && slot->op == static_cast<std::uint16_t>(Op::kFetch) &&
        slot->completion.value0 != 0)
      pending_releases_.push_back(slot->completion.value0);
    free_slot(slot);
  }
}

Result<std::uint64_t> Connection::take_arguments(std::uint64_t size_bytes, bool block,
                                                 const Deadline& deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (const auto offset = area_.take(size_bytes, !block)) return *offset;
    if (lost()) return lost_error();
    if (!block) return error(Code::kBusy);
    if (!wait_turn(&lock, deadline)) return error(Code::kDaemonLost, "the daemon is stopped");
    if (deadline.passed()) return error(Code::kTimeout, "too many requests are under way");
  }
}

void Connection::give_arguments_back(std::uint64_t offset) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  area_.give_back(offset);
  changed_.notify_all();
}

void Connection::tie_arguments(Ticket ticket, std::uint64_t offset) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  if (Slot* slot = slot_of(ticket); slot != nullptr) {
    slot->arguments = offset;
  } else {
    area_.give_back(offset);
  }
}

bool Connection::take_ahead(std::uint64_t size_bytes) noexcept {
  const std::uint64_t most = limits_.leased_bytes / 4;
  const std::uint64_t now = ahead_bytes_ += size_bytes;
  if (size_bytes <= most && now <= most) return true;
  ahead_bytes_ -= size_bytes;
  return false;
}

void Connection::clear_event() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (polling_ || lost()) return;
  drain_doorbell(client_bell_.get());
  polling_ = true;
  leave_poll();
}

void Connection::watch_completions(bool wanted, int news) {
  std::lock_guard<std::mutex> lock(mutex_);
  watched_ = wanted;
  news_ = news;
  if (!wanted || polling_ || lost()) return;
  polling_ = true;
  leave_poll();
}

}  // namespace kvtier
