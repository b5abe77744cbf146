#include "tools/bench/replay_count.h"

#include <algorithm>
#include <memory>

#include "base/limits.h"
#include "client/device/slot_cache.h"
#include "tiers/host_arena.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kRunRows = 16;
constexpr std::uint32_t kTouchSteps = 8;              // as client/view_touch.cc
constexpr std::uint64_t kBatchBytes = 8ull << 20;     // as client/chunk_stream.h
constexpr std::uint64_t kLeasedBytes = 512ull << 20;  // as ReplayStore
constexpr std::uint32_t kSegmentChunks = kSegmentTokensMax / kChunkRows;

// The chunks of `tokens` where rows lie at `places`, ascending, each once.
void chunks_at(const Places& places, std::span<const std::uint32_t> tokens,
               std::vector<std::uint32_t>* chunks) {
  chunks->clear();
  for (const std::uint32_t token : tokens) chunks->push_back(places[token] / kChunkRows);
  std::sort(chunks->begin(), chunks->end());
  chunks->erase(std::unique(chunks->begin(), chunks->end()), chunks->end());
}

}  // namespace

// The daemon's arena without anything in it, and what its fetcher does with it.
class ReadCounter::Arena {
 public:
  static Result<std::unique_ptr<Arena>> make(const TraceShape& shape, std::uint64_t bytes) {
    std::unique_ptr<Arena> made(new Arena(shape, bytes));
    HostArenaOptions options;
    options.size_bytes = bytes;
    options.huge_pages = false;
    KVT_TRY(made->arena_, HostArena::make(options, [arena = made.get()](SlotOwner owner, SlotId) {
              arena->slots_[owner.chunk_index] = {};
            }));
    return made;
  }

  // A chunk by its head and its place among the head's.
  [[nodiscard]] std::uint32_t id(std::uint32_t head, std::uint32_t chunk) const noexcept {
    return head * head_chunks_ + chunk;
  }

  // Batch after batch, the next one asked for before the rows of the one before are let go.
  Result<void> fetch(std::span<const std::uint32_t> chunks) {
    for (std::size_t at = 0; at < chunks.size(); at += batch_) {
      KVT_TRY_VOID(submit(chunks.subspan(at, std::min(batch_, chunks.size() - at))));
      release();
      leased_.swap(taken_);
    }
    release();
    return {};
  }

  void touch(std::uint32_t chunk) {
    if (slots_[chunk].valid()) arena_->touch(slots_[chunk]);
  }

  [[nodiscard]] std::uint64_t read() const noexcept { return read_; }
  [[nodiscard]] std::uint64_t runs() const noexcept { return runs_; }
  [[nodiscard]] std::uint64_t chunks_max() const noexcept {
    return arena_->size_bytes() / slot_bytes_;
  }

 private:
  Arena(const TraceShape& shape, std::uint64_t bytes)
      : head_chunks_((shape.tokens + kChunkRows - 1) / kChunkRows),
        slot_bytes_(
            align_up<std::uint64_t>(std::uint64_t{kChunkRows} * shape.row_bytes, kDiskAlign)),
        slots_(std::size_t{head_chunks_} * shape.heads()) {
    const std::uint64_t leased = std::min(kLeasedBytes, bytes / 2);
    const std::uint64_t entries = std::min(kBatchBytes, leased / 4) / slot_bytes_;
    batch_ = static_cast<std::size_t>(std::clamp<std::uint64_t>(entries, 1, kFetchEntriesMax));
  }

  // By segments, and in a segment as its file has them: all chunks of a head, then the next one's.
  [[nodiscard]] std::uint64_t file_place(std::uint32_t chunk) const noexcept {
    const std::uint32_t head = chunk / head_chunks_, at = chunk % head_chunks_;
    const std::uint64_t heads = slots_.size() / head_chunks_;
    return (at / kSegmentChunks * heads + head) * kSegmentChunks + at % kSegmentChunks;
  }
  [[nodiscard]] std::uint32_t segment(std::uint32_t chunk) const noexcept {
    return chunk % head_chunks_ / kSegmentChunks;
  }

  Result<void> submit(std::span<const std::uint32_t> chunks) {
    missing_.clear();
    for (const std::uint32_t chunk : chunks) {
      const SlotId slot = slots_[chunk];
      if (!slot.valid()) {
        missing_.push_back(chunk);
        continue;
      }
      arena_->touch(slot);
      arena_->lease(slot);
      taken_.push_back(slot);
    }
    std::sort(missing_.begin(), missing_.end(),
              [this](std::uint32_t a, std::uint32_t b) { return file_place(a) < file_place(b); });
    for (std::size_t i = 0; i < missing_.size(); ++i) {
      const std::uint32_t chunk = missing_[i], before = missing_[i == 0 ? 0 : i - 1];
      const bool same_file = i > 0 && segment(before) == segment(chunk);
      const SlotId near = same_file ? slots_[before] : SlotId{};
      KVT_TRY(slots_[chunk], arena_->allocate(slot_bytes_, {segment(chunk) + 1u, chunk}, near));
      if (!same_file || file_place(before) + 1 != file_place(chunk)) ++runs_;
    }
    for (const std::uint32_t chunk : missing_) {
      arena_->set_ready(slots_[chunk]);
      arena_->lease(slots_[chunk]);
      taken_.push_back(slots_[chunk]);
    }
    read_ += missing_.size();
    return {};
  }

