// HostArena: slots never overlap, leased and pinned ones stay, neighbours stay neighbours, a
// starved class gets a page. AbstractArena: first fit. Both against slow models on random
// operations.
#include "tiers/host_arena.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/limits.h"
#include "base/random.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kPage = kArenaPageBytes;

struct Gone {
  SlotOwner owner;
  SlotId slot;
};

std::unique_ptr<HostArena> make_arena(std::uint64_t pages, std::vector<Gone>* gone = nullptr) {
  auto made = HostArena::make({.size_bytes = pages * kPage, .huge_pages = false},
                              [gone](SlotOwner owner, SlotId slot) {
                                if (gone != nullptr) gone->push_back({owner, slot});
                              });
  EXPECT_TRUE(made);
  return std::move(*made);
}

SlotId ready_slot(HostArena& arena, std::uint64_t bytes, SlotOwner owner, SlotId near = {}) {
  const auto slot = arena.allocate(bytes, owner, near);
  EXPECT_TRUE(slot) << slot.error().message();
  if (slot) arena.set_ready(*slot);
  return slot ? *slot : SlotId{};
}

TEST(HostArena, RejectsSizesThatAreNoSlots) {
  auto arena = make_arena(1);
  EXPECT_EQ(arena->allocate(0, {}).error().code, Code::kInvalid);
  EXPECT_EQ(arena->allocate(kDiskAlign + 1, {}).error().code, Code::kInvalid);
  EXPECT_EQ(arena->allocate(kSlotBytesMax + kDiskAlign, {}).error().code, Code::kTooLarge);
  EXPECT_TRUE(arena->allocate(kSlotBytesMax, {}));
}

TEST(HostArena, HasAtLeastOnePageAndRoundsDown) {
  const auto tiny = HostArena::make({.size_bytes = 1, .huge_pages = false}, nullptr);
  ASSERT_TRUE(tiny);
  EXPECT_EQ((*tiny)->size_bytes(), kPage);
  const auto odd = HostArena::make({.size_bytes = 2 * kPage + 5, .huge_pages = false}, nullptr);
  ASSERT_TRUE(odd);
  EXPECT_EQ((*odd)->size_bytes(), 2 * kPage);
  EXPECT_STREQ((*odd)->stats().pages, "4 KiB");
}

TEST(HostArena, ClientsCanMapItForReadingOnly) {
  auto arena = make_arena(1);
  const SlotId slot = ready_slot(*arena, 8192, {1, 0});
  std::memset(arena->data(slot), 0x5A, 8192);
  void* writable = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd(), 0);
  EXPECT_EQ(writable, MAP_FAILED);
  void* readable = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, arena->fd(), 0);
  ASSERT_NE(readable, MAP_FAILED);
  EXPECT_EQ(static_cast<const std::byte*>(readable)[arena->offset(slot) + 8191], std::byte{0x5A});
  ::munmap(readable, kPage);
}

TEST(HostArena, SaysHugePagesOnlyWhereTheyAreGiven) {
  const auto arena = HostArena::make({.size_bytes = 2 * kPage, .huge_pages = true}, nullptr);
  ASSERT_TRUE(arena);
  std::string enabled(256, '\0');
  if (std::FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "r")) {
    enabled.resize(std::fread(enabled.data(), 1, enabled.size(), file));
    std::fclose(file);
  }
  if (enabled.find("[never]") != std::string::npos || enabled.find("[deny]") != std::string::npos) {
    EXPECT_STREQ((*arena)->stats().pages, "4 KiB");
  } else {
    const std::string pages = (*arena)->stats().pages;
    EXPECT_TRUE(pages == "4 KiB" || pages == "2 MiB (thp)") << pages;
  }
}

TEST(HostArena, EvictsTheColdestAndTellsItsOwner) {
  std::vector<Gone> gone;
  auto arena = make_arena(1, &gone);
  std::vector<SlotId> slots;
  for (std::uint32_t i = 0; i < 4; ++i) slots.push_back(ready_slot(*arena, kPage / 4, {7, i}));
  EXPECT_TRUE(gone.empty());
  arena->touch(slots[0]);
  const SlotId next = ready_slot(*arena, kPage / 4, {8, 0});
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_EQ(gone[0].owner.segment, 7u);
  EXPECT_EQ(gone[0].owner.chunk_index, 1u);
  EXPECT_EQ(gone[0].slot, slots[1]);
  EXPECT_EQ(next, slots[1]);
  EXPECT_EQ(arena->stats().evictions, 1u);
}

