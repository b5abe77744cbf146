// Made traces: the figures that were asked for, the same for the same seed, and a law that is found
// again.
#include "tools/bench/replay_generate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvtier::bench {
namespace {

TraceShape shape_of(std::uint32_t tokens, std::uint32_t budget, std::uint32_t steps) {
  TraceShape shape;
  shape.tokens = tokens;
  shape.layers = 2;
  shape.kv_heads = 4;
  shape.row_bytes = 512;
  shape.steps = steps;
  shape.budget = budget;
  return shape;
}

TEST(ReplayGenerate, ListsAreWhatAFileMayHold) {
  TraceShape shape = shape_of(1000, 100, 8);  // the last run and page are short
  const Trace trace = generate_trace(shape, measured_law(), 1);
  std::string problem;
  const auto read = parse_trace(encode_trace(trace), &problem);
  ASSERT_TRUE(read) << problem;
  for (std::uint32_t step = 0; step < shape.steps; ++step)
    for (std::size_t lane = 0; lane < shape.granules.size(); ++lane)
      EXPECT_EQ(trace.units(step, 1, 3, lane).size(),
                (shape.budget + shape.granules[lane] - 1) / shape.granules[lane]);
}

TEST(ReplayGenerate, ASeedIsATrace) {
  const TraceShape shape = shape_of(512, 64, 6);
  const auto made = [&](std::uint64_t seed) {
    return encode_trace(generate_trace(shape, measured_law(), seed));
  };
  EXPECT_EQ(made(1), made(1));
  EXPECT_NE(made(1), made(2));
}

TEST(ReplayGenerate, EachPartOfTheLawMovesItsFigure) {
  const TraceShape shape = shape_of(4096, 256, 40);
  TraceLaw law;
  const auto figures = [&](double TraceLaw::* value, double set) {
    TraceLaw changed = law;
    changed.*value = set;
    return figures_of(generate_trace(shape, changed, 3), 10);
  };
  EXPECT_LT(figures(&TraceLaw::drift, 0.1).rows_new[2], figures(&TraceLaw::drift, 0.6).rows_new[2]);
  EXPECT_LT(figures(&TraceLaw::flicker, 0.1).rows_new[0],
            figures(&TraceLaw::flicker, 0.6).rows_new[0]);
  EXPECT_GT(figures(&TraceLaw::memory, 0.5).rows_new[2],
            figures(&TraceLaw::memory, 0.98).rows_new[2]);
  EXPECT_GT(figures(&TraceLaw::run_share, 0.1).chunks_touched,
            figures(&TraceLaw::run_share, 0.9).chunks_touched);
  EXPECT_LT(figures(&TraceLaw::recency, 0.0).newest, figures(&TraceLaw::recency, 0.3).newest);
  EXPECT_LT(figures(&TraceLaw::run_drift, 0.0).pages_new,
            figures(&TraceLaw::run_drift, 1.0).pages_new);
  EXPECT_NEAR(figures(&TraceLaw::hot_rows, 6.0).hot_rows, 6.0, 0.3);
  EXPECT_NEAR(figures(&TraceLaw::hot_new, 1.0).hot_new, 1.0, 0.25);
}

// The figures of the recorded trace that the law was fitted to.
TEST(ReplayGenerate, TheMeasuredLawHasTheMeasuredFigures) {
  const TraceFigures asked = recorded_figures();
  TraceShape shape = shape_of(6144, 192, 96);
  shape.layers = 10;
  shape.kv_heads = 3;
  const TraceFigures made = figures_of(generate_trace(shape, measured_law(), 5), 32);
  const auto near = [](double a, double b) { return std::abs(std::log(a / b)) < 0.25; };
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(near(made.rows_new[i], asked.rows_new[i]))
        << i << ": " << made.rows_new[i] << " " << asked.rows_new[i];
  EXPECT_TRUE(near(made.chunks_touched, asked.chunks_touched)) << made.chunks_touched;
  EXPECT_TRUE(near(made.in_pages, asked.in_pages)) << made.in_pages;
  EXPECT_NEAR(made.hot_rows, asked.hot_rows, 0.5);
  EXPECT_NEAR(made.hot_new, asked.hot_new, 0.3 * asked.hot_new);
}

TEST(ReplayGenerate, ALawIsFoundAgain) {
  TraceLaw law;
  law.drift = 0.5;
  law.run_share = 0.8;
  law.flicker = 0.15;
  const Trace recorded = generate_trace(shape_of(1024, 64, 48), law, 9);
  const TraceFigures asked = figures_of(recorded, 16);
  const TraceFigures made =
      figures_of(generate_trace(recorded.shape, fit_law(recorded), 10), 16);
  EXPECT_NEAR(made.rows_new[2] / asked.rows_new[2], 1.0, 0.2);
  EXPECT_NEAR(made.chunks_touched / asked.chunks_touched, 1.0, 0.15);
}

}  // namespace
}  // namespace kvtier::bench
