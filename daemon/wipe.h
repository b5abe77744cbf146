// Wipe: overwrites segment files with zeros before they are removed, so that their bytes are gone
// from the file system's point of view (a drive may keep copies of its own). Engine's thread.
#pragma once

#include <vector>

#include "daemon/segments.h"

namespace kvtier {

// Segments that nobody refers to. `done` with the first error, after all were tried.
void wipe_segments(EngineState& engine, std::vector<SegmentId> segments, MetaDone done);

}  // namespace kvtier
