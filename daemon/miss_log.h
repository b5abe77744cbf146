// MissLog: the newest misses of prefixes with what they were, for people who ask why something was
// computed again. Bounded; also the ghosts of evicted blocks, by which a miss is known to be one of
// eviction. Engine's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <unordered_set>

#include "base/ids.h"
#include "daemon/metrics.h"

namespace kvtier {

struct Miss {
  std::uint64_t unix_ns = 0;
  MissReason reason = MissReason::kNoMatch;
  SpaceId space;
  std::uint64_t tokens_asked = 0, tokens_found = 0;  // differs at tokens_found
  bool has_stored = false;
  std::uint32_t asked_token = 0, stored_token = 0;
  std::string detail;
};

struct MissLog {
  std::deque<Miss> newest;  // oldest first
  std::deque<BlockHash> ghost_order;
  std::unordered_set<BlockHash> ghosts;
  std::uint64_t ghost_hits = 0;
};

inline constexpr std::size_t kMissesKept = 16;
inline constexpr std::size_t kGhostBlocksMax = 1u << 16;

inline void add_miss(MissLog& log, Miss miss) {
  log.newest.push_back(std::move(miss));
  if (log.newest.size() > kMissesKept) log.newest.pop_front();
}
inline void add_ghost(MissLog& log, const BlockHash& hash) {
  if (!log.ghosts.insert(hash).second) return;
  log.ghost_order.push_back(hash);
  if (log.ghost_order.size() <= kGhostBlocksMax) return;
  log.ghosts.erase(log.ghost_order.front());
  log.ghost_order.pop_front();
}

}  // namespace kvtier