TEST(HostArena, LeasedPinnedAndFillingSlotsStay) {
  std::vector<Gone> gone;
  auto arena = make_arena(1, &gone);
  const SlotId leased = ready_slot(*arena, kPage / 4, {1, 0});
  const SlotId pinned = ready_slot(*arena, kPage / 4, {1, 1});
  const auto filling = arena->allocate(kPage / 4, {1, 2});
  const SlotId cold = ready_slot(*arena, kPage / 4, {1, 3});
  arena->lease(leased);
  arena->lease(leased);
  arena->pin(pinned);
  EXPECT_EQ(arena->stats().leased_bytes, kPage / 4);
  EXPECT_EQ(arena->stats().pinned_bytes, kPage / 4);
  const auto taken = arena->allocate(kPage / 4, {2, 0});
  ASSERT_TRUE(taken);
  EXPECT_EQ(*taken, cold);
  EXPECT_EQ(arena->allocate(kPage / 4, {2, 1}).error().code, Code::kFull);
  EXPECT_EQ(arena->allocate(kDiskAlign, {2, 1}).error().code, Code::kFull);
  arena->release(leased);
  EXPECT_EQ(arena->allocate(kPage / 4, {2, 1}).error().code, Code::kFull) << "leases count";
  arena->release(leased);
  EXPECT_EQ(arena->stats().leased_bytes, 0u);
  EXPECT_EQ(*arena->allocate(kPage / 4, {2, 1}), leased);
  arena->free(pinned);
  EXPECT_EQ(arena->stats().pinned_bytes, 0u);
  EXPECT_EQ(*arena->allocate(kPage / 4, {2, 2}), pinned);
  EXPECT_EQ(gone.size(), 2u);
  arena->free(*filling);
  EXPECT_EQ(*arena->allocate(kPage / 4, {2, 3}), *filling);
}

TEST(HostArena, FreeTellsNobody) {
  std::vector<Gone> gone;
  auto arena = make_arena(1, &gone);
  const SlotId slot = ready_slot(*arena, 4096, {1, 0});
  arena->pin(slot);
  arena->free(slot);
  EXPECT_TRUE(gone.empty());
  EXPECT_EQ(arena->stats().used_bytes, 0u);
  EXPECT_EQ(arena->stats().pinned_bytes, 0u);
  EXPECT_TRUE(arena->allocate(kPage, {2, 0})) << "an empty page serves any class";
}

TEST(HostArena, ARunOfNeighboursIsContiguousAcrossPages) {
  auto arena = make_arena(3);
  SlotId near;
  std::uint64_t expected = 0;
  for (std::uint32_t i = 0; i < 2 * kPage / 65536 + 5; ++i) {
    const auto slot = arena->allocate(65536, {1, i}, near);
    ASSERT_TRUE(slot);
    ASSERT_EQ(arena->offset(*slot), expected) << i;
    expected += 65536;
    near = *slot;
  }
}

TEST(HostArena, ContiguityHoldsInAFullArena) {
  auto arena = make_arena(2);
  for (std::uint32_t i = 0; i < 2 * kPage / 65536; ++i) ready_slot(*arena, 65536, {1, i});
  SlotId near = ready_slot(*arena, 65536, {2, 0});
  for (std::uint32_t i = 1; i < 16; ++i) {
    const auto slot = arena->allocate(65536, {2, i}, near);
    ASSERT_TRUE(slot);
    EXPECT_EQ(arena->offset(*slot), arena->offset(near) + 65536);
    near = *slot;
  }
}

TEST(HostArena, NearDoesNotTakeALeasedHotOrForeignNeighbour) {
  auto arena = make_arena(2);
  std::vector<SlotId> slots;
  for (std::uint32_t i = 0; i < 8; ++i) slots.push_back(ready_slot(*arena, kPage / 4, {1, i}));
  arena->lease(slots[1]);
  const auto beside_leased = arena->allocate(kPage / 4, {2, 0}, slots[0]);
  ASSERT_TRUE(beside_leased);
  EXPECT_NE(*beside_leased, slots[1]);
  const auto other_class = arena->allocate(kDiskAlign, {2, 1}, slots[2]);
  EXPECT_TRUE(!other_class || arena->offset(*other_class) != arena->offset(slots[3]));
  const auto beyond = arena->allocate(kPage / 4, {2, 2}, slots[7]);  // the arena ends there
  EXPECT_TRUE(beyond);
}

TEST(HostArena, AStarvedClassGetsTheColdestIdlePage) {
  std::vector<Gone> gone;
  auto arena = make_arena(3, &gone);
  std::vector<SlotId> slots;
  for (std::uint32_t i = 0; i < 12; ++i) slots.push_back(ready_slot(*arena, kPage / 4, {1, i}));
  arena->lease(slots[1]);  // blocks the first page, though its other slots are the coldest
  const auto other = arena->allocate(8192, {2, 0});
  ASSERT_TRUE(other);
  EXPECT_EQ(arena->offset(*other) / kPage, 1u);
  ASSERT_EQ(gone.size(), 4u);
  for (std::uint32_t i = 0; i < 4; ++i) EXPECT_EQ(gone[i].owner.chunk_index, 4 + i);
  EXPECT_EQ(arena->slot_bytes(*other), 8192u);
  EXPECT_EQ(arena->slot_bytes(slots[1]), kPage / 4);
}

TEST(HostArena, TwoClassesInUseDoNotStealPagesFromEachOther) {
  std::vector<Gone> gone;
  auto arena = make_arena(8, &gone);
  for (std::uint32_t i = 0; i < 4 * 16; ++i) ready_slot(*arena, kPage / 16, {1, i});
  for (std::uint32_t i = 0; i < 4 * 32; ++i) ready_slot(*arena, kPage / 32, {2, i});
  ASSERT_TRUE(gone.empty());
  for (std::uint32_t i = 0; i < 1000; ++i) {
    ready_slot(*arena, kPage / 16, {3, i});
    ready_slot(*arena, kPage / 32, {4, i});
    ready_slot(*arena, kPage / 32, {5, i});
  }
  EXPECT_LT(gone.size(), 3000u + 8 * 32) << "one out for one in, but for a few pages";
}

TEST(HostArena, ManyLeasesAtTheColdEndDoNotHideAnIdleSlot) {
  auto arena = make_arena(2);
  std::vector<SlotId> slots;
  for (std::uint32_t i = 0; i < 2 * kPage / 4096; ++i)
    slots.push_back(ready_slot(*arena, 4096, {1, i}));
  for (std::size_t i = 0; i + 1 < slots.size(); ++i) arena->lease(slots[i]);
  EXPECT_EQ(*arena->allocate(4096, {2, 0}), slots.back());
  EXPECT_EQ(arena->allocate(4096, {2, 1}).error().code, Code::kFull);
  for (std::size_t i = 0; i + 1 < slots.size(); ++i) arena->release(slots[i]);
  EXPECT_TRUE(arena->allocate(4096, {2, 1}));
}

// ---- random operations ----

struct Live {
  std::uint64_t offset = 0, bytes = 0;
  SlotOwner owner;
  std::uint32_t leases = 0, pins = 0;
  bool ready = false;
  std::uint64_t stamp = 0;  // what its first and last words hold
  [[nodiscard]] bool idle() const { return ready && leases == 0 && pins == 0; }
};

class ArenaModel {
 public:
  explicit ArenaModel(std::uint64_t seed) : random_(seed) {
    auto made = HostArena::make({.size_bytes = kPages * kPage, .huge_pages = false},
                                [this](SlotOwner owner, SlotId slot) { evicted(owner, slot); });
    EXPECT_TRUE(made);
    arena_ = std::move(*made);
  }

  void step() {
    const std::uint64_t action = random_.below(12);
    if (live_.empty() || action < 4) return allocate();
    auto at = live_.begin();
    std::advance(at, static_cast<std::ptrdiff_t>(random_.below(live_.size())));
    act(action, SlotId{at->first}, at->second);
  }

  void check() {
    HostArenaStats expected;
    for (const auto& [id, live] : live_) {
      expected.used_bytes += live.bytes;
      if (live.leases > 0) expected.leased_bytes += live.bytes;
      if (live.pins > 0) expected.pinned_bytes += live.bytes;
      expected.slots_ready += live.ready;
      check_stamp(id, live);
    }
    const HostArenaStats stats = arena_->stats();
    EXPECT_EQ(stats.used_bytes, expected.used_bytes);
    EXPECT_EQ(stats.leased_bytes, expected.leased_bytes);
    EXPECT_EQ(stats.pinned_bytes, expected.pinned_bytes);
    EXPECT_EQ(stats.slots_ready, expected.slots_ready);
    EXPECT_EQ(stats.evictions, evictions_);
  }
  std::uint64_t evictions() const { return evictions_; }
  std::uint64_t refusals() const { return refusals_; }

 private:
  static constexpr std::uint64_t kPages = 5;

  void act(std::uint64_t action, SlotId slot, Live& live) {
    if (!live.ready && action < 9) {
      arena_->set_ready(slot);
      live.ready = true;
    } else if (action == 4) {
      arena_->touch(slot);
    } else if (action == 5 && live.ready) {
      arena_->lease(slot);
      ++live.leases;
    } else if (action <= 7 && live.leases > 0) {
      arena_->release(slot);
      --live.leases;
    } else if (action == 8 && random_.one_in(3)) {
      arena_->pin(slot);
      ++live.pins;
    } else if (action == 11 && live.leases == 0 && random_.one_in(4)) {
      arena_->free(slot);
      live_.erase(slot.value);
    }
  }

  void allocate() {
    static constexpr std::uint64_t kSizes[] = {kPage / 2, kPage / 8, 96 * 1024,
                                               96 * 1024, kPage / 4, 20 * 4096};
    const std::uint64_t bytes = kSizes[random_.below(std::size(kSizes))];
    SlotId near;
    if (!live_.empty() && random_.one_in(2)) {
      auto at = live_.begin();
      std::advance(at, static_cast<std::ptrdiff_t>(random_.below(live_.size())));
      near.value = at->first;
    }
    const bool possible = can_allocate(bytes);
    const SlotOwner owner{random_.below(50), static_cast<std::uint32_t>(random_.below(9))};
    const auto slot = arena_->allocate(bytes, owner, near);
    ASSERT_EQ(slot.has_value(), possible);
    if (!slot) {
      EXPECT_EQ(slot.error().code, Code::kFull);
      ++refusals_;
      return;
    }
    Live live{
        .offset = arena_->offset(*slot), .bytes = bytes, .owner = owner, .stamp = random_.next()};
    ASSERT_LE(live.offset + bytes, kPages * kPage);
    ASSERT_EQ(live.offset / kPage, (live.offset + bytes - 1) / kPage) << "inside one page";
    for (const auto& [id, other] : live_)
      ASSERT_TRUE(live.offset + bytes <= other.offset || other.offset + other.bytes <= live.offset)
          << "overlap";
    ASSERT_EQ(arena_->slot_bytes(*slot), bytes);
    ASSERT_EQ(arena_->data(*slot), arena_->base() + live.offset);
    std::memcpy(arena_->data(*slot), &live.stamp, 8);
    std::memcpy(arena_->data(*slot) + bytes - 8, &live.stamp, 8);
    ASSERT_TRUE(live_.emplace(slot->value, live).second);
  }

  // The definition: a free or idle slot in a page of this size, or a page in which nothing must
  // stay.
  bool can_allocate(std::uint64_t bytes) const {
    for (std::uint64_t page = 0; page < kPages; ++page) {
      std::uint64_t used = 0, size = 0;
      bool any_idle = false, all_idle = true;
      for (const auto& [id, live] : live_) {
        if (live.offset / kPage != page) continue;
        ++used;
        size = live.bytes;
        any_idle |= live.idle();
        all_idle &= live.idle();
      }
      if (all_idle || (size == bytes && (any_idle || used < kPage / bytes))) return true;
    }
    return false;
  }

