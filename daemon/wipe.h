// Wipe: overwrites files with zeros before they are unlinked, so that their bytes are gone from the
// file system's point of view (a drive may keep copies of its own); and which segments go with one
// that goes. Engine's thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "daemon/segments.h"

namespace kvtier {

// Those of `segments` that nobody refers to, and all that continue them, which nobody can refer to
// either; parents first.
[[nodiscard]] std::vector<SegmentId> unused_with_descendants(
    EngineState& engine, const std::vector<SegmentId>& segments);
// Files that no catalogue row names any more; one that is absent is done. `done` with the first
// error, after all were tried.
void wipe_files(EngineState& engine, std::vector<std::string> paths, MetaDone done);

}  // namespace kvtier
