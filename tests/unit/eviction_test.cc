// SegmentedLru against its description: order, shares, ghosts, and a slow model on random
// operations.
#include "tiers/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>

#include "base/random.h"

namespace kvtier {
namespace {

std::vector<std::uint32_t> order_of(const SegmentedLru& lru) {
  std::vector<std::uint32_t> order;
  std::uint32_t slot = 0;
  for (bool more = lru.victim(&slot); more; more = lru.next(&slot)) order.push_back(slot);
  return order;
}

TEST(SegmentedLru, EmptyHasNoVictim) {
  SegmentedLru lru(4, 20, 4);
  std::uint32_t slot = 77;
  EXPECT_FALSE(lru.victim(&slot));
  EXPECT_EQ(slot, 77u);
  EXPECT_EQ(lru.size(), 0u);
  EXPECT_FALSE(lru.contains(3));
  EXPECT_FALSE(lru.contains(400));
}

TEST(SegmentedLru, UntouchedSlotsGoInTheOrderTheyCame) {
  SegmentedLru lru(2000, 20, 4);
  for (const std::uint32_t slot : {5u, 1u, 1999u, 0u}) lru.insert(slot, slot);
  EXPECT_EQ(order_of(lru), (std::vector<std::uint32_t>{5, 1, 1999, 0}));
}

TEST(SegmentedLru, AScanDoesNotDriveOutWhatWasTouched) {
  SegmentedLru lru(100, 20, 1000);
  for (std::uint32_t slot = 0; slot < 100; ++slot) lru.insert(slot, slot);
  for (std::uint32_t slot = 0; slot < 50; ++slot) lru.touch(slot);
  for (std::uint64_t key = 1000; key < 1500; ++key) {
    std::uint32_t slot = 0;
    ASSERT_TRUE(lru.victim(&slot));
    lru.evict(slot);
    lru.insert(slot, key);
  }
  for (std::uint32_t slot = 0; slot < 50; ++slot) EXPECT_FALSE(lru.in_probation(slot)) << slot;
}

TEST(SegmentedLru, ProtectedHoldsNoMoreThanItsShare) {
  SegmentedLru lru(100, 20, 0);
  for (std::uint32_t slot = 0; slot < 100; ++slot) lru.insert(slot, slot);
  for (std::uint32_t slot = 0; slot < 100; ++slot) lru.touch(slot);
  std::uint32_t probation = 0;
  for (std::uint32_t slot = 0; slot < 100; ++slot) probation += lru.in_probation(slot);
  EXPECT_EQ(probation, 20u);
  EXPECT_EQ(order_of(lru).front(), 0u) << "the longest untouched goes first";
}

TEST(SegmentedLru, AGhostComesBackProtected) {
  SegmentedLru lru(10, 20, 2);
  for (std::uint32_t slot = 0; slot < 10; ++slot) lru.insert(slot, 100 + slot);
  lru.evict(0);
  lru.evict(1);
  lru.evict(2);  // the list holds two: key 100 is forgotten
  lru.insert(0, 100);
  EXPECT_TRUE(lru.in_probation(0));
  EXPECT_EQ(lru.ghost_hits(), 0u);
  lru.insert(1, 101);
  EXPECT_FALSE(lru.in_probation(1));
  EXPECT_EQ(lru.ghost_hits(), 1u);
  lru.erase(1);
  lru.insert(1, 101);
  EXPECT_TRUE(lru.in_probation(1)) << "erase does not remember, and a ghost serves once";
}

// The slow model: two deques, front is cold.
struct Model {
  std::deque<std::uint32_t> probation, guarded;
  std::deque<std::uint64_t> ghosts;
  std::map<std::uint32_t, std::uint64_t> keys;

  static bool drop(std::deque<std::uint32_t>* list, std::uint32_t slot) {
    const auto found = std::find(list->begin(), list->end(), slot);
    if (found == list->end()) return false;
    list->erase(found);
    return true;
  }
  void rebalance() {
    while (guarded.size() * 100 > (guarded.size() + probation.size()) * 70) {
      probation.push_back(guarded.front());
      guarded.pop_front();
    }
  }
  void remove(std::uint32_t slot) {
    if (!drop(&probation, slot)) drop(&guarded, slot);
  }
  void insert(std::uint32_t slot, std::uint64_t key) {
    keys[slot] = key;
    const auto ghost = std::find(ghosts.begin(), ghosts.end(), key);
    (ghost == ghosts.end() ? probation : guarded).push_back(slot);
    if (ghost != ghosts.end()) ghosts.erase(ghost);
    rebalance();
  }
  void evict(std::uint32_t slot) {
    remove(slot);
    rebalance();
    const std::uint64_t key = keys[slot];
    if (const auto known = std::find(ghosts.begin(), ghosts.end(), key); known != ghosts.end())
      ghosts.erase(known);
    ghosts.push_back(key);
    if (ghosts.size() > 20) ghosts.pop_front();
  }
};

TEST(SegmentedLru, FollowsTheModel) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    SegmentedLru lru(1500, 30, 20);
    Model model;
    for (int step = 0; step < 3000; ++step) {
      const auto slot = static_cast<std::uint32_t>(random.below(40) * 37);
      const std::uint64_t action = random.below(10);
      if (!lru.contains(slot)) {
        const std::uint64_t key = random.below(80);
        lru.insert(slot, key);
        model.insert(slot, key);
      } else if (action < 5) {
        lru.touch(slot);
        model.remove(slot);
        model.guarded.push_back(slot);
        model.rebalance();
      } else if (action < 6) {
        lru.cool(slot);
        model.remove(slot);
        model.probation.push_front(slot);
        model.rebalance();
        std::uint32_t victim = 0;
        ASSERT_TRUE(lru.victim(&victim));
        ASSERT_EQ(victim, slot);
      } else if (action < 7) {
        lru.erase(slot);
        model.remove(slot);
        model.rebalance();
      } else {
        std::uint32_t victim = 0;
        ASSERT_TRUE(lru.victim(&victim));
        lru.evict(victim);
        model.evict(victim);
      }
      std::vector<std::uint32_t> expected(model.probation.begin(), model.probation.end());
      expected.insert(expected.end(), model.guarded.begin(), model.guarded.end());
      ASSERT_EQ(order_of(lru), expected) << "step " << step;
      ASSERT_EQ(lru.size(), expected.size());
    }
    EXPECT_GT(lru.ghost_hits(), 0u);
  }
}

}  // namespace
}  // namespace kvtier
