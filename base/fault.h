// Named fault points: places where a test kills the process or makes an operation fail.
//
// `KVT_FAULT("seal.written")` costs one relaxed load while no fault is armed. Armed by arm_faults()
// or by the environment variable KVTIER_FAULTS, a comma-separated list of NAME=ACTION[@N]: ACTION
// `kill` (SIGKILL to this process) or `fail` (the point returns true); N the visit that triggers
// it, from 1, default 1. `*=kill@N` counts all points. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace kvtier {

namespace internal {
extern std::atomic<bool> faults_armed;
bool visit_fault(const char* name) noexcept;
}  // namespace internal

// Replaces the armed faults; an empty text disarms. Malformed text changes nothing and is kInvalid.
Result<void> arm_faults(std::string_view text);
// Reads KVTIER_FAULTS once; called by main functions.
void arm_faults_from_environment();
// Visits of all points since they were armed.
[[nodiscard]] std::uint64_t fault_visits() noexcept;

}  // namespace kvtier

// True where the named operation must fail now. Does not return where it must kill.
#define KVT_FAULT(name)                                                \
  (::kvtier::internal::faults_armed.load(std::memory_order_relaxed) && \
   ::kvtier::internal::visit_fault(name))
