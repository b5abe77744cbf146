// Abstracts: derived from a segment's keys, kept in sidecar files, shown to clients in the
// abstracts arena, one lane per kind of abstract that the space has.
//
// A lane of a segment is in the arena while an open sequence that shows the segment has a view that
// wants it. The first lane of a space, and those wanted by an open sequence at that moment, are
// built by the worker that seals, from the copy it just made, as far as they are cheap
// (lanes_at_seal); all others, and what is missing or damaged, by abstract_builds.cc, one segment
// at a time. Being derived, a sidecar is never synced: its checksum decides. Renditions (base
// renditions and low-rank keys; names with "base" here mean both) are lanes like the others, but
// for their size: they have at most three quarters of the arena. Engine's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/segments.h"
#include "kernels/abstract_layout.h"
#include "tiers/abstract_builder.h"

namespace kvtier {

struct OpenSequence;
struct StoredSequence;

// ---- wants ----

// A view of this open sequence wants the lane: its segments' abstracts are loaded or built, and the
// directory moves as they come.
void want_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane);
void drop_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane);
// The open sequence begins or ceases to show the segment.
void hold_abstracts(EngineState& engine, OpenSequence& open, Segment& segment);
void release_abstracts(EngineState& engine, OpenSequence& open, Segment& segment);
// The segment goes: all of its abstracts leave the arena.
void drop_abstracts(EngineState& engine, Segment& segment);

// A codebook has come: what failed for want of it, or is of another, is tried again.
void retry_lane(EngineState& engine, const StoredSpace& space, AbstractSpec spec);

// Of the segments that an open sequence shows.
struct LaneProgress {
  std::uint32_t segments = 0;
  std::uint32_t ready = 0;
  std::uint32_t failed = 0;  // cannot be built, or no room in the arena: units count as wanted
};
[[nodiscard]] LaneProgress progress_of(const OpenSequence& open, std::uint32_t lane);

// ---- sealing ----

// Abstracts under construction by a seal.
struct SealedAbstract {
  std::uint32_t lane = 0;
  AbstractPlan plan;
  std::vector<std::byte> payload;
  std::shared_ptr<const Codebook> codebook;
  bool failed = false;
};
struct SealLane {
  std::uint32_t lane = 0;
  AbstractSpec spec;
  std::shared_ptr<const Codebook> codebook;  // of codes
};
// What a seal of this sequence should build.
[[nodiscard]] std::vector<SealLane> lanes_at_seal(EngineState& engine,
                                                  const StoredSequence& sequence);
// Before the segment is shown: into the arena, and to its sidecar in the background. `keeper` keeps
// the payload.
void install_sealed(EngineState& engine, Segment& segment, const SealedAbstract& built,
                    const std::shared_ptr<const void>& keeper);
// After it was shown: what nobody wants leaves the arena.
void release_unwanted(EngineState& engine, Segment& segment);

// ---- files ----

// All sidecars that the segment may have; most exist only where has_file says so.
[[nodiscard]] std::vector<std::string> sidecar_paths_of(const Segment& segment);
// Bytes of the sidecars that were written or seen, as counted in SegmentTable::sidecar_bytes.
[[nodiscard]] std::uint64_t sidecar_bytes_of(const Segment& segment);
// Removes the sidecar of a base rendition that nobody wants, of the segment that was used longest
// ago. False: there is none.
bool drop_coldest_base(EngineState& engine);
// A sidecar of this kind was found at start.
void note_sidecar(EngineState& engine, Segment& segment, std::uint32_t kind);

// ---- rebuilding ----

enum class RebuildEnd : std::uint8_t {
  kWritten,
  kUnwritten,  // built; its sidecar was left out (the day's write budget) or failed
  kFailed,     // the keys, or the codebook of codes, cannot be read
  kGone,       // there is no such segment on disk, or it went meanwhile
};
// Drops the lane's sidecar and its place in the arena and builds it from the segment's keys, wanted
// or not; views fetch what they lack meanwhile. Waits for what is at work on the lane. Calls `done`
// once, now or later.
void rebuild_abstract(EngineState& engine, SegmentId id, std::uint32_t lane,
                      std::function<void(RebuildEnd)> done);

