// SlotCache: the client's own rows of one (layer, KV head), a fixed number, least recently used out
// first.
//
// A slot holds one row: K bytes, then V bytes. A step goes: select(tokens) says which rows are
// missing and where they belong; the owner copies them there (gather_rows); complete() makes them
// resident; rows() is then what attend() reads. Between select() and complete() the missing slots
// hold rubbish: on any failure call abandon(). Rows of the current selection are never evicted by
// it. All memory is taken at construction: nothing here grows with the sequence. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/kernel_table.h"

namespace kvtier {

struct SlotCacheOptions {
  std::uint64_t capacity_rows = 0;  // 1 to 2^30
  std::uint32_t k_row_bytes = 0;
  std::uint32_t v_row_bytes = 0;
  Dtype dtype = Dtype::kF32;
  [[nodiscard]] Result<void> validate() const noexcept;
};

class SlotCache {
 public:
  // kFull where the memory cannot be had.
  [[nodiscard]] static Result<SlotCache> make(const SlotCacheOptions& options);
  SlotCache(SlotCache&&) = default;
  SlotCache& operator=(SlotCache&&) = default;

  // Rows that must be brought, in token order: K of missing token i goes to data() + offsets[i], V
  // to data()
  // + offsets[i] + k_row_bytes. Valid until the next call that changes the cache.
  struct Missing {
    std::span<const std::uint32_t> tokens;
    std::span<const std::uint64_t> offsets;
  };

  // Makes `tokens` (strictly ascending) the current selection and gives slots to those that are not
  // resident, taking the least recently used rows outside the selection. Recency after it: resident
  // ones in token order, then missing ones in token order, the last the most recent. kTooLarge
  // where more tokens than slots; kInvalid where out of order, or while an earlier selection waits
  // for complete() or abandon(); then nothing has changed.
  [[nodiscard]] Result<Missing> select(std::span<const std::uint32_t> tokens);
  // The missing rows are in place.
  void complete() noexcept;
  // The missing rows did not come: their slots are free again, there is no current selection,
  // residents stay.
  void abandon() noexcept;

  // Forgets all rows of tokens from `first_token` on, and the current selection; also one that
  // waits.
  void truncate(std::uint64_t first_token) noexcept;

  // The current selection for attend(): page i is the row of the i-th token. Empty before
  // complete().
  [[nodiscard]] RowPages rows() const noexcept;
  [[nodiscard]] std::uint64_t row_count() const noexcept { return waiting_ ? 0 : pages_.size(); }

  // Token of the i-th row of the current selection.
  [[nodiscard]] std::uint32_t selected(std::uint64_t i) const noexcept;

  [[nodiscard]] std::byte* data() const noexcept { return rows_.get(); }
  // Resident (a row that was completed).
  [[nodiscard]] bool contains(std::uint32_t token) const noexcept;
  [[nodiscard]] std::uint64_t resident_rows() const noexcept;
  [[nodiscard]] std::uint64_t capacity_rows() const noexcept { return options_.capacity_rows; }
  // Private memory: rows and tables.
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept { return memory_bytes_; }

 private:
  struct FreeBytes {
    FreeBytes() noexcept : size_bytes(0) {}
    explicit FreeBytes(std::uint64_t size) noexcept : size_bytes(size) {}
    std::uint64_t size_bytes;
    void operator()(std::byte* bytes) const noexcept;
  };
  static constexpr std::uint32_t kNone = UINT32_MAX;
  static constexpr std::uint64_t kMissingPage = UINT64_MAX;
  struct Slot {
    std::uint32_t token = 0;
    std::uint32_t older = kNone;  // list by recency; free slots are chained by `newer`
    std::uint32_t newer = kNone;
  };

  explicit SlotCache(const SlotCacheOptions& options);
  [[nodiscard]] std::uint64_t home_of(std::uint32_t token) const noexcept;
  [[nodiscard]] std::uint32_t find(std::uint32_t token) const noexcept;
  void map_insert(std::uint32_t token, std::uint32_t slot) noexcept;
  void map_erase(std::uint32_t token) noexcept;
  void unlink(std::uint32_t slot) noexcept;
  void link_newest(std::uint32_t slot) noexcept;
  [[nodiscard]] std::uint32_t take_slot() noexcept;  // a free one, or the oldest, unmapped
  void release_slot(std::uint32_t slot) noexcept;    // unmaps and frees
  [[nodiscard]] std::uint64_t offset_of(std::uint32_t slot) const noexcept {
    return slot * row_bytes_;
  }

  SlotCacheOptions options_;
  std::uint64_t row_bytes_ = 0;  // K and V, rounded up to 64
  std::uint64_t memory_bytes_ = 0;
  std::unique_ptr<std::byte, FreeBytes> rows_;
  std::vector<Slot> slots_;
  // Token -> slot by open addressing; kNone: empty; a power of two, at most half full.
  std::vector<std::uint32_t> map_;
  std::uint32_t oldest_ = kNone;
  std::uint32_t newest_ = kNone;
  std::uint32_t free_ = kNone;
  std::uint64_t used_ = 0;  // slots on the list
  bool waiting_ = false;    // between select() and complete() with rows missing
  std::vector<std::uint64_t> pages_;
  std::vector<std::uint32_t> missing_tokens_;
  std::vector<std::uint64_t> missing_offsets_;
};

}  // namespace kvtier
