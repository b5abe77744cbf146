// The committed tail of a sequence that nobody writes on: what is sound of its log is replayed and
// sealed, for a fork and for repair. Owned by the engine's thread.
#pragma once

#include "daemon/sequences.h"

namespace kvtier {

// In the sequence's queue (from TailWork::kOther): calls `done`, then work_finished. Where the log
// holds nothing sound, nothing is sealed, and sequence.log.tokens is 0.
void seal_stored_tail(EngineState& engine, SequenceId id, MetaDone done);

}  // namespace kvtier
