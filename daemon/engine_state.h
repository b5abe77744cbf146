// EngineState: all tables of the engine in one struct, so that each part of it is a file of
// functions over the state. Engine's thread; what workers may read says so where it is declared.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "daemon/abstracts.h"
#include "daemon/admission.h"
#include "daemon/codebooks.h"
#include "daemon/cost_model.h"
#include "daemon/engine.h"
#include "daemon/fetcher.h"
#include "daemon/kept_files.h"
#include "daemon/metrics.h"
#include "daemon/miss_log.h"
#include "daemon/objects.h"
#include "daemon/reindex.h"
#include "daemon/sealer.h"
#include "daemon/segments.h"
#include "daemon/sequences.h"
#include "daemon/sessions.h"
#include "daemon/spaces.h"
#include "daemon/upkeep.h"
#include "daemon/write_budget.h"
#include "kernels/kernel_table.h"
#include "tiers/host_arena.h"
#include "tiers/io_scheduler.h"

namespace kvtier {

struct EngineState {
  // constant after make()
  DaemonOptions options;
  EngineWorld world;
  const KernelTable* kernels = nullptr;
  std::shared_ptr<HostArena> arena;
  std::unique_ptr<AbstractArena> abstracts;
  std::unique_ptr<IoScheduler> io;
  std::uint64_t chain_key = 0;  // set by recovery

  Metrics metrics;
  std::unordered_map<SpaceId, std::unique_ptr<StoredSpace>> spaces;
  SegmentTable segments;
  std::unordered_map<SegmentId, TokenTexts> private_texts;  // of segments without a file
  SequenceTable sequences;
  std::map<SessionId, std::unique_ptr<Session>> sessions;
  std::uint64_t next_session = 1;
  FetchTable fetch;
  SealTable seals;
  AbstractTable abstract_table;
  ReindexTable reindex;
  CodebookTable codebooks;
  ObjectTable objects;
  MissLog miss_log;
  CostModel cost;
  WriteBudget write_budget;
  Admission admission;
  UpkeepState upkeep;
  KeptFiles kept_files;

  std::uint64_t next_timer_ns = 0;
  std::uint32_t batches_outstanding = 0;
  std::uint32_t jobs_outstanding = 0;
  bool read_only = false;  // the catalogue refused a batch
  bool resuming = false;
  std::uint64_t next_resume_ns = 0;
  bool recovered = false;
  std::atomic<bool> draining{false};  // workers that take long look at it too
  bool stop_requested = false;
  std::function<void()> drained;

  [[nodiscard]] std::uint64_t now_ns() const { return world.clock->now_ns(); }
  [[nodiscard]] std::uint64_t wall_ns() const { return world.clock->wall_ns(); }
};

// Why a daemon that drains takes a request no more, or ends it early.
inline constexpr Status kStopping{Code::kCancelled, 0, "the daemon is stopping"};
inline constexpr Status kNoWrites{Code::kReadOnly, 0,
                                  "the store takes no writes: kvtier doctor names the mend"};

// Runs `job` on a worker, then `done` on the engine's thread.
void run_on_worker(EngineState& engine, std::function<void()> job, std::function<void()> done);
// Makes the names in a directory of the store durable, however long the disk takes; `done` from a
// later step, as of any request to the disk.
void sync_directory(EngineState& engine, const char* directory, IoPriority priority,
                    std::function<void(Result<void>)> done);
// Writes a batch in order with all others; `done` on the engine's thread.
void post_batch(EngineState& engine, CatalogueBatch batch, bool sync,
                std::function<void(Result<void>)> done);

}  // namespace kvtier
