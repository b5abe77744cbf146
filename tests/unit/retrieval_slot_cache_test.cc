// The slot cache against a trivial model (a list in order of use), and its rows under attend().
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <set>

#include "client/device/slot_cache.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

SlotCache make_cache(std::uint64_t rows, std::uint32_t k_bytes = 32, std::uint32_t v_bytes = 32) {
  auto cache = SlotCache::make({rows, k_bytes, v_bytes, Dtype::kF32});
  EXPECT_TRUE(cache);
  return std::move(*cache);
}

// The marks that a test puts into a token's K and V.
std::uint64_t k_mark(std::uint32_t token) { return token * 0x9E3779B97F4A7C15ull + 1; }
std::uint64_t v_mark(std::uint32_t token) { return token * 0xD1B54A32D192ED03ull + 2; }

void fill(SlotCache* cache, const SlotCache::Missing& missing, std::uint32_t k_bytes) {
  for (std::size_t i = 0; i < missing.tokens.size(); ++i) {
    const std::uint64_t k = k_mark(missing.tokens[i]);
    const std::uint64_t v = v_mark(missing.tokens[i]);
    std::memcpy(cache->data() + missing.offsets[i], &k, sizeof(k));
    std::memcpy(cache->data() + missing.offsets[i] + k_bytes, &v, sizeof(v));
  }
}

TEST(SlotCache, SaysWhatIsMissing) {
  SlotCache cache = make_cache(8);
  const std::vector<std::uint32_t> first = {1, 5, 9};
  auto missing = cache.select(first);
  ASSERT_TRUE(missing);
  EXPECT_EQ(std::vector<std::uint32_t>(missing->tokens.begin(), missing->tokens.end()), first);
  EXPECT_EQ(cache.row_count(), 0u) << "nothing to attend to before complete()";
  EXPECT_FALSE(cache.contains(5));
  EXPECT_EQ(cache.resident_rows(), 0u);
  EXPECT_EQ(cache.select(first).error().code, Code::kInvalid) << "the first still waits";
  cache.complete();
  EXPECT_EQ(cache.row_count(), 3u);
  EXPECT_TRUE(cache.contains(5));
  missing = cache.select(std::vector<std::uint32_t>{5, 6, 9});
  ASSERT_TRUE(missing);
  EXPECT_EQ(std::vector<std::uint32_t>(missing->tokens.begin(), missing->tokens.end()),
            std::vector<std::uint32_t>{6});
  EXPECT_TRUE(cache.contains(5));
  EXPECT_FALSE(cache.contains(6));
  cache.complete();
  missing = cache.select(std::vector<std::uint32_t>{5, 6});
  ASSERT_TRUE(missing);
  EXPECT_TRUE(missing->tokens.empty());
  EXPECT_EQ(cache.row_count(), 2u) << "nothing missing: complete at once";
}

TEST(SlotCache, RefusesWhatDoesNotFit) {
  EXPECT_EQ(SlotCache::make({0, 32, 32, Dtype::kF32}).error().code, Code::kInvalid);
  EXPECT_EQ(SlotCache::make({8, 0, 32, Dtype::kF32}).error().code, Code::kTooLarge);
  EXPECT_EQ(SlotCache::make({8, 32, kRowBytesMax + 1, Dtype::kF32}).error().code, Code::kTooLarge);
  SlotCache cache = make_cache(3);
  ASSERT_TRUE(cache.select(std::vector<std::uint32_t>{1, 2, 3}));
  cache.complete();
  EXPECT_EQ(cache.select(std::vector<std::uint32_t>{1, 2, 3, 4}).error().code, Code::kTooLarge);
  EXPECT_EQ(cache.select(std::vector<std::uint32_t>{2, 2}).error().code, Code::kInvalid);
  EXPECT_EQ(cache.select(std::vector<std::uint32_t>{3, 2}).error().code, Code::kInvalid);
  EXPECT_EQ(cache.row_count(), 3u) << "a refusal changes nothing";
  EXPECT_EQ(cache.resident_rows(), 3u);
}

TEST(SlotCache, AbandonForgetsOnlyWhatDidNotCome) {
  SlotCache cache = make_cache(4);
  ASSERT_TRUE(cache.select(std::vector<std::uint32_t>{1, 2}));
  cache.complete();
  ASSERT_TRUE(cache.select(std::vector<std::uint32_t>{2, 3, 4}));
  cache.abandon();
  EXPECT_EQ(cache.row_count(), 0u);
  EXPECT_TRUE(cache.contains(1) && cache.contains(2));
  EXPECT_FALSE(cache.contains(3) || cache.contains(4));
  const auto missing = cache.select(std::vector<std::uint32_t>{1, 2, 3, 4});
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->tokens.size(), 2u);
}

