#include "daemon/sequences.h"

#include <algorithm>
#include <cctype>

#include "base/check.h"
#include "daemon/abstracts.h"
#include "daemon/committer.h"
#include "daemon/control_ops.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

namespace {
constexpr std::uint64_t kSequenceIdsReserved = 1024;
}

TailSums sum_tails(const EngineState& engine) {
  TailSums sums;
  for (const std::weak_ptr<TailMemory>& each : engine.sequences.tails) {
    const std::shared_ptr<TailMemory> tail = each.lock();
    if (tail == nullptr) continue;
    ++sums.count;
    sums.bytes += memfd_resident_bytes(tail->memory.fd.get());
    sums.reserved_bytes += tail->layout->size_bytes();
  }
  return sums;
}

Result<std::shared_ptr<TailMemory>> make_tail_memory(EngineState& engine,
                                                     const StoredSpace& space) {
  std::vector<std::weak_ptr<TailMemory>>& tails = engine.sequences.tails;
  std::erase_if(tails, [](const std::weak_ptr<TailMemory>& each) { return each.expired(); });
  const TailSums sums = sum_tails(engine);
  const std::uint64_t bytes = space.tail.size_bytes(), limit = engine.options.tail_bytes_max;
  if (bytes > limit || sums.reserved_bytes > limit - bytes)
    return error(refusal(
        Code::kFull, "no memory for another tail: close a sequence or raise host.tail_bytes_max",
        ": " + std::to_string(sums.count) + " sequences open for writing may take " +
            std::to_string(sums.reserved_bytes) + " bytes, this one " + std::to_string(bytes) +
            ", the limit is " + std::to_string(limit)));
  auto tail = std::make_shared<TailMemory>();
  tail->layout = &space.tail;
  KVT_TRY(tail->memory, make_memfd("kvtier-tail", static_cast<std::size_t>(space.tail.size_bytes()),
                                   MemfdAccess::kSharedWrite, false));
  tails.push_back(tail);
  return tail;
}

StoredSequence* find_sequence(EngineState& engine, SequenceId id) {
  const auto place = engine.sequences.all.find(id);
  return place == engine.sequences.all.end() || place->second->removed ? nullptr
                                                                       : place->second.get();
}

StoredSequence* find_sequence_by_name(EngineState& engine, const std::string& name) {
  const auto place = engine.sequences.names.find(name);
  return place == engine.sequences.names.end() ? nullptr : find_sequence(engine, place->second);
}

void free_name(EngineState& engine, const std::string& name, SequenceId id) {
  const auto place = engine.sequences.names.find(name);
  if (place != engine.sequences.names.end() && place->second == id)
    engine.sequences.names.erase(place);
}

StoredSequence& new_sequence(EngineState& engine, StoredSpace& space, bool is_private) {
  SequenceTable& table = engine.sequences;
  if (table.next_id >= table.reserved_until) {
    table.reserved_until = table.next_id + kSequenceIdsReserved;
    CatalogueBatch batch;
    batch.put_number("next_sequence", table.reserved_until);
    post_batch(engine, std::move(batch), false, [](Result<void>) {});
  }
  auto made = std::make_unique<StoredSequence>();
  made->row.id = SequenceId{table.next_id++};
  made->row.space = space.row.id;
  made->row.created_unix_ns = made->row.last_used_unix_ns = engine.wall_ns();
  made->space = &space;
  made->is_private = is_private;
  made->log.loaded = true;
  ++space.sequences;
  StoredSequence& sequence = *made;
  table.all.emplace(sequence.row.id, std::move(made));
  return sequence;
}

// UTF-8 without control characters (those of C1 included, U+0080 to U+009F: two bytes) and slashes,
// without blanks at its ends, and not a number. A store may hold names of before that are none.
Result<void> check_name(const std::string& name) {
  if (name.empty() || name.size() > kNameBytesMax)
    return error(Code::kInvalid, "a name has 1 to 256 bytes");
  bool digits = true;
  unsigned char before = 0;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F || c == '/' || (before == 0xC2 && byte >= 0x80 && byte < 0xA0))
      return error(Code::kInvalid, "a name has no control characters and no slash");
    digits = digits && std::isdigit(byte) != 0;
    before = byte;
  }
  if (digits) return error(Code::kInvalid, "a name is not a number: numbers are ids");
  if (name.front() == ' ' || name.back() == ' ')
    return error(Code::kInvalid, "a name neither begins nor ends with a blank");
  return {};
}