  void release() {
    for (const SlotId slot : leased_) arena_->release(slot);
    leased_.clear();
  }

  std::uint32_t head_chunks_;
  std::uint64_t slot_bytes_;
  std::vector<SlotId> slots_;  // by chunk; invalid: not in the arena
  std::size_t batch_ = 1;
  std::unique_ptr<HostArena> arena_;
  std::vector<std::uint32_t> missing_;
  std::vector<SlotId> leased_, taken_;
  std::uint64_t read_ = 0, runs_ = 0;
};

std::uint64_t ReadCounter::slot_rows() const noexcept {
  const TraceShape& shape = trace_->shape;
  const std::uint64_t rows =
      ask_ == Ask::kHot ? std::max(shape.budget / 2, 64u) : std::uint64_t{2} * shape.budget;
  return std::min<std::uint64_t>(rows, shape.tokens);
}

Result<ReadCounter> ReadCounter::make(const Trace& trace, Ask ask, std::uint64_t arena_bytes) {
  ReadCounter counter(trace, ask, arena_bytes);
  SlotCacheOptions options;
  options.capacity_rows = counter.slot_rows();
  options.k_row_bytes = options.v_row_bytes = 1;
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t head = 0; head < trace.shape.heads(); ++head) {
    KVT_TRY(SlotCache cache, SlotCache::make(options));
    counter.missing_.emplace_back();
    for (std::uint32_t step = 0; step < trace.shape.steps; ++step) {
      counter.choose(step, head, &tokens);
      KVT_TRY(const SlotCache::Missing missing, cache.select(tokens));
      counter.missing_.back().add(missing.tokens);
      cache.complete();
    }
  }
  return counter;
}

void ReadCounter::choose(std::uint32_t step, std::uint32_t head,
                         std::vector<std::uint32_t>* tokens) const {
  const TraceShape& shape = trace_->shape;
  const std::size_t lane = ask_ == Ask::kRuns ? shape.lane_of(kRunRows) : 0;
  tokens->clear();
  for (const std::uint32_t unit :
       trace_->units(step, head / shape.kv_heads, head % shape.kv_heads, lane)) {
    if (ask_ != Ask::kRuns) {
      if (ask_ == Ask::kRows || (unit & kHotRow) != 0) tokens->push_back(unit & ~kHotRow);
      continue;
    }
    for (std::uint32_t i = 0; i < kRunRows && tokens->size() < shape.budget; ++i)
      if (unit * kRunRows + i < shape.tokens) tokens->push_back(unit * kRunRows + i);
  }
}

StepRows ReadCounter::missing(std::uint32_t head, std::uint32_t first, std::uint32_t last) const {
  StepRows rows;
  for (std::uint32_t step = first; step < last; ++step) rows.push_back(missing_[head].units(step));
  return rows;
}

Result<CountedReads> ReadCounter::count(const std::vector<Places>& places,
                                        std::uint32_t first_step) const {
  const TraceShape& shape = trace_->shape;
  KVT_TRY(const std::unique_ptr<Arena> arena, Arena::make(shape, arena_bytes_));
  CountedReads counted;
  counted.arena_chunks = arena->chunks_max();
  std::vector<std::uint32_t>& asked = counted.references.chunks;
  std::vector<std::uint32_t> chunks, tokens;
  std::uint64_t read_before = 0, runs_before = 0, asked_before = 0;
  for (std::uint32_t step = 0; step < shape.steps; ++step) {
    if (step == first_step) {
      read_before = arena->read();
      runs_before = arena->runs();
      asked_before = asked.size();
    }
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
      const std::size_t begin = asked.size();
      const std::uint32_t first_head = layer * shape.kv_heads;
      for (std::uint32_t head = first_head; head < first_head + shape.kv_heads; ++head) {
        chunks_at(places[head], missing_[head].units(step), &chunks);
        for (const std::uint32_t chunk : chunks) asked.push_back(arena->id(head, chunk));
      }
      KVT_TRY_VOID(arena->fetch(std::span(asked).subspan(begin)));
      if (ask_ == Ask::kHot || step % kTouchSteps != 0) continue;
      for (std::uint32_t head = first_head; head < first_head + shape.kv_heads; ++head) {
        choose(step, head, &tokens);
        chunks_at(places[head], tokens, &chunks);
        for (const std::uint32_t chunk : chunks) arena->touch(arena->id(head, chunk));
      }
    }
    counted.references.step_ends.push_back(asked.size());
  }
  const double steps = shape.steps - first_step;
  counted.asked = static_cast<double>(asked.size() - asked_before) / steps;
  counted.read = static_cast<double>(arena->read() - read_before) / steps;
  counted.runs = static_cast<double>(arena->runs() - runs_before) / steps;
  return counted;
}

}  // namespace kvtier::bench
