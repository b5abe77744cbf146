// Files that no row of the catalogue names, and that are whole and newer than every row: made in a
// moment before a crash, or named by rows that were lost, as when RocksDB's own log is damaged and
// ends early. Nobody can tell which, so they are kept where they are: `kvtier repair --store` makes
// a catalogue of them, gc removes them, and so does the disk limit, before anything else. Which
// files are kept is remembered in the catalogue, by numbers. Engine's thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "tiers/catalogue.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

struct EngineState;

struct KeptFiles {
  std::map<std::string, std::uint64_t> bytes;  // by path
  std::uint64_t total_bytes = 0;
  std::uint64_t found = 0;  // by this start
};

// A number of the catalogue, while it is loaded: does it name a kept file?
void recall_kept_file(EngineState& engine, std::string_view name, std::uint64_t value);
// An orphan is kept where it was before, or is whole and `newer` than every row. `batch` writes it
// down.
[[nodiscard]] bool keep_segment_file(EngineState& engine, SegmentId id, bool newer,
                                     CatalogueBatch* batch);
[[nodiscard]] bool keep_log_file(EngineState& engine, const TailLogName& name, bool newer,
                                 CatalogueBatch* batch);
// After both kinds: forgets what is no orphan any more, and says what was found.
void settle_kept_files(EngineState& engine, CatalogueBatch* batch);
// Files that this start found are more than a crash can leave: rows were lost.
[[nodiscard]] bool rows_were_lost(const EngineState& engine);
// Unlinks all; the bytes.
std::uint64_t remove_kept_files(EngineState& engine);

}  // namespace kvtier
