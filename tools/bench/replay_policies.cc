#include "tools/bench/replay_policies.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "client/chunk_range.h"
#include "client/device/slot_cache.h"
#include "client/retrieval/choice_width.h"
#include "kernels/base_layout.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kPage = 32;
constexpr std::uint32_t kDiskRun = ChoiceWidth::kRunTokens;
constexpr std::uint32_t kTouchSteps = 8;  // as client/view_touch.cc
constexpr std::uint64_t kStampEach = 64;  // chunks between two whose stamp is looked at
constexpr double kStreamFromDisk = 0.75;

std::uint32_t dim_of(const TraceShape& shape) { return shape.row_bytes / 4; }

double copy_row_bytes(const TraceShape& shape) {
  const BaseFormat format{dim_of(shape), dim_of(shape), 4, 4};
  return static_cast<double>(format.chunk_bytes()) / kBaseChunkTokens;
}

// Of one layer: the daemon's answers in real time, the link in its own. What came before the first
// request is not in it.
struct LayerClock {
  double start_s = seconds_now();
  double link_end_s = 0;  // after the start
  double link_s = 0;

  void arrives(double bytes) {
    const double cost = bytes / kLinkBytesPerS + kCopyS;
    link_end_s = std::max(link_end_s, seconds_now() - start_s) + cost;
    link_s += cost;
  }
};

class Replayer {
 public:
  Replayer(const Trace& trace, Policy policy, ReplayStore store)
      : trace_(trace),
        shape_(trace.shape),
        policy_(policy),
        store_(std::move(store)) {}

  Result<void> make_caches() {
    if (policy_ == Policy::kPages) return {};
    // Low-bit rows are smaller: four budgets of them and half a budget of exact ones take less than
    // two budgets of exact ones.
    const bool refine = policy_ == Policy::kRefine;
    for (std::uint32_t i = 0; i < shape_.heads(); ++i) {
      KVT_TRY(SlotCache cache, make_cache((refine ? 4ull : 2ull) * shape_.budget));
      caches_.push_back(std::move(cache));
      if (!refine) continue;
      KVT_TRY(SlotCache exact, make_cache(std::max(shape_.budget / 2, 64u)));
      exact_.push_back(std::move(exact));
    }
    return {};
  }

