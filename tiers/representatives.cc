#include "tiers/representatives.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "kernels/float16.h"

namespace kvtier {
namespace {

// Squared; in lanes that a compiler may keep in one register.
float distance(const float* a, const float* b, std::uint32_t dim) {
  constexpr std::uint32_t kLanes = 8;
  std::array<float, kLanes> lanes{};
  std::uint32_t d = 0;
  for (; d + kLanes <= dim; d += kLanes)
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      const float gap = a[d + lane] - b[d + lane];
      lanes[lane] += gap * gap;
    }
  for (; d < dim; ++d) lanes[0] += (a[d] - b[d]) * (a[d] - b[d]);
  return std::accumulate(lanes.begin(), lanes.end(), 0.0f);
}

}  // namespace

void choose_representatives(const KeyUnits& units, std::uint32_t unit, std::uint32_t count,
                            std::vector<std::uint32_t>* out) {
  const std::uint32_t first = units.starts[unit], last = units.starts[unit + 1];
  const std::uint32_t size = last - first;
  std::vector<float> mean(units.dim, 0.0f);
  std::vector<float> gaps(size);  // of each key: to the mean, then to its nearest representative
  for (std::uint32_t place = first; place < last; ++place)
    for (std::uint32_t d = 0; d < units.dim; ++d)
      mean[d] += units.key(place)[d] / static_cast<float>(size);
  for (std::uint32_t i = 0; i < size; ++i)
    gaps[i] = distance(units.key(first + i), mean.data(), units.dim);
  auto next = std::min_element(gaps.begin(), gaps.end());
  out->assign(1, first + static_cast<std::uint32_t>(next - gaps.begin()));
  std::fill(gaps.begin(), gaps.end(), std::numeric_limits<float>::infinity());
  while (out->size() < count) {
    const float* newest = units.key(out->back());
    for (std::uint32_t i = 0; i < size; ++i)
      gaps[i] = std::min(gaps[i], distance(units.key(first + i), newest, units.dim));
    next = std::max_element(gaps.begin(), gaps.end());
    out->push_back(first + static_cast<std::uint32_t>(next - gaps.begin()));
  }
}

void build_representatives(const KeyUnits& units, std::uint32_t count, std::uint16_t* out) {
  std::vector<std::uint32_t> chosen;
  for (std::uint32_t unit = 0; unit + 1 < units.starts.size(); ++unit) {
    std::uint16_t* place = out + std::size_t{unit} * count * units.dim;
    if (units.starts[unit] == units.starts[unit + 1]) continue;
    choose_representatives(units, unit, count, &chosen);
    for (const std::uint32_t key : chosen)
      for (std::uint32_t d = 0; d < units.dim; ++d)
        *place++ = f32_to_f16(std::clamp(units.key(key)[d], -65504.0f, 65504.0f));
  }
}

}  // namespace kvtier
