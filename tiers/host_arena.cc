// Pages carry slots of one class (a slot size in units of kDiskAlign). Whatever a slot goes through
// is counted in its page: `used` slots are not free, `busy` ones of them may not be evicted
// (filling, leased or pinned). A page whose used slots are all idle can be given to another class
// as a whole; a page without used slots belongs to no class.
//
// Slot number = page * kPageSlots + index, so that an id says where its slot is without a table.
// The eviction order holds ready slots that are not pinned. A leased slot that is met at the cold
// end is parked outside the order until its last lease ends, so that no allocation passes it twice.
#include "tiers/host_arena.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"

namespace kvtier {

namespace {

constexpr std::uint32_t kNone = UINT32_MAX;
constexpr std::uint32_t kPageSlots = kArenaPageBytes / kDiskAlign;  // of the smallest class
constexpr std::uint32_t kClasses = kPageSlots;  // class c has slots of (c + 1) * kDiskAlign
constexpr std::uint32_t kColdScan =
    64;  // how far from the cold end a slot of the right class is preferred
constexpr std::uint32_t kGhostsMax = 1u << 18;
constexpr std::uint64_t kPagesMax = UINT32_MAX / kPageSlots;

enum class SlotState : std::uint8_t { kFree, kFilling, kReady };

struct Slot {
  SlotOwner owner;
  std::uint32_t leases = 0;
  std::uint16_t pins = 0;
  SlotState state = SlotState::kFree;
  bool parked = false;  // ready, unpinned, leased, not in the eviction order
  [[nodiscard]] bool busy() const noexcept {
    return state == SlotState::kFilling || leases > 0 || pins > 0;
  }
};

struct Page {
  std::unique_ptr<Slot[]> slots;                      // null: no class
  std::array<std::uint64_t, kPageSlots / 64> free{};  // bit set: slot is free
  std::uint32_t previous = kNone, next = kNone;  // in its class's list of pages with free slots
  std::uint16_t slot_class = 0;
  std::uint16_t count = 0, used = 0, busy = 0;
  bool listed = false;
};

// True where the kernel backs the first page of the mapping by a huge one. The page is touched: it
// is the first to be used anyway. The mapping is empty otherwise, so reading smaps is cheap.
bool huge_page_given(std::byte* base) {
  std::memset(base, 0, 1);
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    std::uint64_t begin = 0, end = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &begin, &end) == 2) {
      const auto address = reinterpret_cast<std::uint64_t>(base);
      inside = begin <= address && address < end;
    } else if (inside && std::sscanf(line.c_str(), "ShmemPmdMapped: %" SCNu64, &kib) == 1) {
      return kib > 0;
    }
  }
  return false;
}

}  // namespace

struct HostArena::State {
  State(Memfd made, std::uint32_t page_count, std::uint32_t probation_percent, Evicted on_evicted)
      : memfd(std::move(made)),
        evicted(std::move(on_evicted)),
        pages(page_count),
        order(page_count * kPageSlots, probation_percent,
              std::min(page_count * kPageSlots, kGhostsMax)),
        free_pages((page_count + 63) / 64) {
    class_head.fill(kNone);
    for (std::uint32_t page = 0; page < page_count; ++page)
      free_pages[page / 64] |= 1ull << (page % 64);
    free_page_count = page_count;
  }

  Page& page_of(std::uint32_t id) { return pages[id / kPageSlots]; }
  Slot& at(std::uint32_t id) {
    KVT_CHECK(id / kPageSlots < pages.size());
    Page& page = page_of(id);
    KVT_CHECK(page.slots != nullptr && id % kPageSlots < page.count);
    return page.slots[id % kPageSlots];
  }
  [[nodiscard]] static std::uint64_t class_bytes(std::uint32_t slot_class) {
    return (std::uint64_t{slot_class} + 1) * kDiskAlign;
  }

