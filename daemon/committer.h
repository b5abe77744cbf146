// Committer: makes tail tokens durable in the tail log without sealing them.
//
// A worker copies the tokens that the log lacks into records of up to 1 MiB; the engine appends
// each while the worker is at the next, and syncs once. A commit of a few tokens is copied at once.
// The first commit after a seal makes a new file of a new generation: header and record written,
// synced, directory synced, and the sequence row that names the generation synced, before anything
// is acknowledged. After a write or sync that failed, the next commit begins a new generation with
// all tokens of the half, because nobody knows what the old file holds. Engine's thread.
#pragma once

#include <cstdint>

#include "daemon/sequences.h"

namespace kvtier {

void start_commit(EngineState& engine, StoredSequence& sequence, const TailWork& work);

// Drops the log: after the batch that published its tokens in a segment, or when the sequence goes.
void drop_log(EngineState& engine, StoredSequence& sequence, LogFile file = LogFile::kUnlink);

// Cuts the log to its first `tokens` tokens; `done` when that is durable. Nothing else of the
// sequence is under way.
void cut_log(EngineState& engine, StoredSequence& sequence, std::uint32_t tokens, MetaDone done);

}  // namespace kvtier
