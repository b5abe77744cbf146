// What a cache has to do with a trace.
#include <algorithm>
#include <cmath>
#include <deque>
#include <iterator>
#include <unordered_map>

#include "base/check.h"
#include "client/device/slot_cache.h"
#include "tools/bench/replay_trace.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kChunk = 32;
constexpr std::uint32_t kRecentSteps = 16;

std::uint32_t row_of(std::uint32_t unit) { return unit & ~kHotRow; }

// Counts what enters a least-recently-used cache: that of the client, without rows in it.
class Entering {
 public:
  explicit Entering(std::uint64_t capacity) : cache_(make(capacity)) {}
  double select(std::span<const std::uint32_t> units) {
    const auto missing = cache_.select(units);
    KVT_CHECK(missing.has_value());
    const auto count = static_cast<double>(missing->tokens.size());
    cache_.complete();
    return count;
  }

 private:
  static SlotCache make(std::uint64_t capacity) {
    SlotCacheOptions options;
    options.capacity_rows = std::max<std::uint64_t>(capacity, 1);
    options.k_row_bytes = options.v_row_bytes = 1;
    auto cache = SlotCache::make(options);
    KVT_CHECK(cache.has_value());
    return *std::move(cache);
  }
  SlotCache cache_;
};

// Sums over the steps of one head.
struct Sums {
  TraceFigures of;
  double steps = 0, rows = 0, chunks = 0, pages = 0;
};

std::vector<std::uint32_t> rows_of(std::span<const std::uint32_t> units) {
  std::vector<std::uint32_t> rows;
  for (const std::uint32_t unit : units) rows.push_back(row_of(unit));
  return rows;
}

std::vector<std::uint32_t> chunks_of(std::span<const std::uint32_t> rows) {
  std::vector<std::uint32_t> chunks;
  for (const std::uint32_t row : rows)
    if (chunks.empty() || chunks.back() != row / kChunk) chunks.push_back(row / kChunk);
  return chunks;
}

double shared(std::span<const std::uint32_t> a, std::span<const std::uint32_t> b,
              std::uint32_t granule) {
  double count = 0;
  for (const std::uint32_t row : a)
    count += std::binary_search(b.begin(), b.end(), row / granule) ? 1 : 0;
  return count;
}

// A row that was hot within so many steps is still there.
class RecentlyHot {
 public:
  void step(std::span<const std::uint32_t> units, bool counted, TraceFigures* of) {
    ++now_;
    for (const std::uint32_t unit : units) {
      if (unit == row_of(unit)) continue;
      const auto [place, first] = last_.try_emplace(row_of(unit), now_);
      const bool is_new = first || now_ - place->second > kRecentSteps;
      place->second = now_;
      if (!counted) continue;
      of->hot_rows += 1;
      of->hot_new += is_new ? 1 : 0;
    }
  }

 private:
  std::unordered_map<std::uint32_t, std::uint32_t> last_;
  std::uint32_t now_ = 0;
};

void add_head(const Trace& trace, std::uint32_t first_step, std::uint32_t layer,
              std::uint32_t head, Sums* sums) {
  const TraceShape& shape = trace.shape;
  const std::size_t runs = shape.lane_of(16), pages = shape.lane_of(kChunk);
  std::vector<Entering> slots;
  for (const double times : TraceFigures::kCapacities)
    slots.emplace_back(static_cast<std::uint64_t>(std::lround(times * shape.budget)));
  std::size_t chunks_max = 1;
  for (std::uint32_t step = 0; step < shape.steps; ++step)
    chunks_max = std::max(chunks_max, chunks_of(rows_of(trace.units(step, layer, head, 0))).size());
  Entering chunk_cache(2 * chunks_max);
  Entering page_cache(2ull * (shape.budget + kChunk - 1) / kChunk);
  RecentlyHot hot;
  TraceFigures& of = sums->of;
  for (std::uint32_t step = 0; step < shape.steps; ++step) {
    const auto units = trace.units(step, layer, head, 0);
    const auto rows = rows_of(units);
    const auto chunks = chunks_of(rows);
    const bool counted = step >= first_step;
    const double one = counted ? 1 : 0;
    for (std::size_t i = 0; i < slots.size(); ++i) of.rows_new[i] += one * slots[i].select(rows);
    of.chunks_new += one * chunk_cache.select(chunks);
    hot.step(units, counted, &of);
    if (pages < shape.granules.size()) {
      const auto chosen = trace.units(step, layer, head, pages);
      of.pages_new += one * page_cache.select(chosen);
      of.in_pages += one * shared(rows, chosen, kChunk);
      sums->pages += one * static_cast<double>(chosen.size());
    }
    if (!counted) continue;
    if (runs < shape.granules.size())
      of.in_runs += shared(rows, trace.units(step, layer, head, runs), 16);
    const auto newest = std::lower_bound(rows.begin(), rows.end(), shape.tokens - shape.budget);
    of.newest += static_cast<double>(rows.end() - newest);
    const auto next = rows_of(trace.units(step, layer, (head + 1) % shape.kv_heads, 0));
    of.next_head += shared(rows, next, 1);
    of.chunks_touched += static_cast<double>(chunks.size());
    sums->chunks += static_cast<double>(chunks.size());
    sums->rows += static_cast<double>(rows.size());
    sums->steps += 1;
  }
}

TraceFigures means(const Sums& sums, const TraceShape& shape) {
  TraceFigures of = sums.of;
  const auto over = [](double value, double count) { return count > 0 ? value / count : 0; };
  for (double& value : of.rows_new) value = over(value, sums.rows);
  of.chunks_new = over(of.chunks_new, sums.chunks);
  of.chunks_touched = over(of.chunks_touched, sums.steps * ((shape.tokens + kChunk - 1) / kChunk));
  of.pages_new = over(of.pages_new, sums.pages);
  for (double* value : {&of.newest, &of.in_runs, &of.in_pages, &of.next_head})
    *value = over(*value, sums.rows);
  of.hot_rows = over(of.hot_rows, sums.steps);
  of.hot_new = over(of.hot_new, sums.steps);
  return of;
}

}  // namespace

TraceFigures figures_of(const Trace& trace, std::uint32_t first_step, std::uint32_t layer) {
  Sums sums;
  for (std::uint32_t head = 0; head < trace.shape.kv_heads; ++head)
    add_head(trace, first_step, layer, head, &sums);
  return means(sums, trace.shape);
}

TraceFigures figures_of(const Trace& trace, std::uint32_t first_step) {
  Sums sums;
  for (std::uint32_t layer = 0; layer < trace.shape.layers; ++layer)
    for (std::uint32_t head = 0; head < trace.shape.kv_heads; ++head)
      add_head(trace, first_step, layer, head, &sums);
  return means(sums, trace.shape);
}

}  // namespace kvtier::bench
