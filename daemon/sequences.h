// Sequences: lists of (segment, visible tokens), names, and the sequences that sessions have open.
//
// `row` is what the catalogue holds or will hold when every batch posted so far is written; `parts`
// is what readers see: it moves only after the batch that says so is durable. Seals and commits of
// one sequence run one after the other
// (`work`). A handle keeps every segment that its directory ever named until it is closed. Engine's
// thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/token_texts.h"
#include "base/unique_fd.h"
#include "daemon/engine.h"
#include "daemon/read_counts.h"
#include "daemon/segments.h"

namespace kvtier {

struct StoredSequence;

// Client-written memory of one open sequence. Shared with workers that copy out of it; unmapped
// after the last one. What does not fit into that memory comes by control requests.
struct TailMemory {
  Memfd memory;
  const TailLayout* layout = nullptr;
  // Of the tokens of each half, from its first on, as far as there are any. Engine's thread, as
  // long as it does not give the whole tail to a worker that fills it.
  std::array<TokenTexts, 2> texts;
  std::vector<std::byte> snapshot;  // of the layers that cannot be sliced, where half 0 ends
  [[nodiscard]] std::byte* tokens(std::uint32_t half) const {
    return memory.mapping.data() + layout->tokens_offset(half);
  }
  [[nodiscard]] std::byte* plane(std::uint32_t half) const {
    return memory.mapping.data() + layout->plane_offset(half);
  }
};
// kFull where the tails that there are and this one may grow above host.tail_bytes_max.
[[nodiscard]] Result<std::shared_ptr<TailMemory>> make_tail_memory(EngineState& engine,
                                                                   const StoredSpace& space);
struct TailSums {
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;           // in memory now, whoever wrote them
  std::uint64_t reserved_bytes = 0;  // to which they may grow
};
[[nodiscard]] TailSums sum_tails(const EngineState& engine);

struct SequencePart {
  Segment* segment = nullptr;  // counted in sequence_refs
  std::uint32_t visible_tokens = 0;
  std::uint64_t first_token = 0;
};

struct TailResult {
  std::uint64_t segment = 0;
  std::uint64_t tokens_durable = 0;
};
using TailDone = std::function<void(Result<TailResult>)>;

// A seal or commit that waits or runs.
struct TailWork {
  enum class Kind : std::uint8_t { kSeal, kCommit, kOther } kind = Kind::kSeal;
  std::shared_ptr<TailMemory> tail;
  std::uint32_t half = 0;
  std::uint32_t count = 0;
  // Where the half begins in the sequence, as its client has it: what is stored must end there, or
  // the sequence would have a hole. kNoCheck: the daemon's own work.
  static constexpr std::uint64_t kNoCheck = UINT64_MAX;
  std::uint64_t first_token = kNoCheck;
  bool closing = false;             // kSeal: admission may leave it out
  std::uint32_t handle_serial = 0;  // of the open sequence that asked
  TailDone done;
  std::function<void()> run;  // kOther: must call work_finished()
};

// The tail log that holds the committed, unsealed tokens.
struct TailLog {
  std::uint64_t generation = 0;  // 0: none
  FileId file;
  std::uint64_t end_offset = 0;  // the next record's place
  std::uint64_t file_bytes = 0;  // more where a commit failed or a power cut tore it
  std::uint64_t next_order = 0;
  std::uint32_t tokens = 0;  // durable ones, from the end of what is sealed
  std::uint32_t half = 0;
  bool loaded = false;  // the fields above are known (a log found at start is read first)
  // A write or sync failed, of the file or of the row: the next commit begins a new generation.
  bool suspect = false;
  // Files whose row failed to be written: they stay until a later row says that none of them is
  // the log.
  struct Unnamed {
    std::uint64_t generation = 0;
    std::uint64_t bytes = 0;
  };
  std::vector<Unnamed> unnamed;

  // Of all its files.
  [[nodiscard]] std::uint64_t all_bytes() const noexcept;
  [[nodiscard]] std::vector<std::uint64_t> generations() const;
};

// kCancelled where the work's half does not begin where the stored tokens end: what came before it
// was not sealed.
[[nodiscard]] Result<void> check_continues(const StoredSequence& sequence, const TailWork& work);

struct OpenSequence {
  std::uint32_t handle = 0;
  std::uint32_t serial = 0;
  SessionId session;
  StoredSequence* sequence = nullptr;
  bool writable = false;
  Memfd directory;
  std::shared_ptr<TailMemory> tail;
  // Segments this handle may name: everything its directory ever showed. The largest visible length
  // is what it may read.
  struct Held {
    Segment* segment = nullptr;  // counted in handle_refs
    std::uint32_t visible_tokens = 0;
    std::uint32_t entry = UINT32_MAX;  // its place in the directory; UINT32_MAX: not shown any more
  };
  std::unordered_map<std::uint64_t, Held> held;
  // Views that want the abstracts of a lane.
  std::array<std::uint32_t, kSpaceAbstractsMax> lane_views{};
};

// What a client says about the future of a sequence: stronger than what was counted. In memory
// only.
enum class UseHint : std::uint8_t { kNone, kWillResume, kFinished };

struct StoredSequence {
  SequenceRow row;
  UseHint hint = UseHint::kNone;
  StoredSpace* space = nullptr;
  bool is_private = false;
  bool in_catalogue = false;  // a batch with its row was posted
  bool row_durable = false;   // and such a batch was synced
  // A batch with it failed: what the catalogue holds of it is not known until it is written anew.
  bool row_in_doubt = false;
  std::uint64_t last_use_posted_unix_ns = 0;
  // Renames, pins and expiries under way, and the row as the last durable one of them left it.
  std::uint32_t row_changes = 0;
  SequenceRow row_settled;
  bool removed = false;
  bool internal = false;  // of a compaction or an import under way: nobody can name it
  std::vector<SequencePart> parts;
  std::uint64_t tokens_sealed = 0;
  TailLog log;

