// Random: a small seeded generator (splitmix64), so that a printed seed replays a run exactly. One
// thread.
#pragma once

#include <cstdint>

namespace kvtier {

class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed) {}

  std::uint64_t next() noexcept {
    state_ += 0x9E3779B97F4A7C15ull;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound); bound > 0. The bias of the modulo is below 2^-32 for any bound used
  // here.
  std::uint64_t below(std::uint64_t bound) noexcept { return next() % bound; }
  // True once in n times.
  bool one_in(std::uint64_t n) noexcept { return below(n) == 0; }
  // Uniform in [0, 1).
  double unit() noexcept { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  std::uint64_t state_;
};

}  // namespace kvtier
