#include "daemon/fetcher.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "client/ipc/shared_copy.h"
#include "daemon/engine_state.h"
#include "daemon/ring_server.h"
#include "tiers/codec.h"

namespace kvtier {

namespace {

void set_status(FetchJob& job, std::uint32_t entry, Code code) {
  job.entries[entry].status = static_cast<std::int16_t>(code);
  job.segments[entry] = nullptr;
}

// Fills `segments` and `chunks` of the job from what the handle may name. What may not be is final
// at once.
void resolve(FetchJob& job, OpenSequence& open) {
  const StoredSpace& space = *open.sequence->space;
  const Geometry& geometry = space.row.geometry;
  std::uint64_t last = 0;
  const OpenSequence::Held* held = nullptr;
  for (std::uint32_t i = 0; i < job.entries.size(); ++i) {
    FetchEntry& entry = job.entries[i];
    entry.slot_offset = 0;
    if (held == nullptr || entry.segment != last) {
      const auto place = open.held.find(entry.segment);
      held = place == open.held.end() ? nullptr : &place->second;
      last = entry.segment;
    }
    const bool valid = held != nullptr && entry.layer < geometry.layers.size() &&
                       entry.group < geometry.groups(entry.layer) &&
                       std::uint64_t{entry.chunk} * geometry.chunk_tokens < held->visible_tokens;
    if (!valid) {
      set_status(job, i, Code::kInvalid);
      continue;
    }
    prepare_residency(*held->segment);
    job.segments[i] = held->segment;
    job.chunks[i] = held->segment->layout->chunk_index(entry.layer, entry.chunk, entry.group);
  }
}

std::uint64_t chunk_slot_bytes(const FetchJob& job, std::uint32_t entry) {
  return job.segments[entry]->space->row.geometry.slot_bytes(job.entries[entry].layer);
}

// Leases a resident chunk for an entry whose bytes are charged already.
void give_slot(EngineState& engine, Session* session, FetchJob& job, std::uint32_t entry,
               SlotId slot) {
  Segment& segment = *job.segments[entry];
  if (job.leases && session != nullptr) {
    if (job.lease == 0) job.lease = session->leases.begin();
    session->leases.add(job.lease, *engine.arena, slot, &segment.leases);
    job.entries[entry].slot_offset = engine.arena->offset(slot);
    engine.metrics.leased_bytes += engine.arena->slot_bytes(slot);
  }
  ++job.ok;
  set_status(job, entry, Code::kOk);
}

// False where the session's leases are at their limit; the entry is final then.
bool charge(EngineState& engine, Session* session, FetchJob& job, std::uint32_t entry) {
  if (!job.leases || session == nullptr) return true;
  const std::uint64_t bytes = chunk_slot_bytes(job, entry);
  if (bytes > engine.options.leased_bytes_per_client_max ||
      session->leased_bytes > engine.options.leased_bytes_per_client_max - bytes) {
    job.full = true;
    ++engine.metrics.chunk_full;
    set_status(job, entry, Code::kFull);
    return false;
  }
  session->leased_bytes += bytes;
  return true;
}

void uncharge(EngineState& engine, Session* session, const FetchJob& job, std::uint32_t entry) {
  static_cast<void>(engine);
  if (job.leases && session != nullptr) session->leased_bytes -= chunk_slot_bytes(job, entry);
}

void release_job(EngineState& engine, std::unique_ptr<FetchJob> job) {
  constexpr std::size_t kSpareMax = 64;
  if (engine.fetch.spare.size() < kSpareMax) engine.fetch.spare.push_back(std::move(job));
}

// The client's argument area: only slot_offset and status of each entry change.
void write_back(Session& session, const FetchJob& job) {
  std::byte* arguments = session.layout()->arguments + job.argument_offset;
  for (std::size_t i = 0; i < job.entries.size(); ++i) {
    std::byte* target = arguments + i * sizeof(FetchEntry);
    const FetchEntry& entry = job.entries[i];
    copy_to_shared(target + offsetof(FetchEntry, slot_offset), &entry.slot_offset,
                   sizeof(FetchEntry) - offsetof(FetchEntry, slot_offset));
  }
}

void finish_job(EngineState& engine, std::unique_ptr<FetchJob> job, Code code) {
  if (job->done) {
    job->done(*job);
    return release_job(engine, std::move(job));
  }
  Session* session = find_session(engine, job->session);
  if (session != nullptr) {
    if (job->leases) write_back(*session, *job);
    if (job->lease != 0) {
      session->leases.give(job->lease);
      ++engine.metrics.leases_given;
    }
    Completion completion{};
    completion.user_data = job->user_data;
    completion.status = static_cast<std::int32_t>(code);
    completion.count = job->ok;
    completion.value0 = job->lease;
    completion.bytes_disk = job->bytes_disk;
    complete(engine, job->session, completion);
  }
  release_job(engine, std::move(job));
}

void finish_waiting_job(EngineState& engine, std::uint64_t id) {
  const auto place = engine.fetch.jobs.find(id);
  std::unique_ptr<FetchJob> job = std::move(place->second);
  engine.fetch.jobs.erase(place);
  const Code code = job->full ? Code::kFull : Code::kOk;
  finish_job(engine, std::move(job), code);
}

// One entry of a waiting job has its status.
void entry_done(EngineState& engine, FetchJob& job) {
  if (--job.remaining == 0) finish_waiting_job(engine, job.id);
}

void fill_failed(EngineState& engine, Fill& fill, Code code) {
  for (const Fill::Waiter& waiter : fill.waiters) {
    const auto place = engine.fetch.jobs.find(waiter.job);
    if (place == engine.fetch.jobs.end()) continue;
    FetchJob& job = *place->second;
    uncharge(engine, find_session(engine, job.session), job, waiter.entry);
    set_status(job, waiter.entry, code);
    entry_done(engine, job);
  }
}

void fill_ready(EngineState& engine, Fill& fill) {
  // Leases first: a completion may make room for others only after all of this chunk's readers have
  // it.
  for (const Fill::Waiter& waiter : fill.waiters) {
    const auto place = engine.fetch.jobs.find(waiter.job);
    if (place == engine.fetch.jobs.end()) continue;
    FetchJob& job = *place->second;
    job.bytes_disk += fill.read_bytes;
    give_slot(engine, find_session(engine, job.session), job, waiter.entry, fill.slot);
  }
  for (const Fill::Waiter& waiter : fill.waiters) {
    const auto place = engine.fetch.jobs.find(waiter.job);
    if (place != engine.fetch.jobs.end()) entry_done(engine, *place->second);
  }
}

}  // namespace

void answer_waiters(EngineState& engine, Fill& fill, Code code) {
  code == Code::kOk ? fill_ready(engine, fill) : fill_failed(engine, fill, code);
}

namespace {

// Decides about one entry that was missing: resident by now, on its way, or a new fill.
Fill* plan_entry(EngineState& engine, Session* session, FetchJob& job, std::uint32_t index,
                 SlotId near, Code loaded) {
  Segment& segment = *job.segments[index];
  const std::uint32_t chunk = job.chunks[index];
  const auto final_status = [&](Code code) {
    uncharge(engine, session, job, index);
    set_status(job, index, code);
    --job.remaining;
    return nullptr;
  };
  if (segment.slots[chunk].valid()) {
    give_slot(engine, session, job, index, segment.slots[chunk]);
    --job.remaining;
    return nullptr;
  }
  const ChunkKey key{segment.row.id.value, chunk};
  if (const auto place = engine.fetch.fills.find(key); place != engine.fetch.fills.end()) {
    place->second->waiters.push_back({job.id, index});
    hasten_fill(engine, *place->second, job.priority);
    ++engine.metrics.chunk_fill_joins;
    return nullptr;
  }
  if (loaded == Code::kVersion || loaded == Code::kIo) return final_status(loaded);
  if (segment.meta == nullptr || segment.state != SegmentState::kOnDisk) {
    ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kEvicted)];
    return final_status(Code::kMiss);
  }
  if (std::find(segment.bad_chunks.begin(), segment.bad_chunks.end(), chunk) !=
      segment.bad_chunks.end()) {
    ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kChecksum)];
    return final_status(Code::kMiss);
  }
  const std::uint64_t slot_bytes = segment.space->row.geometry.slot_bytes(job.entries[index].layer);
  // What is being filled cannot be evicted: guesses must leave room for what is waited for.
  const bool hinted = job.priority == IoPriority::kPrefetch && !job.leases && session != nullptr;
  if (hinted && engine.fetch.hinted_bytes + slot_bytes > engine.arena->size_bytes() / 4) {
    job.full = true;
    return final_status(Code::kFull);
  }
  const Result<SlotId> slot =
      engine.arena->allocate(slot_bytes, {segment.row.id.value, chunk}, near);
  if (!slot) {
    ++engine.metrics.chunk_full;
    job.full = true;
    return final_status(Code::kFull);
  }
  Fill& fill = begin_fill(engine, segment, chunk, *slot);
  fill.waiters.push_back({job.id, index});
  fill.hinted = hinted;
  if (hinted) engine.fetch.hinted_bytes += slot_bytes;
  return &fill;
}

