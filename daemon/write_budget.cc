#include "daemon/write_budget.h"

#include <cinttypes>

#include "base/log.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kDayNs = 86'400ull * 1'000'000'000;
constexpr std::uint64_t kStoreEvery = 64ull << 20;

void put_write_budget(WriteBudget& budget, CatalogueBatch* batch) {
  budget.stored_bytes = budget.bytes;
  batch->put_number("written_day", budget.day);
  batch->put_number("written_bytes", budget.bytes);
}

}  // namespace

bool write_budget_spent(const EngineState& engine) {
  const std::uint64_t budget = engine.options.disk_write_bytes_per_day;
  return budget != 0 && engine.write_budget.bytes >= budget;
}

void update_write_budget(EngineState& engine) {
  WriteBudget& budget = engine.write_budget;
  const std::uint64_t written = engine.io->io().stats().written_bytes;
  const std::uint64_t day = engine.wall_ns() / kDayNs;
  if (day != budget.day) {
    budget.day = day;
    budget.bytes = budget.stored_bytes = 0;
    budget.warned = false;
  }
  budget.bytes += written - budget.seen_bytes;
  budget.seen_bytes = written;
  if (write_budget_spent(engine) && !budget.warned) {
    budget.warned = true;
    KVT_LOG(kWarn,
            "disk: %" PRIu64 " MiB were written today, the budget is %" PRIu64
            " MiB (store.disk_write_bytes_per_day): what can wait waits for tomorrow",
            budget.bytes >> 20, engine.options.disk_write_bytes_per_day >> 20);
  }
  if (budget.bytes >= budget.stored_bytes + kStoreEvery) store_write_budget(engine);
}

bool may_write_optional(EngineState& engine, std::uint64_t bytes) {
  update_write_budget(engine);
  if (!write_budget_spent(engine)) return true;
  ++engine.write_budget.declined;
  engine.write_budget.declined_bytes += bytes;
  return false;
}

void recover_write_budget(EngineState& engine, std::string_view name, std::uint64_t value) {
  WriteBudget& budget = engine.write_budget;
  if (name == "written_day") budget.day = value;
  if (name == "written_bytes") budget.bytes = budget.stored_bytes = value;
}

void add_write_budget(EngineState& engine, CatalogueBatch* batch) {
  update_write_budget(engine);
  put_write_budget(engine.write_budget, batch);
}

void store_write_budget(EngineState& engine) {
  WriteBudget& budget = engine.write_budget;
  if (engine.read_only || budget.bytes == budget.stored_bytes) return;
  CatalogueBatch batch;
  put_write_budget(budget, &batch);
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
}

}  // namespace kvtier
