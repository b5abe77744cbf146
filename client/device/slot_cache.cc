#include "client/device/slot_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvtier {
namespace {
constexpr std::uint64_t kRowAlign = 64;
}  // namespace

Result<void> SlotCacheOptions::validate() const noexcept {
  if (capacity_rows == 0 || capacity_rows > (1ull << 30))
    return error(Code::kInvalid, "a slot cache holds 1 to 2^30 rows");
  if (k_row_bytes == 0 || k_row_bytes > kRowBytesMax || v_row_bytes > kRowBytesMax)
    return error(Code::kTooLarge, "a row of K or V has 1 to 16384 bytes");
  return {};
}

void SlotCache::FreeBytes::operator()(std::byte* bytes) const noexcept {
  if (bytes != nullptr) ::munmap(bytes, size_bytes);
}

Result<SlotCache> SlotCache::make(const SlotCacheOptions& options) {
  KVT_TRY_VOID(options.validate());
  SlotCache cache(options);
  const std::uint64_t size_bytes = options.capacity_rows * cache.row_bytes_;
  void* memory = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return error(Code::kFull, "no memory for the slot cache; lower the budget or capacity");
  cache.rows_ = {static_cast<std::byte*>(memory), FreeBytes(size_bytes)};
  cache.memory_bytes_ =
      size_bytes + cache.slots_.capacity() * sizeof(Slot) +
      (cache.map_.capacity() + cache.missing_tokens_.capacity()) * sizeof(std::uint32_t) +
      (cache.pages_.capacity() + cache.missing_offsets_.capacity()) * sizeof(std::uint64_t);
  return cache;
}

SlotCache::SlotCache(const SlotCacheOptions& options)
    : options_(options),
      row_bytes_(align_up<std::uint64_t>(std::uint64_t{options.k_row_bytes} + options.v_row_bytes,
                                         kRowAlign)) {
  const std::size_t rows = static_cast<std::size_t>(options.capacity_rows);
  slots_.resize(rows);
  map_.assign(std::bit_ceil(2 * rows), kNone);
  pages_.reserve(rows);
  missing_tokens_.reserve(rows);
  missing_offsets_.reserve(rows);
  for (std::uint32_t i = 0; i < rows; ++i) slots_[i].newer = i + 1 < rows ? i + 1 : kNone;
  free_ = 0;
}

Result<SlotCache::Missing> SlotCache::select(std::span<const std::uint32_t> tokens) {
  if (waiting_) return error(Code::kInvalid, "the selection before waits for its rows");
  if (tokens.size() > options_.capacity_rows)
    return error(Code::kTooLarge, "more rows are selected than the slot cache holds");
  for (std::size_t i = 1; i < tokens.size(); ++i)
    if (tokens[i - 1] >= tokens[i])
      return error(Code::kInvalid, "selected tokens must be strictly ascending");
  if (!tokens.empty() && tokens.back() == kNone) return error(Code::kInvalid, "no such token");

  pages_.clear();
  missing_tokens_.clear();
  missing_offsets_.clear();
  for (const std::uint32_t token : tokens) {
    const std::uint32_t slot = find(token);
    pages_.push_back(slot == kNone ? kMissingPage : offset_of(slot));
    if (slot == kNone) {
      missing_tokens_.push_back(token);
    } else {
      unlink(slot);
      link_newest(slot);
    }
  }
  // The rows in use are now the newest, so what is taken from the old end is not among them.
  std::size_t next = 0;
  for (std::uint64_t& page : pages_) {
    if (page != kMissingPage) continue;
    const std::uint32_t slot = take_slot();
    slots_[slot].token = missing_tokens_[next++];
    map_insert(slots_[slot].token, slot);
    link_newest(slot);
    page = offset_of(slot);
    missing_offsets_.push_back(page);
  }
  waiting_ = !missing_tokens_.empty();
  return Missing{missing_tokens_, missing_offsets_};
}

void SlotCache::complete() noexcept { waiting_ = false; }

