#include "tools/bench/replay_layout_figures.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/bytes.h"
#include "base/limits.h"
#include "tools/bench/replay_count.h"
#include "tools/bench/replay_policies.h"
#include "tools/bench/replay_threads.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kSegmentRows = kSegmentTokensMax;

enum class Order { kToken, kCounts, kCountsInSegments, kTogether, kKnown };

struct NamedOrder {
  Order order;
  const char* name;
};
constexpr NamedOrder kOrders[] = {
    {Order::kCounts, "rows by how often the warm-up fetched them"},
    {Order::kCountsInSegments, "the same within segments"},
    {Order::kTogether, "rows the warm-up fetched together"},
    {Order::kKnown, "rows the judged steps fetch together"},
};

Places places_of(const TraceShape& shape, const ReadCounter& counter, std::uint32_t first_step,
                 std::uint32_t head, Order order) {
  const StepRows warm_up = counter.missing(head, 0, first_step);
  switch (order) {
    case Order::kCounts:
      return places_by_count(warm_up, shape.tokens, shape.tokens);
    case Order::kCountsInSegments:
      return places_by_count(warm_up, shape.tokens, kSegmentRows);
    case Order::kTogether:
      return places_together(warm_up, shape.tokens);
    case Order::kKnown:
      return places_together(counter.missing(head, first_step, shape.steps), shape.tokens);
    case Order::kToken:
      break;
  }
  return places_by_token(shape.tokens);
}

struct Judged {
  CountedReads reads;
  double unavoidable = 0;
  double segment_chunks = 0;  // that the rows of a segment's tokens lie in
};

Result<Judged> judge(const TraceShape& shape, const ReadCounter& counter, std::uint32_t first_step,
                     Order order) {
  std::vector<Places> places(shape.heads());
  each_in_parallel(shape.heads(), [&](std::uint32_t head) {
    places[head] = places_of(shape, counter, first_step, head, order);
  });
  Judged judged;
  KVT_TRY(judged.reads, counter.count(places, first_step));
  const References& references = judged.reads.references;
  judged.unavoidable =
      static_cast<double>(least_reads(references, first_step, judged.reads.arena_chunks)) /
      (shape.steps - first_step);
  const std::uint32_t run = std::min(kSegmentRows, shape.tokens);
  for (const Places& of_head : places)
    judged.segment_chunks += chunks_of_run(of_head, run) / shape.heads();
  return judged;
}

// No order of rows asks for fewer chunks: each list in as few as it fills.
double least_asked(const TraceShape& shape, const ReadCounter& counter, std::uint32_t first_step) {
  double chunks = 0;
  for (std::uint32_t head = 0; head < shape.heads(); ++head)
    for (const auto rows : counter.missing(head, first_step, shape.steps))
      chunks += static_cast<double>((rows.size() + kChunkRows - 1) / kChunkRows);
  return chunks / (shape.steps - first_step);
}

std::string note_of(const Judged& judged, const TraceShape& shape) {
  const CountedReads& reads = judged.reads;
  const auto chunk_bytes = static_cast<double>(
      align_up<std::uint64_t>(std::uint64_t{kChunkRows} * shape.row_bytes, kDiskAlign));
  char room[256];
  std::snprintf(room, sizeof room,
                "chunks, counted: %.3g MB in %.0f reads; asked for %.0f; unavoidable %.0f; a "
                "segment in token order lies in %.0f chunks",
                reads.read * chunk_bytes * 1e-6, reads.runs, reads.asked, judged.unavoidable,
                judged.segment_chunks);
  return room;
}

void add(const std::string& metric, double value, double ceiling, const char* ceiling_name,
         const std::string& note, std::vector<Figure>* figures) {
  Figure figure = bounded(metric, {value}, ceiling);
  figure.ceiling_name = ceiling_name;
  figure.note = note;
  figures->push_back(figure);
}

struct Asked {
  Ask ask;
  Policy policy;  // whose arena
  const char* name;
  double daemon_reads;
};

Result<void> add_asked(const Trace& trace, std::uint32_t first_step, const Asked& asked,
                       std::vector<Figure>* figures) {
  const TraceShape& shape = trace.shape;
  KVT_TRY(const ReadCounter counter,
          ReadCounter::make(trace, asked.ask, arena_bytes_of(shape, asked.policy)));
  const std::string metric = std::string("disk reads of a step, ") + asked.name + ", ";
  KVT_TRY(const Judged by_token, judge(shape, counter, first_step, Order::kToken));
  std::string note = note_of(by_token, shape);
  if (asked.daemon_reads >= 0)
    note += "; through the daemon " + std::to_string(std::lround(asked.daemon_reads));
  add(metric + "token order", by_token.reads.read, by_token.unavoidable,
      "unavoidable in this order with this arena", note, figures);
  if (asked.ask == Ask::kRuns) return {};
  for (const NamedOrder& named : kOrders) {
    KVT_TRY(const Judged judged, judge(shape, counter, first_step, named.order));
    add(metric + named.name, judged.reads.read, by_token.reads.read, "in token order",
        note_of(judged, shape), figures);
  }
  add(std::string("chunks asked for in a step, ") + asked.name + ", at least in any order",
      least_asked(shape, counter, first_step), by_token.reads.asked, "in token order", "", figures);
  return {};
}

}  // namespace

Result<void> add_layouts(const Trace& trace, std::uint32_t first_step, const DaemonReads& daemon,
                         std::vector<Figure>* figures) {
  const Asked all[] = {
      {Ask::kRuns, Policy::kRuns, "runs of 16", daemon.runs},
      {Ask::kRows, Policy::kRows, "single rows", -1},
      {Ask::kHot, Policy::kRefine, "hot rows", daemon.hot},
  };
  const bool has_runs = trace.shape.lane_of(16) < trace.shape.granules.size();
  for (const Asked& asked : all)
    if (asked.ask != Ask::kRuns || has_runs)
      KVT_TRY_VOID(add_asked(trace, first_step, asked, figures));
  return {};
}

}  // namespace kvtier::bench
