// RawSegment: all chunks of a segment in memory, decoded and checked, for work that needs the whole
// (abstracts, calibration). Engine's thread; the result is constant and may be read by workers.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "daemon/segments.h"

namespace kvtier {

struct RawSegment {
  SegmentId segment;
  std::uint32_t tokens = 0;
  const PlaneLayout* layout = nullptr;
  std::shared_ptr<const LoadedMeta> meta;
  std::vector<std::byte*> chunks;  // by chunk index

  std::shared_ptr<HostArena> arena;  // keeps pinned slots mapped
  AlignedBuffer file;                // the whole segment file; empty for one that lives in memory
  std::vector<AlignedBuffer> decoded;
};
using RawDone = std::function<void(Result<std::shared_ptr<const RawSegment>>)>;

// Reads the segment with background priority. The segment is busy until `done` has been called;
// whoever needs it longer says so himself (a private segment's chunks are valid while it is busy).
void load_raw(EngineState& engine, Segment& segment, RawDone done);

}  // namespace kvtier
