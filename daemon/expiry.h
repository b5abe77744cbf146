// Expiry: what happens by time. Sequences past their expiry go; batches that failed are retried by
// reopening the catalogue. Engine's thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtier {

struct EngineState;
std::size_t run_timers(EngineState& engine);
[[nodiscard]] std::uint64_t next_timer(const EngineState& engine);

}  // namespace kvtier
