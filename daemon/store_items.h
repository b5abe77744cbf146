// What `verify` and `repair` look at, one item at a time, beside an engine that goes on: segments
// with their sidecars, codebooks, tail logs, values of opaque keys. Reads only. The engine's thread
// fills a Check and reads its problems; in between one worker after the other has it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/segment_files.h"
#include "daemon/spaces.h"
#include "tiers/catalogue.h"
#include "tiers/object_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

struct Problem {
  // The file's path in the store, a place in it and a sentence: as tiers/store_check names them.
  std::string object, region, reason;
  SegmentId segment;     // what repair drops: a segment ...
  SequenceId sequence;   // ... or a sequence's log
  bool derived = false;  // ... or a sidecar or codebook, made again when it is wanted
  // Nothing that was acknowledged need be missing.
  bool warning = false;
  std::string key = {};  // ... or the value of an opaque key, while it is this file
  std::uint64_t file = 0;
  bool missing = false;   // the file is not there: it may be put back
  bool newer = false;     // sound to a newer kvtier: not ours to drop
  bool unread = false;    // the device refused, or descriptors ran out: says nothing of the bytes
  std::string path = {};  // of what is derived
  std::uint64_t log_generation = 0;  // of a sequence's log
};

// What there is to check, taken on the engine's thread; checked on workers, one item at a time.
struct Check {
  IoFactory make_io;
  bool deep = true;
  struct SegmentItem {
    SegmentRow row;
    BlockHash fingerprint;
    std::vector<std::string> sidecars;  // paths
  };
  struct LogItem {
    TailLogHeader header;
    std::string name;
    const StoredSpace* space = nullptr;
    std::uint32_t tokens = 0;
  };
  struct CodebookItem {
    const StoredSpace* space = nullptr;
    std::uint64_t id = 0;
  };
  std::deque<SegmentItem> segments;
  std::deque<CodebookItem> codebooks;
  std::deque<LogItem> logs;
  std::deque<ObjectHeader> values;  // what the catalogue says of each
  std::unique_ptr<SegmentFiles> files;
  std::vector<Problem> problems;
  std::uint64_t segments_checked = 0, values_checked = 0, chunks = 0;
  std::uint64_t value_bytes = 0;                      // read of values
  std::map<std::uint64_t, std::uint32_t> log_tokens;  // sound ones of a sequence's log

  [[nodiscard]] bool done() const {
    return segments.empty() && codebooks.empty() && logs.empty() && values.empty();
  }
};

// Checks one item and takes it out; `check.files` is open.
void check_next(Check& check);

}  // namespace kvtier
