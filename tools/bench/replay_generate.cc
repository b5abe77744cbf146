#include "tools/bench/replay_generate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/random.h"
#include "tools/bench/replay_threads.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kRun = 16;
constexpr float kHotScore = 5.0f;  // above nearly all others

// Two numbers of mean 0 and variance 1 with a triangular density, from one random word.
struct Noise {
  float first, second;
};
Noise noise(Random* random) noexcept {
  const std::uint64_t word = random->next();
  const auto part = [word](unsigned shift) {
    return static_cast<float>(word >> shift & 0xFFFF) * (1.0f / 65536.0f);
  };
  constexpr float kScale = 2.4494897f;  // sqrt(6): two uniform ones have a variance of 1/6
  return {(part(0) + part(16) - 1.0f) * kScale, (part(32) + part(48) - 1.0f) * kScale};
}

// Normal: the sum of six.
float normal(Random* random) noexcept {
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    const Noise two = noise(random);
    sum += two.first + two.second;
  }
  return sum * 0.40824829f;
}

// 2^x within 0.3 %, for |x| < 120.
float power_of_two(float x) noexcept {
  const float whole = std::floor(x), rest = x - whole;
  const float mantissa = 1.0f + rest * (0.6565f + rest * 0.3435f);
  const auto exponent = static_cast<std::uint32_t>(static_cast<int>(whole) + 127) << 23;
  return mantissa * std::bit_cast<float>(exponent);
}

// The scores of one head, and what it chooses.
class Head {
 public:
  Head(const TraceShape& shape, const TraceLaw& law, double motion, std::uint64_t seed)
      : shape_(shape), law_(law), random_(seed) {
    drift_ = static_cast<float>(law.drift * motion);
    flicker_ = static_cast<float>(law.flicker * motion);
    const std::size_t runs = (shape.tokens + kRun - 1) / kRun;
    lasting_.resize(shape.tokens);
    own_drift_.resize(shape.tokens);
    run_drift_.resize(runs);
    score_.resize(shape.tokens);
    make_lasting();
    for (float& value : own_drift_) value = normal(&random_);
    for (float& value : run_drift_) value = normal(&random_);
  }

  void step(HeadTrace* out) {
    move();
    massive_ = false;
    renew_hot();
    for (std::size_t lane = 0; lane < shape_.granules.size(); ++lane) {
      const std::uint32_t granule = shape_.granules[lane];
      if (granule == 1) {
        choose(score_, shape_.budget, &chosen_);
        mark_hot(out);
      } else {
        add_masses(granule);
        choose(masses_, (shape_.budget + granule - 1) / granule, &units_);
        out->add(units_);
      }
    }
  }

 private:
  void make_lasting() {
    const auto run_part = static_cast<float>(std::sqrt(law_.run_share));
    const auto own_part = static_cast<float>(std::sqrt(1 - law_.run_share));
    const auto reach = static_cast<float>(law_.reach);
    const float fresh = std::sqrt(1 - reach * reach);
    const auto tail = static_cast<float>(law_.tail);
    const auto lasts = [tail](float x) { return std::copysign(std::pow(std::abs(x), tail), x); };
    float run = normal(&random_);
    for (std::uint32_t token = 0; token < shape_.tokens; ++token) {
      if (token % kRun == 0 && token > 0) run = reach * run + fresh * normal(&random_);
      const double away = static_cast<double>(shape_.tokens) / (shape_.tokens - token);
      lasting_[token] = run_part * lasts(run) + own_part * lasts(normal(&random_)) +
                        static_cast<float>(law_.recency * std::log2(away));
    }
  }

  // Everything one step on.
  void move() {
    const auto memory = static_cast<float>(law_.memory);
    const float fresh = std::sqrt(1 - memory * memory);
    for (float& value : run_drift_) value = memory * value + fresh * noise(&random_).first;
    const float run_part = drift_ * static_cast<float>(std::sqrt(law_.run_drift));
    const float own_part = drift_ * static_cast<float>(std::sqrt(1 - law_.run_drift));
    for (std::uint32_t token = 0; token < shape_.tokens; ++token) {
      const Noise two = noise(&random_);
      own_drift_[token] = memory * own_drift_[token] + fresh * two.first;
      score_[token] = lasting_[token] + run_part * run_drift_[token / kRun] +
                      own_part * own_drift_[token] + flicker_ * two.second;
    }
  }

