// Rings: one writer, one reader, in memory that the other side may fill with anything at any
// moment.
//
// Each side keeps its own index in private memory and never reads it back. The other side's index
// is loaded once into a local, and taken only if it did not go back and leaves at most `capacity`
// entries between the two; else the ring is broken for good: every call gives kProtocol and the
// connection must be dropped. Entries are copied word by word (shared_copy.h) into private memory
// before anybody looks at them. One store of `tail` publishes a batch, one store of `head` gives
// its room back. Neither side ever waits inside a call.
//
// A reader that spins need not wait for two cache lines, the tail's and then the entry's: the last
// word of an entry, its stamp, is index + 1 once the rest is written, and such an entry may be
// taken before `tail` says so. A tail behind the entries so taken is therefore no fault; behind
// what it was before, it is. An entry without stamp counts when `tail` says so.
//
// Sleeping. The reader must not sleep on entries that the writer published without seeing that it
// sleeps:
//
//      writer                              reader
//      W1  entries            (relaxed)    R1  reader_sleeps = 1      (seq_cst)
//      W2  tail = t           (seq_cst)    R2  read tail              (seq_cst)  -> new entries: do
//      not sleep W3  read reader_sleeps (seq_cst)    R3  poll(doorbell)
//          -> 1: set it to 0, ring         R4  reader_sleeps = 0
//
// W2, W3, R1, R2 lie in one total order. If R2 does not see W2, then R2 stands before W2, so R1 <
// R2 < W2 < W3: W3 sees the flag and rings. The doorbell counts, so a ring before R3 makes R3
// return at once. If W3 does not see the flag, then W3 < R1, so W2 < R2: the reader sees the
// entries and does not sleep. The writer clears the flag before it rings, so one sleep costs one
// ring; the reader's late R4 only repeats that. A ring that nobody needs any more is a spurious
// wake-up. (Sequentially consistent accesses instead of fences: the same instruction on x86, and
// ThreadSanitizer knows them.) Each side: one thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "client/ipc/shared_copy.h"
#include "client/ipc/shm_layout.h"

namespace kvtier {

// An eventfd to wake a reader with; never blocks.
[[nodiscard]] Result<UniqueFd> make_doorbell();
// Makes the doorbell readable. Any thread. A full counter is rung already.
void ring_doorbell(int doorbell) noexcept;
// Makes it unreadable again. Never blocks.
void drain_doorbell(int doorbell) noexcept;

template <class Entry>
class RingWriter {
 public:
  RingWriter() = default;
  // Both sides start at index 0 over zeroed memory. `capacity` is a power of two. `doorbell` is
  // borrowed; -1: the reader never sleeps.
  RingWriter(RingIndices* indices, Entry* entries, std::uint32_t capacity, int doorbell) noexcept
      : indices_(indices), entries_(entries), capacity_(capacity), doorbell_(doorbell) {
    KVT_CHECK(capacity != 0 && (capacity & (capacity - 1)) == 0);
  }

  // Entries that fit now.
  [[nodiscard]] Result<std::uint32_t> room() noexcept {
    if (!load_head()) return broken_error();
    return static_cast<std::uint32_t>(capacity_ - (tail_ - head_));
  }

  // Publishes as many of `entries` as fit, from the first, by one store; wakes the reader if it
  // sleeps. How many (0: full), or kProtocol.
  [[nodiscard]] Result<std::uint32_t> push(std::span<const Entry> entries) noexcept {
    if (capacity_ - (tail_ - head_) < entries.size() && !load_head()) return broken_error();
    if (broken_) return broken_error();
    const std::uint64_t count =
        std::min<std::uint64_t>(capacity_ - (tail_ - head_), entries.size());
    if (count == 0) return 0u;
    for (std::uint64_t i = 0; i < count; ++i) {
      Entry* target = &entries_[(tail_ + i) & (capacity_ - 1)];
      copy_to_shared(target, &entries[static_cast<std::size_t>(i)], offsetof(Entry, stamp));
      const std::uint64_t stamp = tail_ + i + 1;
      copy_to_shared<SharedOrder::kRelease>(&target->stamp, &stamp, sizeof stamp);
    }
    tail_ += count;
    indices_->tail.store(tail_, std::memory_order_seq_cst);  // W2
    if (indices_->reader_sleeps.load(std::memory_order_seq_cst) != 0) wake();
    return static_cast<std::uint32_t>(count);
  }
  [[nodiscard]] Result<std::uint32_t> push(const Entry& entry) noexcept {
    return push(std::span<const Entry>(&entry, 1));
  }

  [[nodiscard]] bool broken() const noexcept { return broken_; }

