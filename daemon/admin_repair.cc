// repair: ends what is damaged before the damage. Cuts sequences, seals what is sound of a log,
// drops derived files, which are made again.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/log.h"
#include "daemon/admin.h"
#include "daemon/admin_verify.h"
#include "daemon/committer.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"
#include "daemon/stored_tail.h"
#include "daemon/wipe.h"
#include "tiers/store_report.h"
#include "tiers/tail_log_format.h"

namespace kvtier {
namespace {

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
// row that we write behind its removal would bring it back; an import or a compaction counts on
// what it has sealed).
bool drop_segment(EngineState& engine, Segment& segment, const RepairPtr& repair) {
  std::vector<StoredSequence*> users;
  for (const auto& [id, sequence] : engine.sequences.all)
    for (const SequencePart& part : sequence->parts)
      if (part.segment == &segment) {
        if (!sequence->open.empty() || sequence->working || sequence->busy != 0 ||
            sequence->internal)
          return false;
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
      repair->left += problem.harmless() ? 0 : 1;
      problem.found.what += std::string("; not mended: ") + sealed.error().message();
    }
    // Not inside the sealer's call: it still holds the sequence.
    engine.world.mailbox->post([&engine, repair] { run_repair(engine, repair); });
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
  if (engine.draining) return repair->done(error(kStopping));
  std::vector<Problem>& problems = repair->check->problems;
  while (repair->next < problems.size()) {
    Problem& problem = problems[repair->next++];
    if (problem.newer() || is_gone(engine, problem) || is_nothing(problem)) continue;
    if (problem.unread() || (!problem.segment.valid() && !problem.sequence.valid() &&
                             problem.file == 0 && !problem.derived)) {
      repair->left += problem.harmless() ? 0 : 1;
      continue;
    }
    if (problem.sequence.valid()) {
      StoredSequence* sequence = find_sequence(engine, problem.sequence);
      // It went, or another took its place, while we mended others or what else was found of it.
      if (sequence == nullptr || sequence->row.log_generation != problem.log_generation) continue;
      if (sequence->open.empty() && !sequence->working) {
        TailWork work;
        work.kind = TailWork::Kind::kOther;
        work.run = [&engine, repair, id = problem.sequence] { mend_log(engine, repair, id); };
        return add_work(engine, *sequence, std::move(work));
      }
    } else if (mend(engine, problem, repair)) {
      ++repair->dropped;
      continue;
    }
    if (problem.harmless()) continue;
    ++repair->left;
    problem.found.what += "; in use: close the sequence and repair again";
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
    serve_returned(engine, *repair->check);
    run_repair(engine, repair);
  });
}

}  // namespace

std::span<const ControlOp> repair_ops() {
  static constexpr ControlOp kOps[] = {{"repair", false, op_repair}};
  return kOps;
}

}  // namespace kvtier
