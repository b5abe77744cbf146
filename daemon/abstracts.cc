#include "daemon/abstracts.h"

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/log.h"
#include "daemon/codebooks.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"
#include "tiers/sidecar_format.h"

namespace kvtier {

SegmentAbstract& lane_of(Segment& segment, std::uint32_t lane) {
  KVT_CHECK(lane < segment.space->lanes());
  if (segment.abstracts.size() <= lane) segment.abstracts.resize(lane + 1);
  return segment.abstracts[lane];
}

// The same for one that is written and one that is removed: sentences and spans are taken as 8
// tokens long, segments as long as clusters.
std::uint64_t file_bytes_of(const Segment& segment, std::uint32_t lane) {
  const AbstractSpec spec = segment.space->lane_spec(lane);
  const std::uint32_t tokens = segment.row.tokens;
  const bool cut = spec.by_tokens() && !spec.by_head();
  const std::uint32_t units = cut ? (tokens + 7) / 8 : spec.units_of(tokens);
  const AbstractLayout layout(segment.space->row.geometry, spec, tokens, units);
  return kSidecarHeaderBytes + align_up<std::uint64_t>(layout.size_bytes(), kDiskAlign);
}

void note_file(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  if (abstract.has_file) return;
  abstract.has_file = true;
  engine.segments.sidecar_bytes += file_bytes_of(segment, lane);
}

bool is_rendition(const Segment& segment, std::uint32_t lane) {
  return segment.space->lane_spec(lane).rendition();
}

namespace {

std::uint64_t payload_bytes(const Segment& segment, std::uint32_t lane) {
  return AbstractLayout(segment.space->row.geometry, segment.space->lane_spec(lane),
                        segment.row.tokens, 1)
      .size_bytes();
}

// ---- room in the arena ----

// Renditions are three to ten times as large as codes and views can do without them; what rows are
// chosen by keeps a quarter of the arena.
bool base_fits(const EngineState& engine, std::uint64_t bytes) {
  const std::uint64_t cap = engine.abstracts->size_bytes() / 4 * 3;
  const AbstractTable& table = engine.abstract_table;
  return bytes <= kSidecarPayloadBytesMax &&
         table.base_bytes + table.base_promised_bytes + bytes <= cap;
}

void warn_no_room(const EngineState& engine, const Segment& segment, std::uint32_t lane) {
  KVT_LOG(kWarn,
          "segment %" PRIx64
          ": no room for %s in the abstracts' arena of %llu MiB (host.abstracts_bytes); views read "
          "exact rows; further ones are counted in stats",
          segment.row.id.value, segment.space->lane_spec(lane).text().c_str(),
          static_cast<unsigned long long>(engine.abstracts->size_bytes() >> 20));
}

}  // namespace

void refuse_abstract(EngineState& engine, Segment& segment, std::uint32_t lane) {
  lane_of(segment, lane).state = AbstractState::kFailed;
  AbstractTable& table = engine.abstract_table;
  if (is_rendition(segment, lane)) {
    table.base_refused.emplace(segment.row.id.value, lane);
    if (!std::exchange(table.base_warned, true)) warn_no_room(engine, segment, lane);
  } else if (engine.metrics.abstracts_full++ == 0) {
    warn_no_room(engine, segment, lane);
  }
}

namespace {

// A place in the arena, which nobody is shown yet; UINT64_MAX where there is none and the lane is
// refused.
std::uint64_t take_place(EngineState& engine, Segment& segment, std::uint32_t lane,
                         std::uint64_t bytes) {
  const bool base = is_rendition(segment, lane);
  Result<std::uint64_t> offset = error(Code::kFull);
  if (!base || base_fits(engine, bytes)) offset = engine.abstracts->allocate(bytes);
  if (!offset) {
    refuse_abstract(engine, segment, lane);
    return UINT64_MAX;
  }
  if (base) engine.abstract_table.base_bytes += bytes;
  return *offset;
}

// What was copied there may be shown: directories have the offset from here on. Views see by
// `placement` that the same place was left and taken again meanwhile.
void make_ready(EngineState& engine, SegmentAbstract* abstract, std::uint64_t offset) {
  const std::uint64_t placement = engine.abstract_table.next_placement++;
  std::memcpy(engine.abstracts->data(offset) + offsetof(AbstractHeader, placement), &placement,
              sizeof(placement));
  abstract->offset = offset;
  abstract->state = AbstractState::kReady;
}

void free_abstract(EngineState& engine, const Segment& segment, std::uint32_t lane,
                   SegmentAbstract* abstract) {
  if (abstract->state != AbstractState::kReady) return;
  if (KVT_FAULT("abstracts.freed"))  // what lies there then is nobody's: tests make it so
    std::memset(engine.abstracts->data(abstract->offset) + sizeof(AbstractHeader), 0x7F,
                payload_bytes(segment, lane) - sizeof(AbstractHeader));
  engine.abstracts->free(abstract->offset);
  if (is_rendition(segment, lane)) engine.abstract_table.base_bytes -= payload_bytes(segment, lane);
  abstract->offset = UINT64_MAX;
  abstract->state = AbstractState::kAbsent;
}

// Not read or built in vain: what it will take of the arena is promised before.
void load_base(EngineState& engine, Segment& segment, std::uint32_t lane) {
  const std::uint64_t bytes = payload_bytes(segment, lane);
  if (!base_fits(engine, bytes)) return refuse_abstract(engine, segment, lane);
  AbstractTable& table = engine.abstract_table;
  table.base_promised.emplace(std::pair{segment.row.id.value, lane}, bytes);
  table.base_promised_bytes += bytes;
  queue_load(engine, segment, lane);
}

void load(EngineState& engine, Segment& segment, std::uint32_t lane) {
  is_rendition(segment, lane) ? load_base(engine, segment, lane)
                              : queue_load(engine, segment, lane);
}

void settle_promise(EngineState& engine, SegmentId segment, std::uint32_t lane) {
  AbstractTable& table = engine.abstract_table;
  const auto promised = table.base_promised.find({segment.value, lane});
  if (promised == table.base_promised.end()) return;
  table.base_promised_bytes -= promised->second;
  table.base_promised.erase(promised);
}

// Room was given back: base renditions that had none have another try.
void retry_refused(EngineState& engine) {
  const auto refused = std::exchange(engine.abstract_table.base_refused, {});
  for (const auto& [id, lane] : refused) {
    Segment* segment = find_segment(engine, SegmentId{id});
    if (segment != nullptr && !segment->condemned && lane_of(*segment, lane).wants != 0 &&
        lane_of(*segment, lane).state == AbstractState::kFailed)
      load_base(engine, *segment, lane);
  }
}

// ---- one segment's lane ----

void want(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  ++abstract.wants;
  const bool readable =
      segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kInMemory;
  if (abstract.state == AbstractState::kFailed && abstract.wants == 1)
    abstract.state = AbstractState::kAbsent;  // somebody new: try again
  if (abstract.state != AbstractState::kAbsent || !readable) return;
  if (payload_bytes(segment, lane) == 0) return;  // no layer has any
  load(engine, segment, lane);
}

void unwant(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  KVT_CHECK(abstract.wants > 0);
  if (--abstract.wants != 0) return;
  free_abstract(engine, segment, lane, &abstract);
  engine.abstract_table.base_refused.erase({segment.row.id.value, lane});
}

}  // namespace

void settle_lane(EngineState& engine, SegmentId segment, std::uint32_t lane) {
  settle_promise(engine, segment, lane);
  const auto waiting = std::exchange(engine.abstract_table.settled, {});
  for (const auto& go_on : waiting) go_on();
  retry_refused(engine);
}

// ---- wants ----

void want_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane) {
  KVT_CHECK(lane < kSpaceAbstractsMax);
  if (open.lane_views[lane]++ != 0) return;
  // In their order: where there is no room for all, the older ones have it.
  std::vector<const OpenSequence::Held*> held;
  for (const auto& [id, one] : open.held) held.push_back(&one);
  std::sort(held.begin(), held.end(),
            [](const auto* a, const auto* b) { return a->entry < b->entry; });
  for (const OpenSequence::Held* one : held) want(engine, *one->segment, lane);
  publish_directory(engine, open);
}

