#include "daemon/store_items.h"

#include <algorithm>

namespace kvtier {

namespace {

// What was found is mended as `problem` says.
void take_findings(Check& check, const Problem& problem) {
  for (Finding& found : check.report.findings) {
    check.problems.push_back(problem);
    check.problems.back().found = std::move(found);
  }
  check.report.findings.clear();
}

void check_segment(Check& check, const Check::SegmentItem& item) {
  const SegmentId id = item.row.id;
  std::vector<Finding>& findings = check.report.findings;
  const std::uint64_t files = check.report.segments, damage = check.report.damage;
  const std::optional<SegmentMeta> meta =
      check_segment_file(*check.io, id, &item.row, &item.space->row, &check.sink);
  Problem problem;
  problem.segment = id;
  problem.comes_back = item.lost && meta && check.report.damage == damage;
  if (problem.comes_back)
    check.sink.add(segment_path(id), "", FindingKind::kMissing, FindingSeverity::kNote,
                   "it was not there before: it is served again from now on");
  take_findings(check, problem);
  SidecarOwner owner;
  owner.there = check.report.segments != files;
  if (meta)
    owner = {true, true, static_cast<std::uint32_t>(meta->tokens.size()), meta->fingerprint,
             &item.space->row.geometry};
  problem.comes_back = false;
  problem.derived = true;
  for (const std::uint32_t kind : item.kinds) {
    check_sidecar_file(*check.io, {id, kind}, owner, &check.sink);
    const bool may_be_missing = !owner.there || item.kind_due != kind;
    if (may_be_missing && !findings.empty() && findings[0].kind == FindingKind::kMissing)
      findings.clear();
    take_findings(check, problem);
  }
}

void check_codebook_of(Check& check, const Check::CodebookItem& item) {
  const SpaceRow& space = item.space->row;
  check_codebook_file(*check.io, {space.id, item.row.id}, &space, &check.sink);
  Problem problem;
  problem.derived = true;
  problem.codebook = {space.id.value, item.row.abstract};
  take_findings(check, problem);
}

void check_log(Check& check, const Check::LogItem& item) {
  const SequenceId id = item.header.sequence;
  const std::optional<TailLogHeader> header =
      read_log_header(*check.io, {id, item.header.generation}, &item.header, &check.sink);
  if (header && check.sink.deep()) {
    const bool ours = check.report.findings.empty();
    const std::uint64_t tokens =
        check_log_records(*check.io, *header, &item.space->row.geometry, item.tokens, &check.sink);
    const bool read = std::ranges::find(check.report.findings, FindingKind::kUnreadable,
                                        &Finding::kind) == check.report.findings.end();
    if (ours && read) check.log_tokens[id.value] = tokens;
  }
  Problem problem;
  problem.sequence = id;
  problem.log_generation = item.header.generation;
  take_findings(check, problem);
}

void check_value(Check& check, const ObjectRow& row) {
  check_object_file(*check.io, row.file, &row, &check.sink);
  Problem problem;
  problem.key = row.key;
  problem.file = row.file;
  take_findings(check, problem);
}

}  // namespace

void check_next(Check& check) {
  if (!check.segments.empty()) {
    check_segment(check, check.segments.front());
    check.segments.pop_front();
  } else if (!check.codebooks.empty()) {
    check_codebook_of(check, check.codebooks.front());
    check.codebooks.pop_front();
  } else if (!check.values.empty()) {
    check_value(check, check.values.front());
    check.values.pop_front();
  } else {
    check_log(check, check.logs.front());
    check.logs.pop_front();
  }
}

}  // namespace kvtier