// ---- shared with abstract_builds.cc and sidecars.cc ----

// Bytes, and what keeps them; let go on the engine's thread.
struct KeptBytes {
  std::shared_ptr<const void> keeper;
  ByteSpan bytes;
};

[[nodiscard]] SegmentAbstract& lane_of(Segment& segment, std::uint32_t lane);
[[nodiscard]] bool is_rendition(const Segment& segment, std::uint32_t lane);
[[nodiscard]] std::uint64_t file_bytes_of(const Segment& segment, std::uint32_t lane);
// The lane has a sidecar.
void note_file(EngineState& engine, Segment& segment, std::uint32_t lane);
// Into the arena, if somebody still wants it; directories follow. The lane is kWorking until then.
void install_abstract(EngineState& engine, Segment& segment, std::uint32_t lane, KeptBytes payload);
// From its sidecar, or else by a build, in its turn: what rows are chosen by goes before base
// renditions. The lane is kWorking from here on.
void queue_load(EngineState& engine, Segment& segment, std::uint32_t lane);
// No room in the arena: the lane is kFailed. A base rendition is tried again when others have left.
void refuse_abstract(EngineState& engine, Segment& segment, std::uint32_t lane);
// `done`, if any: once, now or later, with whether the file is there.
void write_sidecar(EngineState& engine, Segment& segment, std::uint32_t lane, KeptBytes payload,
                   std::function<void(bool)> done = nullptr);
void drop_file(EngineState& engine, Segment& segment, std::uint32_t lane);
// Leaves neither file nor place in the arena; the lane is not kWorking.
void drop_abstract(EngineState& engine, Segment& segment, std::uint32_t lane);
// Queues the build of a lane that is kWorking. Without `done`, it is left out where nobody wants it
// any more.
void queue_build(EngineState& engine, Segment& segment, std::uint32_t lane,
                 std::function<void(RebuildEnd)> done = nullptr);
// The lane is kWorking no more: what it was promised of the arena is free, who waited goes on.
void settle_lane(EngineState& engine, SegmentId segment, std::uint32_t lane);

// Sidecars that are read at once: each has a file and a buffer of its own, and rows that somebody
// waits for queue behind those of abstracts. Enough to keep the disk busy; one more may begin while
// fewer than the bytes are under way. Of base renditions as few as can be.
inline constexpr std::uint32_t kSidecarLoadsMax = 32, kBaseLoadsMax = 2;
inline constexpr std::uint64_t kSidecarLoadBytesMax = 16ull << 20;

struct AbstractTable {
  struct Build {
    SegmentId segment;
    std::uint32_t lane = 0;
    std::function<void(RebuildEnd)> done;
  };
  std::deque<Build> waiting;
  std::vector<std::function<void()>> settled;  // called when a lane is kWorking no more
  bool building = false;
  bool starting = false;  // next_build is at work: a build that fails at once does not recurse
  std::uint64_t next_part = 1;  // of sidecars being written
  std::uint64_t next_placement = 1;
  // Sidecars that are read: how many, their bytes, and what they will take of the arena at least;
  // and what waits for its turn.
  struct Loads {
    std::uint32_t under_way = 0;
    std::uint64_t bytes = 0;
    std::uint64_t arena_bytes = 0;
    std::deque<std::pair<SegmentId, std::uint32_t>> waiting;
  };
  Loads loads, base_loads;
  bool starting_loads = false;  // next_loads is at work: a load that fails at once does not recurse
  // Base renditions: bytes in the arena; bytes that those being loaded or built will take, by
  // segment and lane; wanted ones without room.
  std::uint64_t base_bytes = 0;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::uint64_t> base_promised;
  std::uint64_t base_promised_bytes = 0;
  std::set<std::pair<std::uint64_t, std::uint32_t>> base_refused;
  bool base_warned = false;
};

}  // namespace kvtier
