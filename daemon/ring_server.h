// RingServer: takes submissions out of the sessions' rings, checks them, and puts completions back.
// Engine's thread.
#pragma once

#include <cstdint>

#include "daemon/sessions.h"

namespace kvtier {

// Takes what waits in every session's ring, up to a bound per session. The number of requests.
std::size_t serve_rings(EngineState& engine);
// Publishes completions that were queued since.
void flush_completions(EngineState& engine);
// Queues a completion for a request that was counted in flight.
void complete(EngineState& engine, SessionId session, const Completion& completion);
// True where the next entry of some ring is there (RingReader::stamped).
[[nodiscard]] bool any_ring_stamped(const EngineState& engine);
[[nodiscard]] bool prepare_ring_sleep(EngineState& engine);
void end_ring_sleep(EngineState& engine);

}  // namespace kvtier
