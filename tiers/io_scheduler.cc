// Order and bounds of what goes to the disk.
#include "tiers/io_scheduler.h"

#include <algorithm>
#include <utility>

namespace kvtier {
namespace {

constexpr std::size_t kCommitClass = static_cast<std::size_t>(IoPriority::kCommit);
constexpr std::size_t kDemandClass = static_cast<std::size_t>(IoPriority::kDemand);
constexpr std::size_t kWriteBackClass = static_cast<std::size_t>(IoPriority::kWriteBack);
constexpr std::size_t kBackgroundClass = static_cast<std::size_t>(IoPriority::kBackground);

constexpr std::size_t class_of(const IoRequest& request) {
  return static_cast<std::size_t>(request.priority);
}

constexpr bool fits(std::uint64_t size, std::uint64_t used, std::uint64_t bound) {
  return used <= bound && size <= bound - used;
}

}  // namespace

IoTicket IoScheduler::submit(IoRequest request) {
  ++outstanding_;
  ++stats_.submitted[class_of(request)];
  const IoTicket ticket = enqueue(std::move(request));
  start_what_fits();
  return ticket;
}

IoTicket IoScheduler::enqueue(IoRequest request) {
  const IoTicket ticket{request.priority, next_number_++};
  ++stats_.waiting[class_of(request)];
  waiting_[class_of(request)].push_back({ticket.number, std::move(request)});
  return ticket;
}

IoScheduler::Waiting* IoScheduler::find(IoTicket ticket) {
  std::deque<Waiting>& queue = waiting_[static_cast<std::size_t>(ticket.priority)];
  const auto place = std::lower_bound(
      queue.begin(), queue.end(), ticket.number,
      [](const Waiting& waiting, std::uint64_t number) { return waiting.number < number; });
  const bool found = place != queue.end() && place->number == ticket.number && !place->gone;
  return found ? &*place : nullptr;
}

// What is gone is dropped in its turn, or here when most of the queue is.
IoRequest IoScheduler::take(Waiting* waiting) {
  constexpr std::size_t kGoneMax = 64;
  IoRequest request = std::exchange(waiting->request, {});
  waiting->gone = true;
  const std::size_t urgency = class_of(request);
  std::deque<Waiting>& queue = waiting_[urgency];
  --stats_.waiting[urgency];
  if (queue.size() > 2 * stats_.waiting[urgency] + kGoneMax)
    std::erase_if(queue, [](const Waiting& one) { return one.gone; });
  return request;
}

void IoScheduler::hasten(IoTicket* ticket, IoPriority priority) {
  if (priority >= ticket->priority) return;
  Waiting* waiting = find(*ticket);
  if (waiting == nullptr) return;
  IoRequest request = take(waiting);
  request.priority = priority;
  *ticket = enqueue(std::move(request));
  start_what_fits();
}

bool IoScheduler::withdraw(IoTicket ticket) {
  Waiting* waiting = find(ticket);
  if (waiting == nullptr) return false;
  take(waiting);
  --outstanding_;
  return true;
}

std::size_t IoScheduler::poll() {
  const std::size_t finished = io_.poll();
  start_what_fits();
  return finished;
}

// Drops what is gone from its front. False: nothing waits.
bool IoScheduler::waits(std::size_t urgency) {
  std::deque<Waiting>& queue = waiting_[urgency];
  while (!queue.empty() && queue.front().gone) queue.pop_front();
  return !queue.empty();
}

// Stops at the first request that must wait: nothing less urgent may take the room that it waits
// for, but for one bulk request at a time. A warm keeps more waiting than fits for minutes, readers
// that each ask again when they are answered fill the house to the byte, and who waits for a seal
// would wait as long.
void IoScheduler::start_what_fits() {
  for (std::size_t urgency = 0; urgency < kIoPriorities; ++urgency) {
    while (waits(urgency)) {
      if (may_start(waiting_[urgency].front().request)) {
        start_first(urgency);
        continue;
      }
      const bool bulk_runs =
          in_flight_count_[kWriteBackClass] + in_flight_count_[kBackgroundClass] != 0;
      if (bulk_runs) return;
      for (const std::size_t bulk : {kWriteBackClass, kBackgroundClass})
        if (waits(bulk)) return start_first(bulk);
      return;
    }
  }
}

void IoScheduler::start_first(std::size_t urgency) {
  IoRequest request = std::move(waiting_[urgency].front().request);
  waiting_[urgency].pop_front();
  const std::uint64_t size = request.size_bytes();
  --stats_.waiting[urgency];
  stats_.bytes[urgency] += size;
  stats_.bytes_in_flight += size;
  in_flight_bytes_[urgency] += size;
  ++in_flight_count_[urgency];
  request.done = [this, urgency, size, done = std::move(request.done)](Result<void> result) {
    in_flight_bytes_[urgency] -= size;
    --in_flight_count_[urgency];
    stats_.bytes_in_flight -= size;
    --outstanding_;
    if (done) done(result);
  };
  io_.submit(std::move(request));
}

// A request above a bound starts when nothing of its class is in flight, or it would wait for ever;
// so does any commit, which must not queue behind a full house of reads.
bool IoScheduler::may_start(const IoRequest& request) const noexcept {
  const std::size_t urgency = class_of(request);
  const std::uint64_t size = request.size_bytes();
  const bool bulk = urgency >= kWriteBackClass;
  if (bulk) {
    const bool urgent = stats_.waiting[kCommitClass] != 0 || stats_.waiting[kDemandClass] != 0 ||
                        in_flight_count_[kCommitClass] != 0 || in_flight_count_[kDemandClass] != 0;
    const std::uint64_t bound =
        urgent ? options_.bulk_bytes_when_urgent_max : options_.bulk_bytes_in_flight_max;
    const std::uint64_t used =
        in_flight_bytes_[kWriteBackClass] + in_flight_bytes_[kBackgroundClass];
    const bool alone = in_flight_count_[kWriteBackClass] + in_flight_count_[kBackgroundClass] == 0;
    if (!fits(size, used, bound) && !(size > bound && alone)) return false;
  }
  if (fits(size, stats_.bytes_in_flight, options_.bytes_in_flight_max)) return true;
  const bool may_exceed = urgency == kCommitClass || size > options_.bytes_in_flight_max;
  return may_exceed && in_flight_count_[urgency] == 0;
}

}  // namespace kvtier
