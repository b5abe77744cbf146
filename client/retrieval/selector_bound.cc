// Selector: how much of the attention mass the rows that were not chosen can have at most.
//
// A box or a ball bounds the product of a query with every key in it. So n rows of a unit have at
// most n * exp(scale * bound) of the mass, and the sum over the units of what was left out bounds
// what all of it has. Against the log-sum-exp of the rows that were attended to, which is exact,
// that is a bound on the share that the step misses, which no text and no model can exceed; it is
// true but for the rounding of the kernels. It may be of no use all the same: where boxes are wide
// it is near 1.
#include <cmath>

#include "client/retrieval/selector.h"

namespace kvtier {

Result<void> Selector::bound_missed(const SelectInput& input, Selection* out) {
  const auto units = static_cast<std::size_t>(units_);
  make_room(&left_, units_);
  make_room(&masses_, units_);
  make_room(&missed_, input.query_count);
  std::size_t at = 0;
  for (std::uint32_t s = 0; s < input.segments.size(); ++s) {
    const SegmentExtent& segment = input.segments[s];
    const std::uint32_t count = unit_count(segment, preset_->abstract);
    for (std::uint32_t u = 0; u < count; ++u, ++at) {
      const UnitRows rows = rows_of(input, {s, u, 0});
      left_[at] = static_cast<float>(rows.free - rows.marked);
      const bool known = segment.data != nullptr && u < segment.units;
      if (!known && rows.free != rows.marked) return {};
    }
  }
  for (std::uint32_t i = 0; i < input.query_count; ++i) {
    // The softmax of one query has its exponentials already, up to a factor: that of the largest
    // score tells the factor.
    GroupScoresArgs softmax;
    softmax.scores = scores_.data() + i * units_;
    softmax.stride = units_;
    softmax.unit_count = &units_;
    softmax.queries = 1;
    softmax.scale = input.scale;
    softmax.out = masses_.data();
    KVT_TRY_VOID(kernels_->group_scores(softmax, nullptr));
    double sum = 0.0;
    std::size_t largest = units;
    for (std::size_t u = 0; u < units; ++u) {
      const bool finite = masses_[u] < kFetchScore;
      if (!finite && left_[u] > 0.0f) return {};  // it reaches to infinity
      if (!finite) continue;
      sum += static_cast<double>(left_[u]) * static_cast<double>(masses_[u]);
      if (largest == units || masses_[u] > masses_[largest]) largest = u;
    }
    missed_[i] = sum > 0.0 ? input.scale * softmax.scores[largest] +
                                 static_cast<float>(std::log(sum / masses_[largest]))
                           : kNeverScore;
  }
  out->missed = {missed_.data(), input.query_count};
  return {};
}

}  // namespace kvtier
