// SegmentedLru: which slot goes next. Probation and protected lists over slot numbers, and a ghost
// list of keys.
//
// New slots enter probation; a touch, or a key that the ghost list remembers, goes to protected.
// Where protected holds more than its share, its cold end falls back to the hot end of probation,
// so victims come from probation's cold end. Measured best on real traces of chats; orders by
// recomputation cost lost. O(1) each. One thread. Nodes come into being by groups of slot numbers,
// so sparse numbers (page * slots + index) cost little memory.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

namespace kvtier {

class SegmentedLru {
 public:
  // `slots` is the number of slot numbers (0 .. slots-1); probation_share in percent, 10..50.
  SegmentedLru(std::uint32_t slots, std::uint32_t probation_percent, std::uint32_t ghosts_max);

  void insert(std::uint32_t slot, std::uint64_t key);  // not in it yet
  void touch(std::uint32_t slot);                      // in it
  void cool(std::uint32_t slot);                       // in it: becomes the next victim
  void erase(std::uint32_t slot);                      // in it; not remembered
  // The coldest slot; false where it is empty. Stays in until evict() or erase().
  [[nodiscard]] bool victim(std::uint32_t* slot) const;
  // Steps from a slot in it to the one that would go after it; false behind the hottest.
  [[nodiscard]] bool next(std::uint32_t* slot) const;
  [[nodiscard]] bool in_probation(std::uint32_t slot) const;  // false where it is not in it
  void evict(std::uint32_t slot);                             // erase, and its key becomes a ghost
  [[nodiscard]] bool contains(std::uint32_t slot) const;
  [[nodiscard]] std::size_t size() const noexcept;
  [[nodiscard]] std::uint64_t ghost_hits() const noexcept { return ghost_hits_; }

 private:
  enum class List : std::uint8_t { kNone, kProbation, kProtected };
  struct Node {
    std::uint32_t previous = UINT32_MAX, next = UINT32_MAX;
    std::uint64_t key = 0;
    List list = List::kNone;
  };
  struct Head {
    std::uint32_t hot = UINT32_MAX, cold = UINT32_MAX;
    std::uint32_t count = 0;
  };
  void link(std::uint32_t slot, List list);
  void unlink(std::uint32_t slot);
  void rebalance();
  void remember(std::uint64_t key);
  [[nodiscard]] Node& node(std::uint32_t slot) { return groups_[slot / kGroup][slot % kGroup]; }
  [[nodiscard]] const Node* find(
      std::uint32_t slot) const;  // null where its group does not reach so far

  static constexpr std::uint32_t kGroup = 512;
  std::uint32_t slots_;
  std::vector<std::vector<Node>> groups_;  // grown to the highest number used
  Head probation_, protected_;
  std::uint32_t probation_percent_;
  std::uint32_t ghosts_max_;
  std::list<std::uint64_t> ghost_order_;
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> ghosts_;
  std::uint64_t ghost_hits_ = 0;
};

}  // namespace kvtier
