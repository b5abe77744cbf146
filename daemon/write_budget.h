// WriteBudget: how much this store has written to its disk today (UTC), against
// store.disk_write_bytes_per_day. Counts every byte that goes through the Io; survives restarts as
// two numbers of the catalogue. What somebody asked for (commit, name, a full tail) is always
// written, counted and warned about once a day; only what can be done without waits for tomorrow:
// sidecars, merging by gc, seals at close of nameless sequences. Engine's thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace kvtier {

class CatalogueBatch;
struct EngineState;

struct WriteBudget {
  std::uint64_t day = 0;           // since 1970
  std::uint64_t bytes = 0;         // written on that day
  std::uint64_t seen_bytes = 0;    // of the Io's counter
  std::uint64_t stored_bytes = 0;  // as the catalogue has it
  std::uint64_t declined = 0;      // optional writes that were left out since start
  std::uint64_t declined_bytes = 0;
  bool warned = false;  // today
};

// Takes what the Io has written since the last call; stores the count every 64 MiB.
void update_write_budget(EngineState& engine);
// Whether an optional write of so many bytes may be done today; counts it where not.
[[nodiscard]] bool may_write_optional(EngineState& engine, std::uint64_t bytes);
[[nodiscard]] bool write_budget_spent(const EngineState& engine);
// From the catalogue at start, and back at stop.
void recover_write_budget(EngineState& engine, std::string_view name, std::uint64_t value);
// With a batch that is synced anyhow.
void add_write_budget(EngineState& engine, CatalogueBatch* batch);
void store_write_budget(EngineState& engine);

}  // namespace kvtier