namespace {

void let_go(EngineState& engine, Segment& segment) {
  KVT_CHECK(segment.sequence_refs > 0);
  --segment.sequence_refs;
  segment.row.last_used_unix_ns = engine.wall_ns();
  // What only lives in memory cannot be found again: it goes with its last sequence.
  if (segment.sequence_refs == 0 && segment.state == SegmentState::kInMemory)
    condemn_segment(engine, segment);
}

}  // namespace

void set_parts(EngineState& engine, StoredSequence& sequence, const std::vector<PartSpec>& parts) {
  for (const PartSpec& part : parts) ++part.segment->sequence_refs;
  std::vector<SequencePart> old = std::move(sequence.parts);
  sequence.parts.clear();
  sequence.tokens_sealed = 0;
  for (const PartSpec& part : parts) {
    sequence.parts.push_back({part.segment, part.visible_tokens, sequence.tokens_sealed});
    sequence.tokens_sealed += part.visible_tokens;
  }
  for (const SequencePart& part : old) let_go(engine, *part.segment);
  if (sequence.reads != nullptr) sequence.reads->truncate(sequence.tokens_sealed);
  publish_directories(engine, sequence);
}

void append_part(EngineState& engine, StoredSequence& sequence, Segment& segment) {
  ++segment.sequence_refs;
  sequence.parts.push_back({&segment, segment.row.tokens, sequence.tokens_sealed});
  sequence.tokens_sealed += segment.row.tokens;
  publish_directories(engine, sequence);
}

std::vector<PartSpec> parts_up_to(const StoredSequence& sequence, std::uint64_t tokens) {
  std::vector<PartSpec> parts;
  for (const SequencePart& part : sequence.parts) {
    if (part.first_token >= tokens) break;
    const std::uint64_t visible =
        std::min<std::uint64_t>(part.visible_tokens, tokens - part.first_token);
    parts.push_back({part.segment, static_cast<std::uint32_t>(visible)});
  }
  return parts;
}

namespace {

// The parts that hold the tokens of the block that is not whole yet.
std::vector<SegmentId> open_block_segments(const StoredSequence& sequence) {
  std::vector<SegmentId> segments;
  const std::uint64_t first = sequence.tokens_sealed / kBlockTokens * kBlockTokens;
  for (const SequencePart& part : sequence.parts) {
    if (part.first_token + part.visible_tokens > first) segments.push_back(part.segment->row.id);
  }
  return segments;
}

// The chain hash of the last whole block: filed with the segment that holds the block's last token.
bool chain_at_end(const StoredSequence& sequence, BlockHash* chain) {
  const std::uint64_t blocks = sequence.tokens_sealed / kBlockTokens;
  *chain = {};
  if (blocks == 0) return true;
  const std::uint64_t last_token = blocks * kBlockTokens - 1;
  for (const SequencePart& part : sequence.parts) {
    if (last_token < part.first_token || last_token >= part.first_token + part.visible_tokens)
      continue;
    const std::uint64_t index = blocks - 1 - part.first_token / kBlockTokens;
    if (index >= part.segment->row.blocks.size()) return false;
    *chain = part.segment->row.blocks[static_cast<std::size_t>(index)];
    return true;
  }
  return false;
}

}  // namespace

void learn_chain(EngineState& engine, StoredSequence& sequence, MetaDone done) {
  if (sequence.chain_known) return done({});
  const SequenceId id = sequence.row.id;
  ++sequence.busy;
  load_metas(engine, open_block_segments(sequence), IoPriority::kDemand,
             [&engine, id, done = std::move(done)](Result<void> result, const LoadedMetas& metas) {
               StoredSequence& found = *engine.sequences.all.at(id);
               --found.busy;
               if (!result) return done(result);
               if (!chain_at_end(found, &found.chain))
                 return done(error(Code::kCorrupt, "block hashes are missing: run kvtier repair"));
               found.open_ids.clear();
               const std::uint64_t first = found.tokens_sealed / kBlockTokens * kBlockTokens;
               auto meta = metas.begin();  // of the parts below, which do not move while it is busy
               for (const SequencePart& part : found.parts) {
                 if (part.first_token + part.visible_tokens <= first) continue;
                 const std::uint64_t from = first > part.first_token ? first - part.first_token : 0;
                 for (std::uint64_t i = from; i < part.visible_tokens; ++i)
                   found.open_ids.push_back((*meta)->tokens[static_cast<std::size_t>(i)].id);
                 ++meta;
               }
               found.chain_known = true;
               done({});
             });
}

