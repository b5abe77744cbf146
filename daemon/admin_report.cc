// ls, show, status, config: what is where and why. Read-only.
#include <unistd.h>

#include <algorithm>

#include "daemon/admin.h"
#include "daemon/engine_state.h"
#include "daemon/version.h"
#include "tiers/segment_format.h"

namespace kvtier {
namespace {

Json entry_of(const StoredSequence& sequence) {
  std::uint64_t disk = sequence.log.all_bytes(), shared = 0, resident = 0;
  for (const SequencePart& part : sequence.parts) {
    disk += file_bytes(*part.segment);
    if (part.segment->sequence_refs > 1) shared += file_bytes(*part.segment);
    resident += part.segment->resident_bytes;
  }
  std::uint64_t readers = 0, writer = 0;
  for (const OpenSequence* open : sequence.open) readers += open->writable ? 0 : 1;
  if (sequence.writer != nullptr) writer = sequence.writer->session.value;
  return Json{{"sequence", sequence.row.id.value},
              {"name", sequence.row.name},
              {"space", sequence.row.space.value},
              {"model", sequence.space->row.model},
              {"runtime", sequence.space->row.runtime},
              {"tokens", sequence.tokens()},
              {"tail_tokens", sequence.log.tokens},
              {"private", sequence.is_private},
              {"pinned", sequence.row.pinned},
              {"expires_unix_s", sequence.row.expires_unix_s},
              {"created_unix_s", unix_s(sequence.row.created_unix_ns)},
              {"used_unix_s", unix_s(sequence.row.last_used_unix_ns)},
              {"readers", readers},
              {"writer_pid", writer},
              {"segments", sequence.parts.size()},
              {"bytes_disk", disk},
              {"bytes_shared", shared},
              {"bytes_resident", resident}};
}

// The entry with the writer's session replaced by its process.
Json full_entry(EngineState& engine, const StoredSequence& sequence) {
  Json entry = entry_of(sequence);
  if (sequence.writer != nullptr) {
    const Session* session = find_session(engine, sequence.writer->session);
    entry["writer_pid"] = session != nullptr ? session->pid : 0;
  }
  return entry;
}

Json abstracts_json(const StoredSpace& space) {
  Json list = Json::array();
  for (std::uint32_t lane = 0; lane < space.lanes(); ++lane)
    list.push_back(space.lane_spec(lane).text());
  return list;
}

Json space_json(const EngineState& engine, const StoredSpace& space) {
  std::uint64_t sequences = 0, segments = 0, bytes = 0;
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (sequence->space != &space) continue;
    ++sequences;
    bytes += sequence->log.all_bytes();
  }
  for (const auto& [id, segment] : engine.segments.all) {
    if (segment->space != &space) continue;
    ++segments;
    bytes += file_bytes(*segment);
  }
  return Json{{"space", space.row.id.value},
              {"model", space.row.model},
              {"runtime", space.row.runtime},
              {"detail", space.row.detail},
              {"private", space.row.private_only},
              {"abstracts", abstracts_json(space)},
              {"sequences", sequences},
              {"segments", segments},
              {"bytes_disk", bytes},
              {"token_bytes", space.row.geometry.token_bytes()}};
}

void reply(ControlDone& done, Json body) { done(ControlReply{std::move(body), {}, {}}); }

void op_ls(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  std::vector<const StoredSequence*> sorted;
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (!sequence->internal) sorted.push_back(sequence.get());
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const StoredSequence* a, const StoredSequence* b) { return a->row.id < b->row.id; });
  Json sequences = Json::array();
  for (const StoredSequence* sequence : sorted) sequences.push_back(full_entry(engine, *sequence));
  Json spaces = Json::array();
  for (const auto& [id, space] : engine.spaces) spaces.push_back(space_json(engine, *space));
  reply(done, Json{{"sequences", std::move(sequences)}, {"spaces", std::move(spaces)}});
}

void op_show(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = target_sequence(engine, request.body);
  if (!target) return done(error(target.error()));
  Json entry = full_entry(engine, **target);
  Json segments = Json::array();
  for (const SequencePart& part : (*target)->parts) {
    const Segment& segment = *part.segment;
    segments.push_back(Json{
        {"segment", segment.row.id.value},
        {"first_token", part.first_token},
        {"visible_tokens", part.visible_tokens},
        {"tokens", segment.row.tokens},
        {"bytes_disk", file_bytes(segment)},
        {"bytes_resident", segment.resident_bytes},
        {"shared_by", segment.sequence_refs},
        {"file", segment.state == SegmentState::kInMemory ? "" : segment_path(segment.row.id)}});
  }
  entry["segments"] = std::move(segments);
  reply(done, std::move(entry));
}

void op_status(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  Json clients = Json::array();
  for (const auto& [id, session] : engine.sessions)
    if (session->data)
      clients.push_back(Json{{"pid", session->pid},
                             {"name", session->name},
                             {"sequences", session->open_count},
                             {"leased_bytes", session->leased_bytes}});
  const HostArenaStats arena = engine.arena->stats();
  reply(done, Json{{"daemon_version", kVersion},
                   {"version", kProtocolVersion},
                   {"pid", ::getpid()},
                   {"epoch", engine.world.epoch},
                   {"uptime_s", unix_s(engine.now_ns() - engine.world.started_ns)},
                   {"store", engine.options.store_path},
                   {"socket", engine.options.socket_path},
                   {"clients", std::move(clients)},
                   {"modes", Json{{"io", engine.io->io().name()},
                                  {"kernels", engine.kernels->name},
                                  {"pages", arena.pages},
                                  {"arena_bytes", arena.size_bytes}}},
                   {"off", switched_off(engine)}});
}

void op_config(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  reply(done, options_json(engine.options));
}

}  // namespace

std::uint64_t file_bytes(const Segment& segment) {
  return segment.state == SegmentState::kOnDisk ? segment.row.file_bytes : 0;
}

std::span<const ControlOp> report_ops() {
  static constexpr ControlOp kOps[] = {
      {"ls", false, op_ls},
      {"show", false, op_show},
      {"status", false, op_status},
      {"config", false, op_config},
  };
  return kOps;
}

void add_admin_ops() {
  static const bool once = [] {
    add_control_ops(report_ops());
    add_control_ops(stats_ops());
    add_control_ops(verify_ops());
    add_control_ops(repair_ops());
    add_control_ops(maintenance_ops());
    add_control_ops(transfer_ops());
    add_control_ops(reindex_ops());
    add_control_ops(codebook_ops());
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace kvtier