// Plans the missing entries [begin, end) of `job.missing`, which are of one segment whose metadata
// was asked for.
void plan_segment(EngineState& engine, std::uint64_t job_id, std::size_t begin, std::size_t end,
                  Code loaded) {
  FetchJob& job = *engine.fetch.jobs.at(job_id);
  Session* session = find_session(engine, job.session);
  Segment& segment = *job.segments[job.missing[begin]];
  prepare_residency(segment);
  std::vector<Fill*> fills;
  SlotId near;
  const IoPriority priority = job.priority;
  for (std::size_t i = begin; i < end; ++i) {
    Fill* fill = plan_entry(engine, session, job, job.missing[i], near, loaded);
    if (fill == nullptr) continue;
    near = fill->slot;
    fills.push_back(fill);
  }
  if (!fills.empty()) submit_fills(engine, segment, priority, std::move(fills));
}

// Metadata of the missing entries' segments, segment by segment, then their plans. Holds one count
// of `remaining` itself, so that the job lives until all of it is planned.
void plan_job(EngineState& engine, FetchJob& job) {
  std::sort(job.missing.begin(), job.missing.end(), [&job](std::uint32_t a, std::uint32_t b) {
    const std::uint64_t left = job.segments[a]->row.id.value, right = job.segments[b]->row.id.value;
    return left != right ? left < right : job.chunks[a] < job.chunks[b];
  });
  const std::uint64_t id = job.id;
  const IoPriority priority = job.priority;
  std::vector<std::pair<Segment*, std::pair<std::size_t, std::size_t>>> runs;
  for (std::size_t begin = 0; begin < job.missing.size();) {
    Segment* segment = job.segments[job.missing[begin]];
    std::size_t end = begin;
    while (end < job.missing.size() && job.segments[job.missing[end]] == segment) ++end;
    runs.push_back({segment, {begin, end}});
    ++segment->busy;
    begin = end;
  }
  job.remaining = static_cast<std::uint32_t>(job.missing.size() + runs.size());
  for (const auto& [segment, range] : runs) {
    Segment* target = segment;
    load_meta(engine, *target, priority, [&engine, id, target, range = range](Result<void> loaded) {
      const Code code = loaded ? Code::kOk : loaded.error().code;
      if (engine.fetch.jobs.count(id) != 0)
        plan_segment(engine, id, range.first, range.second, code);
      --target->busy;
      const auto still = engine.fetch.jobs.find(id);
      if (still != engine.fetch.jobs.end()) entry_done(engine, *still->second);
    });
  }
}

