// Reads the metadata of a segment file as a whole: for load_meta(), which keeps a part of it, and
// for what nobody keeps in memory. Engine's thread.
#pragma once

#include <functional>

#include "daemon/segments.h"

namespace kvtier {

// `done` with what the file says, checked against the catalogue's row; the segment stays until
// then.
void read_segment_meta(EngineState& engine, Segment& segment, IoPriority priority,
                       std::function<void(Result<SegmentMeta>)> done);

}  // namespace kvtier
