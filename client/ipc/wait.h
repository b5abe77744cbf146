// Waiting for a ring: a short spin where that pays, then sleep in poll(2).
//
// Spinning pays only where another core can work meanwhile: with fewer than 4 CPUs in the affinity
// mask it would take time from the model that computes on them, so it is off unless forced. The
// length of the spin follows the waits seen: at most twice their moving average, and never more
// than spin_us_max. One thread per object.
#pragma once

#include <chrono>
#include <cstdint>

#include "client/ipc/deadline.h"

namespace kvtier {

enum class SpinMode { kAuto, kAlways, kNever };

struct WaiterOptions {
  SpinMode spin = SpinMode::kAuto;
  std::uint32_t spin_us_max = 50;
};

enum class WaitOutcome {
  kReady,  // the ring has entries, or is broken: pop tells
  kTimeout,
  kHangup,  // the peer closed the socket, and the ring is empty
};

struct WaitStats {
  std::uint64_t ready = 0;  // waits that found entries at once
  std::uint64_t spun = 0;   // ended while spinning
  std::uint64_t slept = 0;  // went to sleep
  std::uint64_t timeouts = 0;
  std::uint64_t hangups = 0;
};

// How long to spin. The daemon, which waits for many rings at once, uses this part alone.
class AdaptiveSpin {
 public:
  explicit AdaptiveSpin(const WaiterOptions& options) noexcept;
  [[nodiscard]] bool allowed() const noexcept { return max_ns_ != 0; }
  [[nodiscard]] std::uint64_t budget_ns() const noexcept;
  void note_wait(std::uint64_t ns) noexcept;
  // One step of a spin: tells the core that we wait.
  static void relax() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
  }

 private:
  std::uint64_t max_ns_ = 0;  // 0: never spin
  std::uint64_t average_ns_ = 0;
};

class Waiter {
 public:
  explicit Waiter(const WaiterOptions& options = {}) noexcept : spin_(options) {}

  // Blocks until the ring has something, the deadline passes or the peer hangs up. `doorbell`: the
  // reader's eventfd; `socket`: the connection, -1 where there is none. Both borrowed.
  template <class Reader>
  [[nodiscard]] WaitOutcome wait(Reader& reader, int doorbell, int socket,
                                 const Deadline& deadline);

  [[nodiscard]] const WaitStats& stats() const noexcept { return stats_; }
  [[nodiscard]] bool spins() const noexcept { return spin_.allowed(); }

 private:
  enum class Woken { kDoorbell, kTimeout, kHangup };
  // poll(2); drains the doorbell. A spurious wake-up counts as kDoorbell.
  static Woken sleep(int doorbell, int socket, const Deadline& deadline) noexcept;

  template <class Reader>
  bool spin(Reader& reader, Deadline::Clock::time_point start) noexcept;
  template <class Reader>
  WaitOutcome sleep_until(Reader& reader, int doorbell, int socket,
                          const Deadline& deadline) noexcept;

  AdaptiveSpin spin_;
  WaitStats stats_;
};

template <class Reader>
bool Waiter::spin(Reader& reader, Deadline::Clock::time_point start) noexcept {
  const auto end = start + std::chrono::nanoseconds(spin_.budget_ns());
  do {
    for (int i = 0; i < 16; ++i) {
      if (reader.stamped()) return true;
      AdaptiveSpin::relax();
    }
    if (reader.ready()) return true;
  } while (Deadline::Clock::now() < end);
  return false;
}

template <class Reader>
WaitOutcome Waiter::sleep_until(Reader& reader, int doorbell, int socket,
                                const Deadline& deadline) noexcept {
  for (;;) {
    Woken woken = Woken::kDoorbell;
    if (reader.begin_sleep()) woken = sleep(doorbell, socket, deadline);
    reader.end_sleep();
    if (reader.ready()) return WaitOutcome::kReady;  // what came before the end still counts
    if (woken == Woken::kHangup) return WaitOutcome::kHangup;
    if (woken == Woken::kTimeout) return WaitOutcome::kTimeout;
  }
}

template <class Reader>
WaitOutcome Waiter::wait(Reader& reader, int doorbell, int socket, const Deadline& deadline) {
  if (reader.ready()) {
    ++stats_.ready;
    return WaitOutcome::kReady;
  }
  const auto start = Deadline::Clock::now();
  WaitOutcome outcome = WaitOutcome::kReady;
  if (spin_.allowed() && spin(reader, start)) {
    ++stats_.spun;
  } else {
    ++stats_.slept;
    outcome = sleep_until(reader, doorbell, socket, deadline);
  }
  if (outcome == WaitOutcome::kTimeout) ++stats_.timeouts;
  if (outcome == WaitOutcome::kHangup) ++stats_.hangups;
  spin_.note_wait(static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Deadline::Clock::now() - start)
          .count()));
  return outcome;
}

}  // namespace kvtier
