#include "daemon/reclaim.h"

#include <vector>

#include "daemon/engine_state.h"

namespace kvtier {

namespace {

bool evictable(const Segment& segment) {
  return !segment.condemned && !segment.referenced() && segment.children.empty() &&
         segment.busy == 0 &&
         (segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kLost);
}

// The least recently used segment that nobody needs; among equals the one that lies deeper in its
// sequence.
Segment* coldest(EngineState& engine) {
  Segment* best = nullptr;
  for (auto& [id, segment] : engine.segments.all) {
    if (!evictable(*segment)) continue;
    if (best == nullptr || segment->row.last_used_unix_ns < best->row.last_used_unix_ns ||
        (segment->row.last_used_unix_ns == best->row.last_used_unix_ns &&
         segment->row.id > best->row.id))
      best = segment.get();
  }
  return best;
}

void evict(EngineState& engine, Segment& segment) {
  ++engine.metrics.segments_evicted;
  engine.metrics.bytes_evicted += segment.row.file_bytes;
  condemn_segment(engine, segment);
}

// Bytes that are condemned already will be free when their rows are gone.
std::uint64_t condemned_bytes(EngineState& engine) {
  std::uint64_t bytes = 0;
  for (const SegmentId id : engine.segments.condemned) {
    const Segment* segment = find_segment(engine, id);
    if (segment != nullptr && !segment->referenced()) bytes += segment->row.file_bytes;
  }
  return bytes;
}

}  // namespace

Result<void> reserve_disk(EngineState& engine, std::uint64_t bytes) {
  const std::uint64_t limit = engine.options.disk_bytes_max;
  while (engine.segments.disk_bytes -
             std::min(engine.segments.disk_bytes, condemned_bytes(engine)) + bytes >
         limit) {
    Segment* victim = coldest(engine);
    if (victim == nullptr)
      return error(
          Code::kNoSpace,
          "the store's disk limit is reached: remove sequences, or raise store.disk_bytes_max");
    evict(engine, *victim);
  }
  const Result<std::uint64_t> free = engine.io->io().free_bytes();
  if (!free || *free >= bytes) return {};
  while (Segment* victim = coldest(engine)) evict(engine, *victim);
  return error(Code::kNoSpace, "the disk is full");
}

std::uint64_t evict_unreferenced(EngineState& engine) {
  std::uint64_t bytes = 0;
  while (Segment* victim = coldest(engine)) {
    bytes += victim->row.file_bytes;
    evict(engine, *victim);
  }
  return bytes;
}

}  // namespace kvtier
