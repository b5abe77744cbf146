// Reads the metadata of a segment file as a whole: for load_meta(), which keeps a part of it, and
// for what nobody keeps in memory. Engine's thread.
#pragma once

#include <functional>
#include <memory>

#include "daemon/segments.h"

namespace kvtier {

// `done` with what the file says, checked against the catalogue's row; the segment stays until
// then. Gives the read, for hasten_meta while it is under way; none where it could not begin, and
// `done` has been told why.
std::shared_ptr<MetaRead> read_segment_meta(EngineState& engine, Segment& segment,
                                            IoPriority priority,
                                            std::function<void(Result<SegmentMeta>)> done);
// Somebody more urgent waits for it, too.
void hasten_meta(EngineState& engine, MetaRead& read, IoPriority priority);

}  // namespace kvtier
