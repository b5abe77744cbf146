// Rotation: how a runtime turns queries and keys by their positions (RoPE): pair i of dimensions by
// position * frequencies[i]. Turning a row back and forth gives the row again but for rounding,
// whatever the frequencies. Any thread; a Turns is its owner's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvtier {

struct Rotation {
  // The dimensions of pair i of n: i and i + n, or 2 i and 2 i + 1. Dimensions from 2 n on do not
  // turn.
  enum class Pairing : std::uint8_t { kNone = 0, kHalves = 1, kNeighbours = 2 };
  Pairing pairing = Pairing::kNone;
  std::vector<float> frequencies;

  [[nodiscard]] bool known() const noexcept {
    return pairing != Pairing::kNone && !frequencies.empty();
  }
  friend bool operator==(const Rotation&, const Rotation&) = default;
};

// Pairs of a row of `dim` dimensions that turn: none where so many do not fit.
[[nodiscard]] constexpr std::uint32_t turned_pairs(std::uint32_t pairs,
                                                   std::uint32_t dim) noexcept {
  return 2 * pairs <= dim ? pairs : 0;
}

// Cosines, then sines, [2][frequencies] at `out`.
void turns_of(std::span<const float> frequencies, double position, float* out) noexcept;

// Turns a row by what turns_of gave for `pairs` pairs; or back.
void turn_row(Rotation::Pairing pairing, std::uint32_t pairs, const float* turns, bool back,
              float* row) noexcept;

// The turns of one position after the other: of the next one they follow from those before, in
// double, without a sine.
class Turns {
 public:
  explicit Turns(std::span<const float> frequencies = {});
  // As turns_of, within rounding to f32.
  void at(std::uint32_t position, float* out);
  [[nodiscard]] std::span<const float> frequencies() const noexcept { return frequencies_; }

 private:
  struct Pair {
    double cosine, sine;            // of the position
    double step_cosine, step_sine;  // of one position
  };
  std::vector<float> frequencies_;
  std::vector<Pair> pairs_;
  std::uint64_t next_ = UINT64_MAX;  // the position that follows
  std::uint32_t followed_ = 0;       // positions since the last sine
};

}  // namespace kvtier
