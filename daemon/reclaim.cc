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

std::uint64_t evict(EngineState& engine, Segment& segment) {
  ++engine.metrics.segments_evicted;
  engine.metrics.bytes_evicted += segment.row.file_bytes;
  const std::uint64_t bytes = segment.row.file_bytes;
  condemn_segment(engine, segment);
  return bytes;
}

// The coldest of segments and opaque keys goes; its bytes, or 0 where there is none.
std::uint64_t evict_coldest(EngineState& engine) {
  Segment* segment = coldest(engine);
  std::uint64_t used_unix_ns = 0;
  const std::string* key = coldest_object(engine, &used_unix_ns);
  if (key != nullptr && (segment == nullptr || used_unix_ns < segment->row.last_used_unix_ns))
    return evict_object(engine, *key);
  return segment != nullptr ? evict(engine, *segment) : 0;
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
  const auto used = [&engine] {
    const std::uint64_t segments = engine.segments.disk_bytes;
    return segments - std::min(segments, condemned_bytes(engine)) + engine.objects.disk_bytes +
           engine.objects.reserved_bytes;
  };
  bool room = true;
  while (room && used() + bytes > limit) room = evict_coldest(engine) != 0;
  publish_objects(engine);
  if (!room)
    return error(
        Code::kNoSpace,
        "the store's disk limit is reached: remove sequences, or raise store.disk_bytes_max");
  const Result<std::uint64_t> free = engine.io->io().free_bytes();
  if (!free || *free >= bytes) return {};
  // What is evicted now is free when its rows are gone: the next attempt finds it.
  for (std::uint64_t gained = 0, one = 1; one != 0 && *free + gained < bytes; gained += one)
    one = evict_coldest(engine);
  publish_objects(engine);
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