// Leases what is resident; the rest goes to `missing`.
void take_hits(EngineState& engine, Session* session, FetchJob& job) {
  for (std::uint32_t i = 0; i < job.entries.size(); ++i) {
    if (job.segments[i] == nullptr) {
      ++engine.metrics.chunk_invalid;
      continue;
    }
    if (!charge(engine, session, job, i)) continue;
    const SlotId slot = job.segments[i]->slots[job.chunks[i]];
    if (!slot.valid()) {
      job.missing.push_back(i);
      continue;
    }
    engine.arena->touch(slot);
    ++engine.metrics.chunk_hits;
    give_slot(engine, session, job, i, slot);
  }
}

void run_job(EngineState& engine, Session* session, std::unique_ptr<FetchJob> job) {
  take_hits(engine, session, *job);
  if (job->missing.empty()) {
    const Code code = job->full ? Code::kFull : Code::kOk;
    return finish_job(engine, std::move(job), code);
  }
  FetchJob& waiting = *job;
  engine.fetch.jobs.emplace(waiting.id, std::move(job));
  plan_job(engine, waiting);
}

}  // namespace

std::unique_ptr<FetchJob> take_job(EngineState& engine) {
  std::unique_ptr<FetchJob> job;
  if (engine.fetch.spare.empty()) {
    job = std::make_unique<FetchJob>();
  } else {
    job = std::move(engine.fetch.spare.back());
    engine.fetch.spare.pop_back();
    job->entries.clear();
    job->segments.clear();
    job->chunks.clear();
    job->missing.clear();
    job->remaining = job->ok = 0;
    job->full = false;
    job->leases = true;
    job->lease = job->bytes_disk = 0;
    job->session = {};
    job->done = nullptr;
  }
  job->id = engine.fetch.next_job++;
  return job;
}

