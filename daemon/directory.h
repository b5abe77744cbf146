// Directory: what one open sequence consists of, in a memfd that the client maps read-only
// (client/ipc/shm_layout.h). Written as a seqlock: odd version, entries, even version. Engine's
// thread.
#pragma once

#include "base/result.h"
#include "daemon/sequences.h"

namespace kvtier {

[[nodiscard]] Result<Memfd> make_directory_memfd();
// Writes the sequence's parts as they are now, and lets the handle name their segments.
void publish_directory(EngineState& engine, OpenSequence& open);
void publish_directories(EngineState& engine, StoredSequence& sequence);
// The same for every open sequence that shows the segment: its abstracts came or went.
void publish_segment(EngineState& engine, const Segment& segment);

}  // namespace kvtier
