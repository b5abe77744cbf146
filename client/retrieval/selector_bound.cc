// Selector: how much of the attention mass the rows that were not chosen can have at most.
//
// A box or a ball bounds the product of a query with every key in it. So n rows of a unit have at
// most n * exp(scale * bound) of the mass, and the sum over the units of what was left out bounds
// what all of it has. Against the log-sum-exp of the rows that were attended to, which is exact,
// that is a bound on the share that the step misses, which no text and no model can exceed; it is
// true but for the rounding of the kernels. It may be of no use all the same: where boxes are wide
// it is near 1.
//
// A certified budget has to know before it attends. What is always attended to is exact then, too
// (SelectInput::held); a unit that is taken has at least n * exp(scale * lower bound), and by a
// ball at least n * exp(scale * q . mean), less what the mean was rounded by: the mean of
// exponentials is no less than the exponential of the mean. The lower bound of q . k is the upper
// bound of -q . k turned round, so no kernel knows of it.
#include <algorithm>
#include <cmath>
#include <functional>

#include "client/retrieval/selector.h"
#include "kernels/float16.h"

namespace kvtier {

Result<double> Selector::masses_of(const SelectInput& input, const float* scores,
                                   float* out) const {
  GroupScoresArgs softmax;
  std::copy_n(scores, units_, out);
  softmax.scores = out;
  softmax.stride = units_;
  softmax.unit_count = &units_;
  softmax.queries = 1;
  softmax.scale = input.scale;
  KVT_TRY_VOID(kernels_->group_scores(softmax, nullptr));
  // The softmax has the exponentials, up to a factor: that of the largest score tells the factor.
  std::uint64_t largest = units_;
  for (std::uint64_t u = 0; u < units_; ++u)
    if (out[u] < kFetchScore && (largest == units_ || out[u] > out[largest])) largest = u;
  if (largest == units_ || !(out[largest] > 0.0f)) return static_cast<double>(kNeverScore);
  return static_cast<double>(input.scale * scores[largest]) -
         std::log(static_cast<double>(out[largest]));
}

Result<void> Selector::bound_missed(const SelectInput& input, Selection* out) {
  make_room(&left_, units_);
  make_room(&masses_, units_);
  make_room(&missed_, input.query_count);
  std::size_t at = 0;
  for (std::uint32_t s = 0; s < input.segments.size(); ++s) {
    const SegmentExtent& segment = input.segments[s];
    const std::uint32_t count = unit_count(segment, preset_->abstract);
    for (std::uint32_t u = 0; u < count; ++u, ++at) {
      const UnitRows rows = rows_of(input, {s, u, 0, 0});
      left_[at] = static_cast<float>(rows.free - rows.marked);
      const bool known = segment.data != nullptr && u < segment.units;
      if (!known && rows.free != rows.marked) return {};
    }
  }
  for (std::uint32_t i = 0; i < input.query_count; ++i) {
    KVT_TRY(const double factor, masses_of(input, scores_.data() + i * units_, masses_.data()));
    double sum = 0.0;
    for (std::uint64_t u = 0; u < units_; ++u) {
      if (!(left_[u] > 0.0f)) continue;
      if (!(masses_[u] < kFetchScore)) return {};  // it reaches to infinity
      sum += static_cast<double>(left_[u]) * static_cast<double>(masses_[u]);
    }
    missed_[i] = sum > 0.0 ? static_cast<float>(factor + std::log(sum)) : kNeverScore;
  }
  out->missed = {missed_.data(), input.query_count};
  return {};
}

// ---- budget "certified" -------------------------------------------------------------------------

Result<void> Selector::score_lower(const SelectInput& input) {
  SelectInput turned = input;
  make_room(&turned_, std::uint64_t{input.query_count} * input.dim);
  for (std::uint32_t i = 0; i < input.query_count; ++i)
    std::transform(input.queries + i * input.query_stride,
                   input.queries + i * input.query_stride + input.dim,
                   turned_.begin() + static_cast<std::ptrdiff_t>(std::uint64_t{i} * input.dim),
                   std::negate<>());
  turned.queries = turned_.data();
  turned.query_stride = input.dim;
  make_room(&lower_, units_ * input.query_count);
  const std::uint64_t scored = tally_.units_scored, missing = tally_.units_missing;
  float* place = lower_.data();
  for (const SegmentExtent& segment : input.segments) {
    KVT_TRY_VOID(score_segment(turned, segment, place));
    place += unit_count(segment, preset_->abstract);
  }
  tally_.units_scored = scored;
  tally_.units_missing = missing;
  return {};
}

// Every query of the group by itself: the last to be content says how many.
Result<std::uint64_t> Selector::enough_units(const SelectInput& input, std::uint64_t found) {
  make_room(&masses_, units_);
  make_room(&least_, units_);
  make_room(&rest_, candidates_.size());
  make_room(&taken_, found + 1);
  const bool mean_known = preset_->abstract.abstract == AbstractKind::kBall;
  std::uint64_t enough = 0;
  for (std::uint32_t i = 0; i < input.query_count && enough < found; ++i) {
    const float* upper = scores_.data() + i * units_;
    float* lower = lower_.data() + i * units_;
    std::fill_n(least_.begin(), units_, kNeverScore);
    for (std::uint64_t j = 0; j < found; ++j) {
      const Candidate& unit = candidates_[best_[j]];
      const float up = upper[unit.place], down = lower[unit.place];
      if (!(up < kFetchScore && down < kFetchScore)) continue;
      least_[unit.place] = -down;
      // The mean is that of all rows of the unit: it says nothing of a part of them.
      if (mean_known && unit.cost == unit_size(input, unit))
        least_[unit.place] = std::max(-down, (up - down) / 2.0f - mean_error(input, i, unit));
    }
    KVT_TRY(const double upper_factor, masses_of(input, upper, masses_.data()));
    KVT_TRY(const double lower_factor, masses_of(input, least_.data(), lower));
    enough = std::max(enough, enough_for(input, i, found, upper_factor, lower_factor));
  }
  return enough;
}

// How much too large q . mean of a ball can be: its mean is rounded to 16 bits.
float Selector::mean_error(const SelectInput& input, std::uint32_t query,
                           const Candidate& unit) const {
  const auto* mean = reinterpret_cast<const std::uint16_t*>(input.segments[unit.segment].data) +
                     unit.unit * unit_elements(preset_->abstract, input.dim);
  const float* q = input.queries + query * input.query_stride;
  float sum = 0.0f;
  for (std::uint32_t d = 0; d < input.dim; ++d)
    sum += std::abs(q[d]) * std::max(std::abs(f16_to_f32(mean[d])), 0x1p-14f);
  return sum * 0x1p-11f;
}

// The fewest of the first `found` of best_ that leave a share of 1 - `share` at most, or all. Upper
// masses lie in masses_, lower ones in the query's row of lower_.
std::uint64_t Selector::enough_for(const SelectInput& input, std::uint32_t query,
                                   std::uint64_t found, double upper_factor, double lower_factor) {
  const auto held = static_cast<double>(input.held != nullptr ? input.held[query] : kNeverScore);
  const double top = std::max({held, upper_factor, lower_factor});
  if (!std::isfinite(top)) return found;
  const double above = std::exp(upper_factor - top), below = std::exp(lower_factor - top);
  const auto at_most = [&](const Candidate& unit) {
    const float mass = masses_[unit.place];
    return mass < kFetchScore ? unit.cost * static_cast<double>(mass) * above : HUGE_VAL;
  };
  const auto at_least = [&](const Candidate& unit) {
    const float mass = lower_[query * units_ + unit.place];
    return below > 0.0 && mass < kFetchScore ? unit.cost * static_cast<double>(mass) * below : 0.0;
  };
  for (std::size_t c = 0; c < candidates_.size(); ++c) rest_[c] = at_most(candidates_[c]);
  taken_[0] = std::exp(held - top);
  for (std::uint64_t j = 0; j < found; ++j) {
    taken_[j + 1] = taken_[j] + at_least(candidates_[best_[j]]);
    rest_[best_[j]] = 0.0;
  }
  double left = 0.0;
  for (std::size_t c = 0; c < candidates_.size(); ++c) left += rest_[c];
  // From the end, so that what is left is summed up and not subtracted.
  const double allowed = 1.0 - static_cast<double>(preset_->share);
  std::uint64_t enough = found;
  for (std::uint64_t j = found; std::isfinite(left) && left <= allowed * (left + taken_[j]); --j) {
    enough = j;
    if (j == 0) break;
    left += at_most(candidates_[best_[j - 1]]);
  }
  return enough;
}

// Tokens of the unit, visible or not; of a page that a segment's end may cut, as of a whole one.
std::uint32_t Selector::unit_size(const SelectInput& input, const Candidate& unit) const {
  const SegmentExtent& segment = input.segments[unit.segment];
  if (segment.data == nullptr || segment.starts == nullptr) return preset_->abstract.unit_tokens;
  return static_cast<std::uint32_t>(segment.starts[unit.unit + 1] - segment.starts[unit.unit]);
}

}  // namespace kvtier
