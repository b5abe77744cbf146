// Compaction: runs of short or half-visible segments of a closed sequence become few full ones.
// Engine's thread; copying and checksums on workers.
//
// A worker copies the visible rows of up to 2,048 tokens from the old files into a tail of our own,
// and the sealer makes a segment of it, on a nameless sequence that shares what lies before; when
// the run is done one synced batch gives the sequence its new parts. A crash in between leaves the
// old parts and segments that nothing uses.
#pragma once

#include <cstdint>
#include <functional>

#include "base/result.h"

namespace kvtier {

struct EngineState;

struct CompactionReport {
  std::uint64_t sequences = 0;
  std::uint64_t segments_merged = 0;  // old ones
  std::uint64_t segments_made = 0;
  std::uint64_t bytes_before = 0, bytes_after = 0;  // of the files of both
};

// All closed sequences that have something to gain: two neighbours that fit in one segment, or one
// that shows less than half of its tokens, and that no other sequence uses.
void compact_store(EngineState& engine, std::function<void(Result<CompactionReport>)> done);

}  // namespace kvtier
