// ChunkStream: reads many chunks in bounded batches; the next batch is under way while the current
// one is used.
//
// A batch is leased only while `use` runs. Where the daemon says kFull the batches become smaller;
// a single granule that still does not fit is tried again until the deadline, because other
// threads' leases end soon. One thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "client/fetch.h"
#include "client/last_error.h"

namespace kvtier {

struct FetchTally {
  std::uint64_t chunks = 0;  // entries asked for
  std::uint64_t bytes_disk = 0;
  std::uint64_t wait_ns = 0;
};

struct ChunkStreamOptions {
  std::uint64_t total = 0;    // entries
  std::uint64_t granule = 1;  // batches are multiples of it
  std::uint64_t slot_bytes = 0;
  Priority priority = Priority::kDemand;
};

class ChunkStream {
 public:
  static constexpr std::uint64_t kBatchBytes = 8ull << 20;
  static constexpr std::uint64_t kWaitMs = 60'000;

  ChunkStream(std::shared_ptr<Connection> connection, std::uint32_t handle, FetchTally* tally)
      : connection_(std::move(connection)), handle_(handle), tally_(tally) {}

  // `entry_at(i)` gives the i-th FetchEntry; calls go upwards, repeating a batch now and then.
  // `use(first, count, fetch)` gets batches in order; every entry's chunk() is there. Its error
  // ends the stream. kMiss where a chunk is not stored any more or failed its checksum.
  template <class EntryAt, class Use>
  [[nodiscard]] Result<void> run(const ChunkStreamOptions& options, EntryAt&& entry_at, Use&& use) {
    const Deadline deadline = Deadline::after_ms(kWaitMs);
    std::uint64_t batch = first_batch(options);
    std::uint64_t position = 0;
    std::optional<Batch> current, next;
    while (position < options.total) {
      if (!current) {
        KVT_TRY_VOID(submit(options, position, batch, true, entry_at, &current));
      }
      const std::uint64_t after = position + current->count;
      if (after < options.total) {
        const auto ahead = submit(options, after, batch, false, entry_at, &next);
        if (!ahead && ahead.error().code != Code::kBusy) return ahead;
      }
      const auto done = finish(options, &*current, deadline);
      if (!done && done.error().code == Code::kFull && !deadline.passed()) {
        current.reset();
        next.reset();
        if (batch == options.granule) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        batch = std::max(options.granule, batch / 2 / options.granule * options.granule);
        continue;
      }
      if (!done) return done;
      KVT_TRY_VOID(use(position, current->count, current->fetch));
      position = after;
      current.reset();
      if (next) current.emplace(std::move(*next));
      next.reset();
    }
    return {};
  }

 private:
  struct Batch {
    Fetch fetch;
    std::uint64_t count;
  };

  [[nodiscard]] std::uint64_t first_batch(const ChunkStreamOptions& options) const noexcept {
    const ConnectionLimits& limits = connection_->limits();
    const std::uint64_t bytes = std::min(kBatchBytes, limits.leased_bytes / 4);
    const std::uint64_t entries = std::min(limits.fetch_entries, bytes / options.slot_bytes);
    return std::max(options.granule, entries / options.granule * options.granule);
  }

  template <class EntryAt>
  Result<void> submit(const ChunkStreamOptions& options, std::uint64_t position,
                      std::uint64_t batch, bool block, EntryAt&& entry_at,
                      std::optional<Batch>* out) {
    const std::uint64_t count = std::min(batch, options.total - position);
    entries_.clear();
    for (std::uint64_t i = 0; i < count; ++i) entries_.push_back(entry_at(position + i));
    KVT_TRY(Fetch fetch, Fetch::submit(connection_, handle_, entries_, options.priority, block));
    out->emplace(Batch{std::move(fetch), count});
    tally_->chunks += count;
    return {};
  }

  Result<void> finish(const ChunkStreamOptions& options, Batch* batch, const Deadline& deadline) {
    const auto start = Deadline::Clock::now();
    const auto done = batch->fetch.wait(deadline);
    tally_->wait_ns += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(Deadline::Clock::now() - start)
            .count());
    if (!done) return done;
    tally_->bytes_disk += batch->fetch.bytes_disk();
    for (std::uint64_t i = 0; i < batch->count; ++i) {
      const Code code = batch->fetch.status(i);
      if (code == Code::kOk && batch->fetch.chunk(i, options.slot_bytes) != nullptr) continue;
      if (code == Code::kOk)
        return error(Code::kProtocol, "the daemon named a slot outside its arena");
      return error(code,
                   code == Code::kMiss
                       ? "a chunk is not stored any more, or its checksum failed (`kvtier verify`)"
                   : code == Code::kVersion ? "stored by a newer kvtier: upgrade this one"
                                            : nullptr);
    }
    return {};
  }

  std::shared_ptr<Connection> connection_;
  std::uint32_t handle_;
  FetchTally* tally_;
  std::vector<FetchEntry> entries_;
};

}  // namespace kvtier
