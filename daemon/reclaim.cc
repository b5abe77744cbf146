#include "daemon/reclaim.h"

#include <algorithm>
#include <cinttypes>
#include <tuple>
#include <vector>

#include "base/log.h"
#include "daemon/committer.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

bool evictable(const Segment& segment) {
  return !segment.condemned && !segment.referenced() && segment.children.empty() &&
         segment.busy == 0 &&
         (segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kLost);
}

std::uint64_t used_again_bytes(const EngineState& engine) {
  std::uint64_t bytes = 0;
  for (const auto& [id, segment] : engine.segments.all)
    if (segment->used_again && !segment->referenced()) bytes += segment->row.file_bytes;
  return bytes;
}

// The segment that goes next; among equals the one that lies deeper in its sequence.
Segment* coldest(EngineState& engine) {
  const std::uint64_t share =
      engine.options.disk_bytes_max / 100 * (100 - engine.options.probation_percent);
  const bool segmented = used_again_bytes(engine) <= share;
  const auto order = [segmented](const Segment& segment) {
    return std::tuple(segmented && segment.used_again, segment.row.last_used_unix_ns,
                      ~segment.row.id.value);
  };
  Segment* best = nullptr;
  for (auto& [id, segment] : engine.segments.all) {
    if (evictable(*segment) && (best == nullptr || order(*segment) < order(*best)))
      best = segment.get();
  }
  return best;
}

std::uint64_t evict(EngineState& engine, Segment& segment) {
  const std::uint64_t bytes = segment.row.file_bytes;
  ++engine.metrics.segments_evicted;
  engine.metrics.bytes_evicted += bytes;
  for (const BlockHash& hash : segment.row.blocks) add_ghost(engine.miss_log, hash);
  condemn_segment(engine, segment);
  return bytes;
}

// Bytes that are condemned already will be free when their rows are gone.
std::uint64_t condemned_bytes(EngineState& engine) {
  std::uint64_t bytes = 0;
  for (const SegmentId id : engine.segments.condemned) {
    const Segment* segment = find_segment(engine, id);
    if (segment != nullptr && !segment->referenced() && !segment->row_stays)
      bytes += segment->row.file_bytes;
  }
  return bytes;
}

// 0: goes first. Only of nameless, closed, unpinned ones.
int rank_of(const StoredSequence& sequence) {
  return sequence.hint == UseHint::kFinished ? 0 : sequence.hint == UseHint::kNone ? 1 : 2;
}

StoredSequence* coldest_sequence(EngineState& engine) {
  StoredSequence* best = nullptr;
  for (auto& [id, found] : engine.sequences.all) {
    const StoredSequence& sequence = *found;
    if (!sequence.row.name.empty() || sequence.row.pinned || sequence.is_private ||
        sequence.removed || !sequence.open.empty() || sequence.working || sequence.writer_coming ||
        sequence.busy != 0 || sequence.internal)
      continue;
    const auto order = [](const StoredSequence& one) {
      return std::tuple(rank_of(one), one.row.last_used_unix_ns, one.row.id.value);
    };
    if (best == nullptr || order(sequence) < order(*best)) best = found.get();
  }
  return best;
}

// Batches are written in order: the row of the sequence goes before those of its segments.
void evict_sequence(EngineState& engine, StoredSequence& sequence) {
  KVT_LOG(kInfo, "sequence %" PRIu64 ": nameless, and the disk limit wants its room",
          sequence.row.id.value);
  ++engine.metrics.sequences_evicted;
  forget_evicted_sequence(engine, sequence);
}

// One step towards more room; false where nothing may go.
bool make_room(EngineState& engine) {
  if (drop_coldest_base(engine)) return true;  // made again from what stays
  Segment* segment = coldest(engine);
  std::uint64_t used_unix_ns = 0;
  const std::string* key = coldest_object(engine, &used_unix_ns);
  if (key != nullptr && (segment == nullptr || used_unix_ns < segment->row.last_used_unix_ns))
    return evict_object(engine, *key) != 0;
  if (segment != nullptr) {
    evict(engine, *segment);
    return true;
  }
  if (!rows_were_lost(engine) && remove_kept_files(engine) != 0) return true;
  StoredSequence* sequence = coldest_sequence(engine);
  if (sequence == nullptr) return false;
  evict_sequence(engine, *sequence);
  return true;
}

std::uint64_t log_bytes(const EngineState& engine) {
  std::uint64_t bytes = 0;
  for (const auto& [id, sequence] : engine.sequences.all) bytes += sequence->log.all_bytes();
  return bytes;
}

}  // namespace

std::uint64_t store_bytes(const EngineState& engine) {
  return engine.segments.disk_bytes + engine.segments.sidecar_bytes + log_bytes(engine) +
         engine.objects.disk_bytes + engine.objects.reserved_bytes + engine.seals.reserved_bytes +
         engine.sequences.commit_bytes_reserved + engine.kept_files.total_bytes;
}

Result<void> reserve_disk(EngineState& engine, std::uint64_t bytes, std::uint64_t written) {
  const std::uint64_t limit = engine.options.disk_bytes_max;
  while (bytes != 0) {
    const std::uint64_t used = store_bytes(engine);
    if (used - std::min(used, condemned_bytes(engine)) + bytes <= limit) break;
    if (make_room(engine)) continue;
    publish_objects(engine);
    ++engine.metrics.no_room;
    return error(Code::kNoSpace,
                 rows_were_lost(engine)
                     ? "the store's disk limit is reached, and files whose rows may be lost stay: "
                       "run kvtier repair --store, or kvtier gc, which removes them"
                     : "the store's disk limit is reached: remove sequences, or raise "
                       "store.disk_bytes_max");
  }
  publish_objects(engine);
  const Result<std::uint64_t> free = engine.io->io().free_bytes();
  if (!free || *free >= written) return {};
  // What is evicted now is free when its rows are gone: the next attempt finds it.
  const std::uint64_t before = store_bytes(engine);
  while (condemned_bytes(engine) + (before - std::min(before, store_bytes(engine))) + *free <
             written &&
         make_room(engine)) {
  }
  publish_objects(engine);
  ++engine.metrics.no_room;
  return error(Code::kNoSpace, "the disk is full");
}

std::uint64_t evict_unreferenced(EngineState& engine) {
  std::uint64_t bytes = 0;
  while (Segment* victim = coldest(engine)) bytes += evict(engine, *victim);
  return bytes;
}

void mark_used_again(EngineState& engine, Segment& segment) {
  segment.row.last_used_unix_ns = engine.wall_ns();
  segment.used_again = true;
}

}  // namespace kvtier
