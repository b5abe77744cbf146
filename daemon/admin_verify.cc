// verify, and the check that repair begins with.
#include "daemon/admin_verify.h"

#include <algorithm>
#include <utility>

#include "base/shell_word.h"
#include "daemon/admin.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"
#include "tiers/sidecar_format.h"
#include "tiers/store_report.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

std::vector<Finding> findings_of(const Check& check) {
  std::vector<Finding> findings;
  for (const Problem& problem : check.problems) findings.push_back(problem.found);
  return findings;
}

namespace {

Check::SegmentItem item_of(const Segment& segment) {
  const SpaceRow& space = segment.space->row;
  Check::SegmentItem item{segment.row, segment.space, segment.state == SegmentState::kLost,
                          space.abstracts, sidecar_of_seal(space, segment.row.tokens)};
  if (!segment.abstracts.empty() &&
      (segment.abstracts[0].state == AbstractState::kWorking || segment.abstracts[0].writes != 0))
    item.kind_due = std::nullopt;  // it comes
  return item;
}

}  // namespace

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
    // Of this log: one that takes its place may have fewer.
    const bool known =
        sequence->log.loaded && sequence->log.generation == sequence->row.log_generation;
    check->logs.push_back({header, sequence->space, known ? sequence->log.tokens : 0});
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

void serve_returned(EngineState& engine, const Check& check) {
  for (const Problem& problem : check.problems) {
    Segment* segment = problem.comes_back ? find_segment(engine, problem.segment) : nullptr;
    if (segment != nullptr) serve_again(engine, *segment);
  }
}

namespace {

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
    serve_returned(engine, *check);
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

}  // namespace

std::span<const ControlOp> verify_ops() {
  static constexpr ControlOp kOps[] = {{"verify", false, op_verify}};
  return kOps;
}

}  // namespace kvtier