  Result<void> step(std::uint32_t step, bool counted) {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      if (widths_.size() == layer) widths_.emplace_back(from_disk_);
      entries_.clear();
      first_tokens_.clear();
      ready_bytes_ = device_bytes_ = 0;
      std::uint64_t rows = 0;
      for (std::uint32_t head = 0; head < shape_.kv_heads; ++head) {
        KVT_TRY(const std::uint64_t came, want(step, layer, head));
        rows += came;
      }
      // Which rows are hot is known when the low-bit ones are there: only then are they asked for.
      const double before = ready_bytes_ > 0 ? ready_bytes_ / kLinkBytesPerS + kCopyS : 0.0;
      LayerClock clock;
      const std::uint64_t read_before = disk_bytes_;
      if (!entries_.empty()) KVT_TRY_VOID(fetch(layer, &clock));
      const double waited = seconds_now() - clock.start_s;
      for (const std::uint32_t head : selecting_) caches_[head].complete();
      for (const std::uint32_t head : selecting_)
        if (!exact_.empty()) exact_[head].complete();
      selecting_.clear();
      if (touches() && step % kTouchSteps == 0) touch(layer);
      if (!counted) continue;
      const double device = device_bytes_ / kDeviceBytesPerS;
      run_.seconds += before + std::max(waited, clock.link_end_s) + device;
      run_.waited_s += waited;
      run_.before_s += before;
      run_.link_s += before + clock.link_s;
      run_.device_s += device;
      run_.chunks_asked += static_cast<double>(entries_.size());
      run_.chunks_read += static_cast<double>(disk_bytes_ - read_before) /
                          static_cast<double>(store_.geometry().slot_bytes(layer));
      run_.rows_new += static_cast<double>(rows) / shape_.heads();
    }
    run_.references.step_ends.push_back(run_.references.chunks.size());
    return {};
  }

  PolicyRun finish(std::uint32_t counted_steps) {
    for (double* value : {&run_.seconds, &run_.waited_s, &run_.before_s, &run_.link_s,
                          &run_.device_s, &run_.chunks_asked, &run_.chunks_read, &run_.rows_new})
      *value /= counted_steps;
    run_.arena_chunks = store_.arena_bytes() / store_.geometry().slot_bytes(0);
    return std::move(run_);
  }

 private:
  [[nodiscard]] bool touches() const noexcept {
    return policy_ == Policy::kRows || policy_ == Policy::kRuns;
  }

  Result<SlotCache> make_cache(std::uint64_t rows) const {
    SlotCacheOptions options;
    options.capacity_rows = std::min<std::uint64_t>(rows, shape_.tokens);
    options.k_row_bytes = options.v_row_bytes = shape_.row_bytes / 2;
    options.dtype = Dtype::kF16;
    return SlotCache::make(options);
  }

  // Lists what a head lacks for its choice; the rows that will come for it.
  Result<std::uint64_t> want(std::uint32_t step, std::uint32_t layer, std::uint32_t head) {
    const std::size_t pages = shape_.lane_of(kPage);
    if (policy_ == Policy::kPages) {
      device_bytes_ += static_cast<double>(shape_.tokens) / kPage * shape_.row_bytes;  // boxes
      const auto units = trace_.units(step, layer, head, pages);
      expand(units, kPage);
      device_bytes_ += static_cast<double>(tokens_.size()) * shape_.row_bytes;
      list(layer, head, tokens_);
      return tokens_.size();
    }
    const std::uint32_t index = layer * shape_.kv_heads + head;
    selecting_.push_back(index);
    device_bytes_ += static_cast<double>(shape_.tokens) * dim_of(shape_) * kCodeBytesPerDim;
    const std::size_t runs = shape_.lane_of(kDiskRun);
    const bool in_runs =
        policy_ == Policy::kRuns || (policy_ == Policy::kRows && widths_[layer].tokens() > 1);
    if (in_runs && runs < shape_.granules.size())
      expand(trace_.units(step, layer, head, runs), kDiskRun);
    else
      take_rows(trace_.units(step, layer, head, 0));
    KVT_TRY(const SlotCache::Missing missing, caches_[index].select(tokens_));
    if (policy_ != Policy::kRefine) {
      device_bytes_ += static_cast<double>(tokens_.size()) * shape_.row_bytes;
      list(layer, head, missing.tokens);
      return missing.tokens.size();
    }
    ready_bytes_ += static_cast<double>(missing.tokens.size()) * copy_row_bytes(shape_);
    device_bytes_ += static_cast<double>(tokens_.size()) * copy_row_bytes(shape_) +
                     static_cast<double>(hot_.size()) * shape_.row_bytes;
    KVT_TRY(const SlotCache::Missing exact, exact_[index].select(hot_));
    list(layer, head, exact.tokens);
    return exact.tokens.size();
  }

  void take_rows(std::span<const std::uint32_t> units) {
    tokens_.clear();
    hot_.clear();
    for (const std::uint32_t unit : units) {
      tokens_.push_back(unit & ~kHotRow);
      if ((unit & kHotRow) != 0) hot_.push_back(unit & ~kHotRow);
    }
  }

  // The tokens of runs, cut at the budget.
  void expand(std::span<const std::uint32_t> units, std::uint32_t granule) {
    tokens_.clear();
    for (const std::uint32_t unit : units)
      for (std::uint32_t i = 0; i < granule && tokens_.size() < shape_.budget; ++i)
        if (unit * granule + i < shape_.tokens) tokens_.push_back(unit * granule + i);
  }

  void list(std::uint32_t layer, std::uint32_t head, std::span<const std::uint32_t> tokens) {
    const std::uint32_t chunks = (shape_.tokens + kPage - 1) / kPage;
    each_chunk(layer, head, tokens, [&](const FetchEntry& entry, std::uint32_t token) {
      run_.references.chunks.push_back((layer * shape_.kv_heads + head) * chunks + token / kPage);
      first_tokens_.push_back(token);
      entries_.push_back(entry);
      return &entries_.back();
    });
  }

  // The chunks of `tokens`, ascending: `begin` gets each with its first token, and gives back where
  // its rows are marked.
  template <class Begin>
  void each_chunk(std::uint32_t layer, std::uint32_t head, std::span<const std::uint32_t> tokens,
                  Begin&& begin) const {
    const auto segments = store_.sequence().directory().segments();
    const std::uint32_t chunk_tokens = store_.geometry().chunk_tokens;
    std::size_t segment = 0;
    FetchEntry* entry = nullptr;
    for (const std::uint32_t token : tokens) {
      while (token >= segments[segment].first_token + segments[segment].visible_tokens) {
        ++segment;
        entry = nullptr;
      }
      const auto in_segment = static_cast<std::uint32_t>(token - segments[segment].first_token);
      if (entry == nullptr || entry->chunk != in_segment / chunk_tokens) {
        FetchEntry fresh{};
        fresh.segment = segments[segment].segment;
        fresh.layer = static_cast<std::uint16_t>(layer);
        fresh.chunk = static_cast<std::uint16_t>(in_segment / chunk_tokens);
        fresh.group = static_cast<std::uint16_t>(head);
        entry = begin(fresh, token);
      }
      entry->row_mask |= 1ull << (in_segment % chunk_tokens);
    }
  }

  Result<void> fetch(std::uint32_t layer, LayerClock* clock) {
    ChunkStreamOptions options;
    options.total = entries_.size();
    options.slot_bytes = store_.geometry().slot_bytes(layer);
    FetchTally tally;
    KVT_TRY_VOID(store_.sequence().chunk_stream(&tally).run(
        options, [&](std::uint64_t i) { return entries_[static_cast<std::size_t>(i)]; },
        [&](std::uint64_t first, std::uint64_t count, const Fetch& fetch) -> Result<void> {
          std::uint64_t rows = 0;
          for (std::uint64_t i = 0; i < count; ++i) {
            const auto entry = static_cast<std::size_t>(first + i);
            rows += static_cast<std::uint64_t>(std::popcount(entries_[entry].row_mask));
            if (entry % kStampEach != 0) continue;
            KVT_TRY_VOID(
                check_stamp(fetch.chunk(static_cast<std::size_t>(i), options.slot_bytes), entry));
          }
          clock->arrives(static_cast<double>(rows * shape_.row_bytes));
          return {};
        }));
    disk_bytes_ += tally.bytes_disk;
    from_disk_ = ChoiceWidth::much_from_disk(
        tally.bytes_disk, tally.chunks * store_.geometry().chunk_bytes(layer));
    widths_[layer].observe(from_disk_);
    return {};
  }

  Result<void> check_stamp(const std::byte* chunk, std::size_t index) const {
    const FetchEntry& entry = entries_[index];
    const Geometry& geometry = store_.geometry();
    const auto row = static_cast<std::uint32_t>(std::countr_zero(entry.row_mask));
    std::uint64_t stamp = 0;
    std::memcpy(&stamp, chunk + k_row_offset(geometry, geometry.layers[entry.layer], 0, row),
                sizeof stamp);
    if (stamp != row_stamp(first_tokens_[index], entry.layer, entry.group))
      return error(Code::kCorrupt, "the daemon gave another row than was asked for");
    return {};
  }

  // What the slot caches hold stays in the daemon's memory, as View tells it.
  void touch(std::uint32_t layer) {
    touches_.clear();
    for (std::uint32_t head = 0; head < shape_.kv_heads; ++head) {
      const SlotCache& cache = caches_[layer * shape_.kv_heads + head];
      tokens_.clear();
      for (std::uint64_t i = 0; i < cache.row_count(); ++i) tokens_.push_back(cache.selected(i));
      each_chunk(layer, head, tokens_, [&](const FetchEntry& entry, std::uint32_t) {
        touches_.push_back(entry);
        return &touches_.back();
      });
    }
    const std::span<const FetchEntry> all = touches_;
    for (std::size_t at = 0; at < all.size(); at += kFetchEntriesMax)
      static_cast<void>(store_.sequence().touch(
          all.subspan(at, std::min<std::size_t>(kFetchEntriesMax, all.size() - at)), false));
  }

  const Trace& trace_;
  const TraceShape& shape_;
  const Policy policy_;
  ReplayStore store_;
  std::vector<SlotCache> caches_, exact_;  // [layers][kv_heads]
  PolicyRun run_;
  std::vector<ChoiceWidth> widths_;  // by layer, begun as View begins them
  bool from_disk_ = true;
  std::uint64_t disk_bytes_ = 0;
  double ready_bytes_ = 0;   // in host memory: they can go at once
  double device_bytes_ = 0;  // read in device memory
  // Scratch of a layer.
  std::vector<FetchEntry> entries_, touches_;
  std::vector<std::uint32_t> first_tokens_;  // of each entry
  std::vector<std::uint32_t> tokens_, hot_, selecting_;
};

}  // namespace