void post_new_row(EngineState& engine, StoredSequence& sequence, MetaDone done) {
  const bool nameless = sequence.row.name.empty();
  if (sequence.is_private || (engine.read_only && nameless)) return done({});
  if (engine.read_only) return done(error(kNoWrites));
  sequence.row.provisional = nameless;
  post_sequence_row(engine, sequence, false, std::move(done));
}

void post_sequence_row(EngineState& engine, StoredSequence& sequence, bool sync, MetaDone done) {
  KVT_CHECK(!sequence.is_private);
  sequence.in_catalogue = true;
  if (sync) sequence.row.provisional = false;
  sequence.last_use_posted_unix_ns = sequence.row.last_used_unix_ns;
  CatalogueBatch batch;
  batch.put_sequence(sequence.row);
  batch.put_number("next_sequence", engine.sequences.reserved_until);
  const SequenceId id = sequence.row.id;
  post_batch(engine, std::move(batch), sync,
             [&engine, id, sync, done = std::move(done)](Result<void> result) {
               StoredSequence* found =
                   find_sequence(engine, id);  // it may be gone where nobody waits for the row
               if (found != nullptr && sync && result) {
                 found->row_durable = true;
                 found->row.provisional = false;
               }
               if (found != nullptr && !result) found->row_in_doubt = true;
               done(result);
             });
}

namespace {

void forget_sequence(EngineState& engine, StoredSequence& sequence) {
  KVT_CHECK(sequence.open.empty() && sequence.busy == 0 && !sequence.working);
  for (const SequencePart& part : sequence.parts) let_go(engine, *part.segment);
  free_name(engine, sequence.row.name, sequence.row.id);
  if (sequence.row_in_doubt) engine.sequences.rows_left.push_back(sequence.row.id);
  --sequence.space->sequences;
  engine.sequences.all.erase(sequence.row.id);
}

}  // namespace

void drop_if_ephemeral(EngineState& engine, StoredSequence& sequence) {
  if (!sequence.open.empty() || sequence.busy != 0 || sequence.working || sequence.writer_coming)
    return;
  if (sequence.removed) return;
  if (sequence.in_catalogue && sequence.row.provisional) {
    // A daemon that stops has not been told that its clients are done.
    if (engine.draining) return;
    CatalogueBatch batch;
    const SequenceId id = sequence.row.id;
    batch.remove_sequence(id);
    post_batch(engine, std::move(batch), false, [&engine, id](Result<void> result) {
      if (!result) engine.sequences.rows_left.push_back(id);
    });
    return forget_sequence(engine, sequence);
  }
  const bool keep = sequence.in_catalogue || (sequence.is_private && !sequence.row.name.empty());
  if (!keep) forget_sequence(engine, sequence);
}

void keep_last_use(EngineState& engine, StoredSequence& sequence) {
  // Nothing of the row may be under way: what is posted here is what the catalogue has.
  if (engine.draining) return;
  if (!sequence.in_catalogue || engine.read_only || !sequence.open.empty() || sequence.working ||
      sequence.busy != 0 || sequence.writer_coming || sequence.removed ||
      sequence.last_use_posted_unix_ns == sequence.row.last_used_unix_ns)
    return;
  post_sequence_row(engine, sequence, false, [](Result<void>) {});
}

void forget_unwritten(EngineState& engine, StoredSequence& sequence) {
  if (!sequence.open.empty() || sequence.busy != 0 || sequence.working || sequence.writer_coming) {
    sequence.row.provisional = true;  // it goes at close, unless somebody commits or pins it
    return;
  }
  forget_sequence(engine, sequence);
}

void settle_sequence_rows(EngineState& engine) {
  std::vector<SequenceId> settled = std::exchange(engine.sequences.rows_left, {});
  const std::vector<SegmentId> segments = std::exchange(engine.sequences.segments_left, {});
  CatalogueBatch batch;
  for (const SequenceId id : settled) batch.remove_sequence(id);
  for (const SegmentId id : segments) batch.remove_segment(id);
  for (auto& [id, sequence] : engine.sequences.all) {
    if (sequence->removed || !std::exchange(sequence->row_in_doubt, false)) continue;
    sequence->in_catalogue ? batch.put_sequence(sequence->row) : batch.remove_sequence(id);
    settled.push_back(id);
  }
  if (settled.empty() && segments.empty()) return;
  post_batch(engine, std::move(batch), true, [&engine, settled, segments](Result<void> result) {
    if (result) {
      for (const SegmentId id : segments)
        static_cast<void>(engine.io->io().unlink(segment_path(id)));
      return;
    }
    auto& left = engine.sequences.segments_left;
    left.insert(left.end(), segments.begin(), segments.end());
    for (const SequenceId id : settled) {
      const auto place = engine.sequences.all.find(id);
      if (place != engine.sequences.all.end())
        place->second->row_in_doubt = true;
      else
        engine.sequences.rows_left.push_back(id);
    }
  });
}

