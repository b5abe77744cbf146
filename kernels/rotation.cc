#include "kernels/rotation.h"

#include <cmath>

namespace kvtier {
namespace {
constexpr std::uint32_t kFollowMax = 1024;  // errors of 1e-16 add up
}  // namespace

void turns_of(std::span<const float> frequencies, double position, float* out) noexcept {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = position * static_cast<double>(frequencies[i]);
    out[i] = static_cast<float>(std::cos(angle));
    out[frequencies.size() + i] = static_cast<float>(std::sin(angle));
  }
}

void turn_row(Rotation::Pairing pairing, std::uint32_t pairs, const float* turns, bool back,
              float* row) noexcept {
  if (pairing == Rotation::Pairing::kNone) return;
  const bool halves = pairing == Rotation::Pairing::kHalves;
  for (std::uint32_t p = 0; p < pairs; ++p) {
    const float cosine = turns[p], sine = back ? -turns[pairs + p] : turns[pairs + p];
    float& a = row[halves ? p : 2 * p];
    float& b = row[halves ? p + pairs : 2 * p + 1];
    const float turned = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = turned;
  }
}

Turns::Turns(std::span<const float> frequencies)
    : frequencies_(frequencies.begin(), frequencies.end()), pairs_(frequencies.size()) {
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    const double step = static_cast<double>(frequencies[i]);
    pairs_[i].step_cosine = std::cos(step);
    pairs_[i].step_sine = std::sin(step);
  }
}

void Turns::at(std::uint32_t position, float* out) {
  const bool follows = position == next_ && followed_ < kFollowMax;
  followed_ = follows ? followed_ + 1 : 0;
  next_ = std::uint64_t{position} + 1;
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    Pair& pair = pairs_[i];
    if (follows) {
      const double cosine = pair.cosine * pair.step_cosine - pair.sine * pair.step_sine;
      pair.sine = pair.sine * pair.step_cosine + pair.cosine * pair.step_sine;
      pair.cosine = cosine;
    } else {
      const double angle = static_cast<double>(position) * static_cast<double>(frequencies_[i]);
      pair.cosine = std::cos(angle);
      pair.sine = std::sin(angle);
    }
    out[i] = static_cast<float>(pair.cosine);
    out[pairs_.size() + i] = static_cast<float>(pair.sine);
  }
}

}  // namespace kvtier
