#include "kernels/simd/simd.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/nearest.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// A block of kRows rows and two vectors of centroids is multiplied in registers: 12 sums.
constexpr std::size_t kRows = 6;
constexpr std::size_t kTileRows =
    40 * kRows;  // that meet a panel of centroids while it is in cache

using Floats = hn::ScalableTag<float>;
constexpr std::size_t kLanes = hn::MaxLanes(Floats());
constexpr std::size_t kPanel = 2 * kLanes;

// Two vectors of centroids, dim by dim; those beyond the last have a bias that never wins.
struct Panel {
  alignas(64) float by_dim[kHeadDimMax][kPanel];
  alignas(64) float bias[kPanel];
};

// The best so far of each row, lane by lane.
struct Best {
  alignas(64) float value[kTileRows][kLanes];
  alignas(64) std::int32_t index[kTileRows][kLanes];
};

void load_panel(const NearestArgs& args, std::uint64_t first, std::uint64_t count, Panel* panel) {
  for (std::size_t j = 0; j < kPanel; ++j) {
    if (j >= count) {
      for (std::uint32_t d = 0; d < args.dim; ++d) panel->by_dim[d][j] = 0.0f;
      panel->bias[j] = -std::numeric_limits<float>::infinity();
      continue;
    }
    const float* centroid = args.centroids + (first + j) * args.centroid_stride;
    for (std::uint32_t d = 0; d < args.dim; ++d) panel->by_dim[d][j] = centroid[d];
    panel->bias[j] = args.bias != nullptr ? args.bias[first + j] : 0.0f;
  }
}

// Where a value is better, so are its index and it.
HWY_INLINE void keep_better(hn::Vec<Floats> value, hn::Vec<hn::RebindToSigned<Floats>> index,
                            std::size_t row, Best* best) {
  const Floats df;
  const hn::RebindToSigned<Floats> di;
  const auto old = hn::Load(df, best->value[row]);
  const auto better = hn::Gt(value, old);
  hn::Store(hn::IfThenElse(better, value, old), df, best->value[row]);
  hn::Store(hn::IfThenElse(hn::RebindMask(di, better), index, hn::Load(di, best->index[row])), di,
            best->index[row]);
}

// kRows rows, the first of which is `row` of the tile, against a panel.
HWY_INLINE void multiply(const float* const (&rows)[kRows], std::uint32_t dim, const Panel& panel,
                         std::uint64_t first, std::size_t row, Best* best) {
  const Floats df;
  const hn::RebindToSigned<Floats> di;
  hn::Vec<Floats> sum[kRows][2];
  for (std::size_t i = 0; i < kRows; ++i)
    for (std::size_t v = 0; v < 2; ++v) sum[i][v] = hn::Load(df, panel.bias + v * kLanes);
  for (std::uint32_t d = 0; d < dim; ++d) {
    const auto a = hn::Load(df, panel.by_dim[d]);
    const auto b = hn::Load(df, panel.by_dim[d] + kLanes);
    for (std::size_t i = 0; i < kRows; ++i) {
      const auto value = hn::Set(df, rows[i][d]);
      sum[i][0] = hn::MulAdd(value, a, sum[i][0]);
      sum[i][1] = hn::MulAdd(value, b, sum[i][1]);
    }
  }
  const auto index = hn::Iota(di, static_cast<std::int32_t>(first));
  const auto next = hn::Add(index, hn::Set(di, static_cast<std::int32_t>(kLanes)));
  for (std::size_t i = 0; i < kRows; ++i) {
    keep_better(sum[i][0], index, row + i, best);
    keep_better(sum[i][1], next, row + i, best);
  }
}

// The best of a row's lanes; of equal ones the lowest index.
void finish_row(const Best& best, std::size_t row, std::uint32_t* index, float* value) {
  *value = best.value[row][0];
  *index = static_cast<std::uint32_t>(best.index[row][0]);
  for (std::size_t lane = 1; lane < kLanes; ++lane) {
    const float other = best.value[row][lane];
    const auto other_index = static_cast<std::uint32_t>(best.index[row][lane]);
    if (other > *value || (other == *value && other_index < *index)) {
      *value = other;
      *index = other_index;
    }
  }
}

void run_nearest(const NearestArgs& args) {
  begin("nearest");
  const std::uint64_t rows = *args.row_count;
  const std::uint64_t centroids = *args.centroid_count;
  Panel panel;
  Best best;
  for (std::uint64_t tile = 0; tile < rows; tile += kTileRows) {
    const std::size_t count = std::min<std::uint64_t>(rows - tile, kTileRows);
    std::fill_n(best.value[0], kTileRows * kLanes, -std::numeric_limits<float>::infinity());
    std::fill_n(best.index[0], kTileRows * kLanes, 0);
    for (std::uint64_t first = 0; first < centroids; first += kPanel) {
      load_panel(args, first, std::min<std::uint64_t>(centroids - first, kPanel), &panel);
      for (std::size_t row = 0; row < count; row += kRows) {
        const float* block[kRows];  // beyond the end: the last row again
        for (std::size_t i = 0; i < kRows; ++i)
          block[i] = args.rows + (tile + std::min(row + i, count - 1)) * args.row_stride;
        multiply(block, args.dim, panel, first, row, &best);
      }
    }
    for (std::size_t row = 0; row < count; ++row)
      finish_row(best, row, args.out_index + tile + row, args.out_value + tile + row);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_nearest);

Result<void> nearest(const NearestArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_nearest)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