void drop_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane) {
  if (lane >= kSpaceAbstractsMax || open.lane_views[lane] == 0 || --open.lane_views[lane] != 0)
    return;
  for (auto& [id, held] : open.held) unwant(engine, *held.segment, lane);
  publish_directory(engine, open);
  retry_refused(engine);
}

void retry_lane(EngineState& engine, const StoredSpace& space, AbstractSpec spec) {
  const auto& kinds = space.row.abstracts;
  const auto place = std::find(kinds.begin(), kinds.end(), spec.packed());
  if (place == kinds.end()) return;
  const auto lane = static_cast<std::uint32_t>(place - kinds.begin());
  std::vector<Segment*> wanted;
  for (const auto& [id, segment] : engine.segments.all)
    if (segment->space == &space && !segment->condemned && lane_of(*segment, lane).wants != 0)
      wanted.push_back(segment.get());
  std::sort(wanted.begin(), wanted.end(),
            [](const Segment* a, const Segment* b) { return a->row.id.value < b->row.id.value; });
  for (Segment* segment : wanted) {
    SegmentAbstract& abstract = lane_of(*segment, lane);
    if (abstract.state == AbstractState::kReady) {
      AbstractHeader header;
      std::memcpy(&header, engine.abstracts->data(abstract.offset), sizeof(header));
      if (header.codebook == codebook_id(space, spec)) continue;
      free_abstract(engine, *segment, lane, &abstract);  // codes of a codebook that is gone
      publish_segment(engine, *segment);
    } else if (abstract.state != AbstractState::kFailed) {
      continue;
    }
    load(engine, *segment, lane);
  }
}

