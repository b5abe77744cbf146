// Reads the tail log of a sequence back: on the first attach after a start, for a fork or a seal of
// what nobody writes on, for an export. The file is read as a whole; a worker replays it into a
// tail. Engine's thread.
#pragma once

#include <cstdint>
#include <functional>

#include "daemon/sequences.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

// What the head of this sequence's log says, under this generation.
[[nodiscard]] TailLogHeader log_header_of(const StoredSequence& sequence, std::uint64_t generation);

// Reads the committed tail into half 0 of `tail`; `done` with the number of tokens in sequence.log.
void load_log(EngineState& engine, StoredSequence& sequence, std::shared_ptr<TailMemory> tail,
              MetaDone done);

// The same, for who only reads: `done` with the number of tokens in `tail`; sequence.log stays as
// it is. In the sequence's queue, so that nothing is appended meanwhile.
void read_log(EngineState& engine, StoredSequence& sequence, std::shared_ptr<TailMemory> tail,
              std::function<void(Result<std::uint32_t>)> done);

}  // namespace kvtier
