// ControlOps: the requests of docs/protocol.md by name. One table per file of operations; engine.cc
// joins them. Adding an operation is a function and a line in its file's table.
#pragma once

#include <span>
#include <string_view>

#include "daemon/engine.h"

namespace kvtier {

struct EngineState;
struct Session;

// Nulls are gone from the body. Calls `done` exactly once, now or later. `session` may be gone
// later: look it up again.
using ControlFunction = void (*)(EngineState& engine, Session& session, ControlRequest request,
                                 ControlDone done);
struct ControlOp {
  std::string_view name;
  bool data_only = false;
  ControlFunction run = nullptr;
};

[[nodiscard]] std::span<const ControlOp> sequence_ops();      // control_ops.cc
[[nodiscard]] std::span<const ControlOp> housekeeping_ops();  // control_ops_housekeeping.cc
// Tables that other parts of the daemon add (ls, stats, verify ...): before the first request.
void add_control_ops(std::span<const ControlOp> ops);
[[nodiscard]] const ControlOp* find_control_op(std::string_view name);

// "target": a sequence by number or name.
struct Sequence;
[[nodiscard]] Result<Sequence*> target_sequence(EngineState& engine, const Json& body,
                                                const char* key = "target");

}  // namespace kvtier
