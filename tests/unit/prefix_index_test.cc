// Prefix index: chain hashes depend on everything before, first writer wins, the deepest filed
// block is found.
#include "tiers/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/random.h"

namespace kvtier {
namespace {

std::vector<std::uint32_t> ids_of(std::size_t count, std::uint32_t first = 0) {
  std::vector<std::uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

TEST(PrefixIndex, ChainHasWholeBlocksOnly) {
  const PrefixIndex index(1);
  EXPECT_TRUE(index.chain(ids_of(0)).empty());
  EXPECT_TRUE(index.chain(ids_of(kBlockTokens - 1)).empty());
  EXPECT_EQ(index.chain(ids_of(kBlockTokens)).size(), 1u);
  EXPECT_EQ(index.chain(ids_of(3 * kBlockTokens + 5)).size(), 3u);
}

TEST(PrefixIndex, ChainIsExtendFromTheBeginning) {
  const PrefixIndex index(7);
  const auto ids = ids_of(4 * kBlockTokens);
  BlockHash hash = index.first();
  EXPECT_EQ(hash, BlockHash{});
  for (std::size_t block = 0; block < 4; ++block) {
    hash = index.extend(hash, std::span(ids).subspan(block * kBlockTokens, kBlockTokens));
    EXPECT_EQ(index.chain(ids)[block], hash);
  }
}

TEST(PrefixIndex, AHashCoversKeyPositionAndEveryIdBefore) {
  const auto ids = ids_of(2 * kBlockTokens);
  const auto base = PrefixIndex(1).chain(ids);
  EXPECT_NE(base, PrefixIndex(2).chain(ids)) << "keyed";
  for (std::size_t i = 0; i < kBlockTokens; ++i) {
    auto changed = ids;
    changed[i] ^= 0x8000'0000u;
    const auto chain = PrefixIndex(1).chain(changed);
    EXPECT_NE(chain[0], base[0]) << i;
    EXPECT_NE(chain[1], base[1]) << "an id of an earlier block changes the later hash: " << i;
  }
  auto same_blocks = ids_of(kBlockTokens);
  same_blocks.insert(same_blocks.end(), same_blocks.begin(), same_blocks.begin() + kBlockTokens);
  const auto chain = PrefixIndex(1).chain(same_blocks);
  EXPECT_NE(chain[0], chain[1]) << "equal blocks at different places differ";
}

TEST(PrefixIndex, TheFirstWriterWinsAndOnlyItsSegmentErases) {
  PrefixIndex index(1);
  const BlockHash hash = index.chain(ids_of(kBlockTokens))[0];
  EXPECT_EQ(index.find(hash), nullptr);
  index.insert(hash, {{5}, 64});
  index.insert(hash, {{6}, 128});
  ASSERT_NE(index.find(hash), nullptr);
  EXPECT_EQ(index.find(hash)->segment, SegmentId{5});
  EXPECT_EQ(index.find(hash)->visible_tokens, 64u);
  index.erase(hash, {6});
  EXPECT_NE(index.find(hash), nullptr) << "another segment's block stays";
  index.erase(hash, {5});
  EXPECT_EQ(index.find(hash), nullptr);
  index.erase(hash, {5});
  index.insert(hash, {{6}, 128});
  EXPECT_EQ(index.find(hash)->segment, SegmentId{6});
}

TEST(PrefixIndex, HashesThatShareTheirLowHalfAreTwo) {
  PrefixIndex index(1);
  index.insert({1, 1}, {{5}, 64});
  index.insert({1, 2}, {{6}, 64});
  EXPECT_EQ(index.size(), 2u);
  EXPECT_EQ(index.find({1, 1})->segment, SegmentId{5});
  EXPECT_EQ(index.find({1, 2})->segment, SegmentId{6});
  EXPECT_EQ(index.find({1, 3}), nullptr);
}

TEST(PrefixIndex, FindsTheDeepestFiledBlockEvenBehindAGap) {
  PrefixIndex index(3);
  const auto ids = ids_of(10 * kBlockTokens + 7);
  const auto chain = index.chain(ids);
  PrefixIndex::Hit hit;
  EXPECT_FALSE(index.find_longest(ids, &hit));
  EXPECT_FALSE(index.find_longest({}, &hit));
  index.insert(chain[2], {{1}, 192});
  index.insert(chain[6], {{2}, 64});
  ASSERT_TRUE(index.find_longest(ids, &hit));
  EXPECT_EQ(hit.block, 6u);
  EXPECT_EQ(hit.place.segment, SegmentId{2});
  ASSERT_TRUE(index.find_longest(std::span(ids).first(6 * kBlockTokens), &hit));
  EXPECT_EQ(hit.block, 2u);
  auto other = ids;
  other[5 * kBlockTokens] ^= 1;
  ASSERT_TRUE(index.find_longest(other, &hit));
  EXPECT_EQ(hit.block, 2u);
  other[0] ^= 1;
  EXPECT_FALSE(index.find_longest(other, &hit));
}

// Many sequences that fork at random places; the oracle compares ids.
TEST(PrefixIndex, FollowsTheModel) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    PrefixIndex index(random.next());
    std::vector<std::vector<std::uint32_t>> stored;
    for (std::uint64_t i = 1; i <= 30; ++i) {
      std::vector<std::uint32_t> ids;
      if (!stored.empty() && !random.one_in(5)) {
        ids = stored[random.below(stored.size())];
        ids.resize(random.below(ids.size() + 1));
      }
      const std::size_t total = ids.size() + random.below(6 * kBlockTokens);
      while (ids.size() < total) ids.push_back(static_cast<std::uint32_t>(random.below(50000)));

      std::size_t expected = 0;  // whole blocks in common with anything stored
      for (const auto& other : stored) {
        const auto limit = std::min(ids.size(), other.size());
        const auto same = std::mismatch(
            ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(limit), other.begin());
        expected =
            std::max(expected, static_cast<std::size_t>(same.first - ids.begin()) / kBlockTokens);
      }
      PrefixIndex::Hit hit;
      const bool found = index.find_longest(ids, &hit);
      ASSERT_EQ(found, expected > 0);
      if (found) {
        ASSERT_EQ(hit.block + 1, expected);
      }
      for (const BlockHash& hash : index.chain(ids)) index.insert(hash, {{i}, kBlockTokens});
      stored.push_back(std::move(ids));
    }
    std::set<std::vector<std::uint32_t>> prefixes;
    for (const auto& ids : stored) {
      for (std::size_t end = kBlockTokens; end <= ids.size(); end += kBlockTokens)
        prefixes.emplace(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(end));
    }
    EXPECT_EQ(index.size(), prefixes.size());
  }
}

}  // namespace
}  // namespace kvtier
