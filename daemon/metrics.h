// Metrics: every counter of the engine, plain numbers since start. Owned by the engine's thread;
// stats copies them.
#pragma once

#include <array>
#include <cstdint>

namespace kvtier {

// Why something that was asked for was not there.
enum class MissReason : std::uint8_t {
  kNoMatch = 0,     // a prefix: nothing stored begins so
  kDiffers = 1,     // a prefix: another token is stored there
  kEvicted = 2,     // a segment is gone: disk limit, rm, or lost with its file
  kOtherSpace = 3,  // stored, but in another space
  kChecksum = 4,    // stored bytes do not hold what they should
  kSlower = 5,      // loading would take longer than computing
  kNewer = 6,       // stored by a newer kvtier
};
inline constexpr std::size_t kMissReasons = 7;
inline constexpr const char* kMissReasonNames[kMissReasons] = {
    "no_match", "differs", "evicted", "other_space", "checksum", "slower", "newer"};

// Why the value of an opaque key was not there.
enum class ObjectMiss : std::uint8_t {
  kAbsent = 0,    // never set, or deleted
  kEvicted = 1,   // by the disk limit, not long ago
  kChecksum = 2,  // its bytes are not what was stored
  kLost = 3,      // its file is gone or has another size
};
inline constexpr std::size_t kObjectMisses = 4;
inline constexpr const char* kObjectMissNames[kObjectMisses] = {"absent", "evicted", "checksum",
                                                                "lost"};

struct ObjectMetrics {
  std::uint64_t sets = 0;
  std::uint64_t gets = 0;
  std::uint64_t lookups = 0;  // exists
  std::uint64_t deletes = 0;
  std::uint64_t hits = 0;  // of gets and lookups
  std::array<std::uint64_t, kObjectMisses> misses{};
  std::uint64_t failures = 0;  // of any kind: disk, space, read-only
  std::uint64_t read_bytes = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t evicted = 0;
  std::uint64_t evicted_bytes = 0;
  std::uint64_t recovered = 0;
  std::uint64_t missing = 0;  // rows whose file was gone at start
  std::uint64_t bad = 0;      // values found damaged or lost
  std::uint64_t batches = 0;  // catalogue batches: sets and deletes share them
};

struct Metrics {
  // prefixes
  std::uint64_t matches = 0;
  std::uint64_t match_tokens_asked = 0;
  std::uint64_t match_tokens_found = 0;
  std::array<std::uint64_t, kMissReasons> misses{};

  // chunks
  std::uint64_t fetches = 0;
  std::uint64_t fetch_entries = 0;
  std::uint64_t chunk_hits = 0;        // in the host arena
  std::uint64_t chunk_fills = 0;       // read from disk
  std::uint64_t chunk_fill_joins = 0;  // waited for a read that another request had begun
  std::uint64_t chunk_full = 0;        // no slot, or the client's leases at their limit
  std::uint64_t chunk_invalid = 0;
  std::uint64_t prefetches = 0;
  std::uint64_t touches = 0;
  std::uint64_t cancelled = 0;
  std::uint64_t reads = 0;  // of chunks, merged
  std::uint64_t fill_bytes = 0;
  std::uint64_t meta_loads = 0;
  std::uint64_t meta_load_bytes = 0;

  // leases
  std::uint64_t leases_given = 0;
  std::uint64_t leases_ended = 0;
  std::uint64_t leased_bytes = 0;      // now
  std::uint64_t leases_reclaimed = 0;  // of sessions that went away

  // writing
  std::uint64_t seals = 0;
  std::uint64_t seal_failures = 0;
  std::uint64_t seal_tokens = 0;
  std::uint64_t seal_bytes = 0;
  std::uint64_t seal_work_ns = 0;     // of workers: copy, checksums, abstracts
  std::uint64_t seal_work_bytes = 0;  // of chunks so worked
  std::uint64_t seals_in_memory = 0;
  std::uint64_t commits = 0;
  std::uint64_t commit_failures = 0;
  std::uint64_t commit_tokens = 0;
  std::uint64_t commit_bytes = 0;
  std::uint64_t sidecar_bytes = 0;
  std::uint64_t catalogue_batches = 0;
  std::uint64_t catalogue_failures = 0;

  // abstracts
  std::uint64_t abstracts_built = 0;
  std::uint64_t abstracts_loaded = 0;
  std::uint64_t abstracts_rebuilt = 0;  // sidecar missing or damaged
  std::uint64_t abstracts_full = 0;     // no room in their arena
  std::uint64_t rotation_unknown = 0;   // low-rank keys not built: nobody said how keys are turned

  // recovery and damage
  std::uint64_t recovered_segments = 0;
  std::uint64_t recovered_sequences = 0;
  std::uint64_t recovery_ns = 0;
  std::uint64_t files_dropped = 0;     // never published
  std::uint64_t segments_missing = 0;  // rows whose file is gone or has another size
  std::uint64_t sequences_cut = 0;
  std::uint64_t rows_damaged = 0;
  std::uint64_t segments_bad = 0;
  std::uint64_t chunks_bad = 0;
  std::uint64_t logs_torn = 0;
  // All damage that was met when verify found everything sound, or repair mended all, the last
  // time.
  std::uint64_t damage_settled = 0;
  std::uint64_t segments_evicted = 0;  // from disk
  std::uint64_t sequences_evicted = 0;
  std::uint64_t bytes_evicted = 0;
  std::uint64_t no_room = 0;  // writes refused: limit or disk full, nothing may go

  ObjectMetrics objects;

  // sessions
  std::uint64_t sessions_opened = 0;
  std::uint64_t sessions_closed = 0;
  std::uint64_t requests_malformed = 0;
  std::uint64_t rings_broken = 0;
};

// Pieces of damage since start; one can be met twice, as a chunk and as its segment.
[[nodiscard]] inline std::uint64_t damage_met(const Metrics& m) noexcept {
  return m.segments_missing + m.rows_damaged + m.segments_bad + m.chunks_bad + m.logs_torn;
}

}  // namespace kvtier
