#include "tools/bench/replay_layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"

namespace kvtier::bench {
namespace {

constexpr int kRounds = 20;           // of swaps, per bisection
constexpr double kProbability = 0.5;  // of the fanout, as in the paper

std::vector<std::uint32_t> counts_of(const StepRows& steps, std::uint32_t tokens) {
  std::vector<std::uint32_t> counts(tokens);
  for (const auto& rows : steps)
    for (const std::uint32_t row : rows) ++counts[row];
  return counts;
}

Places places_of(const std::vector<std::uint32_t>& order) {
  Places places(order.size());
  for (std::uint32_t place = 0; place < order.size(); ++place) places[order[place]] = place;
  return places;
}

class Bisector {
 public:
  Bisector(const StepRows& steps, std::uint32_t tokens) : ends_(tokens + 1) {
    for (const auto& rows : steps) {
      rows_max_ = std::max(rows_max_, rows.size());
      for (const std::uint32_t row : rows) ++ends_[row + 1];
    }
    std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
    steps_.resize(ends_.back());
    std::vector<std::uint64_t> next(ends_.begin(), ends_.end() - 1);
    for (std::uint32_t step = 0; step < steps.size(); ++step)
      for (const std::uint32_t row : steps[step]) steps_[next[row]++] = step;
    for (Side& side : sides_) side.counts.resize(steps.size());
  }

  void split(std::span<std::uint32_t> rows) {
    const std::size_t chunks = (rows.size() + kChunkRows - 1) / kChunkRows;
    if (chunks < 2) return std::sort(rows.begin(), rows.end());
    const std::size_t left_chunks = (chunks + 1) / 2;
    const auto left = rows.first(left_chunks * kChunkRows);
    const auto right = rows.subspan(left.size());
    begin(&sides_[0], left_chunks);
    begin(&sides_[1], chunks - left_chunks);
    // At random, as in the paper: where both halves begin alike no swap gains.
    for (std::size_t i = rows.size() - 1; i > 0; --i)
      std::swap(rows[i], rows[random_.below(i + 1)]);
    for (int round = 0; round < kRounds; ++round)
      if (!improve(left, right)) break;
    split(left);
    split(right);
  }

 private:
  struct Move {
    double gain;
    std::uint32_t index;  // in its half
  };
  struct Side {
    std::vector<std::uint32_t> counts;  // rows of this half, by step
    std::vector<double> misses;         // [n]: the chance that n rows all miss one of its chunks
    std::vector<Move> moves;
  };

  void begin(Side* side, std::size_t chunks) const {
    const double one = 1 - kProbability / static_cast<double>(chunks);
    side->misses.resize(rows_max_ + 1);
    double power = 1;
    for (double& miss : side->misses) {
      miss = power;
      power *= one;
    }
  }

  [[nodiscard]] std::span<const std::uint32_t> steps_of(std::uint32_t row) const {
    return std::span(steps_).subspan(ends_[row], ends_[row + 1] - ends_[row]);
  }

  void count(Side* side, std::span<const std::uint32_t> rows) const {
    std::fill(side->counts.begin(), side->counts.end(), 0);
    for (const std::uint32_t row : rows)
      for (const std::uint32_t step : steps_of(row)) ++side->counts[step];
  }

  // What a row of one half would save on the other one.
  [[nodiscard]] double gain(std::uint32_t row, const Side& from, const Side& to) const {
    double sum = 0;
    for (const std::uint32_t step : steps_of(row))
      sum += from.misses[from.counts[step] - 1] - to.misses[to.counts[step]];
    return sum;
  }

  void move(std::uint32_t row, Side* from, Side* to) const {
    for (const std::uint32_t step : steps_of(row)) {
      --from->counts[step];
      ++to->counts[step];
    }
  }

  // The rows of a half, those that gain most by the other one first.
  void rank(Side* from, const Side& to, std::span<const std::uint32_t> rows) const {
    from->moves.clear();
    for (std::uint32_t i = 0; i < rows.size(); ++i)
      from->moves.push_back({gain(rows[i], *from, to), i});
    std::sort(from->moves.begin(), from->moves.end(), [](const Move& a, const Move& b) {
      return a.gain != b.gain ? a.gain > b.gain : a.index < b.index;
    });
  }

  // Swaps what gains by it, as the swaps before have left it; false where nothing does.
  bool improve(std::span<std::uint32_t> left, std::span<std::uint32_t> right) {
    Side &here = sides_[0], &there = sides_[1];
    count(&here, left);
    count(&there, right);
    rank(&here, there, left);
    rank(&there, here, right);
    constexpr double kLeast = 1e-9;
    bool swapped = false;
    for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      if (here.moves[i].gain + there.moves[i].gain < kLeast) break;
      std::uint32_t &a = left[here.moves[i].index], &b = right[there.moves[i].index];
      const double first = gain(a, here, there);
      move(a, &here, &there);
      if (first + gain(b, there, here) < kLeast) {
        move(a, &there, &here);
        continue;
      }
      move(b, &there, &here);
      std::swap(a, b);
      swapped = true;
    }
    return swapped;
  }

  Random random_{1};
  std::size_t rows_max_ = 0;          // in a list
  std::vector<std::uint64_t> ends_;   // of each row's steps, behind a 0
  std::vector<std::uint32_t> steps_;  // by row
  Side sides_[2];
};

}  // namespace

Places places_by_token(std::uint32_t tokens) {
  Places places(tokens);
  std::iota(places.begin(), places.end(), 0u);
  return places;
}

Places places_by_count(const StepRows& steps, std::uint32_t tokens, std::uint32_t block) {
  const std::vector<std::uint32_t> counts = counts_of(steps, tokens);
  std::vector<std::uint32_t> order(tokens);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return a / block != b / block ? a / block < b / block : counts[a] > counts[b];
  });
  return places_of(order);
}

Places places_together(const StepRows& steps, std::uint32_t tokens) {
  const std::vector<std::uint32_t> counts = counts_of(steps, tokens);
  std::vector<std::uint32_t> order(tokens);
  std::iota(order.begin(), order.end(), 0u);
  const auto known = std::stable_partition(order.begin(), order.end(),
                                           [&](std::uint32_t row) { return counts[row] > 0; });
  Bisector(steps, tokens)
      .split(std::span(order).first(static_cast<std::size_t>(known - order.begin())));
  return places_of(order);
}

double chunks_of_run(const Places& places, std::uint32_t count) {
  const std::size_t runs = places.size() / count;
  if (runs == 0) return std::nan("");
  std::size_t chunks = 0;
  std::vector<std::uint32_t> touched(count);
  for (std::size_t run = 0; run < runs; ++run) {
    for (std::uint32_t i = 0; i < count; ++i) touched[i] = places[run * count + i] / kChunkRows;
    std::sort(touched.begin(), touched.end());
    chunks +=
        static_cast<std::size_t>(std::unique(touched.begin(), touched.end()) - touched.begin());
  }
  return static_cast<double>(chunks) / static_cast<double>(runs);
}

}  // namespace kvtier::bench