TEST(SlotCache, MemoryIsFixedAndCounted) {
  SlotCache cache = make_cache(1000, 256, 256);
  const std::uint64_t bytes = cache.memory_bytes();
  EXPECT_GE(bytes, 1000u * 512);
  EXPECT_LE(bytes, 1000u * (512 + 64));
  Random random(5);
  for (int step = 0; step < 50; ++step) {
    std::set<std::uint32_t> wanted;
    while (wanted.size() < 700) wanted.insert(static_cast<std::uint32_t>(random.below(1u << 24)));
    ASSERT_TRUE(cache.select(std::vector<std::uint32_t>(wanted.begin(), wanted.end())));
    cache.complete();
    EXPECT_EQ(cache.memory_bytes(), bytes);
  }
}

// Rows of the current selection, read the way attend() does.
void check_rows(const SlotCache& cache, const std::vector<std::uint32_t>& tokens) {
  ASSERT_EQ(cache.row_count(), tokens.size());
  const RowPages rows = cache.rows();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::uint64_t k = 0;
    std::uint64_t v = 0;
    std::memcpy(&k, rows.base + rows.pages[i], sizeof(k));
    std::memcpy(&v, rows.base + rows.pages[i] + rows.v_offset, sizeof(v));
    ASSERT_EQ(k, k_mark(tokens[i])) << "token " << tokens[i];
    ASSERT_EQ(v, v_mark(tokens[i]));
  }
}

TEST(SlotCache, FollowsTheModel) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Random random(seed);
    const std::uint64_t capacity = 1 + random.below(60);
    const std::uint32_t universe = static_cast<std::uint32_t>(capacity + random.below(200));
    const std::uint32_t k_bytes = static_cast<std::uint32_t>(8 * (1 + random.below(8)));
    SlotCache cache = make_cache(capacity, k_bytes, 16);
    std::list<std::uint32_t> model;  // oldest first
    for (int step = 0; step < 400; ++step) {
      if (random.one_in(15)) {
        const std::uint32_t cut = static_cast<std::uint32_t>(random.below(universe));
        cache.truncate(cut);
        model.remove_if([&](std::uint32_t token) { return token >= cut; });
        ASSERT_EQ(cache.row_count(), 0u);
      }
      std::set<std::uint32_t> wanted;
      const std::uint64_t size = random.below(capacity + 1);
      while (wanted.size() < size)
        wanted.insert(static_cast<std::uint32_t>(random.below(universe)));
      const std::vector<std::uint32_t> tokens(wanted.begin(), wanted.end());

      std::vector<std::uint32_t> missing_wanted;
      for (const std::uint32_t token : tokens) {
        const auto place = std::find(model.begin(), model.end(), token);
        if (place == model.end()) {
          missing_wanted.push_back(token);
        } else {
          model.splice(model.end(), model, place);
        }
      }
      for (const std::uint32_t token : missing_wanted) {
        if (model.size() == capacity) model.pop_front();
        model.push_back(token);
      }

      const auto missing = cache.select(tokens);
      ASSERT_TRUE(missing);
      ASSERT_EQ(std::vector<std::uint32_t>(missing->tokens.begin(), missing->tokens.end()),
                missing_wanted);
      const int way = static_cast<int>(random.below(10));
      if (way == 0) {
        cache.abandon();
        for (const std::uint32_t token : missing_wanted) model.remove(token);
      } else if (way == 1 && !missing_wanted.empty()) {
        // The sequence is cut while rows are awaited.
        for (const std::uint32_t token : missing_wanted) model.remove(token);
        const std::uint32_t cut = static_cast<std::uint32_t>(random.below(universe));
        cache.truncate(cut);
        model.remove_if([&](std::uint32_t token) { return token >= cut; });
      } else {
        fill(&cache, *missing, k_bytes);
        cache.complete();
        ASSERT_NO_FATAL_FAILURE(check_rows(cache, tokens));
      }
      ASSERT_EQ(cache.resident_rows(), model.size());
      for (const std::uint32_t token : model) ASSERT_TRUE(cache.contains(token));
    }
  }
}

TEST(SlotCache, AttendReadsItsRows) {
  const std::uint32_t dim = 8;
  SlotCache cache = make_cache(16, dim * 4, dim * 4);
  const std::vector<std::uint32_t> tokens = {3, 4, 100};
  const auto missing = cache.select(tokens);
  ASSERT_TRUE(missing);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::uint32_t d = 0; d < dim; ++d) {
      store_element(cache.data() + missing->offsets[i], Dtype::kF32, d, 0.0f);
      store_element(cache.data() + missing->offsets[i] + dim * 4, Dtype::kF32, d,
                    static_cast<float>(i * 10 + d));
    }
  cache.complete();
  const std::uint64_t range[2] = {0, cache.row_count()};
  const std::vector<float> q(dim, 1.0f);
  std::vector<float> out(dim);
  float lse = 0.0f;
  AttendArgs args;
  args.rows = cache.rows();
  args.token_range = range;
  args.q = q.data();
  args.queries = 1;
  args.dim = args.v_dim = dim;
  args.out = out.data();
  args.lse = &lse;
  ASSERT_TRUE(all_kernels().front()->attend(args, nullptr));
  for (std::uint32_t d = 0; d < dim; ++d) EXPECT_NEAR(out[d], static_cast<float>(10 + d), 1e-5f);
  EXPECT_NEAR(lse, std::log(3.0f), 1e-5f);
}

}  // namespace
}  // namespace kvtier
