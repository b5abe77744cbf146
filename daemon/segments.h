// Segments: what the store holds, file by file, and which of their chunks are in the host arena.
//
// A Segment is in the table from the moment its bytes are copied until nobody can name it any more.
// `sequence_refs` and `handle_refs` say who can; `busy` counts asynchronous work that will come
// back to it. Without references it stays as a cache for prefixes until the disk limit or rm wants
// it gone. Chunk table and tokens are loaded when first needed and kept within a bound; so are open
// files. Owned by the engine's thread; a LoadedMeta is constant and shared.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "daemon/spaces.h"
#include "tiers/catalogue.h"
#include "tiers/host_arena.h"
#include "tiers/io.h"
#include "tiers/segment_format.h"

namespace kvtier {

enum class SegmentState : std::uint8_t {
  kOnDisk,
  kInMemory,  // private: every chunk is pinned in the arena, there is no file
  kLost,      // file gone or unreadable: misses
};

enum class AbstractState : std::uint8_t { kAbsent, kWorking, kReady, kFailed };
struct SegmentAbstract {
  AbstractState state = AbstractState::kAbsent;
  bool has_file = false;              // a sidecar was written or seen
  std::uint32_t writes = 0;           // of the sidecar, under way
  std::uint32_t wants = 0;            // open sequences that show the segment and want the lane
  std::uint64_t offset = UINT64_MAX;  // in the abstracts arena while kReady
};

// A segment's metadata without what can be computed: 8 bytes per chunk where chunks are raw and in
// order.
struct LoadedMeta {
  std::vector<TokenRecord> tokens;
  std::vector<std::uint64_t> checksums;  // by chunk index
  // Empty where chunks are raw, in plane order, from first_offset on.
  std::vector<ChunkEntry> entries;
  std::uint64_t first_offset = 0;
  BlockHash previous_chain;
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept {
    return tokens.size() * sizeof(TokenRecord) + checksums.size() * 8 +
           entries.size() * sizeof(ChunkEntry) + 256;
  }
};
struct MetaRead;  // segment_meta.h
using MetaDone = std::function<void(Result<void>)>;

struct Segment {
  SegmentRow row;
  StoredSpace* space = nullptr;
  SegmentState state = SegmentState::kOnDisk;
  std::uint32_t sequence_refs = 0;
  std::uint32_t handle_refs = 0;
  std::uint32_t busy = 0;
  std::uint32_t leases = 0;  // slots of it that are leased, counted per lease
  bool condemned = false;    // out of the catalogue: goes when nobody uses it
  bool row_stays = false;    // its row could not be removed, and it is busy therefore
  bool indexed = false;
  bool used_again = false;  // a prefix match found it: leaves the probation of the disk

  const PlaneLayout* layout = nullptr;  // set with `slots`
  std::vector<SlotId> slots;            // by chunk index; empty: none resident
  std::uint32_t resident = 0;
  std::uint64_t resident_bytes = 0;
  std::vector<std::uint32_t> bad_chunks;  // failed their checksum: never read again

  std::shared_ptr<const LoadedMeta> meta;
  std::list<Segment*>::iterator
      meta_place;  // in SegmentTable::meta_order while meta is set and not pinned
  bool meta_listed = false;
  bool meta_loading = false;
  std::shared_ptr<MetaRead> meta_read;  // while it is loading
  std::vector<MetaDone> meta_waiters;

  FileId file;
  std::list<Segment*>::iterator file_place;
  std::uint32_t file_uses = 0;

  std::vector<SegmentAbstract> abstracts;  // by lane of the space

  std::vector<SegmentId> children;

  [[nodiscard]] std::uint64_t end_token() const noexcept { return row.start_token + row.tokens; }
  [[nodiscard]] bool referenced() const noexcept { return sequence_refs != 0 || handle_refs != 0; }
};

inline constexpr std::uint64_t kLoadedMetaBytesMax = 64ull << 20;
inline constexpr std::size_t kOpenSegmentFilesMax = 256;

struct SegmentTable {
  std::unordered_map<SegmentId, std::unique_ptr<Segment>> all;
  std::list<Segment*> meta_order;  // hot first
  std::uint64_t meta_bytes = 0;
  std::uint64_t meta_bytes_max = kLoadedMetaBytesMax;
  std::list<Segment*> file_order;  // hot first
  std::uint64_t next_id = 1;
  std::uint64_t disk_bytes = 0;     // of segment files
  std::uint64_t sidecar_bytes = 0;  // of sidecars: what they are where all are written
  std::vector<SegmentId> condemned;
};

[[nodiscard]] Segment* find_segment(EngineState& engine, SegmentId id);
Segment& add_segment(EngineState& engine, SegmentRow row, StoredSpace& space, SegmentState state);
// Files its blocks in the prefix index, or takes them and those of all segments behind it out.
void index_segment(Segment& segment);
// Sound itself, and behind sound ones only: a block is served only through those.
[[nodiscard]] bool may_be_indexed(EngineState& engine, const Segment& segment);
void unindex_with_descendants(EngineState& engine, Segment& segment);
// Makes room for residency: `layout` and `slots`.
void prepare_residency(Segment& segment);
void set_resident(Segment& segment, std::uint32_t chunk, SlotId slot, std::uint64_t slot_bytes);
// The arena's callback: forgets a chunk.
void chunk_evicted(EngineState& engine, SlotOwner owner, SlotId slot);

// Calls `done` at once where the metadata is there, else after a read. The segment stays while it
// is read.
void load_meta(EngineState& engine, Segment& segment, IoPriority priority, MetaDone done);
// Loads several; `done` with the first error, after all have ended, and with what came, in the
// order of `segments`: the table itself may have dropped some of it again, to keep its bound.
using LoadedMetas = std::vector<std::shared_ptr<const LoadedMeta>>;
using MetasDone = std::function<void(Result<void>, const LoadedMetas&)>;
void load_metas(EngineState& engine, const std::vector<SegmentId>& segments, IoPriority priority,
                MetasDone done);
void keep_meta(EngineState& engine, Segment& segment, std::shared_ptr<const LoadedMeta> meta);
[[nodiscard]] std::shared_ptr<const LoadedMeta> make_loaded_meta(SegmentMeta&& meta,
                                                                 const PlaneLayout& layout);

// Opens the file, or gives the open one; compares its size with the row. Counts a use: end_file_use
// gives it back.
[[nodiscard]] Result<FileId> begin_file_use(EngineState& engine, Segment& segment);
void end_file_use(EngineState& engine, Segment& segment);
void close_segment_file(EngineState& engine, Segment& segment);

// Its bytes are not what they should be: logged and counted once; the row is marked.
void mark_bad(EngineState& engine, Segment& segment, const char* what);
void mark_lost(EngineState& engine, Segment& segment, const char* why);
// The file of a lost one is there again and sound.
void serve_again(EngineState& engine, Segment& segment);

// Takes the segment out of index, catalogue batch and table; file and slots go when nobody uses
// them.
void condemn_segment(EngineState& engine, Segment& segment);
// The catalogue takes writes again.
void remove_rows_again(EngineState& engine);
// Unlinks and forgets condemned segments that nobody uses any more. Cheap where there is none.
void sweep_condemned(EngineState& engine);

}  // namespace kvtier
