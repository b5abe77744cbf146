// The simulation over many seeds, and its exact replay. That it would notice a missing sync:
// sim_mutation_test.cc.
//
//   KVT_SIM_SEEDS=n   so many seeds (default 2000)       KVT_SIM_SEED=s   only this one, with its
//   trace
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "tests/sim/store_sim.h"

namespace kvtier::sim {
namespace {

std::uint64_t environment(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 0);
}

TEST(StoreSim, ManySeeds) {
  if (const std::uint64_t seed = environment("KVT_SIM_SEED", 0); seed != 0) {
    const StoreSimResult result = run_store_sim({.seed = seed});
    std::printf("%s", result.trace.c_str());
    EXPECT_EQ(result.failure, "");
    return;
  }
  set_log_level(LogLevel::kError);
  const std::uint64_t seeds = environment("KVT_SIM_SEEDS", 2000);
  StoreSimResult sum;
  std::uint32_t failures = 0;
  for (std::uint64_t seed = 1; seed <= seeds && failures < 5; ++seed) {
    const StoreSimResult result = run_store_sim({.seed = seed});
    if (!result.failure.empty()) {
      ++failures;
      ADD_FAILURE() << result.failure << "\nreplay with KVT_SIM_SEED=" << seed;
    }
    sum.crashes += result.crashes;
    sum.seals += result.seals;
    sum.commits += result.commits;
    sum.fetched_chunks += result.fetched_chunks;
    sum.missed_chunks += result.missed_chunks;
    sum.faults += result.faults;
    sum.collections += result.collections;
    sum.segments_compacted += result.segments_compacted;
    sum.repairs += result.repairs;
    sum.expired += result.expired;
    sum.copies += result.copies;
    sum.catalogue_faults += result.catalogue_faults;
    sum.healed += result.healed;
  }
  std::printf(
      "%llu seeds: %u crashes, %u seals, %u commits, %u chunks compared, %u missed, %u disk "
      "faults, %u segments compacted in %u gcs, %u repairs, %u sequences expired, %u copied by a "
      "file, %u faults of the catalogue, %u disks healed\n",
      static_cast<unsigned long long>(seeds), sum.crashes, sum.seals, sum.commits,
      sum.fetched_chunks, sum.missed_chunks, sum.faults, sum.segments_compacted, sum.collections,
      sum.repairs, sum.expired, sum.copies, sum.catalogue_faults, sum.healed);
  // The simulation must do what it is for.
  EXPECT_GT(sum.crashes, seeds);
  EXPECT_GT(sum.seals, seeds / 2);
  EXPECT_GT(sum.commits, seeds / 2);
  EXPECT_GT(sum.fetched_chunks, seeds * 10);
  if (seeds >= 200) {
    EXPECT_GT(sum.faults, 0u);
    EXPECT_GT(sum.missed_chunks, 0u);
    EXPECT_GT(sum.segments_compacted, seeds / 20);
    EXPECT_GT(sum.repairs, seeds / 4);
    EXPECT_GT(sum.expired, seeds / 40);
    EXPECT_GT(sum.copies, seeds / 40);
    EXPECT_GT(sum.catalogue_faults, seeds / 10);
    EXPECT_GT(sum.healed, seeds / 10);
  }
}

TEST(StoreSim, OneSeedIsOneRun) {
  set_log_level(LogLevel::kError);
  for (std::uint64_t seed = 100; seed < 110; ++seed) {
    const StoreSimResult first = run_store_sim({.seed = seed}),
                         second = run_store_sim({.seed = seed});
    EXPECT_EQ(first.state_hash, second.state_hash) << seed;
    EXPECT_EQ(first.trace, second.trace) << seed;
  }
}

}  // namespace
}  // namespace kvtier::sim