 private:
  bool load_head() noexcept {
    if (broken_) return false;
    const std::uint64_t head = indices_->head.load(std::memory_order_acquire);
    broken_ = head - head_ > tail_ - head_;  // outside [head_, tail_]
    if (!broken_) head_ = head;
    return !broken_;
  }
  void wake() noexcept {
    const bool sleeps = indices_->reader_sleeps.exchange(0, std::memory_order_seq_cst) != 0;
    if (sleeps && doorbell_ >= 0) ring_doorbell(doorbell_);
  }
  static tl::unexpected<Status> broken_error() noexcept {
    return error(Code::kProtocol, "the peer wrote an impossible ring index: reconnect");
  }

  RingIndices* indices_ = nullptr;
  Entry* entries_ = nullptr;
  std::uint64_t capacity_ = 0;
  std::uint64_t tail_ = 0;  // own, published
  std::uint64_t head_ = 0;  // the reader's, as last seen
  int doorbell_ = -1;
  bool broken_ = false;
};

template <class Entry>
class RingReader {
 public:
  RingReader() = default;
  RingReader(RingIndices* indices, const Entry* entries, std::uint32_t capacity) noexcept
      : indices_(indices), entries_(entries), capacity_(capacity) {
    KVT_CHECK(capacity != 0 && (capacity & (capacity - 1)) == 0);
  }

  // Copies up to out.size() entries out and gives their room back. How many (0: empty), or
  // kProtocol.
  [[nodiscard]] Result<std::uint32_t> pop(std::span<Entry> out) noexcept {
    std::uint32_t count = 0;
    // What comes later is for the next call: looking at the tail costs a cache line.
    while (count < out.size() && next_there(count == 0)) {
      copy_from_shared(&out[count++], &entries_[head_ & (capacity_ - 1)], sizeof(Entry));
      ++head_;
    }
    if (broken_)
      return error(Code::kProtocol, "the peer wrote an impossible ring index: reconnect");
    if (count != 0) indices_->head.store(head_, std::memory_order_release);
    return count;
  }

  // True where the next entry's stamp is there. For tight loops, which must leave the tail's line
  // to the writer; every so often they must ask ready() or pop.
  [[nodiscard]] bool stamped() const noexcept {
    std::uint64_t stamp = 0;
    copy_from_shared<SharedOrder::kAcquire>(&stamp, &entries_[head_ & (capacity_ - 1)].stamp,
                                            sizeof stamp);
    return stamp == head_ + 1;
  }
  // True where pop has something to give: entries, or the news that the ring is broken.
  [[nodiscard]] bool ready() noexcept { return next_there(true) || broken_; }
  // R1 and R2. True: nothing is there, and the writer will ring the doorbell. Follow it by
  // end_sleep() either way.
  [[nodiscard]] bool begin_sleep() noexcept {
    indices_->reader_sleeps.store(1, std::memory_order_seq_cst);
    if (!known()) load_tail(std::memory_order_seq_cst);
    return !broken_ && !known();
  }
  void end_sleep() noexcept { indices_->reader_sleeps.store(0, std::memory_order_relaxed); }

  [[nodiscard]] bool broken() const noexcept { return broken_; }

 private:
  // The tail as last seen says that the next entry is there.
  [[nodiscard]] bool known() const noexcept { return tail_ - head_ - 1 < capacity_; }
  // Its stamp or the tail, where wanted, says so.
  [[nodiscard]] bool next_there(bool look_at_tail) noexcept {
    if (broken_) return false;
    if (known()) return true;
    if (stamped()) return true;
    if (look_at_tail) load_tail(std::memory_order_acquire);
    return !broken_ && known();
  }
  void load_tail(std::memory_order order) noexcept {
    if (broken_) return;
    const std::uint64_t tail = indices_->tail.load(order);
    // Went back, or leaves more than fits. The sum is exact: tail_ <= head_ + capacity_.
    broken_ = tail - tail_ > head_ + capacity_ - tail_;
    if (!broken_) tail_ = tail;
  }

  RingIndices* indices_ = nullptr;
  const Entry* entries_ = nullptr;
  std::uint64_t capacity_ = 0;
  std::uint64_t head_ = 0;  // own, published
  std::uint64_t tail_ = 0;  // the writer's, as last seen; behind head_ where stamps said more
  bool broken_ = false;
};

// The two sides of a connection's control memfd (mapped writable, sizeof(ControlLayout) bytes, zero
// at first).
struct ClientRings {
  RingWriter<Submission> submissions;
  RingReader<Completion> completions;
};
struct DaemonRings {
  RingReader<Submission> submissions;
  RingWriter<Completion> completions;
};
[[nodiscard]] ClientRings make_client_rings(ControlLayout* control, int daemon_doorbell) noexcept;
[[nodiscard]] DaemonRings make_daemon_rings(ControlLayout* control, int client_doorbell) noexcept;

}  // namespace kvtier
