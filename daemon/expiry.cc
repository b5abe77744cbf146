#include "daemon/expiry.h"

#include <cinttypes>
#include <vector>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "daemon/segments.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000ull;
constexpr std::uint64_t kCheckEvery = 10 * kSecond;
// How long what nobody but a client of an earlier daemon knows of waits for that client.
constexpr std::uint64_t kProvisionalNs = 24 * 3600 * kSecond;

bool ends_by_itself(const StoredSequence& sequence) {
  return sequence.row.provisional || (sequence.row.expires_unix_s != 0 && !sequence.row.pinned);
}

bool has_ended(const EngineState& engine, const StoredSequence& sequence) {
  const SequenceRow& row = sequence.row;
  return row.provisional ? row.last_used_unix_ns + kProvisionalNs <= engine.wall_ns()
                         : row.expires_unix_s <= engine.wall_ns() / kSecond;
}

// A catalogue that refused a batch takes no more until it was opened again.
void resume_catalogue(EngineState& engine) {
  engine.resuming = true;
  Mailbox* mailbox = engine.world.mailbox;
  Catalogue* catalogue = engine.world.catalogue;
  ++engine.batches_outstanding;
  engine.world.catalogue_worker->post([&engine, mailbox, catalogue] {
    const Result<void> result = catalogue->resume();
    mailbox->post([&engine, result] {
      --engine.batches_outstanding;
      engine.resuming = false;
      engine.next_resume_ns = engine.now_ns() + kSecond;
      if (!result) return;
      settle_sequence_rows(engine);
      engine.read_only = false;
      remove_rows_again(engine);
      KVT_LOG(kWarn, "catalogue: open again; the store takes writes");
    });
  });
}

}  // namespace

std::size_t run_timers(EngineState& engine) {
  if (engine.draining) return 0;
  std::size_t work = 0;
  if (engine.read_only && !engine.resuming && engine.now_ns() >= engine.next_resume_ns) {
    resume_catalogue(engine);
    ++work;
  }
  work += run_upkeep(engine);
  if (engine.now_ns() < engine.next_timer_ns) return work;
  update_write_budget(engine);
  engine.next_timer_ns = engine.now_ns() + kCheckEvery;
  std::vector<SequenceId> expired;
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (!ends_by_itself(*sequence) || !has_ended(engine, *sequence) || sequence->removed ||
        sequence->internal)
      continue;
    if (sequence->open.empty() && !sequence->working && sequence->busy == 0) expired.push_back(id);
  }
  for (const SequenceId id : expired) {
    KVT_LOG(kInfo, "sequence %" PRIx64 " has expired", id.value);
    remove_sequence(engine, *find_sequence(engine, id), LogFile::kUnlink, [](Result<void>) {});
  }
  return work + expired.size();
}

std::uint64_t next_timer(const EngineState& engine) {
  if (engine.read_only && !engine.resuming) return engine.next_resume_ns;
  const std::uint64_t upkeep = next_upkeep(engine);
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (ends_by_itself(*sequence)) return std::min(engine.next_timer_ns, upkeep);
  }
  return upkeep;
}

}  // namespace kvtier
