// gc, warm.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/admin.h"
#include "daemon/compaction.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"

namespace kvtier {
namespace {

// Everything under opaque keys that nobody works on; the bytes that will be free.
std::uint64_t evict_objects(EngineState& engine) {
  std::uint64_t freed = 0, used_unix_ns = 0;
  while (const std::string* key = coldest_object(engine, &used_unix_ns))
    freed += evict_object(engine, *key);
  return freed;
}

void op_gc(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<bool> objects = json_bool(request.body, "objects", false);
  if (!objects) return done(error(objects.error()));
  const bool merge = may_write_optional(engine, 0);
  const auto finish = [&engine, merge, objects = *objects, done](Result<CompactionReport> report) {
    if (!report) return done(error(report.error()));
    const std::uint64_t evicted = engine.metrics.segments_evicted;
    const std::size_t values = engine.objects.order.size();
    const std::uint64_t unused = evict_unreferenced(engine) + report->bytes_before -
                                 std::min(report->bytes_before, report->bytes_after);
    std::uint64_t others = remove_kept_files(engine);
    if (objects) others += evict_objects(engine);
    engine.objects.settle = !engine.objects.unsettled.empty();
    publish_objects(engine);
    Json body{{"segments_compacted", report->segments_merged},
              {"segments_removed", engine.metrics.segments_evicted - evicted},
              {"objects_removed", values - engine.objects.order.size()},
              {"bytes_freed", unused + others},
              {"merging_declined", !merge}};
    if (engine.segments.condemned.empty()) return done(ControlReply{std::move(body), {}, {}});
    // Behind the batches that take their rows away: with the answer, the files are gone.
    post_batch(engine, CatalogueBatch(), false,
               [&engine, body = std::move(body), others, done](Result<void> removed) mutable {
                 sweep_condemned(engine);
                 if (!removed) {  // rows may still name the files: they stay until the next start
                   body["segments_removed"] = 0;
                   body["bytes_freed"] = others;
                 }
                 done(ControlReply{std::move(body), {}, {}});
               });
  };
  merge ? compact_store(engine, finish) : finish(CompactionReport{});
}

// ---- warm ----

struct Warm {
  std::vector<SegmentId> segments;
  std::size_t next = 0;
  IoPriority priority = IoPriority::kPrefetch;
  std::uint64_t chunks = 0, resident = 0, unreadable = 0, bytes_read = 0;
  std::uint32_t running = 0;
  bool stepping = false;  // the loop over segments goes on by itself: no recursion
  ControlDone done;
};

// Not those that memory has no room for.
std::uint64_t count_unreadable(const FetchJob& job) {
  return static_cast<std::uint64_t>(
      std::count_if(job.entries.begin(), job.entries.end(), [](const FetchEntry& entry) {
        const auto code = static_cast<Code>(entry.status);
        return code != Code::kOk && code != Code::kFull;
      }));
}

// Two segments at a time: the disk always has the next one queued.
void run_warm(EngineState& engine, const std::shared_ptr<Warm>& warm) {
  if (std::exchange(warm->stepping, true)) return;
  while (!engine.draining && warm->running < 2 && warm->next < warm->segments.size()) {
    Segment* segment = find_segment(engine, warm->segments[warm->next++]);
    if (segment == nullptr) continue;
    const std::uint32_t total = segment->space->layout_of(segment->row.tokens).chunks_total();
    warm->chunks += total;
    if (segment->state == SegmentState::kLost) {
      warm->unreadable += total;
      continue;
    }
    std::vector<std::uint32_t> chunks(total);
    for (std::uint32_t i = 0; i < total; ++i) chunks[i] = i;
    ++warm->running;
    start_inner_fetch(engine, *segment, chunks, warm->priority,
                      [&engine, warm](const FetchJob& job) {
                        warm->resident += job.ok;
                        warm->unreadable += count_unreadable(job);
                        warm->bytes_read += job.bytes_disk;
                        --warm->running;
                        run_warm(engine, warm);
                      });
  }
  warm->stepping = false;
  if (warm->running > 0) return;
  if (engine.draining) return warm->done(error(kStopping));
  warm->done(ControlReply{Json{{"chunks", warm->chunks},
                               {"chunks_resident", warm->resident},
                               {"chunks_unreadable", warm->unreadable},
                               {"bytes_read", warm->bytes_read}},
                          {},
                          {}});
}

void op_warm(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = target_sequence(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::string> priority = json_string(request.body, "priority", "prefetch", 16);
  if (!priority || (*priority != "prefetch" && *priority != "background"))
    return done(error(Code::kInvalid, "priority must be prefetch or background"));
  auto warm = std::make_shared<Warm>();
  warm->priority = *priority == "background" ? IoPriority::kBackground : IoPriority::kPrefetch;
  warm->done = std::move(done);
  for (const SequencePart& part : (*target)->parts) warm->segments.push_back(part.segment->row.id);
  run_warm(engine, warm);
}

}  // namespace

std::span<const ControlOp> maintenance_ops() {
  static constexpr ControlOp kOps[] = {{"gc", false, op_gc}, {"warm", false, op_warm}};
  return kOps;
}

}  // namespace kvtier