  void list(std::uint32_t index);
  void unlist(std::uint32_t index);
  std::uint32_t take_free_page(std::uint32_t wanted);
  void give_page(std::uint32_t index, std::uint32_t slot_class);
  void take(std::uint32_t id, SlotOwner owner);
  void put_back(std::uint32_t id);
  void evict(std::uint32_t id);
  void evict_page(std::uint32_t index);
  [[nodiscard]] bool page_idle(const Page& page) const {
    return page.slots != nullptr && page.busy == 0;
  }
  void change_busy(std::uint32_t id, bool was);
  void enter_order(std::uint32_t id, Slot& slot);

  std::uint32_t successor(std::uint32_t near, std::uint32_t slot_class, bool cold);
  std::uint32_t first_free(std::uint32_t page) const;
  std::uint32_t find_free(std::uint32_t slot_class, std::uint32_t near);
  std::uint32_t make_room(std::uint32_t slot_class);
  std::uint32_t make_room_anywhere(std::uint32_t slot_class);

  Memfd memfd;
  Evicted evicted;
  std::vector<Page> pages;
  SegmentedLru order;
  std::array<std::uint32_t, kClasses> class_head{};  // pages with free slots
  std::vector<std::uint64_t> free_pages;             // bit set: page belongs to no class
  std::uint32_t free_page_count = 0;
  std::uint64_t idle_slots = 0;  // ready and not busy: without any, nothing can be evicted
  std::uint32_t cursor = 0;      // where make_room_anywhere goes on
  HostArenaStats stats;
};

void HostArena::State::list(std::uint32_t index) {
  Page& page = pages[index];
  if (page.listed) return;
  std::uint32_t& head = class_head[page.slot_class];
  page.previous = kNone;
  page.next = head;
  if (head != kNone) pages[head].previous = index;
  head = index;
  page.listed = true;
}

void HostArena::State::unlist(std::uint32_t index) {
  Page& page = pages[index];
  if (!page.listed) return;
  (page.previous != kNone ? pages[page.previous].next : class_head[page.slot_class]) = page.next;
  if (page.next != kNone) pages[page.next].previous = page.previous;
  page.previous = page.next = kNone;
  page.listed = false;
}

// The wanted page where it is free, else the lowest free one: pages that were never touched stay
// untouched longest.
std::uint32_t HostArena::State::take_free_page(std::uint32_t wanted) {
  if (free_page_count == 0) return kNone;
  const auto is_free = [&](std::uint32_t page) {
    return (free_pages[page / 64] >> (page % 64) & 1) != 0;
  };
  if (wanted < pages.size() && is_free(wanted)) return wanted;
  for (std::uint32_t word = 0; word < free_pages.size(); ++word) {
    if (free_pages[word] != 0)
      return word * 64 + static_cast<std::uint32_t>(std::countr_zero(free_pages[word]));
  }
  return kNone;
}

void HostArena::State::give_page(std::uint32_t index, std::uint32_t slot_class) {
  Page& page = pages[index];
  KVT_CHECK(page.slots == nullptr && page.used == 0);
  free_pages[index / 64] &= ~(1ull << (index % 64));
  --free_page_count;
  page.slot_class = static_cast<std::uint16_t>(slot_class);
  page.count = static_cast<std::uint16_t>(kArenaPageBytes / class_bytes(slot_class));
  page.slots = std::make_unique<Slot[]>(page.count);
  page.free.fill(0);
  for (std::uint32_t slot = 0; slot < page.count; ++slot)
    page.free[slot / 64] |= 1ull << (slot % 64);
  list(index);
}

// A free slot becomes a filling one.
void HostArena::State::take(std::uint32_t id, SlotOwner owner) {
  Page& page = page_of(id);
  Slot& slot = at(id);
  KVT_CHECK(slot.state == SlotState::kFree);
  slot =
      Slot{.owner = owner, .leases = 0, .pins = 0, .state = SlotState::kFilling, .parked = false};
  const std::uint32_t index = id % kPageSlots;
  page.free[index / 64] &= ~(1ull << (index % 64));
  ++page.used;
  ++page.busy;
  if (page.used == page.count) unlist(id / kPageSlots);
  stats.used_bytes += class_bytes(page.slot_class);
}