void start_fetch(EngineState& engine, Session& session, OpenSequence& open,
                 std::unique_ptr<FetchJob> job) {
  ++(job->leases ? engine.metrics.fetches : engine.metrics.prefetches);
  engine.metrics.fetch_entries += job->entries.size();
  job->session = session.id;
  job->segments.assign(job->entries.size(), nullptr);
  job->chunks.assign(job->entries.size(), 0);
  resolve(*job, open);
  run_job(engine, &session, std::move(job));
}

void start_inner_fetch(EngineState& engine, Segment& segment,
                       const std::vector<std::uint32_t>& chunks, IoPriority priority,
                       std::function<void(const FetchJob&)> done) {
  std::unique_ptr<FetchJob> job = take_job(engine);
  job->leases = false;
  job->priority = priority;
  job->done = std::move(done);
  prepare_residency(segment);
  for (const std::uint32_t chunk : chunks) {
    const PlaneLayout::ChunkPlace place = segment.layout->place_of(chunk);
    FetchEntry entry{};
    entry.segment = segment.row.id.value;
    entry.layer = static_cast<std::uint16_t>(place.layer);
    entry.chunk = static_cast<std::uint16_t>(place.chunk);
    entry.group = static_cast<std::uint16_t>(place.group);
    job->entries.push_back(entry);
    job->segments.push_back(&segment);
    job->chunks.push_back(chunk);
  }
  run_job(engine, nullptr, std::move(job));
}

namespace {

// Where memory for counts is short, those that were touched longest ago go: one sequence's at a
// time.
void make_room_for_reads(EngineState& engine, const StoredSequence& reader) {
  constexpr std::uint64_t kSpare = 4 * ReadCounts::kPageBytes;
  if (engine.sequences.read_count_bytes + kSpare <= kReadCountBytesMax) return;
  StoredSequence* oldest = nullptr;
  for (const auto& [id, sequence] : engine.sequences.all)
    if (sequence.get() != &reader && sequence->reads != nullptr && sequence->reads->bytes() != 0 &&
        (oldest == nullptr || sequence->reads->touched < oldest->reads->touched))
      oldest = sequence.get();
  if (oldest != nullptr) oldest->reads.reset();
}

// Only what the sequence shows now: rows that a writer has cut off say nothing of its text.
void count_reads(EngineState& engine, OpenSequence& open, const OpenSequence::Held& held,
                 const FetchEntry& entry) {
  StoredSequence& sequence = *open.sequence;
  const Geometry& geometry = sequence.space->row.geometry;
  if (entry.row_mask == 0 || held.entry >= sequence.parts.size()) return;
  const SequencePart& part = sequence.parts[held.entry];
  const std::uint32_t offset = std::uint32_t{entry.chunk} * geometry.chunk_tokens;
  if (part.segment != held.segment || offset >= part.visible_tokens) return;
  const std::uint32_t visible =
      std::min<std::uint32_t>(geometry.chunk_tokens, part.visible_tokens - offset);
  const std::uint64_t mask = visible == 64 ? UINT64_MAX : (1ull << visible) - 1;
  if (sequence.reads == nullptr)
    sequence.reads = std::make_unique<ReadCounts>(&engine.sequences.read_count_bytes);
  sequence.reads->add(read_group(entry.layer, static_cast<std::uint32_t>(geometry.layers.size())),
                      part.first_token + offset, entry.row_mask & mask);
}

}  // namespace

