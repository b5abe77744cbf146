// Requests about names and lifetimes: rename, pin, expire, rm; and stop.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/shell_word.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/wipe.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

namespace {

Result<StoredSequence*> stored_target(EngineState& engine, const Json& body) {
  KVT_TRY(StoredSequence * sequence, target_sequence(engine, body));
  return sequence;
}

// Posts the row where the sequence is (or is to be) in the catalogue. Several may be under way: one
// that fails goes back to what the last durable one left, and those behind it fail as well, for the
// catalogue takes nothing behind a batch that it refused.
void store_row(EngineState& engine, StoredSequence& sequence, SequenceRow before,
               ControlDone done) {
  if (sequence.row_changes++ == 0) sequence.row_settled = std::move(before);
  const auto finish = [&engine, id = sequence.row.id, wanted = sequence.row,
                       done = std::move(done)](Result<void> result) {
    StoredSequence& found = *engine.sequences.all.at(id);
    SequenceRow& settled = found.row_settled;
    --found.busy;
    const bool last = --found.row_changes == 0;
    const std::string other = result ? std::exchange(settled.name, wanted.name) : wanted.name;
    if (result) {
      settled.pinned = wanted.pinned;
      settled.expires_unix_s = wanted.expires_unix_s;
      settled.provisional = false;
    }
    if (last || !result) {
      found.row.name = settled.name;
      found.row.pinned = settled.pinned;
      found.row.expires_unix_s = settled.expires_unix_s;
      found.row.provisional = !result && (found.row.provisional || settled.provisional);
    }
    // Free is what neither the durable row has nor the newest change wants.
    if (other != settled.name && other != found.row.name) free_name(engine, other, id);
    if (last) settled = {};
    if (result) return done(ControlReply{Json::object(), {}, {}});
    done(error(result.error()));
    if (StoredSequence* left = find_sequence(engine, id)) drop_if_ephemeral(engine, *left);
  };
  ++sequence.busy;
  if (sequence.is_private) return finish({});
  // Rows in doubt are settled first: one of them may have the name.
  if (engine.read_only) return finish(error(kNoWrites));
  post_sequence_row(engine, sequence, true, finish);
}

void op_rename(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = stored_target(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::string> name = json_string(request.body, "name", "", kNameBytesMax);
  if (!name) return done(error(name.error()));
  if (!request.body.contains("name"))
    return done(error(Code::kInvalid, "rename needs a name; \"\" makes the sequence nameless"));
  StoredSequence& sequence = **target;
  if (*name == sequence.row.name && sequence.row_changes == 0)
    return done(ControlReply{Json::object(), {}, {}});
  if (!name->empty()) {
    if (const Result<void> fine = check_name(*name); !fine) return done(error(fine.error()));
    if (engine.sequences.names.try_emplace(*name, sequence.row.id).first->second != sequence.row.id)
      return done(error(Code::kExists, "the name is taken: choose another"));
  }
  SequenceRow before = sequence.row;
  sequence.row.name = *name;  // the other stays taken until the row is durable
  store_row(engine, sequence, std::move(before), std::move(done));
}

void op_pin(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = stored_target(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<bool> pinned = json_bool(request.body, "pinned", true);
  if (!pinned) return done(error(pinned.error()));
  SequenceRow before = (*target)->row;
  (*target)->row.pinned = *pinned;
  store_row(engine, **target, std::move(before), std::move(done));
}

void op_expire(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = stored_target(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::uint64_t> at = json_uint(request.body, "at_unix_s", 0);
  if (!at) return done(error(at.error()));
  SequenceRow before = (*target)->row;
  (*target)->row.expires_unix_s = *at;
  const bool pinned = before.pinned;  // then it stays all the same
  store_row(engine, **target, std::move(before),
            [pinned, at = *at, done = std::move(done)](Result<ControlReply> reply) {
              if (reply) reply->body = {{"pinned", pinned}, {"expires_unix_s", at}};
              done(std::move(reply));
            });
}

// What a client knows of the future: which nameless sequences go first, and what stays in memory.
void op_hint(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = stored_target(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::string> hint = json_string(request.body, "hint", "", 16);
  if (!hint || (*hint != "none" && *hint != "will_resume" && *hint != "finished"))
    return done(error(Code::kInvalid, "hint is \"will_resume\", \"finished\" or \"none\""));
  StoredSequence& sequence = **target;
  sequence.hint = *hint == "will_resume" ? UseHint::kWillResume
                  : *hint == "finished"  ? UseHint::kFinished
                                         : UseHint::kNone;
  std::vector<SlotId> slots;  // in token order of the segments
  for (const SequencePart& part : sequence.parts) {
    if (sequence.hint == UseHint::kFinished && part.segment->sequence_refs > 1) continue;
    for (const SlotId slot : part.segment->slots)
      if (slot.valid()) slots.push_back(slot);
  }
  // Either way the suffix ends up colder than the prefix.
  if (sequence.hint == UseHint::kWillResume)
    for (auto slot = slots.rbegin(); slot != slots.rend(); ++slot) engine.arena->touch(*slot);
  if (sequence.hint == UseHint::kFinished)
    for (const SlotId slot : slots) engine.arena->cool(slot);
  done(ControlReply{Json::object(), {}, {}});
}

// ---- rm ----

// What only this sequence used, suffix first: goes at once instead of staying as a cache.
std::uint64_t condemn_unused(EngineState& engine, const std::vector<SegmentId>& segments) {
  std::uint64_t bytes = 0;
  for (auto id = segments.rbegin(); id != segments.rend(); ++id) {
    Segment* segment = find_segment(engine, *id);
    if (segment == nullptr || segment->condemned || segment->referenced() ||
        !segment->children.empty())
      continue;
    bytes += segment->state == SegmentState::kInMemory ? 0 : segment->row.file_bytes;
    condemn_segment(engine, *segment);
  }
  return bytes;
}

// What of a removed sequence is still there, because others use it or continue it.
Json kept_of(EngineState& engine, const std::vector<SegmentId>& segments) {
  std::uint64_t count = 0, bytes = 0;
  for (const SegmentId id : segments) {
    const Segment* segment = find_segment(engine, id);
    if (segment == nullptr || segment->condemned) continue;
    ++count;
    bytes += segment->state == SegmentState::kInMemory ? 0 : segment->row.file_bytes;
  }
  return Json{{"segments_kept", count}, {"bytes_kept", bytes}};
}

void answer_rm(std::uint64_t bytes, const Json& kept, const ControlDone& done) {
  ControlReply reply{kept, {}, {}};
  reply.body["bytes_freed"] = bytes;
  done(std::move(reply));
}

void zero_resident(EngineState& engine, Segment& segment) {
  if (segment.leases != 0) return;
  for (std::uint32_t chunk = 0; chunk < segment.slots.size(); ++chunk) {
    if (!segment.slots[chunk].valid()) continue;
    const PlaneLayout::ChunkPlace place = segment.layout->place_of(chunk);
    std::memset(engine.arena->data(segment.slots[chunk]), 0,
                segment.space->row.geometry.slot_bytes(place.layer));
  }
}

// The rows go first and durably, so that no file that a row names is ever overwritten; a crash in
// between leaves files without rows, which the next start unlinks. condemn_segment() takes them
// away by synced batches: another one that comes back tells that those are written.
void wipe_unused(EngineState& engine, const std::vector<SegmentId>& segments,
                 std::vector<std::string> paths, const ControlDone& done) {
  const std::vector<SegmentId> unused = unused_with_descendants(engine, segments);
  std::uint64_t bytes = 0;
  bool stored = false;
  for (auto id = unused.rbegin(); id != unused.rend(); ++id) {
    Segment& segment = *find_segment(engine, *id);
    zero_resident(engine, segment);
    ++segment.busy;  // its file is ours until it is overwritten
    condemn_segment(engine, segment);
    if (segment.state == SegmentState::kInMemory) continue;
    stored = true;
    bytes += segment.row.file_bytes;
    paths.push_back(segment_path(*id));
    for (std::string& path : sidecar_paths_of(segment)) paths.push_back(std::move(path));
  }
  const auto wiped = [&engine, unused, bytes, kept = kept_of(engine, segments),
                      done](Result<void> result) {
    for (const SegmentId id : unused) --find_segment(engine, id)->busy;
    sweep_condemned(engine);
    if (!result) return done(error(result.error()));
    answer_rm(bytes, kept, done);
  };
  if (paths.empty()) return wiped({});
  const auto overwrite = [&engine, paths = std::move(paths), wiped](Result<void> removed) {
    if (!removed) return wiped(removed);
    wipe_files(engine, paths, wiped);
  };
  if (!stored) return overwrite({});
  post_batch(engine, CatalogueBatch(), false, overwrite);
}

void finish_rm(EngineState& engine, const std::vector<SegmentId>& segments,
               const ControlDone& done) {
  const std::uint64_t bytes = condemn_unused(engine, segments);
  const Json kept = kept_of(engine, segments);
  sweep_condemned(engine);
  answer_rm(bytes, kept, done);
}

// ": by process 17 (chat), process 18"; "" where no client has it open.
std::string users_of(EngineState& engine, const StoredSequence& sequence) {
  std::string text;
  for (const OpenSequence* open : sequence.open)
    text += (text.empty() ? ": by " : ", ") + process_text(engine, *open);
  return text;
}

void op_rm(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = stored_target(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<bool> wipe = json_bool(request.body, "wipe", false);
  if (!wipe) return done(error(wipe.error()));
  const Result<bool> force = json_bool(request.body, "force", false);
  if (!force) return done(error(force.error()));
  StoredSequence& sequence = **target;
  if (sequence.row.pinned && !*force) {
    const std::string name = shell_word(
        sequence.row.name.empty() ? std::to_string(sequence.row.id.value) : sequence.row.name);
    return done(error(refusal(Code::kPermission, "the sequence is pinned: take the pin off first",
                              " (kvtier pin --off " + name +
                                  "), or ask for it by force (kvtier rm --force " + name + ")")));
  }
  if (!sequence.open.empty() || sequence.working || sequence.writer_coming || sequence.busy != 0)
    return done(error(refusal(Code::kBusy, "the sequence is in use: close it first",
                              users_of(engine, sequence))));
  std::vector<SegmentId> segments;
  for (const SequencePart& part : sequence.parts) segments.push_back(part.segment->row.id);
  std::vector<std::string> logs;
  for (const std::uint64_t generation : sequence.log.generations())
    logs.push_back(tail_log_path(sequence.row.id, generation));
  remove_sequence(engine, sequence, *wipe ? LogFile::kKeep : LogFile::kUnlink,
                  [&engine, id = sequence.row.id, segments, wipe = *wipe, logs = std::move(logs),
                   done = std::move(done)](Result<void> removed) mutable {
                    if (!removed) return done(error(removed.error()));
                    // Also what a crash left of it, from which a repair of the catalogue would make
                    // it anew.
                    for (std::string& path : let_go_of_logs(engine, id)) {
                      if (!wipe) static_cast<void>(engine.io->io().unlink(path));
                      logs.push_back(std::move(path));
                    }
                    wipe ? wipe_unused(engine, segments, logs, done)
                         : finish_rm(engine, segments, done);
                  });
}

void op_stop(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  engine.stop_requested = true;
  done(ControlReply{Json::object(), {}, {}});
}

}  // namespace

std::span<const ControlOp> housekeeping_ops() {
  static constexpr ControlOp kOps[] = {
      {"rename", false, op_rename}, {"pin", false, op_pin},   {"expire", false, op_expire},
      {"rm", false, op_rm},         {"stop", false, op_stop}, {"hint", false, op_hint},
  };
  return kOps;
}

}  // namespace kvtier
