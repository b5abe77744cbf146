// Fetcher: requests for chunks: brings them into the host arena and leases them.
//
// What is resident is leased at once, without allocation. The rest is planned: metadata first where
// it is not loaded, then slots, then reads (fills.h). Two requests for one chunk share one. A job
// that was cancelled or whose session is gone is found no more by its id; its fills go on for
// whoever else waits, and for nobody where their read has begun. Engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "client/ipc/shm_layout.h"
#include "daemon/fills.h"
#include "daemon/sequences.h"

namespace kvtier {

struct Session;

struct FetchJob {
  std::uint64_t id = 0;
  SessionId session;
  std::uint64_t user_data = 0;
  bool leases = true;  // kFetch; kPrefetch only fills
  IoPriority priority = IoPriority::kDemand;
  std::uint64_t argument_offset = 0;
  std::vector<FetchEntry> entries;
  std::vector<Segment*> segments;      // of each entry; null: its status is final
  std::vector<std::uint32_t> chunks;   // chunk index of each entry
  std::vector<std::uint32_t> missing;  // entries to be planned
  std::uint32_t remaining = 0;
  std::uint32_t ok = 0;
  bool full = false;
  std::uint64_t lease = 0;
  std::uint64_t bytes_disk = 0;
  std::uint64_t bytes_charged = 0;            // to the session, for fills that have not ended
  std::function<void(const FetchJob&)> done;  // inner jobs (warm); empty: a completion of the ring
};

struct FetchTable {
  std::unordered_map<std::uint64_t, std::unique_ptr<FetchJob>> jobs;  // that wait
  std::unordered_map<ChunkKey, std::unique_ptr<Fill>, ChunkKeyHash> fills;
  std::vector<std::unique_ptr<FetchJob>> spare;
  std::uint64_t hinted_bytes = 0;  // of slots that prefetches fill
  std::uint64_t next_job = 1;
};

// A ring request whose entries were copied into `job`. Answers now or later by the session's
// completion ring.
[[nodiscard]] std::unique_ptr<FetchJob> take_job(EngineState& engine);
void start_fetch(EngineState& engine, Session& session, OpenSequence& open,
                 std::unique_ptr<FetchJob> job);
// Fills these chunks of one segment without lease or session; `done` when all have ended.
void start_inner_fetch(EngineState& engine, Segment& segment,
                       const std::vector<std::uint32_t>& chunks, IoPriority priority,
                       std::function<void(const FetchJob&)> done);
void touch_entries(EngineState& engine, OpenSequence& open, const FetchEntry* entries,
                   std::uint32_t count);
// The fill has ended, and is in no table any more: leases its chunk for whoever waits (kOk), or
// tells them why not.
void answer_waiters(EngineState& engine, Fill& fill, Code code);
// False where there is no such request.
bool cancel_fetch(EngineState& engine, Session& session, std::uint64_t user_data);
// The session is gone: its jobs are forgotten.
void forget_session_jobs(EngineState& engine, Session& session);

}  // namespace kvtier
