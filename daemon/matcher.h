// Matcher: from token ids to the longest stored prefix, as a list of segments.
//
// The index finds the deepest whole block by its chain hash; the parent chain of its segment gives
// the parts; the ids of all of them are compared (a doubtful match is a miss); then the match is
// extended token by token inside the last segment and into its children. Cold token arrays are read
// first. Engine's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "daemon/sequences.h"

namespace kvtier {

enum class MatchEnd : std::uint8_t { kAll, kDiffers, kEnd, kNothing, kSlower };
[[nodiscard]] const char* match_end_name(MatchEnd end) noexcept;

struct MatchResult {
  std::uint64_t tokens = 0;
  bool has_stored_token = false;
  std::uint32_t stored_token = 0;
  MatchEnd end = MatchEnd::kNothing;
  std::vector<PartSpec> parts;
};
// `done` runs at once where all tokens are in memory. Its parts are valid only inside the call.
using MatchDone = std::function<void(Result<MatchResult>)>;
void match_prefix(EngineState& engine, StoredSpace& space, std::vector<std::uint32_t> ids,
                  MatchDone done);
// Takes parts off the end that would take longer to load than to compute (daemon/cost_model.h), and
// says so in `end` and in the statistics.
void decline_slow_parts(EngineState& engine, const StoredSpace& space, MatchResult* match);

}  // namespace kvtier
