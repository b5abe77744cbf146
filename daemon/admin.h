// Admin: the control requests that people and tools send: reports, maintenance, transfer. Each
// table lives in the file that its comment names; add_admin_ops() gives them to the engine.
// Engine's thread, but for the work that a request posts to workers.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/control_ops.h"

namespace kvtier {

[[nodiscard]] std::span<const ControlOp> report_ops();  // admin_report.cc: ls, show, status, config
[[nodiscard]] std::span<const ControlOp> stats_ops();   // admin_stats.cc: stats
[[nodiscard]] std::span<const ControlOp> verify_ops();  // admin_verify.cc: verify
[[nodiscard]] std::span<const ControlOp> repair_ops();  // admin_repair.cc: repair
[[nodiscard]] std::span<const ControlOp> maintenance_ops();  // admin_maintenance.cc: gc, warm
[[nodiscard]] std::span<const ControlOp> transfer_ops();     // admin_transfer.cc: export, import

[[nodiscard]] std::span<const ControlOp> codebook_ops();  // admin_codebooks.cc: codebooks

// Joins the tables to the engine's; once per process, further calls do nothing.
void add_admin_ops();

// One line for everything that is off or slower than it could be, with the reason.
struct EngineState;
[[nodiscard]] Json switched_off(const EngineState& engine);

// What the reports share: a time in seconds, and the bytes on disk (0 where it is not there).
[[nodiscard]] constexpr std::uint64_t unix_s(std::uint64_t unix_ns) {
  return unix_ns / 1'000'000'000;
}
struct Segment;
[[nodiscard]] std::uint64_t file_bytes(const Segment& segment);

}  // namespace kvtier