// A slot that nobody may evict or lease any more (it left the order) becomes free; so does its page
// after the last one.
void HostArena::State::put_back(std::uint32_t id) {
  Page& page = page_of(id);
  Slot& slot = at(id);
  if (slot.busy()) --page.busy;
  if (slot.pins > 0) stats.pinned_bytes -= class_bytes(page.slot_class);
  if (slot.state == SlotState::kReady) --stats.slots_ready;
  stats.used_bytes -= class_bytes(page.slot_class);
  slot = Slot{};
  const std::uint32_t index = id % kPageSlots;
  page.free[index / 64] |= 1ull << (index % 64);
  --page.used;
  if (page.used > 0) {
    list(id / kPageSlots);
    return;
  }
  unlist(id / kPageSlots);
  page.slots.reset();
  free_pages[id / kPageSlots / 64] |= 1ull << (id / kPageSlots % 64);
  ++free_page_count;
}

void HostArena::State::evict(std::uint32_t id) {
  Slot& slot = at(id);
  KVT_CHECK(slot.state == SlotState::kReady && !slot.busy());
  order.evict(id);
  --idle_slots;
  ++stats.evictions;
  const SlotOwner owner = slot.owner;
  put_back(id);
  if (evicted) evicted(owner, SlotId{id});
}

void HostArena::State::evict_page(std::uint32_t index) {
  const std::uint32_t count = pages[index].count;
  for (std::uint32_t slot = 0; slot < count && pages[index].slots != nullptr; ++slot) {
    if (pages[index].slots[slot].state == SlotState::kReady) evict(index * kPageSlots + slot);
  }
  KVT_CHECK(pages[index].slots == nullptr);
}

// After a lease or pin came or went; `was` is what busy() said before.
void HostArena::State::change_busy(std::uint32_t id, bool was) {
  const bool is = at(id).busy();
  if (was == is) return;
  Page& page = page_of(id);
  is ? ++page.busy : --page.busy;
  is ? --idle_slots : ++idle_slots;
}

void HostArena::State::enter_order(std::uint32_t id, Slot& slot) {
  slot.parked = false;
  order.insert(id, slot.owner.key());
}

// The slot behind `near` in memory, where it is of the same class and free, or (if `cold`) may be
// evicted early.
std::uint32_t HostArena::State::successor(std::uint32_t near, std::uint32_t slot_class, bool cold) {
  if (near == kNone || near / kPageSlots >= pages.size()) return kNone;
  const Page& page = page_of(near);
  if (page.slots == nullptr || page.slot_class != slot_class) return kNone;
  std::uint32_t id = near + 1;
  if (id % kPageSlots >= page.count || id % kPageSlots == 0) {
    if (page.count * class_bytes(slot_class) != kArenaPageBytes)
      return kNone;  // a gap at the page's end
    id = (near / kPageSlots + 1) * kPageSlots;
    if (id / kPageSlots >= pages.size()) return kNone;
    const Page& behind = page_of(id);
    if (behind.slots == nullptr) {
      give_page(id / kPageSlots, slot_class);
      return id;
    }
    if (behind.slot_class != slot_class) return kNone;
  }
  const Slot& slot = at(id);
  if (slot.state == SlotState::kFree) return id;
  return cold && !slot.busy() && order.in_probation(id) ? id : kNone;
}

std::uint32_t HostArena::State::first_free(std::uint32_t page) const {
  for (std::uint32_t word = 0; word < pages[page].free.size(); ++word) {
    if (const std::uint64_t bits = pages[page].free[word]; bits != 0)
      return page * kPageSlots + word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
  }
  return kNone;
}