void SlotCache::abandon() noexcept {
  if (waiting_)
    for (const std::uint32_t token : missing_tokens_) release_slot(find(token));
  waiting_ = false;
  pages_.clear();
  missing_tokens_.clear();
  missing_offsets_.clear();
}

void SlotCache::truncate(std::uint64_t first_token) noexcept {
  abandon();
  for (std::uint32_t slot = oldest_; slot != kNone;) {
    const std::uint32_t newer = slots_[slot].newer;
    if (slots_[slot].token >= first_token) release_slot(slot);
    slot = newer;
  }
}

std::uint32_t SlotCache::selected(std::uint64_t i) const noexcept {
  return slots_[static_cast<std::size_t>(pages_[static_cast<std::size_t>(i)] / row_bytes_)].token;
}

RowPages SlotCache::rows() const noexcept {
  RowPages rows;
  rows.base = rows_.get();
  rows.pages = pages_.data();
  rows.page_tokens = 1;
  rows.k_stride = row_bytes_;
  rows.v_offset = options_.k_row_bytes;
  rows.v_stride = row_bytes_;
  rows.dtype = options_.dtype;
  return rows;
}

bool SlotCache::contains(std::uint32_t token) const noexcept {
  if (find(token) == kNone) return false;
  return !waiting_ || !std::binary_search(missing_tokens_.begin(), missing_tokens_.end(), token);
}

std::uint64_t SlotCache::resident_rows() const noexcept {
  return used_ - (waiting_ ? missing_tokens_.size() : 0);
}

// ---- token -> slot: linear probing; an erased place is filled from behind, so there are no
// tombstones ----

std::uint64_t SlotCache::home_of(std::uint32_t token) const noexcept {
  return (token * 0x9E3779B97F4A7C15ull >> 32) & (map_.size() - 1);
}

std::uint32_t SlotCache::find(std::uint32_t token) const noexcept {
  for (std::uint64_t i = home_of(token); map_[i] != kNone; i = (i + 1) & (map_.size() - 1))
    if (slots_[map_[i]].token == token) return map_[i];
  return kNone;
}

void SlotCache::map_insert(std::uint32_t token, std::uint32_t slot) noexcept {
  std::uint64_t i = home_of(token);
  while (map_[i] != kNone) i = (i + 1) & (map_.size() - 1);
  map_[i] = slot;
}

void SlotCache::map_erase(std::uint32_t token) noexcept {
  const std::uint64_t mask = map_.size() - 1;
  std::uint64_t hole = home_of(token);
  while (slots_[map_[hole]].token != token) hole = (hole + 1) & mask;
  for (std::uint64_t i = (hole + 1) & mask; map_[i] != kNone; i = (i + 1) & mask) {
    // An entry may move back to the hole unless that would put it before its home.
    const std::uint64_t home = home_of(slots_[map_[i]].token);
    if (((i - home) & mask) < ((i - hole) & mask)) continue;
    map_[hole] = map_[i];
    hole = i;
  }
  map_[hole] = kNone;
}

// ---- recency ----

void SlotCache::unlink(std::uint32_t slot) noexcept {
  const Slot& one = slots_[slot];
  (one.older == kNone ? oldest_ : slots_[one.older].newer) = one.newer;
  (one.newer == kNone ? newest_ : slots_[one.newer].older) = one.older;
  --used_;
}

void SlotCache::link_newest(std::uint32_t slot) noexcept {
  slots_[slot].older = newest_;
  slots_[slot].newer = kNone;
  (newest_ == kNone ? oldest_ : slots_[newest_].newer) = slot;
  newest_ = slot;
  ++used_;
}

std::uint32_t SlotCache::take_slot() noexcept {
  if (free_ == kNone) release_slot(oldest_);
  const std::uint32_t slot = free_;
  free_ = slots_[slot].newer;
  return slot;
}

void SlotCache::release_slot(std::uint32_t slot) noexcept {
  KVT_CHECK(slot != kNone);
  map_erase(slots_[slot].token);
  unlink(slot);
  slots_[slot].newer = free_;
  free_ = slot;
}

}  // namespace kvtier
