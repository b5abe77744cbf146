// HostArena: chunks in shared host memory. A sealed memfd, mapped read-only by clients, cut into 2
// MiB pages; each page holds slots of one size. The arena never grows; what does not fit must wait
// for a slot or evict one. One thread.
//
// A slot is free, filling (the disk writes into it), or ready. Ready slots with leases or a pin are
// never reused; the others are kept in eviction order: segmented LRU with a probation share and a
// ghost list (tiers/eviction.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "tiers/eviction.h"

namespace kvtier {

struct SlotId {
  std::uint32_t value = UINT32_MAX;
  [[nodiscard]] bool valid() const noexcept { return value != UINT32_MAX; }
  friend bool operator==(const SlotId&, const SlotId&) = default;
};

// Who lives in a slot: told back when it is evicted.
struct SlotOwner {
  std::uint64_t segment = 0;
  std::uint32_t chunk_index = 0;  // plane order
  [[nodiscard]] std::uint64_t key() const noexcept {
    return segment * 0x9E3779B97F4A7C15ull ^ chunk_index;
  }
};

struct HostArenaOptions {
  std::uint64_t size_bytes = 1ull << 30;  // rounded down to whole pages; at least one
  bool huge_pages = true;                 // asked for; given() says what came
  std::uint32_t probation_percent = 40;   // of the eviction order, for newcomers
};

struct HostArenaStats {
  std::uint64_t size_bytes = 0, used_bytes = 0, leased_bytes = 0, pinned_bytes = 0;
  std::uint64_t slots_ready = 0, evictions = 0, ghost_hits = 0;
  const char* pages = "4 KiB";
};

class HostArena {
 public:
  // Called before a ready slot is reused; the owner forgets it.
  using Evicted = std::function<void(SlotOwner owner, SlotId slot)>;

  [[nodiscard]] static Result<std::unique_ptr<HostArena>> make(const HostArenaOptions& options,
                                                               Evicted evicted);
  ~HostArena();

  // A slot of `slot_bytes` (a multiple of kDiskAlign) in state filling; evicts where needed. kFull
  // where everything is leased, pinned or filling. `near`: takes the slot just behind this one if
  // it is free or cold and of the same size, so that neighbours in a file become neighbours in
  // memory and one read fills both.
  [[nodiscard]] Result<SlotId> allocate(std::uint64_t slot_bytes, SlotOwner owner,
                                        SlotId near = {});
  void set_ready(SlotId slot);
  // Gives a filling or unleased ready slot back without telling its owner.
  void free(SlotId slot);

  // Leases count: a slot with one is neither evicted nor freed. Ready slots only.
  void lease(SlotId slot);
  void release(SlotId slot);
  // A pinned slot is not evicted (private segments); it stays pinned until it is freed.
  void pin(SlotId slot);
  // Marks use: moves it in the eviction order.
  void touch(SlotId slot);
  // Marks that it is not needed: the next to be reused.
  void cool(SlotId slot);

  [[nodiscard]] std::byte* data(SlotId slot) const noexcept;
  [[nodiscard]] std::uint64_t offset(SlotId slot) const noexcept;  // in the memfd
  [[nodiscard]] std::uint64_t slot_bytes(SlotId slot) const noexcept;
  [[nodiscard]] int fd() const noexcept;
  [[nodiscard]] std::byte* base() const noexcept;
  [[nodiscard]] std::uint64_t size_bytes() const noexcept;
  [[nodiscard]] HostArenaStats stats() const;

 private:
  HostArena();
  struct State;
  std::unique_ptr<State> state_;
};

// Abstracts of attached segments: first-fit extents in a sealed memfd of its own, with a limit of
// its own. One thread.
class AbstractArena {
 public:
  [[nodiscard]] static Result<std::unique_ptr<AbstractArena>> make(std::uint64_t size_bytes);
  ~AbstractArena();
  // Offset of a free extent (a multiple of 64); kFull where there is none.
  [[nodiscard]] Result<std::uint64_t> allocate(std::uint64_t size_bytes);
  void free(std::uint64_t offset);
  [[nodiscard]] std::byte* data(std::uint64_t offset) const noexcept;
  [[nodiscard]] int fd() const noexcept;
  [[nodiscard]] std::uint64_t size_bytes() const noexcept;
  [[nodiscard]] std::uint64_t used_bytes() const noexcept;

 private:
  AbstractArena();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvtier
