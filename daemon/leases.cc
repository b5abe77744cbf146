#include "daemon/leases.h"

#include "base/check.h"

namespace kvtier {

LeaseTable::Lease* LeaseTable::find(std::uint64_t id) {
  const std::uint64_t place = id & UINT32_MAX;
  if (place == 0 || place > leases_.size()) return nullptr;
  Lease& lease = leases_[place - 1];
  return lease.live && lease.generation == id >> 32 ? &lease : nullptr;
}

std::uint64_t LeaseTable::begin() {
  if (free_.empty()) {
    leases_.emplace_back();
    free_.push_back(static_cast<std::uint32_t>(leases_.size() - 1));
    free_.reserve(leases_.capacity());
  }
  const std::uint32_t index = free_.back();
  free_.pop_back();
  leases_[index].live = true;
  return static_cast<std::uint64_t>(leases_[index].generation) << 32 | (index + 1);
}

void LeaseTable::add(std::uint64_t id, HostArena& arena, SlotId slot, std::uint32_t* counter) {
  Lease* lease = find(id);
  KVT_CHECK(lease != nullptr && !lease->given);
  arena.lease(slot);
  lease->slots.emplace_back(slot, counter);
  ++*counter;
  lease->bytes += arena.slot_bytes(slot);
}

void LeaseTable::give(std::uint64_t id) {
  Lease* lease = find(id);
  KVT_CHECK(lease != nullptr);
  lease->given = true;
}

bool LeaseTable::end(std::uint64_t id, HostArena& arena, std::uint64_t* bytes) {
  Lease* lease = find(id);
  if (lease == nullptr) return false;
  for (const auto& [slot, counter] : lease->slots) {
    arena.release(slot);
    --*counter;
  }
  *bytes = lease->bytes;
  lease->slots.clear();
  lease->bytes = 0;
  lease->live = lease->given = false;
  ++lease->generation;
  free_.push_back(static_cast<std::uint32_t>(lease - leases_.data()));
  return true;
}

bool LeaseTable::end_given(std::uint64_t id, HostArena& arena, std::uint64_t* bytes) {
  const Lease* lease = find(id);
  return lease != nullptr && lease->given && end(id, arena, bytes);
}

std::uint64_t LeaseTable::end_all(HostArena& arena, std::uint64_t* bytes) {
  std::uint64_t count = 0;
  *bytes = 0;
  for (std::size_t i = 0; i < leases_.size(); ++i) {
    if (!leases_[i].live) continue;
    std::uint64_t held = 0;
    count += end(static_cast<std::uint64_t>(leases_[i].generation) << 32 | (i + 1), arena, &held)
                 ? 1
                 : 0;
    *bytes += held;
  }
  return count;
}

}  // namespace kvtier
