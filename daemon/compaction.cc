#include "daemon/compaction.h"

#include <algorithm>
#include <cinttypes>
#include <deque>
#include <memory>
#include <vector>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "daemon/segment_files.h"

namespace kvtier {
namespace {

struct Run {
  SequenceId target;                      // the sequence that is compacted
  SequenceId scratch;                     // where the new segments grow
  std::vector<SequenceRow::Part> before;  // the target's parts when we began
  std::size_t first_part = 0;             // from here on everything is rewritten
  std::size_t next_part = 0;              // of the copy
  std::uint32_t next_token = 0;           // inside that part
  std::shared_ptr<TailMemory> tail;
  std::uint64_t made = 0;
};

struct Compaction {
  std::deque<SequenceId> todo;
  CompactionReport report;
  std::function<void(Result<CompactionReport>)> done;
};
using CompactionPtr = std::shared_ptr<Compaction>;
using RunPtr = std::shared_ptr<Run>;

void next_sequence(EngineState& engine, const CompactionPtr& all);

bool at_rest(const StoredSequence& sequence) {
  return sequence.open.empty() && !sequence.working && sequence.busy == 0 &&
         !sequence.writer_coming && !sequence.removed && !sequence.is_private;
}

// The first part that gains from being rewritten, or parts.size(). Everything behind it must be the
// sequence's alone.
std::size_t first_worth(const StoredSequence& sequence) {
  const std::vector<SequencePart>& parts = sequence.parts;
  std::size_t own = parts.size();
  while (own > 0 && parts[own - 1].segment->sequence_refs == 1 &&
         parts[own - 1].segment->handle_refs == 0 &&
         parts[own - 1].segment->state == SegmentState::kOnDisk &&
         parts[own - 1].segment->children.size() <= 1)
    --own;
  for (std::size_t i = own; i < parts.size(); ++i) {
    const bool half_dead = parts[i].visible_tokens * 2 < parts[i].segment->row.tokens;
    const bool fits_with_next =
        i + 1 < parts.size() &&
        parts[i].visible_tokens + parts[i + 1].visible_tokens <= kSegmentTokensMax;
    if (half_dead || fits_with_next) return i;
  }
  return parts.size();
}

// Gives up: what was made goes with the scratch sequence.
void abandon(EngineState& engine, const CompactionPtr& all, const RunPtr& run,
             const Status& status) {
  KVT_LOG(kWarn, "compaction of sequence %" PRIu64 " given up: %s", run->target.value,
          status.message());
  if (StoredSequence* scratch = find_sequence(engine, run->scratch);
      scratch != nullptr && at_rest(*scratch))
    remove_sequence(engine, *scratch, LogFile::kUnlink, [&engine, run](Result<void> removed) {
      if (!removed) show_leftover(engine, run->scratch);
    });
  next_sequence(engine, all);
}

// The old segments go; their blocks are filed under the new ones.
void retire_old(EngineState& engine, const Run& run, const StoredSequence& target,
                CompactionReport* report) {
  for (std::size_t i = run.before.size(); i-- > run.first_part;) {
    Segment* old = find_segment(engine, run.before[i].segment);
    if (old == nullptr || old->referenced() || old->condemned) continue;
    report->bytes_before += old->row.file_bytes;
    condemn_segment(engine, *old);
  }
  for (std::size_t i = run.first_part; i < target.parts.size(); ++i) {
    Segment& segment = *target.parts[i].segment;
    report->bytes_after += segment.row.file_bytes;
    for (std::size_t b = 0; b < segment.row.blocks.size(); ++b) {
      const std::uint64_t end = (segment.row.start_token / kBlockTokens + b + 1) * kBlockTokens;
      segment.space->index.insert(
          segment.row.blocks[b],
          {segment.row.id, static_cast<std::uint32_t>(end - segment.row.start_token)});
    }
  }
  sweep_condemned(engine);
}

bool same_parts(const std::vector<SequenceRow::Part>& a, const std::vector<SequenceRow::Part>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.segment == y.segment && x.visible_tokens == y.visible_tokens;
  });
}

