// The KV part of decode steps over a context that memory does not hold: an arena of a quarter of
// the KV, the rest on disk, on the device a sixteenth. Against fetching the chosen pages anew at
// every step, through the same daemon and arena, and against streaming everything.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "tools/bench/bench.h"
#include "tools/bench/replay_generate.h"
#include "tools/bench/replay_layout_figures.h"
#include "tools/bench/replay_policies.h"

namespace kvtier::bench {
namespace {

constexpr std::uint64_t kSeed = 8;

// 32 layers, 8 KV heads of 128 dimensions at 16 bit: a model of 8 billion weights.
TraceShape made_shape(const Context& context) {
  const auto pick = [&](std::uint32_t given, std::uint32_t smoke, std::uint32_t quick,
                        std::uint32_t full) {
    if (given != 0) return given;
    return context.smoke() ? smoke : context.size == Size::kQuick ? quick : full;
  };
  TraceShape shape;
  shape.tokens = pick(context.replay.tokens, 4096, 16384, 131072);
  shape.layers = pick(context.replay.layers, 2, 8, 32);
  shape.steps = pick(context.replay.steps, 10, 80, 80);
  shape.kv_heads = 8;
  shape.row_bytes = 512;
  shape.budget = std::max(shape.tokens / 32, 32u);
  shape.source = "made by kvtier-bench";
  return shape;
}

Result<Trace> trace_of(const Context& context) {
  if (!context.replay.trace_path.empty()) return load_trace(context.replay.trace_path);
  const TraceShape shape = made_shape(context);
  KVT_TRY_VOID(shape.validate());
  return generate_trace(shape, measured_law(), kSeed);
}

std::uint32_t first_step_of(const TraceShape& shape) { return shape.steps * 3 / 5; }

// What was measured: a column per policy, and of each its last run.
struct Measured {
  PolicyRun rows, runs, refine, pages;
  std::vector<double> rows_s, runs_s, refine_s, pages_s, stream_s;
};

Result<Measured> measure(const Context& context, const std::string& store, const Trace& trace) {
  Measured measured;
  const std::uint32_t first_step = first_step_of(trace.shape);
  const auto policy = [&](Policy which, PolicyRun* out) -> Measure {
    return [&, which, out]() -> Result<double> {
      KVT_TRY(*out, run_policy(context, store, trace, which, first_step));
      return out->seconds;
    };
  };
  std::uint32_t layer = 0;
  const std::uint32_t layers = std::min(2u, trace.shape.layers);
  const Measure stream = [&]() -> Result<double> {
    const std::uint32_t first = layer;
    layer += layers;
    return run_stream(context, store, trace.shape, first, layers);
  };
  KVT_TRY(auto columns,
          interleave(context.rounds(3, 3),
                     {policy(Policy::kRows, &measured.rows), policy(Policy::kRuns, &measured.runs),
                      policy(Policy::kRefine, &measured.refine),
                      policy(Policy::kPages, &measured.pages), stream}));
  std::vector<double>* const kept[] = {&measured.rows_s, &measured.runs_s, &measured.refine_s,
                                       &measured.pages_s, &measured.stream_s};
  for (std::size_t i = 0; i < columns.size(); ++i) *kept[i] = std::move(columns[i]);
  return measured;
}

std::string text(const char* format, auto... values) {
  char room[256];
  std::snprintf(room, sizeof room, format, values...);
  return room;
}

std::string parts_of(const PolicyRun& run) {
  return text("waits %.3g ms, link %.3g, device %.3g; %.0f chunks asked for, %.0f read",
              run.waited_s * 1e3, run.link_s * 1e3, run.device_s * 1e3, run.chunks_asked,
              run.chunks_read);
}

void add_times(const Measured& measured, const TraceShape& shape, std::vector<Figure>* figures) {
  const auto add = [&](Policy policy, const char* what, const std::vector<double>& ours,
                       const std::vector<double>& theirs, const char* ceiling, double goal,
                       const std::string& note) {
    const double host = static_cast<double>(arena_bytes_of(shape, policy) +
                                            copy_bytes_of(shape, policy)) /
                        static_cast<double>(shape.kv_bytes());
    Figure figure = compare(text("KV of a step, %s, host %.2f", what, host), ours, theirs);
    scale(&figure, 1e3);
    figure.unit = "ms";
    figure.ceiling_name = ceiling;
    figure.goal = goal;
    figure.note = note;
    figures->push_back(figure);
  };
  const char* pages = "ms pages of 32 anew at every step";
  const char* stream = "ms streaming everything";
  add(Policy::kRows, "exact rows", measured.rows_s, measured.pages_s, pages, 1.0 / 20,
      parts_of(measured.rows) + "; pages: " + parts_of(measured.pages));
  add(Policy::kRows, "exact rows", measured.rows_s, measured.stream_s, stream, 1.0 / 200, "");
  add(Policy::kRuns, "runs of 16", measured.runs_s, measured.pages_s, pages, 1.0 / 20,
      parts_of(measured.runs));
  add(Policy::kRuns, "runs of 16", measured.runs_s, measured.stream_s, stream, 1.0 / 200, "");
  add(Policy::kRefine, "low-bit rows, hot exact", measured.refine_s, measured.pages_s, pages,
      1.0 / 20, parts_of(measured.refine));
  add(Policy::kRefine, "low-bit rows, hot exact", measured.refine_s, measured.stream_s, stream,
      1.0 / 200, "");
}

// What the policy's reads and copies leave where neither daemon nor latency costs anything: its
// reads at the rate of fio on the same files, overlapped with what then crosses the link, and the
// device's part.
Result<void> add_bounds(const Context& context, const std::string& store, const Measured& measured,
                        const TraceShape& shape, std::vector<Figure>* figures) {
  FioJob job;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(store))
    if (entry.path().extension() == ".kvs") job.path = entry.path();
  if (job.path.empty()) return error(Code::kInternal, "the replay's store has no segment");
  const std::uint64_t chunk_bytes =
      align_up<std::uint64_t>(std::uint64_t{32} * shape.row_bytes, kDiskAlign);
  job.block_bytes = chunk_bytes;
  job.depth = 64;
  job.seconds = context.smoke() ? 0.5 : 2;
  KVT_TRY(const double rate, run_fio(job));
  const auto bound = [&](const PolicyRun& run) {
    const double reads = run.chunks_read * static_cast<double>(chunk_bytes) / rate;
    return run.before_s + std::max(reads, run.link_s - run.before_s) + run.device_s;
  };
  const PolicyRun& pages = measured.pages;
  const auto add = [&](const char* what, const PolicyRun& run) {
    Figure figure = bounded(text("bound by reads and link, %s", what), {bound(run)}, bound(pages));
    scale(&figure, 1e3);
    figure.unit = "ms";
    figure.ceiling_name = "ms the same of pages anew";
    figure.note = text("reads at fio's %.3g GB/s (chunks, depth 64); without any: %.3f",
                       rate * 1e-9,
                       (run.link_s + run.device_s) / (pages.link_s + pages.device_s));
    figures->push_back(figure);
  };
  add("exact rows", measured.rows);
  add("runs of 16", measured.runs);
  add("low-bit rows, hot exact", measured.refine);
  return {};
}

// Reads beside what no order of eviction could avoid with the same arena.
void add_reads(const Measured& measured, const TraceShape& shape, std::vector<Figure>* figures) {
  const std::uint32_t first_step = first_step_of(shape);
  const double steps = shape.steps - first_step;
  const auto add = [&](const char* what, const PolicyRun& run) {
    const auto least = static_cast<double>(
        least_reads(run.references, first_step, std::max<std::uint64_t>(run.arena_chunks, 1)));
    Figure figure =
        bounded(text("disk reads of a step, %s", what), {run.chunks_read}, least / steps);
    figure.unit = "";
    figure.ceiling_name = "unavoidable with this arena";
    figure.note = text("chunks; with everything in memory once read: %.0f",
                       static_cast<double>(first_reads(run.references, first_step)) / steps);
    figures->push_back(figure);
  };
  add("exact rows", measured.rows);
  add("runs of 16", measured.runs);
  add("low-bit rows, hot exact", measured.refine);
  add("pages anew", measured.pages);
  Figure figure = bounded("chunks of exact rows from disk per step and KV head",
                          {measured.refine.chunks_read / shape.heads()}, 1.0);
  figure.ceiling_name = "low-bit rows, hot exact";
  figure.goal = 1;
  figure.note = text("%.3g exact rows came, from disk or memory", measured.refine.rows_new);
  figures->push_back(figure);
}

// Recency alone moves nothing; this is how much of what was chosen it attends to.
void add_recency(const Trace& trace, std::vector<Figure>* figures) {
  const TraceShape& shape = trace.shape;
  double chosen = 0, newest = 0;
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      for (std::uint32_t step = first_step_of(shape); step < shape.steps; ++step) {
        const auto units = trace.units(step, layer, head, 0);
        chosen += static_cast<double>(units.size());
        newest += static_cast<double>(std::count_if(units.begin(), units.end(), [&](auto unit) {
          return (unit & ~kHotRow) >= shape.tokens - shape.budget;
        }));
      }
    }
  }
  const TraceFigures middle = figures_of(trace, first_step_of(shape), shape.layers / 2);
  Figure figure = bounded("recency only: share of the chosen rows", {newest / chosen * 100}, 100);
  figure.unit = "%";
  figure.ceiling_name = "% all that the trace attends to";
  figure.better = Better::kHigher;
  figure.note = text("nothing moves; trace, middle layer: %.2g of the budget new in a slot cache "
                     "of two budgets, %.2g of the chunks touched",
                     middle.rows_new[2], middle.chunks_touched);
  figures->push_back(figure);
}

