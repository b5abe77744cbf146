// A cold figure of kvtier-bench is judged only where the page cache was dropped.
#include <gtest/gtest.h>

#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

TEST(BenchCold, AFigureThatWasNotColdSaysSoAndHasNoVerdict) {
  Figure figure = bounded("a row", {2.0}, 1.0);
  figure.goal = 1;
  figure.note = "why";
  judge_cold(&figure, true);
  EXPECT_FALSE(figure.held());
  EXPECT_EQ(figure.note, "why");
  judge_cold(&figure, false);
  EXPECT_EQ(figure.goal, 0);
  EXPECT_EQ(figure.note, "page cache not dropped; why");
}

}  // namespace
}  // namespace kvtier::bench