std::uint32_t HostArena::State::find_free(std::uint32_t slot_class, std::uint32_t near) {
  if (class_head[slot_class] != kNone) return first_free(class_head[slot_class]);
  const std::uint32_t page = take_free_page(near == kNone ? kNone : near / kPageSlots + 1);
  if (page == kNone) return kNone;
  give_page(page, slot_class);
  return page * kPageSlots;
}

// Evicts a slot of this class, or a whole page of another one that is colder. The coldest slots
// decide: where one of this class is among them it goes alone; where none is, this class is starved
// and gets the coldest idle page.
std::uint32_t HostArena::State::make_room(std::uint32_t slot_class) {
  if (idle_slots == 0) return kNone;
  std::uint32_t cold_page = kNone;
  std::uint32_t id = kNone;
  bool more = order.victim(&id);
  for (std::uint32_t seen = 0; more && seen < kColdScan;) {
    const std::uint32_t here = id;
    more = order.next(&id);
    Slot& slot = at(here);
    if (slot.leases > 0) {
      order.erase(here);
      slot.parked = true;
      continue;
    }
    ++seen;
    if (page_of(here).slot_class == slot_class) {
      evict(here);
      return here;
    }
    if (cold_page == kNone && page_idle(page_of(here))) cold_page = here / kPageSlots;
  }
  if (cold_page == kNone) return make_room_anywhere(slot_class);
  evict_page(cold_page);
  return cold_page * kPageSlots;
}

// The slow way, where busy slots block the cold end: any idle slot of the class, or any idle page.
std::uint32_t HostArena::State::make_room_anywhere(std::uint32_t slot_class) {
  const auto count = static_cast<std::uint32_t>(pages.size());
  for (std::uint32_t step = 0; step < count; ++step) {
    const std::uint32_t index = (cursor + step) % count;
    const Page& page = pages[index];
    if (page.slots == nullptr || page.used == page.busy) continue;
    if (page.slot_class != slot_class && page.busy > 0) continue;
    cursor = index;
    if (page.slot_class != slot_class) {
      evict_page(index);
      return index * kPageSlots;
    }
    for (std::uint32_t slot = 0; slot < page.count; ++slot) {
      if (page.slots[slot].state != SlotState::kReady || page.slots[slot].busy()) continue;
      evict(index * kPageSlots + slot);
      return index * kPageSlots + slot;
    }
  }
  return kNone;
}

HostArena::HostArena() = default;
HostArena::~HostArena() = default;

Result<std::unique_ptr<HostArena>> HostArena::make(const HostArenaOptions& options,
                                                   Evicted evicted) {
  const std::uint64_t pages = std::max<std::uint64_t>(options.size_bytes / kArenaPageBytes, 1);
  if (pages > kPagesMax) return error(Code::kTooLarge, "host arena: the size is above 16 TiB");
  KVT_TRY(Memfd memfd, make_memfd("kvtier-host-arena", pages * kArenaPageBytes,
                                  MemfdAccess::kReadOnly, options.huge_pages));
  const bool huge = options.huge_pages && huge_page_given(memfd.mapping.data());
  if (options.huge_pages && !huge)
    KVT_LOG(kInfo,
            "host arena: no huge pages (see /sys/kernel/mm/transparent_hugepage/shmem_enabled)");
  std::unique_ptr<HostArena> arena(new HostArena);
  arena->state_ = std::make_unique<State>(std::move(memfd), static_cast<std::uint32_t>(pages),
                                          options.probation_percent, std::move(evicted));
  arena->state_->stats.size_bytes = pages * kArenaPageBytes;
  arena->state_->stats.pages = huge ? "2 MiB (thp)" : "4 KiB";
  return arena;
}

