// stats: every counter, and what is off and why. Read-only.
#include <unistd.h>

#include <algorithm>

#include "client/ipc/off_topics.h"
#include "daemon/admin.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"
#include "daemon/version.h"

namespace kvtier {
namespace {

Json host_json(const EngineState& engine) {
  const HostArenaStats arena = engine.arena->stats();
  const TailSums tails = sum_tails(engine);
  return Json{{"arena_bytes", arena.size_bytes},
              {"used_bytes", arena.used_bytes},
              {"leased_bytes", arena.leased_bytes},
              {"pinned_bytes", arena.pinned_bytes},
              {"chunks", arena.slots_ready},
              {"evictions", arena.evictions},
              {"ghost_hits", arena.ghost_hits},
              {"pages", arena.pages},
              {"abstracts_arena_bytes", engine.abstracts->size_bytes()},
              {"abstracts_used_bytes", engine.abstracts->used_bytes()},
              {"tails", tails.count},
              {"tail_bytes", tails.bytes},
              {"tail_bytes_reserved", tails.reserved_bytes}};
}

// Bytes in segment files that no sequence can see.
std::uint64_t dead_bytes(const EngineState& engine) {
  std::uint64_t dead = 0;
  std::unordered_map<std::uint64_t, std::uint32_t> visible;
  for (const auto& [id, sequence] : engine.sequences.all)
    for (const SequencePart& part : sequence->parts) {
      std::uint32_t& most = visible[part.segment->row.id.value];
      most = std::max(most, part.visible_tokens);
    }
  for (const auto& [id, segment] : engine.segments.all) {
    if (segment->row.tokens == 0) continue;
    const auto seen = visible.find(id.value);
    const std::uint32_t tokens =
        seen == visible.end() ? 0 : std::min(seen->second, segment->row.tokens);
    dead += file_bytes(*segment) / segment->row.tokens * (segment->row.tokens - tokens);
  }
  return dead;
}

Json writes_json(const EngineState& engine) {
  const WriteBudget& budget = engine.write_budget;
  return Json{{"today_bytes", budget.bytes},
              {"budget_bytes_per_day", engine.options.disk_write_bytes_per_day},
              {"budget_spent", write_budget_spent(engine)},
              {"declined", budget.declined},
              {"declined_bytes", budget.declined_bytes},
              {"admission", engine.options.admission},
              {"one_shot_declined", engine.admission.declined},
              {"one_shot_declined_tokens", engine.admission.declined_tokens},
              {"second_uses", engine.admission.second_uses}};
}

Json cost_json(const EngineState& engine) {
  const CostModel& cost = engine.cost;
  Json spaces = Json::array();
  for (const auto& [id, ns] : cost.compute_ns_per_token) {
    const auto space = engine.spaces.find(id);
    if (space == engine.spaces.end()) continue;
    const double bytes = static_cast<double>(space->second->row.geometry.token_bytes());
    Json entry{{"space", id.value},
               {"model", space->second->row.model},
               {"compute_us_per_token", ns / 1000}};
    if (cost.read_bytes_per_s > 0) entry["load_us_per_token"] = bytes * 1e6 / cost.read_bytes_per_s;
    spaces.push_back(std::move(entry));
  }
  return Json{{"read_bytes_per_s", static_cast<std::uint64_t>(cost.read_bytes_per_s)},
              {"measurements", cost.windows},
              {"declined", cost.declined},
              {"declined_tokens", cost.declined_tokens},
              {"spaces", std::move(spaces)}};
}

Json recent_misses_json(const EngineState& engine) {
  Json list = Json::array();
  for (auto miss = engine.miss_log.newest.rbegin(); miss != engine.miss_log.newest.rend(); ++miss) {
    const auto space = engine.spaces.find(miss->space);
    list.push_back(
        Json{{"unix_s", unix_s(miss->unix_ns)},
             {"reason", kMissReasonNames[static_cast<std::size_t>(miss->reason)]},
             {"model", space == engine.spaces.end() ? "" : space->second->row.model},
             {"tokens_asked", miss->tokens_asked},
             {"tokens_found", miss->tokens_found},
             {"asked_token", miss->asked_token},
             {"stored_token", miss->has_stored ? Json(miss->stored_token) : Json(nullptr)},
             {"detail", miss->detail}});
  }
  return list;
}

Json upkeep_json(const EngineState& engine) {
  const UpkeepState& upkeep = engine.upkeep;
  return Json{{"idle_seals", upkeep.idle_seals},
              {"scrubbed_segments", upkeep.scrubbed_segments},
              {"scrubbed_bytes", upkeep.scrubbed_bytes},
              {"scrub_rounds", upkeep.scrub_rounds}};
}

Json disk_json(const EngineState& engine) {
  const IoStats io = engine.io->io().stats();
  const Metrics& metrics = engine.metrics;
  const Result<std::uint64_t> free_bytes = engine.io->io().free_bytes();
  return Json{{"store", engine.options.store_path},
              {"backend", engine.io->io().name()},
              {"segments", engine.segments.all.size()},
              {"sequences", engine.sequences.all.size()},
              {"store_bytes", store_bytes(engine)},
              {"segment_bytes", engine.segments.disk_bytes},
              {"sidecar_bytes", engine.segments.sidecar_bytes},
              {"dead_bytes", dead_bytes(engine)},
              {"kept_files", engine.kept_files.all.size()},
              {"kept_bytes", engine.kept_files.total_bytes},
              {"kept_newer", engine.kept_files.newer},
              {"kept_lost", engine.kept_files.lost},
              {"catalogue_bytes", engine.world.catalogue->disk_bytes()},
              {"limit_bytes", engine.options.disk_bytes_max},
              {"free_bytes", free_bytes ? *free_bytes : 0},
              {"read_bytes", io.read_bytes},
              {"written_bytes", io.written_bytes},
              {"reads", io.reads},
              {"writes", io.writes},
              {"syncs", io.syncs},
              {"io_errors", io.errors},
              {"registered_reads", io.fixed_reads},
              {"written_segment_bytes", metrics.seal_bytes},
              {"written_log_bytes", metrics.commit_bytes},
              {"written_sidecar_bytes", metrics.sidecar_bytes},
              {"written_object_bytes", metrics.objects.written_bytes},
              {"evicted_bytes", metrics.bytes_evicted},
              {"evicted_segments", metrics.segments_evicted},
              {"evicted_sequences", metrics.sequences_evicted},
              {"refused_no_room", metrics.no_room},
              {"ghost_blocks", engine.miss_log.ghosts.size()},
              {"ghost_hits", engine.miss_log.ghost_hits}};
}

Json misses_json(const Metrics& metrics) {
  Json misses;
  for (std::size_t i = 0; i < kMissReasons; ++i) misses[kMissReasonNames[i]] = metrics.misses[i];
  return misses;
}

Json chunks_json(const Metrics& m) {
  return Json{{"fetch_requests", m.fetches},
              {"fetch_entries", m.fetch_entries},
              {"from_memory", m.chunk_hits},
              {"from_disk", m.chunk_fills},
              {"joined_reads", m.chunk_fill_joins},
              {"refused_full", m.chunk_full},
              {"invalid", m.chunk_invalid},
              {"prefetch_requests", m.prefetches},
              {"touches", m.touches},
              {"cancelled", m.cancelled},
              {"merged_reads", m.reads},
              {"read_bytes", m.fill_bytes},
              {"leases_given", m.leases_given},
              {"leases_ended", m.leases_ended},
              {"leases_reclaimed", m.leases_reclaimed}};
}

Json objects_json(const EngineState& engine) {
  const ObjectMetrics& m = engine.metrics.objects;
  Json misses;
  for (std::size_t i = 0; i < kObjectMisses; ++i) misses[kObjectMissNames[i]] = m.misses[i];
  return Json{{"count", engine.objects.order.size()},
              {"disk_bytes", engine.objects.disk_bytes},
              {"sets", m.sets},
              {"gets", m.gets},
              {"lookups", m.lookups},
              {"deletes", m.deletes},
              {"hits", m.hits},
              {"misses", std::move(misses)},
              {"failures", m.failures},
              {"read_bytes", m.read_bytes},
              {"written_bytes", m.written_bytes},
              {"evicted", m.evicted},
              {"evicted_bytes", m.evicted_bytes},
              {"catalogue_batches", m.batches},
              {"recovered", m.recovered},
              {"files_missing", m.missing},
              {"bad", m.bad}};
}

Json writing_json(const Metrics& m) {
  return Json{{"seals", m.seals},
              {"seals_in_memory", m.seals_in_memory},
              {"seal_failures", m.seal_failures},
              {"seal_tokens", m.seal_tokens},
              {"seal_work_us", m.seal_work_ns / 1000},
              {"seal_work_bytes", m.seal_work_bytes},
              {"commits", m.commits},
              {"commit_failures", m.commit_failures},
              {"commit_tokens", m.commit_tokens},
              {"catalogue_batches", m.catalogue_batches},
              {"catalogue_failures", m.catalogue_failures}};
}

Json damage_json(const EngineState& engine) {
  const Metrics& m = engine.metrics;
  // Not a count since start: what an earlier daemon found is marked in the catalogue.
  const auto damaged_now =
      std::count_if(engine.segments.all.begin(), engine.segments.all.end(), [](const auto& entry) {
        const Segment& segment = *entry.second;
        return !segment.condemned && (segment.row.bad || segment.state == SegmentState::kLost);
      });
  return Json{{"segments_damaged_now", damaged_now},
              {"settled", damaged_now == 0 && m.damage_settled == damage_met(m)},
              {"recovered_segments", m.recovered_segments},
              {"recovered_sequences", m.recovered_sequences},
              {"recovery_us", m.recovery_ns / 1000},
              {"files_dropped", m.files_dropped},
              {"segments_missing", m.segments_missing},
              {"sequences_cut", m.sequences_cut},
              {"rows_damaged", m.rows_damaged},
              {"segments_bad", m.segments_bad},
              {"chunks_bad", m.chunks_bad},
              {"logs_torn", m.logs_torn}};
}

void op_stats(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  const Metrics& m = engine.metrics;
  std::uint64_t clients = 0, open = 0;
  for (const auto& [id, session] : engine.sessions) {
    clients += session->data ? 1 : 0;
    open += session->open_count;
  }
  Json stats;
  stats["daemon"] = Json{{"version", kVersion},
                         {"pid", ::getpid()},
                         {"uptime_s", unix_s(engine.now_ns() - engine.world.started_ns)},
                         {"clients", clients},
                         {"open_sequences", open},
                         {"kernels", engine.kernels->name}};
  stats["host"] = host_json(engine);
  stats["disk"] = disk_json(engine);
  stats["prefixes"] = Json{{"matches", m.matches},
                           {"tokens_asked", m.match_tokens_asked},
                           {"tokens_found", m.match_tokens_found}};
  stats["misses"] = misses_json(m);
  stats["recent_misses"] = recent_misses_json(engine);
  stats["cost"] = cost_json(engine);
  stats["chunks"] = chunks_json(m);
  stats["objects"] = objects_json(engine);
  update_write_budget(engine);
  stats["writes"] = writes_json(engine);
  stats["writing"] = writing_json(m);
  stats["upkeep"] = upkeep_json(engine);
  const AbstractTable& table = engine.abstract_table;
  stats["abstracts"] =
      Json{{"waiting", table.waiting.size() + (table.building ? 1 : 0)},
           {"loads_waiting", table.loads.waiting.size() + table.loads.under_way +
                                 table.base_loads.waiting.size() + table.base_loads.under_way},
           {"built", m.abstracts_built},
           {"loaded", m.abstracts_loaded},
           {"rebuilt", m.abstracts_rebuilt},
           {"no_room", m.abstracts_full},
           {"rotation_unknown", m.rotation_unknown},
           {"base_bytes", table.base_bytes},
           {"base_no_room", table.base_refused.size()}};
  stats["requests"] = Json{{"malformed", m.requests_malformed},
                           {"rings_broken", m.rings_broken},
                           {"sessions_opened", m.sessions_opened},
                           {"sessions_closed", m.sessions_closed}};
  stats["damage"] = damage_json(engine);
  stats["limits"] =
      Json{{"clients_max", engine.options.clients_max},
           {"disk_bytes_max", engine.options.disk_bytes_max},
           {"disk_write_bytes_per_day", engine.options.disk_write_bytes_per_day},
           {"open_sequences_per_client_max", kOpenSequencesMax},
           {"arena_bytes", engine.options.host_bytes},
           {"abstracts_bytes", engine.options.abstracts_bytes},
           {"leased_bytes_per_client_max", engine.options.leased_bytes_per_client_max},
           {"tail_bytes_max", engine.options.tail_bytes_max},
           {"fetch_entries_max", kFetchEntriesMax},
           {"objects_max", kObjectsMax},
           {"object_bytes_max", kObjectBytesMax},
           {"staging_bytes_per_client_max", kObjectBytesMax},
           {"disk_bytes_in_flight_max", engine.options.io_bytes_in_flight_max}};
  stats["off"] = switched_off(engine);
  done(ControlReply{std::move(stats), {}, {}});
}

}  // namespace

Json switched_off(const EngineState& engine) {
  Json off = Json::array();
  const auto say = [&off](OffTopic topic, const std::string& why) {
    off.push_back(off_beginning(topic) + why);
  };
  const std::string note = engine.io->io().note();
  if (!note.empty()) say(OffTopic::kDisk, note);
  if (engine.options.huge_pages && std::string(engine.arena->stats().pages) == "4 KiB")
    say(OffTopic::kHugePages,
        "the kernel gives none to shared memory (optional, as root: echo advise > "
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled, then start again)");
  if (!engine.options.huge_pages) say(OffTopic::kHugePages, "host.huge_pages is false");
  if (engine.read_only)
    say(OffTopic::kWriting,
        "the catalogue refused a batch; the store is read-only until the disk is well again");
  if (write_budget_spent(engine))
    say(OffTopic::kOptionalWriting,
        "today's write budget is spent (store.disk_write_bytes_per_day): no sidecars, no merging; "
        "commits and names are written all the same");
  if (engine.metrics.abstracts_full > 0)
    say(OffTopic::kAbstracts,
        "their arena is full (host.abstracts_bytes); views of these segments read exact rows");
  if (!engine.abstract_table.base_refused.empty())
    say(OffTopic::kBaseRenditions,
        "they have three quarters of the abstracts' arena (host.abstracts_bytes), which are full; "
        "views of these segments read exact rows");
  if (engine.metrics.rotation_unknown > 0)
    say(OffTopic::kRotation,
        "no client has said how their runtime turns keys (rope_frequencies of the space); views of "
        "these segments read exact keys");
  if (std::any_of(engine.codebooks.all.begin(), engine.codebooks.all.end(),
                  [](const auto& entry) { return entry.second.problem != nullptr; }))
    say(OffTopic::kCodebooks,
        "a codebook is damaged or missing (kvtier codebooks); the next view that chooses by key "
        "codes makes it anew, nothing stored is lost");
  if (std::string(engine.kernels->name) == "scalar")
    say(OffTopic::kKernels, "scalar; daemon.kernels says so, or this CPU has no vectors");
  if (!engine.options.admission)
    say(OffTopic::kAdmission, "store.admission is false; every closed tail is written");
  if (!engine.options.decline_slow_loads)
    say(OffTopic::kDeclining, "store.decline_slow_loads is false");
  if (engine.options.scrub_mb_per_s == 0)
    say(OffTopic::kVerification, "daemon.scrub_mb_per_s is 0");
  return off;
}

std::span<const ControlOp> stats_ops() {
  static constexpr ControlOp kOps[] = {{"stats", false, op_stats}};
  return kOps;
}

}  // namespace kvtier
