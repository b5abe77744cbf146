#include "client/objects.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "client/last_error.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kStagingAlign = 64;
constexpr std::uint64_t kStagingBytes = 32ull << 20;  // where no single value needs more
constexpr std::size_t kUnderWayMax = 256;

Op op_of(ObjectVerb verb) {
  switch (verb) {
    case ObjectVerb::kSet:
      return Op::kObjectSet;
    case ObjectVerb::kGet:
      return Op::kObjectGet;
    case ObjectVerb::kExists:
      return Op::kObjectExists;
    case ObjectVerb::kDelete:
      return Op::kObjectDelete;
  }
  return Op::kNop;
}

bool has_value(ObjectVerb verb) { return verb == ObjectVerb::kSet || verb == ObjectVerb::kGet; }

}  // namespace

Objects::~Objects() {
  if (connection_ != nullptr) connection_->watch_completions(false, -1);
}

Result<void> Objects::prepare_events() {
  if (epoll_.valid()) return {};
  KVT_TRY(UniqueFd news, make_doorbell());
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{EPOLLIN, {}};
  if (!epoll.valid() || ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, news.get(), &event) != 0)
    return error(Code::kFull, "no descriptor left for the event", errno);
  news_ = std::move(news);
  epoll_ = std::move(epoll);
  return {};
}

int Objects::event_fd() {
  std::lock_guard<std::mutex> lock(mutex_);
  return prepare_events() ? epoll_.get() : -1;
}

Result<void> Objects::connect() {
  KVT_TRY_VOID(prepare_events());
  if (connection_ != nullptr && connection_->check_alive()) return {};
  KVT_TRY(std::shared_ptr<Connection> connection, client_->connection(Patience::kFull));
  if (connection_ != nullptr)
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection_->event_fd(), nullptr);
  requeue_all();
  connection_ = std::move(connection);
  staging_.reset();
  epoll_event event{EPOLLIN, {}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection_->event_fd(), &event) != 0)
    return error(Code::kFull, "no descriptor left for the event", errno);
  connection_->watch_completions(true, news_.get());
  return {};
}

Result<void> Objects::make_staging(std::uint64_t bytes_min) {
  if (staging_.size_bytes() >= bytes_min) return {};
  const std::uint64_t allowed = connection_->limits().staging_bytes;
  if (bytes_min > allowed)
    return error_with(Code::kTooLarge, "a value of %llu bytes: at most %llu",
                      static_cast<unsigned long long>(bytes_min),
                      static_cast<unsigned long long>(allowed));
  const std::uint64_t bytes =
      std::min(allowed, std::max(kStagingBytes, align_up<std::uint64_t>(bytes_min, 4096)));
  KVT_TRY(ControlMessage reply,
          connection_->call(Json{{"op", "staging"}, {"bytes", bytes}}, {}, 1, client_->deadline()));
  KVT_TRY(const std::uint64_t given, json_uint(reply.body, "bytes", 0));
  if (given < bytes_min)
    return error(Code::kProtocol, "the daemon gave less staging memory than it said");
  KVT_TRY(staging_, Mapping::map(reply.fds[0].get(), given, true));
  return {};
}

std::uint64_t Objects::take_staging(std::uint64_t bytes) {
  std::uint64_t at = 0;
  for (const auto& [offset, length] : staged_) {
    if (bytes <= offset - at) break;
    at = align_up(offset + length, kStagingAlign);
  }
  if (at > staging_.size_bytes() || bytes > staging_.size_bytes() - at) return kNoRoom;
  staged_.emplace(at, std::max<std::uint64_t>(bytes, 1));
  return at;
}

void Objects::give_staging_back(std::uint64_t offset) { staged_.erase(offset); }

