// Segments and tail logs that no row of the catalogue names, and that are whole and newer than
// every row: made in a moment before a crash, or named by rows that were lost, as when RocksDB's
// own log is damaged. Nobody can tell which, so they are kept where they are: `kvtier
// repair --store` takes in what it can, and what it leaves out is kept as well. gc removes them; so
// does the disk limit when nothing else is unused. More of them at one start than a crash can leave
// mean that rows were lost: until gc or a repair, the disk limit spares them, and files of every
// kind that no row names stay. Which files are kept is remembered in the catalogue, by numbers
// (kKeptPrefix), and why: what several crashes left one by one is no loss of rows.
// Engine's thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "tiers/catalogue.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

struct EngineState;

struct KeptFile {
  std::uint64_t mark = kKeptNewer;
  std::uint64_t bytes = 0;
  bool there = false;  // remembered ones are looked for
  bool fresh = false;  // found by this start
};

struct KeptFiles {
  std::map<std::string, KeptFile> all;  // by path
  std::uint64_t total_bytes = 0;
  std::uint64_t newer = 0;  // of them kKeptNewer or kKeptLost
  std::uint64_t lost = 0;   // of them kKeptLost
};

// A number of the catalogue, while it is loaded: does it name a kept file?
void recall_kept_file(EngineState& engine, std::string_view name, std::uint64_t value);
// An orphan is kept where it was before, or is whole and `newer` than every row.
[[nodiscard]] bool keep_segment_file(EngineState& engine, SegmentId id, bool newer);
[[nodiscard]] bool keep_log_file(EngineState& engine, const TailLogName& name, bool newer);
// After both kinds: writes down what this start found, forgets what is no orphan any more, and says
// what was found.
void settle_kept_files(EngineState& engine, CatalogueBatch* batch);
// Once they are settled: a start found more newer ones than a crash can leave.
[[nodiscard]] bool rows_were_lost(const EngineState& engine);
// The logs of a sequence that is gone are kept no longer: their paths, for who wipes or unlinks
// them.
[[nodiscard]] std::vector<std::string> let_go_of_logs(EngineState& engine, SequenceId sequence);
// Unlinks all, and says so; the bytes.
std::uint64_t remove_kept_files(EngineState& engine);

}  // namespace kvtier