void hold_abstracts(EngineState& engine, OpenSequence& open, Segment& segment) {
  for (std::uint32_t lane = 0; lane < kSpaceAbstractsMax; ++lane)
    if (open.lane_views[lane] != 0) want(engine, segment, lane);
}

void release_abstracts(EngineState& engine, OpenSequence& open, Segment& segment) {
  for (std::uint32_t lane = 0; lane < kSpaceAbstractsMax; ++lane)
    if (open.lane_views[lane] != 0) unwant(engine, segment, lane);
  retry_refused(engine);
}

void drop_abstracts(EngineState& engine, Segment& segment) {
  for (std::uint32_t lane = 0; lane < segment.abstracts.size(); ++lane)
    free_abstract(engine, segment, lane, &segment.abstracts[lane]);
  retry_refused(engine);
}

LaneProgress progress_of(const OpenSequence& open, std::uint32_t lane) {
  LaneProgress out;
  for (const auto& [id, held] : open.held) {
    if (held.entry == UINT32_MAX) continue;
    ++out.segments;
    const std::vector<SegmentAbstract>& abstracts = held.segment->abstracts;
    const AbstractState state =
        lane < abstracts.size() ? abstracts[lane].state : AbstractState::kAbsent;
    out.ready += state == AbstractState::kReady ? 1 : 0;
    // kAbsent with a want: nothing to load it from, or no layer has any.
    out.failed += state == AbstractState::kFailed || state == AbstractState::kAbsent ? 1 : 0;
  }
  return out;
}

// ---- sealing ----

std::vector<SealLane> lanes_at_seal(EngineState& engine, const StoredSequence& sequence) {
  std::vector<SealLane> out;
  for (std::uint32_t lane = 0; lane < sequence.space->lanes(); ++lane) {
    const AbstractSpec spec = sequence.space->lane_spec(lane);
    // Dear, or large: after the seal.
    if (spec.by_head() || spec.abstract == AbstractKind::kOwnCodes || spec.rendition()) continue;
    const bool wanted =
        lane == 0 || std::any_of(sequence.open.begin(), sequence.open.end(),
                                 [&](const auto* open) { return open->lane_views[lane] != 0; });
    if (!wanted) continue;
    SealLane entry{lane, spec, nullptr};
    if (spec.abstract == AbstractKind::kCodes) {
      // Read now, it serves the next seal; this one's codes are built when a view wants them.
      load_codebook(engine, *sequence.space, spec, [](const auto&) {});
      entry.codebook = codebook_of(engine, *sequence.space, spec).codebook;
      if (entry.codebook == nullptr) continue;
    }
    out.push_back(std::move(entry));
  }
  return out;
}

