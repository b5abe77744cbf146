// What `verify` and `repair` look at, one item at a time, beside an engine that goes on: segments
// with their sidecars, codebooks, tail logs, values of opaque keys. Reads only, as the check
// without a daemon does (tiers/store_check_files.h). The engine's thread fills a Check and reads
// its problems; in between one worker after the other has it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/spaces.h"
#include "tiers/catalogue.h"
#include "tiers/store_check_files.h"

namespace kvtier {

struct Problem {
  Finding found;
  SegmentId segment;    // what repair drops: a segment ...
  SequenceId sequence;  // ... or a sequence's log, while it is this one
  std::uint64_t log_generation = 0;
  bool comes_back = false;  // nothing is wrong: the file of a lost segment is there again
  bool derived = false;     // ... or a sidecar or codebook, made again when it is wanted
  std::string key = {};     // ... or the value of an opaque key, while it is this file
  std::uint64_t file = 0;
  std::pair<std::uint64_t, std::uint32_t> codebook = {};  // place in CodebookTable::all

  // Nothing that was acknowledged need be missing.
  [[nodiscard]] bool harmless() const { return found.severity != FindingSeverity::kDamage; }
  // The device refused, or descriptors ran out: says nothing of the bytes.
  [[nodiscard]] bool unread() const { return found.kind == FindingKind::kUnreadable; }
  // Sound to a newer kvtier: not ours to drop.
  [[nodiscard]] bool newer() const { return found.kind == FindingKind::kNewer; }
  // The file is not there: it may be put back.
  [[nodiscard]] bool missing() const { return found.kind == FindingKind::kMissing; }
};

// What there is to check, taken on the engine's thread; checked on workers, one item at a time.
struct Check {
  IoFactory make_io;
  StoreCheckOptions options;
  struct SegmentItem {
    SegmentRow row;
    const StoredSpace* space = nullptr;
    bool lost = false;  // its file was not there at start, or when it was read
    std::vector<std::uint32_t> kinds;
    std::optional<std::uint32_t> kind_due;  // the one of `kinds` whose sidecar must be there
  };
  struct LogItem {
    TailLogHeader header;
    const StoredSpace* space = nullptr;
    std::uint32_t tokens = 0;
  };
  struct CodebookItem {
    const StoredSpace* space = nullptr;
    SpaceRow::Codebook row;
  };
  std::deque<SegmentItem> segments;
  std::deque<CodebookItem> codebooks;
  std::deque<LogItem> logs;
  std::deque<ObjectRow> values;
  std::unique_ptr<Io> io;
  StoreReport report;  // its findings become problems
  CheckSink sink{options, &report};
  std::vector<Problem> problems;
  std::map<std::uint64_t, std::uint64_t> log_tokens;  // sound ones of a sequence's log

  [[nodiscard]] bool done() const {
    return segments.empty() && codebooks.empty() && logs.empty() && values.empty();
  }
};

// Checks one item and takes it out; `check.io` is open.
void check_next(Check& check);

}  // namespace kvtier
