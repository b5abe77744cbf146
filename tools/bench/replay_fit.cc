// Finds the law of a recorded trace: coordinate descent on the differences of the logarithms of its
// figures, then the motion of each layer.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tools/bench/replay_generate.h"

namespace kvtier::bench {
namespace {

constexpr std::uint64_t kSeed = 11;
constexpr std::uint32_t kHeads = 6, kSteps = 96;

struct Knob {
  const char* name;
  double TraceLaw::* value;
  double low, high;
};
constexpr Knob kKnobs[] = {
    {"run_share", &TraceLaw::run_share, 0.0, 0.98}, {"reach", &TraceLaw::reach, 0.0, 0.98},
    {"tail", &TraceLaw::tail, 0.6, 2.5},            {"recency", &TraceLaw::recency, 0.0, 1.0},
    {"drift", &TraceLaw::drift, 0.01, 3.0},         {"memory", &TraceLaw::memory, 0.3, 0.995},
    {"run_drift", &TraceLaw::run_drift, 0.0, 1.0},  {"flicker", &TraceLaw::flicker, 0.01, 3.0},
    {"sharpness", &TraceLaw::sharpness, 0.5, 6.0},
};

// As many steps, rows and tokens as were recorded, of a few heads.
TraceShape sample_shape(const Trace& recorded) {
  TraceShape shape = recorded.shape;
  shape.layers = 1;
  shape.kv_heads = kHeads;
  shape.steps = std::min(shape.steps, kSteps);
  return shape;
}

std::vector<double> parts(const TraceFigures& of) {
  return {of.rows_new[0],    of.rows_new[1], of.rows_new[2], of.rows_new[3], of.chunks_touched,
          of.chunks_new,     of.newest,      of.in_runs,     of.in_pages,    of.pages_new};
}

double distance(const TraceFigures& asked, const TraceFigures& made) {
  const std::vector<double> a = parts(asked), b = parts(made);
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::log((a[i] + 1e-3) / (b[i] + 1e-3));
    sum += apart * apart;
  }
  return sum;
}

TraceFigures made_by(const TraceShape& shape, const TraceLaw& law) {
  return figures_of(generate_trace(shape, law, kSeed), shape.steps / 3);
}

// The motion at which a layer's rows enter a cache of two budgets as often as recorded.
double motion_of(const TraceShape& shape, const TraceLaw& law, double asked) {
  double low = 0.2, high = 4;
  for (int i = 0; i < 10; ++i) {
    const double middle = std::sqrt(low * high);
    TraceLaw moved = law;
    moved.drift *= middle;
    moved.flicker *= middle;
    (made_by(shape, moved).rows_new[2] < asked ? low : high) = middle;
  }
  return std::sqrt(low * high);
}

}  // namespace

TraceLaw fit_law(const Trace& recorded) {
  const TraceShape shape = sample_shape(recorded);
  const std::uint32_t first = recorded.shape.steps / 3;
  const TraceFigures asked = figures_of(recorded, first);
  TraceLaw law;
  law.hot_rows = asked.hot_rows;
  law.hot_new = asked.hot_new;
  double best = distance(asked, made_by(shape, law));
  for (double stride = 0.25; stride > 0.01; stride /= 2) {
    for (int round = 0; round < 3; ++round) {
      for (const Knob& knob : kKnobs) {
        for (const double sign : {1.0, -1.0}) {
          TraceLaw tried = law;
          double& value = tried.*knob.value;
          value = std::clamp(value + sign * stride * std::min(1.0, knob.high - knob.low) *
                                         (knob.high > 1 ? value : 1.0),
                             knob.low, knob.high);
          const double apart = distance(asked, made_by(shape, tried));
          if (apart >= best) continue;
          best = apart;
          law = tried;
        }
      }
    }
  }
  print_figures(asked, made_by(shape, law));
  std::printf("distance %.4f\n", best);
  for (const Knob& knob : kKnobs) std::printf("%-10s %.4f\n", knob.name, law.*knob.value);
  std::printf("%-10s %.4f\n%-10s %.4f\nlayer_motion", "hot_rows", law.hot_rows, "hot_new",
              law.hot_new);
  for (std::size_t i = 0; i < kRecordedLayers; ++i) {
    const auto layer = static_cast<std::uint32_t>(i * (recorded.shape.layers - 1) /
                                                  (kRecordedLayers - 1));
    law.layer_motion[i] =
        motion_of(shape, law, figures_of(recorded, first, layer).rows_new[2]);
    std::printf(" %.2f,", law.layer_motion[i]);
  }
  std::printf("\n");
  return law;
}

void print_figures(const TraceFigures& asked, const TraceFigures& made) {
  const auto line = [](const char* what, double a, double b) {
    std::printf("%-44s %10.4f %10.4f\n", what, a, b);
  };
  std::printf("%-44s %10s %10s\n", "figure of the trace", "recorded", "made");
  line("rows new at 1 budget, of the budget", asked.rows_new[0], made.rows_new[0]);
  line("  at 1.5", asked.rows_new[1], made.rows_new[1]);
  line("  at 2", asked.rows_new[2], made.rows_new[2]);
  line("  at 3", asked.rows_new[3], made.rows_new[3]);
  line("chunks of 32 touched, of all", asked.chunks_touched, made.chunks_touched);
  line("  new at twice a step's, of these", asked.chunks_new, made.chunks_new);
  line("rows among the newest, of those chosen", asked.newest, made.newest);
  line("rows in the runs of 16 chosen", asked.in_runs, made.in_runs);
  line("rows in the pages of 32 chosen", asked.in_pages, made.in_pages);
  line("pages new at twice a step's, of these", asked.pages_new, made.pages_new);
  line("hot rows per step and head", asked.hot_rows, made.hot_rows);
  line("  not hot in the 16 steps before", asked.hot_new, made.hot_new);
  line("rows also chosen by the next head", asked.next_head, made.next_head);
}

}  // namespace kvtier::bench
