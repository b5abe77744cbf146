// Clock: where the core gets its time from. The real one is monotonic; the virtual one is stepped
// by tests.
#pragma once

#include <cstdint>

namespace kvtier {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary start; never goes back. Any thread.
  [[nodiscard]] virtual std::uint64_t now_ns() const noexcept = 0;
  // Nanoseconds since 1970 for what is written to disk or shown to people.
  [[nodiscard]] virtual std::uint64_t wall_ns() const noexcept = 0;
};

class RealClock final : public Clock {
 public:
  [[nodiscard]] std::uint64_t now_ns() const noexcept override;
  [[nodiscard]] std::uint64_t wall_ns() const noexcept override;
};

// One thread.
class VirtualClock final : public Clock {
 public:
  [[nodiscard]] std::uint64_t now_ns() const noexcept override { return now_ns_; }
  [[nodiscard]] std::uint64_t wall_ns() const noexcept override { return kEpoch + now_ns_; }
  void advance_ns(std::uint64_t delta_ns) noexcept { now_ns_ += delta_ns; }

 private:
  static constexpr std::uint64_t kEpoch = 1'700'000'000'000'000'000ull;
  std::uint64_t now_ns_ = 0;
};

}  // namespace kvtier