std::uint64_t copy_bytes_of(const TraceShape& shape, Policy policy) {
  if (policy != Policy::kRefine) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(shape.tokens) * shape.heads() *
                                    copy_row_bytes(shape));
}

std::uint64_t arena_bytes_of(const TraceShape& shape, Policy policy) {
  // With the low-bit copy (0.3125 of the KV) host memory is 0.32 of it.
  const std::uint64_t bytes =
      policy == Policy::kRefine ? shape.kv_bytes() / 128 : shape.kv_bytes() / 4;
  return std::max(bytes, ReplayStore::kArenaBytesMin);
}

Result<PolicyRun> run_policy(const Context& context, const std::string& store, const Trace& trace,
                             Policy policy, std::uint32_t first_step) {
  KVT_TRY(ReplayStore opened,
          ReplayStore::open(context, store, trace.shape, arena_bytes_of(trace.shape, policy)));
  Replayer replayer(trace, policy, std::move(opened));
  KVT_TRY_VOID(replayer.make_caches());
  for (std::uint32_t step = 0; step < trace.shape.steps; ++step)
    KVT_TRY_VOID(replayer.step(step, step >= first_step));
  return replayer.finish(trace.shape.steps - first_step);
}

Result<double> run_stream(const Context& context, const std::string& store, const TraceShape& shape,
                          std::uint32_t first_layer, std::uint32_t layers) {
  KVT_TRY(const ReplayStore opened,
          ReplayStore::open(context, store, shape, arena_bytes_of(shape, Policy::kRows)));
  const double start = seconds_now();
  for (std::uint32_t i = 0; i < layers; ++i) {
    const std::uint32_t layer = (first_layer + i) % shape.layers;
    const ChunkRange range(opened.sequence().directory().segments(), opened.geometry(), layer, 0,
                           shape.tokens);
    ChunkStreamOptions options;
    options.total = range.entries();
    options.granule = range.groups();
    options.slot_bytes = opened.geometry().slot_bytes(layer);
    FetchTally tally;
    KVT_TRY_VOID(opened.sequence().chunk_stream(&tally).run(
        options, [&](std::uint64_t at) { return range.entry(at); },
        [](std::uint64_t, std::uint64_t, const Fetch&) -> Result<void> { return {}; }));
  }
  const double disk = (seconds_now() - start) / layers * shape.layers * kStreamFromDisk;
  const auto bytes = static_cast<double>(shape.kv_bytes());
  return std::max(disk, bytes / kLinkBytesPerS) + bytes / kDeviceBytesPerS;
}

}  // namespace kvtier::bench
