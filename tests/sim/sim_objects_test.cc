// Opaque keys: every sync of an acknowledged set or delete is needed.
#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/sim/sim_objects.h"

namespace kvtier::sim {
namespace {

enum class Step { kSet, kOverwrite, kDelete };

struct Scenario {
  std::uint64_t syncs = 0;  // of the acknowledged operation
  bool lost = false;        // what was acknowledged is not what is there after the power cut
};

// One acknowledged operation, a power cut right behind it, and what is left. `skip`: the sync of it
// that lies.
Scenario run_scenario(std::uint64_t seed, Step step, std::uint64_t skip) {
  SimWorldOptions options;
  options.seed = seed;
  SimWorld world(options);
  EXPECT_TRUE(world.start());
  Scenario scenario;
  const std::string value(9000, 'n');
  {
    SimClient client(world, "client");
    SimObjects objects(client);
    if (step != Step::kSet) {
      EXPECT_EQ(objects.call(Op::kObjectSet, "k", "before").code, Code::kOk);
    }
    world.settle();
    const std::uint64_t before = world.disk().syncs();
    if (skip != UINT64_MAX) world.disk().skip_sync(skip);
    const ObjectCall call = step == Step::kDelete ? objects.call(Op::kObjectDelete, "k")
                                                  : objects.call(Op::kObjectSet, "k", value);
    EXPECT_EQ(call.code, Code::kOk);
    scenario.syncs = world.disk().syncs() - before;
  }
  world.disk().skip_sync(UINT64_MAX);
  world.crash();
  if (!world.start()) {
    scenario.lost = true;
    return scenario;
  }
  SimClient client(world, "client");
  SimObjects objects(client);
  const ObjectCall call = objects.call(Op::kObjectGet, "k");
  scenario.lost = step == Step::kDelete ? call.code != Code::kMiss : call.got != value;
  return scenario;
}

TEST(ObjectMutation, EverySyncOfAnAcknowledgedOperationIsNeeded) {
  set_log_level(LogLevel::kError);
  constexpr std::uint64_t kSeeds = 40;
  for (const Step step : {Step::kSet, Step::kOverwrite, Step::kDelete}) {
    std::uint64_t syncs = 0;
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const Scenario scenario = run_scenario(seed, step, UINT64_MAX);
      EXPECT_FALSE(scenario.lost) << static_cast<int>(step) << ", seed " << seed;
      syncs = scenario.syncs;
    }
    EXPECT_EQ(syncs, step == Step::kDelete ? 1u : 3u);
    for (std::uint64_t skip = 0; skip < syncs; ++skip) {
      bool noticed = false;
      for (std::uint64_t seed = 1; seed <= kSeeds && !noticed; ++seed)
        noticed = run_scenario(seed, step, skip).lost;
      EXPECT_TRUE(noticed) << static_cast<int>(step) << ": without its sync number " << skip
                           << " of " << syncs << " nothing is lost";
    }
  }
}

}  // namespace
}  // namespace kvtier::sim
