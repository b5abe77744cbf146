#include "daemon/matcher.h"

#include <algorithm>
#include <cstdio>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"

namespace kvtier {

const char* match_end_name(MatchEnd end) noexcept {
  switch (end) {
    case MatchEnd::kAll:
      return "all";
    case MatchEnd::kDiffers:
      return "differs";
    case MatchEnd::kEnd:
      return "end";
    case MatchEnd::kNothing:
      return "nothing";
    case MatchEnd::kSlower:
      return "slower";
  }
  return "nothing";
}

namespace {

constexpr std::size_t kCandidatesMax = 32;
// Segments of the chain whose metadata is in memory for a match at once.
constexpr std::size_t kSliceSegments = 32;

// One match under way. Segments in it are busy until it ends.
struct Walk {
  StoredSpace* space = nullptr;
  std::vector<std::uint32_t> ids;
  std::vector<PartSpec> chain;  // what the hash found
  std::size_t next = 0;         // of the chain: compared next
  std::vector<PartSpec> parts;  // what was compared
  std::uint64_t matched = 0;    // tokens of `ids`
  bool has_stored_token = false;
  std::uint32_t stored_token = 0;
  std::vector<Segment*> held;
  MatchDone done;
};
using WalkRef = std::shared_ptr<Walk>;

void hold(Walk& walk, Segment& segment) {
  ++segment.busy;
  walk.held.push_back(&segment);
}

bool usable(const Segment& segment) {
  return segment.state == SegmentState::kOnDisk && !segment.row.bad && !segment.condemned;
}

// The block behind the match was stored once, and evicted.
bool was_evicted(const EngineState& engine, const Walk& walk, const MatchResult& result) {
  const std::uint64_t blocks = result.tokens / kBlockTokens + 1;
  if (engine.miss_log.ghosts.empty() || walk.ids.size() < blocks * kBlockTokens) return false;
  const auto chain = walk.space->index.chain(
      std::span(walk.ids).first(static_cast<std::size_t>(blocks * kBlockTokens)));
  return engine.miss_log.ghosts.count(chain.back()) != 0;
}

bool in_other_space(const EngineState& engine, const Walk& walk, std::string* where) {
  if (walk.ids.size() < kBlockTokens) return false;
  PrefixIndex::Hit hit;
  for (const auto& [id, space] : engine.spaces) {
    if (space.get() == walk.space) continue;
    if (!space->index.find_longest(std::span(walk.ids).first(kBlockTokens), &hit)) continue;
    *where = "stored in the space of " + space->row.model + ", " + space->row.runtime;
    return true;
  }
  return false;
}

void count(EngineState& engine, const Walk& walk, const MatchResult& result) {
  ++engine.metrics.matches;
  engine.metrics.match_tokens_asked += walk.ids.size();
  engine.metrics.match_tokens_found += result.tokens;
  if (result.end == MatchEnd::kAll) return;
  Miss miss;
  miss.unix_ns = engine.wall_ns();
  miss.space = walk.space->row.id;
  miss.tokens_asked = walk.ids.size();
  miss.tokens_found = result.tokens;
  miss.asked_token = walk.ids[static_cast<std::size_t>(result.tokens)];
  miss.has_stored = result.has_stored_token;
  miss.stored_token = result.stored_token;
  miss.reason = MissReason::kNoMatch;
  if (was_evicted(engine, walk, result)) {
    miss.reason = MissReason::kEvicted;
    ++engine.miss_log.ghost_hits;
  } else if (result.end == MatchEnd::kDiffers) {
    miss.reason = MissReason::kDiffers;
  } else if (result.end == MatchEnd::kNothing && in_other_space(engine, walk, &miss.detail)) {
    miss.reason = MissReason::kOtherSpace;
  }
  ++engine.metrics.misses[static_cast<std::size_t>(miss.reason)];
  add_miss(engine.miss_log, std::move(miss));
}

void finish(EngineState& engine, const WalkRef& walk, Result<void> failure) {
  MatchResult result;
  result.tokens = walk->matched;
  result.parts = walk->parts;
  for (const PartSpec& part : walk->parts) {
    if (usable(*part.segment)) continue;
    result.parts.clear();  // it went away while we looked
    result.tokens = 0;
  }
  result.has_stored_token = walk->has_stored_token && result.tokens == walk->matched;
  result.stored_token = walk->stored_token;
  if (result.tokens == walk->ids.size())
    result.end = MatchEnd::kAll;
  else if (result.tokens == 0)
    result.end = MatchEnd::kNothing;
  else
    result.end = result.has_stored_token ? MatchEnd::kDiffers : MatchEnd::kEnd;
  if (failure) count(engine, *walk, result);
  if (failure)
    walk->done(std::move(result));
  else
    walk->done(error(failure.error()));
  for (const PartSpec& part : walk->parts) mark_used_again(engine, *part.segment);
  for (Segment* segment : walk->held) --segment->busy;
}

// How many tokens of the segment, from its first, equal the ids at its place.
std::uint32_t equal_tokens(const Walk& walk, const Segment& segment, const LoadedMeta& meta) {
  const std::vector<TokenRecord>& tokens = meta.tokens;
  const std::uint64_t start = segment.row.start_token;
  std::uint32_t equal = 0;
  while (equal < tokens.size() && start + equal < walk.ids.size() &&
         tokens[equal].id == walk.ids[start + equal])
    ++equal;
  return equal;
}

void extend_into_children(EngineState& engine, const WalkRef& walk);

// What is stored where the match ends, for the caller's diagnosis.
void note_stored(Walk& walk, const Segment& segment, const LoadedMeta& meta, std::uint32_t equal) {
  if (equal >= meta.tokens.size() || segment.row.start_token + equal != walk.matched) return;
  if (walk.matched >= walk.ids.size()) return;
  walk.has_stored_token = true;
  walk.stored_token = meta.tokens[equal].id;
}

void choose_child(EngineState& engine, const WalkRef& walk, const std::vector<Segment*>& candidates,
                  const LoadedMetas& metas) {
  Segment* best = nullptr;
  const LoadedMeta* best_meta = nullptr;
  std::uint64_t best_end = walk->matched;
  std::vector<std::pair<std::size_t, std::uint32_t>> ends;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    Segment* segment = candidates[i];
    if (metas[i] == nullptr || !usable(*segment)) continue;
    const std::uint32_t equal = equal_tokens(*walk, *segment, *metas[i]);
    ends.emplace_back(i, equal);
    if (segment->row.start_token + equal <= best_end) continue;
    best = segment;
    best_meta = metas[i].get();
    best_end = segment->row.start_token + equal;
  }
  if (best == nullptr) {
    for (const auto& [i, equal] : ends) note_stored(*walk, *candidates[i], *metas[i], equal);
    return finish(engine, walk, {});
  }
  walk->has_stored_token = false;
  if (!walk->parts.empty()) walk->parts.back().visible_tokens = best->row.parent_visible;
  const auto equal = static_cast<std::uint32_t>(best_end - best->row.start_token);
  walk->parts.push_back({best, equal});
  walk->matched = best_end;
  note_stored(*walk, *best, *best_meta, equal);
  extend_into_children(engine, walk);
}

// Segments that begin inside what matched and may go on a little further. Whole blocks behind would
// have been found by their hash, so only those that begin within the last block can.
void extend_into_children(EngineState& engine, const WalkRef& walk) {
  if (walk->matched == walk->ids.size()) return finish(engine, walk, {});
  const std::vector<SegmentId>& children =
      walk->parts.empty() ? walk->space->roots : walk->parts.back().segment->children;
  std::vector<Segment*> candidates;
  std::vector<SegmentId> ids;
  for (auto id = children.rbegin(); id != children.rend() && candidates.size() < kCandidatesMax;
       ++id) {
    Segment* segment = find_segment(engine, *id);
    if (segment == nullptr || !usable(*segment) || segment->row.start_token > walk->matched ||
        segment->row.start_token + kBlockTokens <= walk->matched)
      continue;
    hold(*walk, *segment);
    candidates.push_back(segment);
    ids.push_back(*id);
  }
  if (candidates.empty()) return finish(engine, walk, {});
  load_metas(engine, ids, IoPriority::kDemand,
             [&engine, walk, candidates](Result<void>, const LoadedMetas& metas) {
               choose_child(engine, walk, candidates, metas);
             });
}

// Takes the next segment of the chain as far as its tokens are those of `ids`; true where the one
// behind it may match, too.
bool compare_next(Walk& walk, const LoadedMeta* meta) {
  const auto [found, shown] = walk.chain[walk.next++];
  const Segment& segment = *found;
  if (meta == nullptr || !usable(segment)) return false;
  const std::uint32_t equal = equal_tokens(walk, segment, *meta);
  const bool last = walk.next == walk.chain.size();
  const std::uint32_t visible = last ? equal : std::min(equal, shown);
  if (visible == 0) return false;
  walk.parts.push_back({found, visible});
  walk.matched = segment.row.start_token + visible;
  if (!last && visible == shown) return true;
  note_stored(walk, segment, *meta, visible);
  return false;
}

// The hash found the chain, its tokens decide: a slice at a time, since the metadata of all of it
// may be above what is kept in memory.
void compare_chain(EngineState& engine, const WalkRef& walk) {
  std::vector<SegmentId> slice;
  for (std::size_t i = walk->next; i < walk->chain.size() && slice.size() < kSliceSegments; ++i)
    slice.push_back(walk->chain[i].segment->row.id);
  load_metas(engine, slice, IoPriority::kDemand,
             [&engine, walk](Result<void>, const LoadedMetas& metas) {
               for (const auto& meta : metas)
                 if (!compare_next(*walk, meta.get())) return extend_into_children(engine, walk);
               compare_chain(engine, walk);
             });
}

// The parent chain of the hit, first segment first. False where it is broken.
bool build_chain(EngineState& engine, Walk& walk, const PrefixIndex::Place& place) {
  SegmentId id = place.segment;
  std::uint32_t visible = place.visible_tokens;
  std::uint64_t end = UINT64_MAX;
  while (id.valid()) {
    Segment* segment = find_segment(engine, id);
    if (segment == nullptr || !usable(*segment) || walk.chain.size() >= kSequenceSegmentsMax)
      return false;
    if (end != UINT64_MAX && segment->row.start_token + visible != end) return false;
    walk.chain.push_back({segment, visible});
    end = segment->row.start_token;
    visible = segment->row.parent_visible;
    id = segment->row.parent;
  }
  std::reverse(walk.chain.begin(), walk.chain.end());
  return end == 0;
}

}  // namespace