  void renew_hot() {
    const auto wanted = static_cast<std::size_t>(law_.hot_rows + random_.unit());
    const double stays = law_.hot_rows > 0 ? 1 - law_.hot_new / law_.hot_rows : 0;
    std::erase_if(hot_, [&](std::uint32_t) { return random_.unit() >= stays; });
    while (hot_.size() < std::min<std::size_t>(wanted, shape_.budget)) {
      const std::uint32_t token = chosen_.empty()
                                      ? static_cast<std::uint32_t>(random_.below(shape_.tokens))
                                      : chosen_[random_.below(chosen_.size())];
      if (std::find(hot_.begin(), hot_.end(), token) == hot_.end()) hot_.push_back(token);
    }
    if (hot_.size() > shape_.budget) hot_.resize(shape_.budget);
    for (const std::uint32_t token : hot_) score_[token] = std::max(score_[token], kHotScore);
  }

  void mark_hot(HeadTrace* out) {
    units_ = chosen_;
    for (std::uint32_t& unit : units_)
      if (std::find(hot_.begin(), hot_.end(), unit) != hot_.end()) unit |= kHotRow;
    out->add(units_);
  }

  // Scores become masses once, when the first runs of a step are chosen.
  void add_masses(std::uint32_t granule) {
    if (!massive_) {
      const auto rate = static_cast<float>(law_.sharpness * 1.4426950408889634);
      for (float& score : score_) score = power_of_two(std::clamp(rate * score, -60.0f, 60.0f));
      massive_ = true;
    }
    masses_.assign((shape_.tokens + granule - 1) / granule, 0.0f);
    for (std::uint32_t token = 0; token < shape_.tokens; ++token)
      masses_[token / granule] += score_[token];
  }

  // The places of the `count` highest, ascending; of equal ones the first.
  void choose(const std::vector<float>& values, std::uint32_t count,
              std::vector<std::uint32_t>* places) {
    places->clear();
    count = std::min(count, static_cast<std::uint32_t>(values.size()));
    order_ = values;
    const auto nth = order_.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(order_.begin(), nth, order_.end(), std::greater<>());
    const float least = *nth;
    auto above = static_cast<std::uint32_t>(
        std::count_if(order_.begin(), nth, [least](float value) { return value > least; }));
    std::uint32_t equal = count - above;
    for (std::uint32_t place = 0; place < values.size(); ++place) {
      if (values[place] < least) continue;
      if (values[place] == least && equal == 0) continue;
      if (values[place] == least) --equal;
      places->push_back(place);
    }
  }

  const TraceShape& shape_;
  const TraceLaw& law_;
  Random random_;
  float drift_ = 0, flicker_ = 0;
  bool massive_ = false;  // score_ holds masses
  std::vector<float> lasting_, own_drift_, run_drift_, score_, masses_, order_;
  std::vector<std::uint32_t> chosen_, units_, hot_;
};

}  // namespace

double TraceLaw::motion(std::uint32_t layer, std::uint32_t layers) const noexcept {
  if (layers <= 1) return 1.0;
  const double place = static_cast<double>(layer) * (kRecordedLayers - 1) / (layers - 1);
  const auto low = std::min(static_cast<std::size_t>(place), kRecordedLayers - 2);
  const double rest = place - static_cast<double>(low);
  return layer_motion[low] * (1 - rest) + layer_motion[low + 1] * rest;
}

Trace generate_trace(const TraceShape& shape, const TraceLaw& law, std::uint64_t seed) {
  Trace trace;
  trace.shape = shape;
  trace.heads.resize(shape.heads());
  each_in_parallel(shape.heads(), [&](std::uint32_t i) {
    Head head(shape, law, law.motion(i / shape.kv_heads, shape.layers),
              Random(seed + i * 0x51ED2701ull).next());
    for (std::uint32_t step = 0; step < shape.steps; ++step) head.step(&trace.heads[i]);
  });
  return trace;
}

}  // namespace kvtier::bench
