// IoScheduler: decides what goes to the disk next. One thread, the owner of the Io.
//
// Urgency first (commit > demand > prefetch > write-back > background), within a class in order of
// submission. Bytes in flight are bounded, and bulk classes (write-back, background) get a smaller
// bound of their own that shrinks while a commit or a demand read waits or is in flight: one
// client's bulk write must not hold up another's read; nor do reads hold it up for ever: one bulk
// request goes on beside whatever waits or fills the house. What waits can be made more urgent, or
// taken back, by its ticket.
#pragma once

#include <array>
#include <cstdint>
#include <deque>

#include "tiers/io.h"

namespace kvtier {

struct IoSchedulerOptions {
  std::uint64_t bytes_in_flight_max = 8ull << 20;       // all classes
  std::uint64_t bulk_bytes_in_flight_max = 4ull << 20;  // write-back and background together
  std::uint64_t bulk_bytes_when_urgent_max = 512ull << 10;
};

// A hastened request is `submitted` in the class that it came in, `waiting` and in `bytes` where it
// went.
struct IoSchedulerStats {
  std::array<std::uint64_t, kIoPriorities> submitted{}, waiting{}, bytes{};
  std::uint64_t bytes_in_flight = 0;
};

// Names a request for as long as it waits.
struct IoTicket {
  IoPriority priority = IoPriority::kBackground;  // that it waits with
  std::uint64_t number = 0;                       // 0: nothing
};

class IoScheduler {
 public:
  IoScheduler(Io& io, IoSchedulerOptions options) : io_(io), options_(options) {}

  IoTicket submit(IoRequest request);
  // Where it waits in a less urgent class: behind what waits in this one, and the ticket names it
  // there. It may start at once.
  void hasten(IoTicket* ticket, IoPriority priority);
  // True: it was waiting, will not be started, and its callback is dropped. False: it has started.
  [[nodiscard]] bool withdraw(IoTicket ticket);
  // Polls the Io (callbacks run here), then starts what now fits. The number of callbacks.
  std::size_t poll();
  // Waiting or in flight.
  [[nodiscard]] std::size_t outstanding() const noexcept { return outstanding_; }
  [[nodiscard]] IoSchedulerStats stats() const noexcept { return stats_; }
  // Entries of the class's queue, those that are gone included.
  [[nodiscard]] std::size_t queued(IoPriority priority) const noexcept {
    return waiting_[static_cast<std::size_t>(priority)].size();
  }
  [[nodiscard]] Io& io() const noexcept { return io_; }

 private:
  struct Waiting {
    std::uint64_t number = 0;  // ascending in a class
    IoRequest request;
    bool gone = false;  // hastened or withdrawn; dropped when its turn comes
  };

  IoTicket enqueue(IoRequest request);
  [[nodiscard]] Waiting* find(IoTicket ticket);
  // Takes its request out of the queue.
  IoRequest take(Waiting* waiting);
  [[nodiscard]] bool waits(std::size_t urgency);
  void start_what_fits();
  void start_first(std::size_t urgency);
  [[nodiscard]] bool may_start(const IoRequest& request) const noexcept;

  Io& io_;
  const IoSchedulerOptions options_;
  std::array<std::deque<Waiting>, kIoPriorities> waiting_;
  std::uint64_t next_number_ = 1;
  std::array<std::uint64_t, kIoPriorities> in_flight_bytes_{};
  std::array<std::uint64_t, kIoPriorities> in_flight_count_{};
  std::size_t outstanding_ = 0;
  IoSchedulerStats stats_;
};

}  // namespace kvtier