void install_sealed(EngineState& engine, Segment& segment, const SealedAbstract& built,
                    const std::shared_ptr<const void>& keeper) {
  if (built.failed || built.payload.empty()) return;
  ++engine.metrics.abstracts_built;
  write_sidecar(engine, segment, built.lane, {keeper, built.payload});
  const std::uint64_t place = take_place(engine, segment, built.lane, built.payload.size());
  if (place == UINT64_MAX) return;
  std::memcpy(engine.abstracts->data(place), built.payload.data(), built.payload.size());
  make_ready(engine, &lane_of(segment, built.lane), place);
}

void release_unwanted(EngineState& engine, Segment& segment) {
  for (std::uint32_t lane = 0; lane < segment.abstracts.size(); ++lane)
    if (segment.abstracts[lane].wants == 0)
      free_abstract(engine, segment, lane, &segment.abstracts[lane]);
}

// ---- files ----

std::vector<std::string> sidecar_paths_of(const Segment& segment) {
  std::vector<std::string> out;
  for (const std::uint32_t kind : segment.space->row.abstracts)
    out.push_back(sidecar_path(segment.row.id, kind));
  return out;
}

std::uint64_t sidecar_bytes_of(const Segment& segment) {
  std::uint64_t bytes = 0;
  for (std::uint32_t lane = 0; lane < segment.abstracts.size(); ++lane)
    if (segment.abstracts[lane].has_file) bytes += file_bytes_of(segment, lane);
  return bytes;
}

void note_sidecar(EngineState& engine, Segment& segment, std::uint32_t kind) {
  const std::vector<std::uint32_t>& kinds = segment.space->row.abstracts;
  const auto place = std::find(kinds.begin(), kinds.end(), kind);
  if (place != kinds.end())
    note_file(engine, segment, static_cast<std::uint32_t>(place - kinds.begin()));
}

void drop_abstract(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  const bool shown = abstract.state == AbstractState::kReady;
  free_abstract(engine, segment, lane, &abstract);
  if (shown) publish_segment(engine, segment);
  drop_file(engine, segment, lane);
}

// ---- into the arena ----

namespace {

void installed(EngineState& engine, SegmentId id, std::uint32_t lane, std::uint64_t place) {
  Segment* segment = find_segment(engine, id);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  SegmentAbstract& abstract = lane_of(*segment, lane);
  make_ready(engine, &abstract, place);
  if (abstract.wants == 0 || segment->condemned)
    free_abstract(engine, *segment, lane, &abstract);
  else
    publish_segment(engine, *segment);
  settle_lane(engine, id, lane);
}

}  // namespace

// A worker copies. Its queue orders the directories that were published before, in which nothing
// lies at that place, against the bytes that it writes there.
void install_abstract(EngineState& engine, Segment& segment, std::uint32_t lane,
                      KeptBytes payload) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  const SegmentId id = segment.row.id;
  abstract.state = AbstractState::kAbsent;
  settle_promise(engine, id, lane);
  if (abstract.wants == 0 || segment.condemned) return settle_lane(engine, id, lane);
  const std::uint64_t place = take_place(engine, segment, lane, payload.bytes.size());
  if (place == UINT64_MAX) return settle_lane(engine, id, lane);
  abstract.state = AbstractState::kWorking;
  ++segment.busy;
  std::byte* const target = engine.abstracts->data(place);
  run_on_worker(
      engine,
      [target, payload] { std::memcpy(target, payload.bytes.data(), payload.bytes.size()); },
      [&engine, id, lane, place, payload] { installed(engine, id, lane, place); });
}

}  // namespace kvtier
