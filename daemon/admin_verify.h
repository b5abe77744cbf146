// The check that `verify` and `repair` begin with: all that is stored, taken on the engine's
// thread, looked at on workers, one item at a time, so that seals in between wait no longer than
// that. Engine's thread.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/result.h"
#include "daemon/store_items.h"

namespace kvtier {

struct EngineState;

using CheckPtr = std::shared_ptr<Check>;
[[nodiscard]] CheckPtr collect(EngineState& engine, bool deep);
// `done` when all was looked at; kStopping when the daemon drains.
void run_check(EngineState& engine, const CheckPtr& check,
               const std::function<void(Result<void>)>& done);
// Takes out what is a problem no more: a segment that went while we looked, a log that was
// replaced.
void forget_stale(EngineState& engine, Check& check);
// Lost segments whose file is there again are served from now on.
void serve_returned(EngineState& engine, const Check& check);
[[nodiscard]] std::vector<Finding> findings_of(const Check& check);

}  // namespace kvtier
