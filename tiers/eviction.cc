#include "tiers/eviction.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvtier {

namespace {
constexpr std::uint32_t kNone = UINT32_MAX;
}

SegmentedLru::SegmentedLru(std::uint32_t slots, std::uint32_t probation_percent,
                           std::uint32_t ghosts_max)
    : slots_(slots),
      groups_((static_cast<std::size_t>(slots) + kGroup - 1) / kGroup),
      probation_percent_(std::clamp(probation_percent, 10u, 50u)),
      ghosts_max_(ghosts_max) {}

const SegmentedLru::Node* SegmentedLru::find(std::uint32_t slot) const {
  if (slot >= slots_) return nullptr;
  const auto& group = groups_[slot / kGroup];
  return slot % kGroup < group.size() ? &group[slot % kGroup] : nullptr;
}

void SegmentedLru::insert(std::uint32_t slot, std::uint64_t key) {
  KVT_CHECK(slot < slots_ && !contains(slot));
  auto& group = groups_[slot / kGroup];
  const std::uint32_t index = slot % kGroup;
  if (index >= group.size()) {
    const std::size_t grown = std::min<std::size_t>(std::bit_ceil(index + 1u), kGroup);
    group.reserve(grown);
    group.resize(grown);
  }
  group[index].key = key;
  const auto ghost = ghosts_.find(key);
  if (ghost == ghosts_.end()) {
    link(slot, List::kProbation);
    return;
  }
  ghost_order_.erase(ghost->second);
  ghosts_.erase(ghost);
  ++ghost_hits_;
  link(slot, List::kProtected);
  rebalance();
}

void SegmentedLru::touch(std::uint32_t slot) {
  KVT_CHECK(contains(slot));
  unlink(slot);
  link(slot, List::kProtected);
  rebalance();
}

void SegmentedLru::cool(std::uint32_t slot) {
  KVT_CHECK(contains(slot));
  unlink(slot);
  Node& here = node(slot);
  here.list = List::kProbation;
  here.previous = probation_.cold;
  here.next = kNone;
  (probation_.cold != kNone ? node(probation_.cold).next : probation_.hot) = slot;
  probation_.cold = slot;
  ++probation_.count;
  rebalance();
}

void SegmentedLru::erase(std::uint32_t slot) {
  KVT_CHECK(contains(slot));
  unlink(slot);
  rebalance();
}

bool SegmentedLru::victim(std::uint32_t* slot) const {
  const std::uint32_t coldest = probation_.count > 0 ? probation_.cold : protected_.cold;
  if (coldest == kNone) return false;
  *slot = coldest;
  return true;
}

bool SegmentedLru::next(std::uint32_t* slot) const {
  const Node* here = find(*slot);
  KVT_CHECK(here != nullptr && here->list != List::kNone);
  std::uint32_t hotter = here->previous;
  if (hotter == kNone && here->list == List::kProbation) hotter = protected_.cold;
  if (hotter == kNone) return false;
  *slot = hotter;
  return true;
}

bool SegmentedLru::in_probation(std::uint32_t slot) const {
  const Node* here = find(slot);
  return here != nullptr && here->list == List::kProbation;
}

void SegmentedLru::evict(std::uint32_t slot) {
  KVT_CHECK(contains(slot));
  const std::uint64_t key = node(slot).key;
  unlink(slot);
  rebalance();
  remember(key);
}

bool SegmentedLru::contains(std::uint32_t slot) const {
  const Node* here = find(slot);
  return here != nullptr && here->list != List::kNone;
}

std::size_t SegmentedLru::size() const noexcept {
  return std::size_t{probation_.count} + protected_.count;
}

// At the hot end of a list.
void SegmentedLru::link(std::uint32_t slot, List list) {
  Head& head = list == List::kProbation ? probation_ : protected_;
  Node& here = node(slot);
  here.list = list;
  here.previous = kNone;
  here.next = head.hot;
  if (head.hot != kNone) node(head.hot).previous = slot;
  head.hot = slot;
  if (head.cold == kNone) head.cold = slot;
  ++head.count;
}

void SegmentedLru::unlink(std::uint32_t slot) {
  Node& here = node(slot);
  Head& head = here.list == List::kProbation ? probation_ : protected_;
  (here.previous != kNone ? node(here.previous).next : head.hot) = here.next;
  (here.next != kNone ? node(here.next).previous : head.cold) = here.previous;
  --head.count;
  here.list = List::kNone;
  here.previous = here.next = kNone;
}

// Each change of one slot moves the bound by less than two, so this loop is O(1).
void SegmentedLru::rebalance() {
  while (std::uint64_t{protected_.count} * 100 > size() * (100 - probation_percent_)) {
    const std::uint32_t slot = protected_.cold;
    unlink(slot);
    link(slot, List::kProbation);
  }
}

void SegmentedLru::remember(std::uint64_t key) {
  if (ghosts_max_ == 0) return;
  if (const auto known = ghosts_.find(key); known != ghosts_.end()) {
    ghost_order_.splice(ghost_order_.begin(), ghost_order_, known->second);
    return;
  }
  if (ghosts_.size() >= ghosts_max_) {
    ghosts_.erase(ghost_order_.back());
    ghost_order_.pop_back();
  }
  ghost_order_.push_front(key);
  ghosts_.emplace(key, ghost_order_.begin());
}

}  // namespace kvtier