Result<void> fit(const std::string& path) {
  KVT_TRY(const Trace recorded, load_trace(path));
  static_cast<void>(fit_law(recorded));
  return {};
}

}  // namespace

Result<void> bench_replay(const Context& context, std::vector<Figure>* figures) {
  if (!context.replay.fit_path.empty()) return fit(context.replay.fit_path);
  KVT_TRY(const Trace trace, trace_of(context));
  const TraceShape& shape = trace.shape;
  if (shape.lane_of(32) == shape.granules.size() || shape.steps < 2)
    return error(Code::kInvalid, "a trace to be replayed has pages of 32, and 2 steps or more");
  if (!context.replay.write_path.empty())
    KVT_TRY_VOID(save_trace(trace, context.replay.write_path));
  if (context.replay.layouts_only) return add_layouts(trace, first_step_of(shape), {}, figures);
  const std::string store = context.directory + "/replay";
  KVT_TRY_VOID(make_replay_store(context, store, shape));
  KVT_TRY(const Measured measured, measure(context, store, trace));
  add_times(measured, shape, figures);
  KVT_TRY_VOID(add_bounds(context, store, measured, shape, figures));
  add_reads(measured, shape, figures);
  add_recency(trace, figures);
  const DaemonReads daemon{measured.runs.chunks_read, measured.refine.chunks_read};
  KVT_TRY_VOID(add_layouts(trace, first_step_of(shape), daemon, figures));
  std::error_code ignored;
  std::filesystem::remove_all(store, ignored);
  return {};
}

}  // namespace kvtier::bench