void match_prefix(EngineState& engine, StoredSpace& space, std::vector<std::uint32_t> ids,
                  MatchDone done) {
  auto walk = std::make_shared<Walk>();
  walk->space = &space;
  walk->ids = std::move(ids);
  walk->done = std::move(done);
  PrefixIndex::Hit hit;
  if (!space.index.find_longest(walk->ids, &hit) || !build_chain(engine, *walk, hit.place))
    return extend_into_children(engine, walk);
  for (const PartSpec& part : walk->chain) hold(*walk, *part.segment);
  compare_chain(engine, walk);
}

void decline_slow_parts(EngineState& engine, const StoredSpace& space, MatchResult* match) {
  if (!engine.options.decline_slow_loads) return;
  const std::uint64_t found = match->tokens;
  LoadEstimate worst;
  // Behind the first part that is not worth its load everything would have to be computed anyway.
  std::size_t keep = match->parts.size();
  for (std::size_t first = 0; first < match->parts.size(); ++first) {
    if (estimate_load(engine, {match->parts[first]}, 0).bytes == 0) continue;  // in memory
    const LoadEstimate estimate = estimate_load(engine, match->parts, first);
    if (!estimate.slower()) continue;
    worst = estimate;
    keep = first;
    break;
  }
  if (keep == match->parts.size()) return;
  match->parts.resize(keep);
  match->tokens = 0;
  for (const PartSpec& part : match->parts) match->tokens += part.visible_tokens;
  match->end = MatchEnd::kSlower;
  match->has_stored_token = false;
  ++engine.cost.declined;
  engine.cost.declined_tokens += found - match->tokens;
  ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kSlower)];
  Miss miss;
  miss.unix_ns = engine.wall_ns();
  miss.reason = MissReason::kSlower;
  miss.space = space.row.id;
  miss.tokens_asked = found;
  miss.tokens_found = match->tokens;
  char text[96];
  std::snprintf(text, sizeof text, "loading would take %.2f s, computing %.2f s", worst.load_s,
                worst.compute_s);
  miss.detail = text;
  KVT_LOG(kInfo, "a stored prefix of %llu tokens is not used: %s",
          static_cast<unsigned long long>(found), text);
  add_miss(engine.miss_log, std::move(miss));
}

}  // namespace kvtier