  void evicted(SlotOwner owner, SlotId slot) {
    ++evictions_;
    const auto found = live_.find(slot.value);
    ASSERT_NE(found, live_.end());
    EXPECT_TRUE(found->second.idle()) << "leased, pinned or filling";
    EXPECT_EQ(found->second.owner.segment, owner.segment);
    EXPECT_EQ(found->second.owner.chunk_index, owner.chunk_index);
    check_stamp(slot.value, found->second);
    live_.erase(found);
  }

  void check_stamp(std::uint32_t id, const Live& live) {
    std::uint64_t first = 0, last = 0;
    std::memcpy(&first, arena_->data({id}), 8);
    std::memcpy(&last, arena_->data({id}) + live.bytes - 8, 8);
    EXPECT_EQ(first, live.stamp);
    EXPECT_EQ(last, live.stamp);
  }

  Random random_;
  std::unique_ptr<HostArena> arena_;
  std::map<std::uint32_t, Live> live_;
  std::uint64_t evictions_ = 0, refusals_ = 0;
};

TEST(HostArena, FollowsTheModel) {
  std::uint64_t evictions = 0, refusals = 0;
  for (std::uint64_t seed = 1; seed <= 30 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ArenaModel model(seed);
    for (int step = 0; step < 2000 && !testing::Test::HasFailure(); ++step) {
      model.step();
      if (step % 50 == 0) model.check();
    }
    model.check();
    evictions += model.evictions();
    refusals += model.refusals();
  }
  EXPECT_GT(evictions, 1000u);
  EXPECT_GT(refusals, 100u);
}

// ---- abstracts ----

TEST(AbstractArena, FirstFitJoinsNeighbours) {
  const auto arena = AbstractArena::make(kDiskAlign);
  ASSERT_TRUE(arena);
  EXPECT_EQ((*arena)->size_bytes(), kDiskAlign);
  EXPECT_EQ((*arena)->allocate(0).error().code, Code::kInvalid);
  EXPECT_EQ((*arena)->allocate(UINT64_MAX).error().code, Code::kFull);
  EXPECT_EQ(*(*arena)->allocate(1000), 0u);
  EXPECT_EQ(*(*arena)->allocate(64), 1024u);
  EXPECT_EQ(*(*arena)->allocate(1), 1088u);
  EXPECT_EQ((*arena)->used_bytes(), 1152u);
  (*arena)->free(0);
  EXPECT_EQ(*(*arena)->allocate(2048), 1152u);
  (*arena)->free(1024);
  EXPECT_EQ(*(*arena)->allocate(1088), 0u) << "two neighbours became one extent";
  EXPECT_EQ((*arena)->allocate(1024).error().code, Code::kFull);
}

TEST(AbstractArena, FollowsTheModel) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    constexpr std::uint64_t kUnits = 256;  // of 64 bytes
    auto arena = std::move(*AbstractArena::make(kUnits * 64));
    std::vector<bool> taken(kUnits, false);
    std::map<std::uint64_t, std::uint64_t> extents;  // in units
    for (int step = 0; step < 2000; ++step) {
      if (!extents.empty() && random.one_in(2)) {
        auto at = extents.begin();
        std::advance(at, static_cast<std::ptrdiff_t>(random.below(extents.size())));
        arena->free(at->first * 64);
        for (std::uint64_t i = 0; i < at->second; ++i) taken[at->first + i] = false;
        extents.erase(at);
        continue;
      }
      const std::uint64_t bytes = 1 + random.below(random.one_in(5) ? 4000 : 400);
      const std::uint64_t units = (bytes + 63) / 64;
      std::uint64_t expected = kUnits, run = 0;
      for (std::uint64_t i = 0; i < kUnits && expected == kUnits; ++i) {
        run = taken[i] ? 0 : run + 1;
        if (run == units) expected = i + 1 - units;
      }
      const auto offset = arena->allocate(bytes);
      ASSERT_EQ(offset.has_value(), expected < kUnits);
      if (!offset) continue;
      ASSERT_EQ(*offset, expected * 64) << "first fit";
      std::memset(arena->data(*offset), 1, bytes);
      for (std::uint64_t i = 0; i < units; ++i) taken[expected + i] = true;
      extents[expected] = units;
      const auto used = static_cast<std::uint64_t>(std::count(taken.begin(), taken.end(), true));
      ASSERT_EQ(arena->used_bytes(), used * 64);
    }
  }
}

}  // namespace
}  // namespace kvtier
