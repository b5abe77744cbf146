// Store check: reads every file of a store and says what is wrong. For `kvtier verify` without a
// daemon, and for tests.
//
// Never writes and never stops at the first fault: a damaged file is decoded as far as its own
// checksums carry. Given the catalogue's rows it also compares rows with files. Blocks; one thread
// owns the Io meanwhile. Memory: one file's metadata, 1 MiB of chunks or one log record at a time,
// and the rows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tiers/catalogue.h"
#include "tiers/io.h"

namespace kvtier {

enum class FindingKind : std::uint8_t {
  kUnreadable,  // the device or the file system refused
  kDamaged,     // bytes are not what was written
  kTorn,        // a log ends in a record that was not finished: normal after a power cut
  kNewer,       // written by a newer version
  kMismatch,    // two things that must agree do not
  kMissing,     // something names a file or row that is not there
  kOrphan,      // nothing names it: left over from before a crash, removed at the next start
};
[[nodiscard]] const char* finding_kind_name(
    FindingKind kind) noexcept;  // "unreadable", "damaged", ...

enum class FindingSeverity : std::uint8_t {
  kNote,     // worth knowing, nothing to do
  kWarning,  // the daemon mends it by itself; nothing that was committed is lost: the end of a log
             // that a power cut tore, a sidecar or codebook, which are made from stored keys
  kDamage,   // something stored cannot be served any more
};
[[nodiscard]] const char* finding_severity_name(
    FindingSeverity severity) noexcept;  // "note", "warning", "damage"

struct Finding {
  std::string path;    // of the file, or "catalogue/segment/<id>" and the like for a row
  std::string region;  // "header", "chunk 17 (layer 2, group 0, tokens 64-95)", ...; may be empty
  FindingKind kind = FindingKind::kDamaged;
  FindingSeverity severity = FindingSeverity::kDamage;
  std::string what;  // one sentence
};

struct StoreReport {
  std::vector<Finding> findings;                      // at most StoreCheckOptions::findings_max
  std::uint64_t damage = 0, warnings = 0, notes = 0;  // of all findings, listed or not
  std::uint64_t segments = 0, logs = 0, sidecars = 0, codebooks = 0, objects = 0;  // files
  std::uint64_t chunks = 0;                 // in the tables of readable segments
  std::uint64_t chunks_checked = 0;         // read and compared with their checksum
  std::uint64_t records = 0;                // sound ones, of logs
  std::uint64_t spaces = 0, sequences = 0;  // rows
  std::uint64_t tokens = 0;                 // of readable segments
  std::uint64_t file_bytes = 0;             // of all files looked at
  std::uint64_t read_bytes = 0;
  bool cancelled = false;

  [[nodiscard]] bool sound() const noexcept { return damage == 0 && !cancelled; }
};

// The catalogue as it was read.
struct StoreRows {
  std::vector<SpaceRow> spaces;
  std::vector<SegmentRow> segments;
  std::vector<SequenceRow> sequences;
  std::vector<ObjectRow> objects;
  struct Damaged {
    std::string key;
    Status status;
  };
  std::vector<Damaged> damaged;
};
[[nodiscard]] Result<StoreRows> load_store_rows(Catalogue& catalogue);

struct StoreCheckOptions {
  bool deep =
      false;  // every chunk, sidecar payload, object's value and log record; else structure only
  std::size_t findings_max = 10000;
  // After every file and every MiB; false cancels. May be empty.
  std::function<bool(std::uint64_t files_done, std::uint64_t files_total, std::uint64_t read_bytes)>
      progress;
};

// Only the codebooks that rows name.
[[nodiscard]] StoreReport check_codebooks(Io& io, const StoreRows& rows);

// `io` is rooted at the store (folders segments/, logs/, sidecars/, codebooks/, objects/). `rows`
// null: files alone, nothing is an orphan but a sidecar without its segment.
[[nodiscard]] StoreReport check_store(Io& io, const StoreRows* rows,
                                      const StoreCheckOptions& options);

}  // namespace kvtier