void parts_swapped(EngineState& engine, const CompactionPtr& all, const RunPtr& run) {
  ++all->report.sequences;
  all->report.segments_merged += run->before.size() - run->first_part;
  all->report.segments_made += run->made;
  remove_sequence(engine, *find_sequence(engine, run->scratch), LogFile::kUnlink,
                  [&engine, all, run](Result<void> removed) {
                    if (!removed) show_leftover(engine, run->scratch);
                    if (StoredSequence* kept = find_sequence(engine, run->target); kept != nullptr)
                      retire_old(engine, *run, *kept, &all->report);
                    next_sequence(engine, all);
                  });
}

// All new segments are durable: one synced batch gives them to the sequence. In the sequence's
// queue, so that nobody appends meanwhile; readers see the new parts when the batch is durable.
void swap_parts(EngineState& engine, const CompactionPtr& all, const RunPtr& run) {
  StoredSequence* target = find_sequence(engine, run->target);
  if (target == nullptr || !at_rest(*target) || !same_parts(target->row.parts, run->before))
    return abandon(engine, all, run, {Code::kBusy, 0, "the sequence was used meanwhile"});
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  work.run = [&engine, all, run] {
    StoredSequence& swapped = *find_sequence(engine, run->target);
    swapped.row.parts = find_sequence(engine, run->scratch)->row.parts;
    post_sequence_row(engine, swapped, true, [&engine, all, run](Result<void> result) {
      StoredSequence& found = *find_sequence(engine, run->target);
      const StoredSequence& scratch = *find_sequence(engine, run->scratch);
      if (result)
        set_parts(engine, found, parts_up_to(scratch, scratch.tokens_sealed));
      else
        found.row.parts = run->before;
      work_finished(engine, found);
      result ? parts_swapped(engine, all, run) : abandon(engine, all, run, result.error());
    });
  };
  add_work(engine, *target, std::move(work));
}

// What a worker copies: rows of these segments one after the other into half 0.
struct Piece {
  SegmentId segment;
  std::uint32_t first = 0, count = 0;
};
struct Copied {
  std::uint32_t tokens = 0;
  std::size_t pieces = 0;  // the first ones, as a whole
};

// Fewer than all where a segment ends with a snapshot: it belongs at the end of a segment.
Result<Copied> copy_pieces(const IoFactory& make_io, const std::vector<Piece>& pieces,
                           TailMemory* tail) {
  KVT_TRY(SegmentFiles files, SegmentFiles::open(make_io));
  Copied copied;
  tail->texts[0] = {};
  tail->snapshot.clear();
  auto* records = reinterpret_cast<TokenRecord*>(tail->tokens(0));
  while (copied.pieces < pieces.size() && tail->snapshot.empty()) {
    const Piece& piece = pieces[copied.pieces++];
    KVT_TRY_VOID(files.begin(piece.segment));
    const SegmentMeta& meta = files.meta();
    if (piece.first + piece.count > meta.tokens.size())
      return error(Code::kCorrupt, "a segment is too short");
    std::copy_n(meta.tokens.begin() + piece.first, piece.count, records + copied.tokens);
    tail->texts[0].append(meta.texts, piece.first, piece.count);
    KVT_TRY_VOID(files.copy_rows(piece.first, piece.count, tail->layout->plane, copied.tokens,
                                 tail->plane(0)));
    copied.tokens += piece.count;
    if (piece.first + piece.count == meta.tokens.size()) tail->snapshot = meta.snapshot;
  }
  files.end();
  return copied;
}

// The next up to 2,048 tokens of the old parts.
std::vector<Piece> next_pieces(const StoredSequence& target, const Run& run) {
  std::vector<Piece> pieces;
  std::uint32_t room = kSegmentTokensMax;
  std::uint32_t first = run.next_token;
  for (std::size_t i = run.next_part; i < target.parts.size() && room > 0; ++i) {
    const SequencePart& part = target.parts[i];
    const std::uint32_t count = std::min(room, part.visible_tokens - first);
    pieces.push_back({part.segment->row.id, first, count});
    room -= count;
    first = 0;
  }
  return pieces;
}

// The run goes on behind the pieces that were copied.
void skip_pieces(const StoredSequence& target, const std::vector<Piece>& pieces, std::size_t copied,
                 Run* run) {
  for (std::size_t i = 0; i < copied; ++i) {
    run->next_token = pieces[i].first + pieces[i].count;
    if (run->next_token < target.parts[run->next_part].visible_tokens) continue;
    ++run->next_part;
    run->next_token = 0;
  }
}

