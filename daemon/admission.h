// Admission: what is worth a write. A full tail, a commit and a name always are. What a client
// leaves in the tail of a nameless, uncommitted sequence when it closes it is only a guess that
// somebody begins so again; while the day's writes are below half of the budget it is written like
// everything else. Above that only on its second use: the first one leaves the hash of its first
// new block behind, and a second that begins the same is written (store.admission). Never held back
// in memory instead: what is sealed must survive the daemon. Engine's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_set>

#include "base/ids.h"

namespace kvtier {

struct EngineState;
struct StoredSequence;
struct TailWork;

struct Admission {
  std::deque<BlockHash> order;
  std::unordered_set<BlockHash> seen;  // once, and not written
  std::uint64_t declined = 0, declined_tokens = 0, second_uses = 0;
};

inline constexpr std::size_t kSeenBlocksMax = 1u << 15;

// Whether a seal at close is to be carried out; remembers it where not.
[[nodiscard]] bool admit_at_close(EngineState& engine, const StoredSequence& sequence,
                                  const TailWork& work);

}  // namespace kvtier