void touch_entries(EngineState& engine, OpenSequence& open, const FetchEntry* entries,
                   std::uint32_t count) {
  const Geometry& geometry = open.sequence->space->row.geometry;
  engine.metrics.touches += count;
  ++engine.sequences.touch_requests;
  make_room_for_reads(engine, *open.sequence);
  for (std::uint32_t i = 0; i < count; ++i) {
    const FetchEntry& entry = entries[i];
    const auto place = open.held.find(entry.segment);
    if (place == open.held.end() || entry.layer >= geometry.layers.size() ||
        entry.group >= geometry.groups(entry.layer) ||
        std::uint64_t{entry.chunk} * geometry.chunk_tokens >= place->second.visible_tokens)
      continue;
    const Segment& segment = *place->second.segment;
    count_reads(engine, open, place->second, entry);
    if (segment.layout == nullptr) continue;
    const SlotId slot =
        segment.slots[segment.layout->chunk_index(entry.layer, entry.chunk, entry.group)];
    if (slot.valid()) engine.arena->touch(slot);
  }
  if (open.sequence->reads != nullptr)
    open.sequence->reads->touched = engine.sequences.touch_requests;
}

namespace {

// Gives back what the job was charged for entries that have not ended, and forgets it. Its fills go
// on where somebody else waits for them, or their read has begun.
std::unique_ptr<FetchJob> withdraw(EngineState& engine, std::uint64_t id) {
  const auto place = engine.fetch.jobs.find(id);
  std::unique_ptr<FetchJob> job = std::move(place->second);
  engine.fetch.jobs.erase(place);
  Session* session = find_session(engine, job->session);
  for (const std::uint32_t entry : job->missing) {
    if (job->segments[entry] == nullptr) continue;
    const ChunkKey key{job->segments[entry]->row.id.value, job->chunks[entry]};
    uncharge(engine, session, *job, entry);
    set_status(*job, entry, Code::kCancelled);
    leave_fill(engine, key, id);
  }
  return job;
}

}  // namespace

bool cancel_fetch(EngineState& engine, Session& session, std::uint64_t user_data) {
  for (auto& [id, job] : engine.fetch.jobs) {
    if (job->session != session.id || job->user_data != user_data || job->done) continue;
    std::unique_ptr<FetchJob> cancelled = withdraw(engine, id);
    if (cancelled->lease != 0) {
      std::uint64_t bytes = 0;
      if (session.leases.end(cancelled->lease, *engine.arena, &bytes))
        session.leased_bytes -= bytes;
      engine.metrics.leased_bytes -= bytes;
      cancelled->lease = 0;
      cancelled->ok = 0;
      for (FetchEntry& entry : cancelled->entries)
        entry.status = static_cast<std::int16_t>(Code::kCancelled);
    }
    ++engine.metrics.cancelled;
    finish_job(engine, std::move(cancelled), Code::kCancelled);
    return true;
  }
  return false;
}

void forget_session_jobs(EngineState& engine, Session& session) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, job] : engine.fetch.jobs) {
    if (job->session == session.id) ids.push_back(id);
  }
  for (const std::uint64_t id : ids) release_job(engine, withdraw(engine, id));
}

}  // namespace kvtier