void next_segment(EngineState& engine, const CompactionPtr& all, const RunPtr& run) {
  if (engine.draining) return abandon(engine, all, run, kStopping);
  StoredSequence* target = find_sequence(engine, run->target);
  if (target == nullptr || !at_rest(*target) || !same_parts(target->row.parts, run->before))
    return abandon(engine, all, run, {Code::kBusy, 0, "the sequence was used meanwhile"});
  auto pieces = std::make_shared<std::vector<Piece>>(next_pieces(*target, *run));
  if (pieces->empty()) return swap_parts(engine, all, run);
  for (const Piece& piece : *pieces) ++find_segment(engine, piece.segment)->busy;
  auto copied = std::make_shared<Result<Copied>>(Copied{});
  run_on_worker(
      engine,
      [=, make_io = engine.world.worker_io] {
        *copied = copy_pieces(make_io, *pieces, run->tail.get());
      },
      [&engine, all, run, pieces, copied] {
        for (const Piece& piece : *pieces) --find_segment(engine, piece.segment)->busy;
        StoredSequence* scratch = find_sequence(engine, run->scratch);
        const StoredSequence* source = find_sequence(engine, run->target);
        if (!*copied || scratch == nullptr || source == nullptr ||
            !same_parts(source->row.parts, run->before))
          return abandon(engine, all, run, *copied ? Status{Code::kNotFound} : copied->error());
        skip_pieces(*source, *pieces, (*copied)->pieces, run.get());
        TailWork work;
        work.kind = TailWork::Kind::kSeal;
        work.tail = run->tail;
        work.count = (*copied)->tokens;
        work.done = [&engine, all, run](Result<TailResult> sealed) {
          if (sealed) ++run->made;
          // Not inside the sealer's call: it still holds the sequence.
          engine.world.mailbox->post([&engine, all, run, sealed] {
            sealed ? next_segment(engine, all, run) : abandon(engine, all, run, sealed.error());
          });
        };
        add_work(engine, *scratch, std::move(work));
      });
}

void begin_run(EngineState& engine, const CompactionPtr& all, StoredSequence& target,
               std::size_t first_part) {
  auto run = std::make_shared<Run>();
  run->target = target.row.id;
  run->before = target.row.parts;
  run->first_part = run->next_part = first_part;
  Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *target.space);
  if (!tail) return all->done(error(tail.error()));
  run->tail = std::move(*tail);
  StoredSequence& scratch = new_sequence(engine, *target.space, false);
  run->scratch = scratch.row.id;
  scratch.row.expires_unix_s = engine.wall_ns() / 1'000'000'000 + kLeftoverSeconds;
  scratch.in_catalogue = true;
  scratch.internal = true;
  const std::vector<PartSpec> shared = parts_up_to(target, target.parts[first_part].first_token);
  for (const PartSpec& part : shared)
    scratch.row.parts.push_back({part.segment->row.id, part.visible_tokens});
  set_parts(engine, scratch, shared);
  post_sequence_row(engine, scratch, false, [](Result<void>) {});
  learn_chain(engine, scratch, [&engine, all, run](Result<void> known) {
    known ? next_segment(engine, all, run) : abandon(engine, all, run, known.error());
  });
}

void next_sequence(EngineState& engine, const CompactionPtr& all) {
  if (engine.draining) return all->done(error(kStopping));
  while (!all->todo.empty()) {
    StoredSequence* sequence = find_sequence(engine, all->todo.front());
    all->todo.pop_front();
    if (sequence == nullptr || !at_rest(*sequence)) continue;
    const std::size_t first = first_worth(*sequence);
    if (first < sequence->parts.size()) return begin_run(engine, all, *sequence, first);
  }
  all->done(all->report);
}

}  // namespace

void compact_store(EngineState& engine, std::function<void(Result<CompactionReport>)> done) {
  auto all = std::make_shared<Compaction>();
  all->done = std::move(done);
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (!sequence->internal) all->todo.push_back(id);
  }
  std::sort(all->todo.begin(), all->todo.end());
  next_sequence(engine, all);
}

}  // namespace kvtier