  std::vector<OpenSequence*> open;
  OpenSequence* writer = nullptr;
  bool writer_coming = false;  // an attach that writes is under way

  // The chain of block hashes at tokens_sealed: while a writer is there, not just after a truncate.
  bool chain_known = false;
  BlockHash chain;
  std::vector<std::uint32_t> open_ids;  // of the block that is not whole yet

  std::unique_ptr<ReadCounts> reads;  // null: none

  std::deque<TailWork> work;
  bool working = false;
  std::uint32_t serial_failed = 0;  // works of this handle behind a failed seal are cancelled...
  std::uint32_t busy = 0;

  [[nodiscard]] std::uint64_t tokens() const noexcept { return tokens_sealed + log.tokens; }
};

struct SequenceTable {
  std::uint64_t touch_requests = 0;
  std::uint64_t read_count_bytes = 0;  // of all `reads`; before `all`, whose sequences refer to it
  std::unordered_map<SequenceId, std::unique_ptr<StoredSequence>> all;
  std::unordered_map<std::string, SequenceId> names;
  std::uint64_t next_id = 1;
  std::uint64_t reserved_until = 1;  // ids below are promised to the catalogue
  std::uint64_t next_log = 1;        // generations, over all sequences
  std::uint32_t next_serial = 1;
  std::vector<std::weak_ptr<TailMemory>> tails;  // some may be gone
  std::vector<AlignedBuffer> commit_buffers;     // committer.cc's, to be used again
  std::uint64_t commit_bytes_reserved = 0;       // of commits under way
  std::vector<SequenceId> rows_left;  // of sequences that are gone: the catalogue refused to say so
  std::vector<SegmentId> segments_left;  // of failed seals: file there, row perhaps
};

[[nodiscard]] StoredSequence* find_sequence(EngineState& engine, SequenceId id);
[[nodiscard]] StoredSequence* find_sequence_by_name(EngineState& engine, const std::string& name);
StoredSequence& new_sequence(EngineState& engine, StoredSpace& space, bool is_private);
// Where it is this sequence's.
void free_name(EngineState& engine, const std::string& name, SequenceId id);
// kInvalid for a name that may not be.
[[nodiscard]] Result<void> check_name(const std::string& name);

// Replaces the visible parts; counts references; republishes every directory of the sequence.
struct PartSpec {
  Segment* segment = nullptr;
  std::uint32_t visible_tokens = 0;
};
void set_parts(EngineState& engine, StoredSequence& sequence, const std::vector<PartSpec>& parts);
void append_part(EngineState& engine, StoredSequence& sequence, Segment& segment);
[[nodiscard]] std::vector<PartSpec> parts_up_to(const StoredSequence& sequence,
                                                std::uint64_t tokens);

// Makes `chain` and `open_ids` known; may read metadata.
void learn_chain(EngineState& engine, StoredSequence& sequence, MetaDone done);

// Of a new sequence, unsynced, so that its client finds it again where the daemon dies. A nameless
// one is provisional: the row goes at close, unless something was sealed or committed meanwhile; it
// has none while the catalogue takes no writes. A private one has none.
void post_new_row(EngineState& engine, StoredSequence& sequence, MetaDone done);
// Posts the row as it is now. `sync`: `done` when it is durable, and it is provisional no more.
void post_sequence_row(EngineState& engine, StoredSequence& sequence, bool sync, MetaDone done);
// Removes an in-memory sequence that is in nobody's way: nameless, closed and never stored.
void drop_if_ephemeral(EngineState& engine, StoredSequence& sequence);
// Closed: the catalogue learns when it was last used, by which the disk limit takes sequences.
void keep_last_use(EngineState& engine, StoredSequence& sequence);
// Its first row could not be written: as if it had never been, unless somebody has opened it since.
void forget_unwritten(EngineState& engine, StoredSequence& sequence);
// Removes rows of sequences that are gone and of seals that failed, and writes those in doubt as
// they are. The catalogue takes writes again; this is the first of them, or a name that is free
// here may be taken there.
void settle_sequence_rows(EngineState& engine);
// Evicted: out of memory now, out of the catalogue by a batch. Not open, no work.
void forget_evicted_sequence(EngineState& engine, StoredSequence& sequence);
// Takes the sequence out of catalogue and memory; `done` when that is durable. Not open, no work.
enum class LogFile : std::uint8_t { kUnlink, kKeep };  // kKeep: the caller disposes of it
void remove_sequence(EngineState& engine, StoredSequence& sequence, LogFile log_file,
                     MetaDone done);
// What a compaction or an import leaves behind (nameless) goes by itself after this time.
inline constexpr std::uint64_t kLeftoverSeconds = 3600;
// The catalogue did not let it go at once: it is no longer internal, so that its user can remove
// it.
void show_leftover(EngineState& engine, SequenceId id);

void add_work(EngineState& engine, StoredSequence& sequence, TailWork work);
void work_finished(EngineState& engine, StoredSequence& sequence);
// Drops works that have not started of a handle: they complete with kCancelled.
void cancel_work(EngineState& engine, StoredSequence& sequence, std::uint32_t handle_serial);

}  // namespace kvtier
