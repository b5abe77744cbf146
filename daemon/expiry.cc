#include "daemon/expiry.h"

#include <cinttypes>
#include <vector>

#include "base/log.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000ull;
constexpr std::uint64_t kCheckEvery = 10 * kSecond;

}  // namespace

std::size_t run_timers(EngineState& engine) {
  if (engine.now_ns() < engine.next_timer_ns || engine.draining) return 0;
  engine.next_timer_ns = engine.now_ns() + kCheckEvery;
  std::vector<SequenceId> expired;
  const std::uint64_t now_s = engine.wall_ns() / kSecond;
  for (const auto& [id, sequence] : engine.sequences.all) {
    const SequenceRow& row = sequence->row;
    if (row.expires_unix_s == 0 || row.expires_unix_s > now_s || row.pinned || sequence->removed) continue;
    if (sequence->open.empty() && !sequence->working && sequence->busy == 0) expired.push_back(id);
  }
  for (const SequenceId id : expired) {
    KVT_LOG(kInfo, "sequence %" PRIx64 " has expired", id.value);
    remove_sequence(engine, *find_sequence(engine, id), [](Result<void>) {});
  }
  return expired.size();
}

std::uint64_t next_timer(const EngineState& engine) {
  for (const auto& [id, sequence] : engine.sequences.all) {
    if (sequence->row.expires_unix_s != 0 && !sequence->row.pinned) return engine.next_timer_ns;
  }
  return UINT64_MAX;
}

}  // namespace kvtier