Result<SlotId> HostArena::allocate(std::uint64_t slot_bytes, SlotOwner owner, SlotId near) {
  if (slot_bytes == 0 || slot_bytes % kDiskAlign != 0)
    return error(Code::kInvalid, "slots are multiples of 4 KiB");
  if (slot_bytes > kSlotBytesMax) return error(Code::kTooLarge, "a slot is at most 2 MiB");
  State& state = *state_;
  const auto slot_class = static_cast<std::uint32_t>(slot_bytes / kDiskAlign - 1);
  std::uint32_t id = state.successor(near.value, slot_class, false);
  if (id == kNone) id = state.find_free(slot_class, near.value);
  if (id == kNone) {
    id = state.successor(near.value, slot_class, true);
    if (id != kNone) state.evict(id);
  }
  if (id == kNone) id = state.make_room(slot_class);
  if (id == kNone)
    return error(Code::kFull, "host arena: every slot is leased, pinned or being filled");
  if (state.page_of(id).slots == nullptr) state.give_page(id / kPageSlots, slot_class);
  state.take(id, owner);
  return SlotId{id};
}

void HostArena::set_ready(SlotId id) {
  Slot& slot = state_->at(id.value);
  KVT_CHECK(slot.state == SlotState::kFilling);
  slot.state = SlotState::kReady;
  ++state_->stats.slots_ready;
  if (slot.pins > 0) return;
  --state_->page_of(id.value).busy;
  ++state_->idle_slots;
  state_->enter_order(id.value, slot);
}

void HostArena::free(SlotId id) {
  Slot& slot = state_->at(id.value);
  KVT_CHECK(slot.state != SlotState::kFree && slot.leases == 0);
  if (state_->order.contains(id.value)) state_->order.erase(id.value);
  if (!slot.busy()) --state_->idle_slots;
  state_->put_back(id.value);
}

void HostArena::lease(SlotId id) {
  Slot& slot = state_->at(id.value);
  KVT_CHECK(slot.state == SlotState::kReady && slot.leases < UINT32_MAX);
  const bool was = slot.busy();
  if (slot.leases++ == 0) state_->stats.leased_bytes += slot_bytes(id);
  state_->change_busy(id.value, was);
}

void HostArena::release(SlotId id) {
  Slot& slot = state_->at(id.value);
  KVT_CHECK(slot.leases > 0);
  if (--slot.leases > 0) return;
  state_->stats.leased_bytes -= slot_bytes(id);
  state_->change_busy(id.value, true);
  if (!slot.parked) return;
  state_->enter_order(id.value, slot);
  state_->order.touch(id.value);  // a long lease is use
}

void HostArena::pin(SlotId id) {
  Slot& slot = state_->at(id.value);
  KVT_CHECK(slot.state != SlotState::kFree && slot.pins < UINT16_MAX);
  const bool was = slot.busy();
  if (slot.pins++ > 0) return;
  state_->stats.pinned_bytes += slot_bytes(id);
  state_->change_busy(id.value, was);
  slot.parked = false;
  if (state_->order.contains(id.value)) state_->order.erase(id.value);
}

void HostArena::touch(SlotId id) {
  if (state_->order.contains(id.value)) state_->order.touch(id.value);
}

void HostArena::cool(SlotId id) {
  if (state_->order.contains(id.value)) state_->order.cool(id.value);
}

std::byte* HostArena::data(SlotId id) const noexcept { return base() + offset(id); }

std::uint64_t HostArena::offset(SlotId id) const noexcept {
  return std::uint64_t{id.value / kPageSlots} * kArenaPageBytes +
         id.value % kPageSlots * slot_bytes(id);
}

std::uint64_t HostArena::slot_bytes(SlotId id) const noexcept {
  KVT_CHECK(id.value / kPageSlots < state_->pages.size());
  return State::class_bytes(state_->page_of(id.value).slot_class);
}

int HostArena::fd() const noexcept { return state_->memfd.fd.get(); }
std::byte* HostArena::base() const noexcept { return state_->memfd.mapping.data(); }
std::uint64_t HostArena::size_bytes() const noexcept { return state_->stats.size_bytes; }

HostArenaStats HostArena::stats() const {
  HostArenaStats stats = state_->stats;
  stats.ghost_hits = state_->order.ghost_hits();
  return stats;
}

}  // namespace kvtier
