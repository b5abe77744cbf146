// verify, repair, gc, warm. Long work goes to the workers one segment at a time, so that seals in
// between wait no longer than that.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "base/shell_word.h"
#include "daemon/admin.h"
#include "daemon/codebooks.h"
#include "daemon/committer.h"
#include "daemon/compaction.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"
#include "daemon/store_items.h"
#include "daemon/stored_tail.h"
#include "daemon/wipe.h"
#include "tiers/sidecar_format.h"
#include "tiers/store_report.h"
#include "tiers/tail_log_format.h"

namespace kvtier {
namespace {

std::vector<Finding> findings_of(const Check& check) {
  std::vector<Finding> findings;
  for (const Problem& problem : check.problems) findings.push_back(problem.found);
  return findings;
}

using CheckPtr = std::shared_ptr<Check>;

Check::SegmentItem item_of(const Segment& segment) {
  const SpaceRow& space = segment.space->row;
  Check::SegmentItem item{segment.row, segment.space, segment.state == SegmentState::kLost,
                          space.abstracts, sidecar_of_seal(space, segment.row.tokens)};
  if (!segment.abstracts.empty() &&
      (segment.abstracts[0].state == AbstractState::kWorking || segment.abstracts[0].writes != 0))
    item.kind_due = std::nullopt;  // it comes
  return item;
}

CheckPtr collect(EngineState& engine, bool deep) {
  auto check = std::make_shared<Check>();
  check->make_io = engine.world.worker_io;
  check->options.deep = deep;
  check->options.findings_max = SIZE_MAX;  // repair mends what is found
  for (const auto& [id, segment] : engine.segments.all)
    if (segment->state != SegmentState::kInMemory && !segment->condemned)
      check->segments.push_back(item_of(*segment));
  for (const auto& [id, space] : engine.spaces)
    for (const SpaceRow::Codebook& codebook : space->row.codebooks)
      if (!space->in_memory_only(codebook.id)) check->codebooks.push_back({space.get(), codebook});
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (sequence->row.log_generation == 0) continue;
    TailLogHeader header{id, sequence->row.space, sequence->row.log_generation,
                         sequence->tokens_sealed, sequence->space->row.digest};
    check->logs.push_back(
        {header, sequence->space, sequence->log.loaded ? sequence->log.tokens : 0});
  }
  for (const auto& [key, object] : engine.objects.all) {
    if (object.value == nullptr) continue;
    const ObjectValue& value = *object.value;
    check->values.push_back({key, value.file, value.value_bytes, value.checksum});
  }
  if (engine.metrics.rows_damaged > 0)
    check->problems.push_back(
        {{"catalogue", "rows", FindingKind::kDamaged, FindingSeverity::kDamage,
          std::to_string(engine.metrics.rows_damaged) +
              " rows could not be trusted at start and were left out: stop kvtierd and run `kvtier "
              "repair --store " +
              shell_word(engine.options.store_path) + "`"},
         {},
         {}});
  return check;
}

// One item on a worker, then the next; `done` on the engine's thread.
void run_check(EngineState& engine, const CheckPtr& check,
               const std::function<void(Result<void>)>& done) {
  if (check->done()) return done({});
  if (engine.draining) return done(error(kStopping));
  auto failed = std::make_shared<Result<void>>();
  run_on_worker(
      engine,
      [check, failed] {
        if (check->io == nullptr) {
          Result<std::unique_ptr<Io>> io = check->make_io();
          if (!io) {
            *failed = error(io.error());
            return;
          }
          check->io = std::move(*io);
        }
        check_next(*check);
      },
      [&engine, check, failed, done] { *failed ? run_check(engine, check, done) : done(*failed); });
}

// A segment that went while we looked is no problem; nor is a log that was replaced.
void forget_stale(EngineState& engine, Check& check) {
  std::erase_if(check.problems, [&](const Problem& problem) {
    if (problem.segment.valid()) {
      const Segment* segment = find_segment(engine, problem.segment);
      return segment == nullptr || segment->condemned;
    }
    if (problem.file != 0) {
      const auto found = engine.objects.all.find(problem.key);
      return found == engine.objects.all.end() || found->second.value == nullptr ||
             found->second.value->file != problem.file;
    }
    if (!problem.sequence.valid()) return false;
    const StoredSequence* sequence = find_sequence(engine, problem.sequence);
    return sequence == nullptr || sequence->row.log_generation != problem.log_generation;
  });
}

// One that is in use serves on from memory.
void note_codebook(EngineState& engine, const Problem& problem) {
  SpaceCodebook& entry = engine.codebooks.all[problem.codebook];
  if (entry.codebook == nullptr && problem.harmless())
    entry.problem = problem.missing() ? "is not there" : "is damaged";
}

// What was found is known from now on: to stats, to doctor, and to the next daemon.
void mark_found(EngineState& engine, const Check& check) {
  for (const Problem& problem : check.problems) {
    if (problem.codebook.first != 0) note_codebook(engine, problem);
    if (!problem.segment.valid() || problem.derived || problem.harmless() || problem.newer() ||
        problem.unread())
      continue;
    Segment* segment = find_segment(engine, problem.segment);
    if (segment == nullptr || segment->row.bad || segment->state != SegmentState::kOnDisk) continue;
    if (problem.missing())
      mark_lost(engine, *segment, "verify did not find its file");
    else
      mark_bad(engine, *segment, "found by verify: something in it");
  }
}

void op_verify(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<bool> deep = json_bool(request.body, "deep", true);
  if (!deep) return done(error(deep.error()));
  const CheckPtr check = collect(engine, *deep);
  run_check(engine, check, [&engine, check, deep = *deep, done](Result<void> result) {
    if (!result) return done(error(result.error()));
    forget_stale(engine, *check);
    mark_found(engine, *check);
    StoreReport& report = check->report;
    report.findings = findings_of(*check);
    report.damage = static_cast<std::uint64_t>(
        std::count_if(check->problems.begin(), check->problems.end(),
                      [](const Problem& problem) { return !problem.harmless(); }));
    if (report.sound() && deep) engine.metrics.damage_settled = damage_met(engine.metrics);
    done(ControlReply{report_json(std::move(report), deep), {}, {}});
  });
}

// What repair has taken from a sequence; by its id, for a stable order.
struct Cut {
  std::string name;
  std::optional<std::uint64_t> tokens_before;  // none: a damaged log does not say how many it had
  std::uint64_t tokens_after = 0;
};
struct Repair {
  CheckPtr check;
  std::size_t next = 0;
  std::uint64_t dropped = 0;
  std::uint64_t segments_behind = 0, bytes_behind = 0;  // whole, but behind what was dropped
  std::uint64_t left = 0;                               // damaged still
  std::map<std::uint64_t, Cut> cuts;
  Result<void> stored;  // the rows of what was cut
  ControlDone done;
};
using RepairPtr = std::shared_ptr<Repair>;

// Before the first cut of the sequence.
std::optional<std::uint64_t> tokens_known(const Check& check, const StoredSequence& sequence) {
  const TailLog& log = sequence.log;
  if (sequence.row.log_generation == 0 || log.loaded) return sequence.tokens_sealed + log.tokens;
  const auto read = check.log_tokens.find(sequence.row.id.value);
  if (read == check.log_tokens.end()) return std::nullopt;
  return sequence.tokens_sealed + read->second;
}

// The sequence without its log: durably, before the answer to the repair. The file goes after the
// row.
void post_cut_row(EngineState& engine, StoredSequence& sequence, const RepairPtr& repair) {
  if (sequence.is_private) return;  // it has neither row nor log
  const SequenceId id = sequence.row.id;
  const std::vector<std::uint64_t> logs = sequence.log.generations();
  sequence.row.log_generation = 0;
  if (!logs.empty()) drop_log(engine, sequence, LogFile::kKeep);
  post_sequence_row(engine, sequence, true, [&engine, repair, id, logs](Result<void> written) {
    if (!written && repair->stored) repair->stored = written;
    for (std::size_t i = 0; written && i < logs.size(); ++i)
      static_cast<void>(engine.io->io().unlink(tail_log_path(id, logs[i])));
  });
}

void note_cut(Repair& repair, const StoredSequence& sequence, std::optional<std::uint64_t> before,
              std::uint64_t after) {
  const auto [cut, fresh] = repair.cuts.try_emplace(sequence.row.id.value);
  if (fresh) cut->second.tokens_before = before;
  cut->second.name = sequence.row.name;
  cut->second.tokens_after = after;
}

Json cuts_json(const Repair& repair) {
  Json list = Json::array();
  for (const auto& [id, cut] : repair.cuts) {
    list.push_back(Json{{"sequence", id}, {"name", cut.name}, {"tokens_after", cut.tokens_after}});
    if (cut.tokens_before) list.back()["tokens_before"] = *cut.tokens_before;
  }
  return list;
}

// Cuts every sequence that shows the segment before it, then condemns it and all that continues
// it: no prefix leads there any more. False: somebody has one of them open, or is at work on it (a
// row that we write behind its removal would bring it back).
bool drop_segment(EngineState& engine, Segment& segment, const RepairPtr& repair) {
  std::vector<StoredSequence*> users;
  for (const auto& [id, sequence] : engine.sequences.all)
    for (const SequencePart& part : sequence->parts)
      if (part.segment == &segment) {
        if (!sequence->open.empty() || sequence->working || sequence->busy != 0) return false;
        users.push_back(sequence.get());
        break;
      }
  for (StoredSequence* sequence : users) {
    std::uint64_t keep = 0;
    for (const SequencePart& part : sequence->parts) {
      if (part.segment == &segment) break;
      keep = part.first_token + part.visible_tokens;
    }
    note_cut(*repair, *sequence, tokens_known(*repair->check, *sequence), keep);
    const std::vector<PartSpec> parts = parts_up_to(*sequence, keep);
    sequence->row.parts.clear();
    for (const PartSpec& part : parts)
      sequence->row.parts.push_back({part.segment->row.id, part.visible_tokens});
    set_parts(engine, *sequence, parts);
    post_cut_row(engine, *sequence, repair);
    KVT_LOG(kWarn, "repair: sequence %llu keeps %llu tokens",
            static_cast<unsigned long long>(sequence->row.id.value),
            static_cast<unsigned long long>(keep));
  }
  const std::vector<SegmentId> unused = unused_with_descendants(engine, {segment.row.id});
  for (auto id = unused.rbegin(); id != unused.rend(); ++id) {
    Segment& behind = *find_segment(engine, *id);
    if (&behind == &segment) continue;
    ++repair->segments_behind;
    repair->bytes_behind += behind.row.file_bytes;
    condemn_segment(engine, behind);
  }
  condemn_segment(engine, segment);
  return true;
}

// A segment that another of its problems has dropped already.
bool is_gone(EngineState& engine, const Problem& problem) {
  const Segment* segment = find_segment(engine, problem.segment);
  return problem.segment.valid() && !problem.derived && (segment == nullptr || segment->condemned);
}

// Nothing to drop: bytes of a segment that nobody reads, a derived file that is not there or goes
// with its segment.
bool is_nothing(const Problem& problem) {
  if (problem.derived) return problem.missing() || problem.found.kind == FindingKind::kOrphan;
  return problem.segment.valid() && problem.harmless();
}

// One problem mended; false where it is in use.
bool mend(EngineState& engine, const Problem& problem, const RepairPtr& repair) {
  if (problem.file != 0) return drop_object(engine, problem.key, problem.file);
  if (problem.derived) {
    static_cast<void>(engine.io->io().unlink(problem.found.path));
    return true;
  }
  Segment* segment = find_segment(engine, problem.segment);
  return segment == nullptr || segment->condemned || drop_segment(engine, *segment, repair);
}

void run_repair(EngineState& engine, const RepairPtr& repair);

// What is sound of a log becomes a segment, the rest goes. In the sequence's queue.
void mend_log(EngineState& engine, const RepairPtr& repair, SequenceId id) {
  seal_stored_tail(engine, id, [&engine, repair, id](Result<void> sealed) {
    StoredSequence& sequence = *engine.sequences.all.at(id);
    if (sealed && sequence.row.log_generation != 0) {  // nothing of it was sound
      post_cut_row(engine, sequence, repair);
    }
    Problem& problem = repair->check->problems[repair->next - 1];
    if (sealed) {
      ++repair->dropped;
      if (!problem.harmless()) note_cut(*repair, sequence, std::nullopt, sequence.tokens_sealed);
    } else {
      ++repair->left;
      problem.found.what += std::string("; not mended: ") + sealed.error().message();
    }
    run_repair(engine, repair);
  });
}

// Behind the batches that were written for it: with the answer, what was dropped stays so.
void end_repair(EngineState& engine, const RepairPtr& repair) {
  const auto answer = [&engine, repair](Result<void> written) {
    sweep_condemned(engine);
    if (!repair->stored) written = repair->stored;
    if (!written) return repair->done(error(written.error()));
    if (repair->left == 0) engine.metrics.damage_settled = damage_met(engine.metrics);
    repair->done(ControlReply{Json{{"dropped", repair->dropped},
                                   {"left", repair->left},
                                   {"segments_behind", repair->segments_behind},
                                   {"bytes_behind", repair->bytes_behind},
                                   {"sequences_cut", cuts_json(*repair)},
                                   {"problems", problems_json(findings_of(*repair->check))}},
                              {},
                              {}});
  };
  if (repair->dropped == 0) return answer({});
  post_batch(engine, CatalogueBatch(), false, answer);
}

// One problem after the other; a log takes a seal.
void run_repair(EngineState& engine, const RepairPtr& repair) {
  std::vector<Problem>& problems = repair->check->problems;
  while (repair->next < problems.size()) {
    Problem& problem = problems[repair->next++];
    if (problem.newer() || is_gone(engine, problem) || is_nothing(problem)) continue;
    if (problem.unread() || (!problem.segment.valid() && !problem.sequence.valid() &&
                             problem.file == 0 && !problem.derived)) {
      repair->left += problem.harmless() ? 0 : 1;
      continue;
    }
    StoredSequence* sequence =
        problem.sequence.valid() ? find_sequence(engine, problem.sequence) : nullptr;
    const bool in_use = sequence != nullptr && (!sequence->open.empty() || sequence->working);
    if (sequence != nullptr && !in_use) {
      TailWork work;
      work.kind = TailWork::Kind::kOther;
      work.run = [&engine, repair, id = problem.sequence] { mend_log(engine, repair, id); };
      return add_work(engine, *sequence, std::move(work));
    }
    if (!in_use && (problem.sequence.valid() || mend(engine, problem, repair)))
      ++repair->dropped;
    else {
      ++repair->left;
      problem.found.what += "; in use: close the sequence and repair again";
    }
  }
  end_repair(engine, repair);
}

void op_repair(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  auto repair = std::make_shared<Repair>();
  repair->check = collect(engine, true);
  repair->done = std::move(done);
  run_check(engine, repair->check, [&engine, repair](Result<void> result) {
    if (!result) return repair->done(error(result.error()));
    forget_stale(engine, *repair->check);
    run_repair(engine, repair);
  });
}

// Everything under opaque keys that nobody works on; the bytes that will be free.
std::uint64_t evict_objects(EngineState& engine) {
  std::uint64_t freed = 0, used_unix_ns = 0;
  while (const std::string* key = coldest_object(engine, &used_unix_ns))
    freed += evict_object(engine, *key);
  return freed;
}

void op_gc(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<bool> objects = json_bool(request.body, "objects", false);
  if (!objects) return done(error(objects.error()));
  const bool merge = may_write_optional(engine, 0);
  const auto finish = [&engine, merge, objects = *objects, done](Result<CompactionReport> report) {
    if (!report) return done(error(report.error()));
    const std::uint64_t evicted = engine.metrics.segments_evicted;
    const std::size_t values = engine.objects.order.size();
    const std::uint64_t unused = evict_unreferenced(engine) + report->bytes_before -
                                 std::min(report->bytes_before, report->bytes_after);
    std::uint64_t others = remove_kept_files(engine);
    if (objects) others += evict_objects(engine);
    engine.objects.settle = !engine.objects.unsettled.empty();
    publish_objects(engine);
    Json body{{"segments_compacted", report->segments_merged},
              {"segments_removed", engine.metrics.segments_evicted - evicted},
              {"objects_removed", values - engine.objects.order.size()},
              {"bytes_freed", unused + others},
              {"merging_declined", !merge}};
    if (engine.segments.condemned.empty()) return done(ControlReply{std::move(body), {}, {}});
    // Behind the batches that take their rows away: with the answer, the files are gone.
    post_batch(engine, CatalogueBatch(), false,
               [&engine, body = std::move(body), others, done](Result<void> removed) mutable {
                 sweep_condemned(engine);
                 if (!removed) {  // rows may still name the files: they stay until the next start
                   body["segments_removed"] = 0;
                   body["bytes_freed"] = others;
                 }
                 done(ControlReply{std::move(body), {}, {}});
               });
  };
  merge ? compact_store(engine, finish) : finish(CompactionReport{});
}

// ---- warm ----

struct Warm {
  std::vector<SegmentId> segments;
  std::size_t next = 0;
  IoPriority priority = IoPriority::kPrefetch;
  std::uint64_t chunks = 0, resident = 0, unreadable = 0, bytes_read = 0;
  std::uint32_t running = 0;
  bool stepping = false;  // the loop over segments goes on by itself: no recursion
  ControlDone done;
};

// Not those that memory has no room for.
std::uint64_t count_unreadable(const FetchJob& job) {
  return static_cast<std::uint64_t>(
      std::count_if(job.entries.begin(), job.entries.end(), [](const FetchEntry& entry) {
        const auto code = static_cast<Code>(entry.status);
        return code != Code::kOk && code != Code::kFull;
      }));
}

// Two segments at a time: the disk always has the next one queued.
void run_warm(EngineState& engine, const std::shared_ptr<Warm>& warm) {
  if (std::exchange(warm->stepping, true)) return;
  while (warm->running < 2 && warm->next < warm->segments.size()) {
    Segment* segment = find_segment(engine, warm->segments[warm->next++]);
    if (segment == nullptr) continue;
    const std::uint32_t total = segment->space->layout_of(segment->row.tokens).chunks_total();
    warm->chunks += total;
    if (segment->state == SegmentState::kLost) {
      warm->unreadable += total;
      continue;
    }
    std::vector<std::uint32_t> chunks(total);
    for (std::uint32_t i = 0; i < total; ++i) chunks[i] = i;
    ++warm->running;
    start_inner_fetch(engine, *segment, chunks, warm->priority,
                      [&engine, warm](const FetchJob& job) {
                        warm->resident += job.ok;
                        warm->unreadable += count_unreadable(job);
                        warm->bytes_read += job.bytes_disk;
                        --warm->running;
                        run_warm(engine, warm);
                      });
  }
  warm->stepping = false;
  if (warm->running > 0) return;
  warm->done(ControlReply{Json{{"chunks", warm->chunks},
                               {"chunks_resident", warm->resident},
                               {"chunks_unreadable", warm->unreadable},
                               {"bytes_read", warm->bytes_read}},
                          {},
                          {}});
}

void op_warm(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = target_sequence(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::string> priority = json_string(request.body, "priority", "prefetch", 16);
  if (!priority || (*priority != "prefetch" && *priority != "background"))
    return done(error(Code::kInvalid, "priority must be prefetch or background"));
  auto warm = std::make_shared<Warm>();
  warm->priority = *priority == "background" ? IoPriority::kBackground : IoPriority::kPrefetch;
  warm->done = std::move(done);
  for (const SequencePart& part : (*target)->parts) warm->segments.push_back(part.segment->row.id);
  run_warm(engine, warm);
}

}  // namespace

std::span<const ControlOp> maintenance_ops() {
  static constexpr ControlOp kOps[] = {{"verify", false, op_verify},
                                       {"repair", false, op_repair},
                                       {"gc", false, op_gc},
                                       {"warm", false, op_warm}};
  return kOps;
}

}  // namespace kvtier