void forget_evicted_sequence(EngineState& engine, StoredSequence& sequence) {
  const SequenceId id = sequence.row.id;
  const std::vector<std::uint64_t> generations = sequence.log.generations();
  if (sequence.log.file.value != 0) engine.io->io().close(sequence.log.file);
  if (sequence.in_catalogue) {
    CatalogueBatch batch;
    batch.remove_sequence(id);
    post_batch(engine, std::move(batch), true, [&engine, id, generations](Result<void> result) {
      if (!result) engine.sequences.rows_left.push_back(id);
      for (std::size_t i = 0; result && i < generations.size(); ++i)
        static_cast<void>(engine.io->io().unlink(tail_log_path(id, generations[i])));
    });
  }
  forget_sequence(engine, sequence);
}

void remove_sequence(EngineState& engine, StoredSequence& sequence, LogFile log_file,
                     MetaDone done) {
  const SequenceId id = sequence.row.id;
  sequence.removed = true;
  const auto finish = [&engine, id, log_file, done = std::move(done)](Result<void> result) {
    StoredSequence& gone = *engine.sequences.all.at(id);
    --gone.busy;
    if (!result) {
      gone.removed = false;
      gone.row_in_doubt = gone.log.suspect = true;  // its row may be gone
      return done(result);
    }
    drop_log(engine, gone, log_file);
    forget_sequence(engine, gone);
    done({});
  };
  ++sequence.busy;
  if (!sequence.in_catalogue) return finish({});
  CatalogueBatch batch;
  batch.remove_sequence(id);
  post_batch(engine, std::move(batch), true, finish);
}

void show_leftover(EngineState& engine, SequenceId id) {
  if (StoredSequence* left = find_sequence(engine, id); left != nullptr) left->internal = false;
}

namespace {

void run_next(EngineState& engine, StoredSequence& sequence) {
  if (sequence.working || sequence.work.empty()) return;
  sequence.working = true;
  const TailWork work = sequence.work.front();
  sequence.work.pop_front();
  switch (work.kind) {
    case TailWork::Kind::kSeal:
      return start_seal(engine, sequence, work);
    case TailWork::Kind::kCommit:
      return start_commit(engine, sequence, work);
    case TailWork::Kind::kOther:
      return work.run();
  }
}

}  // namespace

void add_work(EngineState& engine, StoredSequence& sequence, TailWork work) {
  sequence.work.push_back(std::move(work));
  run_next(engine, sequence);
}

void work_finished(EngineState& engine, StoredSequence& sequence) {
  KVT_CHECK(sequence.working);
  sequence.working = false;
  if (!sequence.work.empty()) return run_next(engine, sequence);
  drop_if_ephemeral(engine, sequence);
}

void cancel_work(EngineState& engine, StoredSequence& sequence, std::uint32_t handle_serial) {
  static_cast<void>(engine);
  std::vector<TailDone> cancelled;
  for (auto work = sequence.work.begin(); work != sequence.work.end();) {
    if (work->handle_serial != handle_serial) {
      ++work;
      continue;
    }
    cancelled.push_back(std::move(work->done));
    work = sequence.work.erase(work);
  }
  for (TailDone& done : cancelled) {
    if (done) done(error(Code::kCancelled, "the work before it failed or the sequence was closed"));
  }
}

std::uint64_t TailLog::all_bytes() const noexcept {
  std::uint64_t bytes = file_bytes;
  for (const Unnamed& file : unnamed) bytes += file.bytes;
  return bytes;
}

std::vector<std::uint64_t> TailLog::generations() const {
  std::vector<std::uint64_t> all;
  if (generation != 0) all.push_back(generation);
  for (const Unnamed& file : unnamed) all.push_back(file.generation);
  return all;
}

Result<void> check_continues(const StoredSequence& sequence, const TailWork& work) {
  if (work.first_token == TailWork::kNoCheck || work.first_token == sequence.tokens_sealed)
    return {};
  return error(Code::kCancelled, "the tokens before these are not sealed");
}

}  // namespace kvtier
