// Deadline: a moment on the monotonic clock until which a blocking call may take. A value; any
// thread.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace kvtier {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] static Deadline never() noexcept { return Deadline(Clock::time_point::max()); }
  [[nodiscard]] static Deadline after_ms(std::uint64_t ms) noexcept {
    return after_ns(ms * 1'000'000);
  }
  // More than a year is never.
  [[nodiscard]] static Deadline after_ns(std::uint64_t ns) noexcept {
    constexpr std::uint64_t kYearNs = 365ull * 86400 * 1'000'000'000;
    if (ns > kYearNs) return never();
    return Deadline(Clock::now() + std::chrono::nanoseconds(ns));
  }

  [[nodiscard]] bool is_never() const noexcept { return at_ == Clock::time_point::max(); }
  [[nodiscard]] bool passed() const noexcept { return !is_never() && Clock::now() >= at_; }
  // What is left, as ppoll wants it; null for never. `storage` holds the value that is pointed to.
  [[nodiscard]] const timespec* left(timespec* storage) const noexcept {
    if (is_never()) return nullptr;
    const auto ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(at_ - Clock::now()).count();
    const auto positive = ns > 0 ? ns : 0;
    storage->tv_sec = static_cast<time_t>(positive / 1'000'000'000);
    storage->tv_nsec = static_cast<long>(positive % 1'000'000'000);
    return storage;
  }

 private:
  explicit Deadline(Clock::time_point at) noexcept : at_(at) {}
  Clock::time_point at_;
};

}  // namespace kvtier