Result<std::uint64_t> Objects::submit(ObjectVerb verb, std::span<const ObjectRequest> requests) {
  for (const ObjectRequest& request : requests) {
    if (request.key.empty() || request.key.size() > kObjectKeyBytesMax)
      return error_with(Code::kTooLarge, "a key of %zu bytes: 1 to %u", request.key.size(),
                        kObjectKeyBytesMax);
    if (has_value(verb) && request.value == nullptr && request.value_bytes != 0)
      return error(Code::kInvalid, "a value is null");
    if (verb == ObjectVerb::kSet && request.value_bytes > kObjectBytesMax)
      return error_with(Code::kTooLarge, "a value of %llu bytes: at most %llu",
                        static_cast<unsigned long long>(request.value_bytes),
                        static_cast<unsigned long long>(kObjectBytesMax));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  KVT_TRY_VOID(connect());
  const std::uint64_t batch = ++last_batch_;
  for (std::uint32_t i = 0; i < requests.size(); ++i)
    waiting_.push_back({batch, i, verb, requests[i], 0, 0, 0});
  collect();
  const auto pumped = pump();
  if (!pumped && pumped.error().code != Code::kDaemonLost) fail_all(pumped.error().code);
  return batch;
}

Result<void> Objects::pump() {
  while (!waiting_.empty() && under_way_.size() < kUnderWayMax) {
    Operation& next = waiting_.front();
    const auto started = start(&next);
    if (!started && started.error().code == Code::kTooLarge) {
      results_.push_back({next.batch, next.index, Code::kTooLarge, 0});
      waiting_.pop_front();
      ring_doorbell(news_.get());
      continue;
    }
    if (!started) return error(started.error());
    if (!*started) return {};
    under_way_.push_back(std::move(next));
    waiting_.pop_front();
  }
  return {};
}

Result<bool> Objects::start(Operation* operation) {
  const bool with_value = has_value(operation->verb);
  // The room of a get may be larger than any value: what is staged is bounded.
  const std::uint64_t bytes =
      with_value ? std::min(operation->request.value_bytes, kObjectBytesMax) : 0;
  if (with_value && staging_.size_bytes() < bytes && !under_way_.empty())
    return false;  // staging is replaced when idle
  if (with_value) {
    KVT_TRY_VOID(make_staging(std::max<std::uint64_t>(bytes, 1)));
    operation->staging_offset = take_staging(bytes);
    if (operation->staging_offset == kNoRoom) return false;
    if (operation->verb == ObjectVerb::kSet && bytes != 0)
      std::memcpy(staging_.data() + operation->staging_offset, operation->request.value, bytes);
  }
  const Deadline deadline = client_->deadline();
  const auto arguments =
      connection_->take_arguments(operation->request.key.size(), false, deadline);
  if (!arguments) {
    if (with_value) give_staging_back(operation->staging_offset);
    if (arguments.error().code == Code::kBusy) return false;
    return error(arguments.error());
  }
  operation->arguments = *arguments;
  std::memcpy(connection_->arguments(*arguments), operation->request.key.data(),
              operation->request.key.size());
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(op_of(operation->verb));
  submission.priority = static_cast<std::uint8_t>(Priority::kDemand);
  submission.argument_offset = *arguments;
  submission.count = static_cast<std::uint32_t>(operation->request.key.size());
  submission.value0 = with_value ? operation->staging_offset : 0;
  submission.value1 = bytes;
  const auto ticket = connection_->submit(submission, deadline);
  if (!ticket) {
    connection_->give_arguments_back(*arguments);
    if (with_value) give_staging_back(operation->staging_offset);
    return error(ticket.error());
  }
  operation->ticket = *ticket;
  return true;
}

void Objects::collect() {
  for (std::size_t i = 0; i < under_way_.size();) {
    Operation& operation = under_way_[i];
    if (!connection_->poll(operation.ticket)) {
      ++i;
      continue;
    }
    const auto completion = connection_->wait(operation.ticket, client_->deadline());
    if (!completion) return;  // lost: the next connect() submits all again
    finish(&operation, *completion);
    under_way_[i] = std::move(under_way_.back());
    under_way_.pop_back();
  }
}

void Objects::finish(Operation* operation, const Completion& completion) {
  ObjectResult result{operation->batch, operation->index, static_cast<Code>(completion.status),
                      completion.value0};
  connection_->give_arguments_back(operation->arguments);
  if (has_value(operation->verb)) {
    if (operation->verb == ObjectVerb::kGet && result.code == Code::kOk) {
      if (result.value_bytes > std::min(operation->request.value_bytes, kObjectBytesMax)) {
        result.code = Code::kProtocol;
      } else if (result.value_bytes != 0) {
        std::memcpy(operation->request.value, staging_.data() + operation->staging_offset,
                    result.value_bytes);
      }
    }
    if (operation->verb == ObjectVerb::kSet) result.value_bytes = operation->request.value_bytes;
    give_staging_back(operation->staging_offset);
  }
  results_.push_back(result);
  ring_doorbell(news_.get());
}

void Objects::requeue_all() {
  for (auto operation = under_way_.rbegin(); operation != under_way_.rend(); ++operation)
    waiting_.push_front(std::move(*operation));
  under_way_.clear();
  staged_.clear();
}

void Objects::fail_all(Code code) {
  requeue_all();
  for (const Operation& operation : waiting_)
    results_.push_back({operation.batch, operation.index, code, 0});
  waiting_.clear();
  if (!results_.empty()) ring_doorbell(news_.get());
}

Result<std::vector<ObjectResult>> Objects::poll(std::size_t room, const Deadline& deadline) {
  for (;;) {
    int epoll = -1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      KVT_TRY_VOID(prepare_events());
      // A bell that rang for what was taken already must not stay: event_fd() would tell for ever.
      if (connection_ != nullptr) connection_->clear_event();
      drain_doorbell(news_.get());
      if (!waiting_.empty() || !under_way_.empty()) {
        const bool was_lost = connection_->lost() || !connection_->check_alive();
        auto alive = connect();
        if (!was_lost) collect();
        if (alive) alive = pump();
        if (!alive &&
            !(alive.error().code == Code::kDaemonLost && connection_->lost() && !was_lost))
          fail_all(alive.error().code);
      }
      // What is readable is taken before we return, so that the descriptor tells of news only.
      if (results_.empty() && connection_ != nullptr && !connection_->lost()) {
        connection_->clear_event();
        collect();
      }
      std::vector<ObjectResult> out;
      while (!results_.empty() && out.size() < room) {
        out.push_back(results_.front());
        results_.pop_front();
      }
      if (!results_.empty()) ring_doorbell(news_.get());
      if (!out.empty() || (waiting_.empty() && under_way_.empty()) || deadline.passed()) return out;
      connection_->clear_event();
      collect();  // what came before the event was cleared; arms the doorbell again
      if (!results_.empty()) continue;
      epoll = epoll_.get();
    }
    // Bounded, because the death of the daemon does not make the event readable.
    pollfd watched{epoll, POLLIN, 0};
    timespec left{};
    const timespec* until = deadline.left(&left);
    const std::int64_t ms =
        until == nullptr
            ? 50
            : std::min<std::int64_t>(50, until->tv_sec * 1000 + until->tv_nsec / 1'000'000 + 1);
    ::poll(&watched, 1, static_cast<int>(ms));
  }
}

}  // namespace kvtier
