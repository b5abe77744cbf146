// ControlOps: the requests of docs/protocol.md by name. One table per file of operations; engine.cc
// joins them. Adding an operation is a function and a line in its file's table.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/engine.h"

namespace kvtier {

struct EngineState;
struct MatchResult;
struct OpenSequence;
struct StoredSequence;
struct Session;
struct StoredSpace;

// Nulls are gone from the body. Calls `done` exactly once, now or later. `session` may be gone
// later: look it up again.
using ControlFunction = void (*)(EngineState& engine, Session& session, ControlRequest request,
                                 ControlDone done);
struct ControlOp {
  std::string_view name;
  bool data_only = false;
  ControlFunction run = nullptr;
};

[[nodiscard]] std::span<const ControlOp> sequence_ops();      // control_ops_sequences.cc
[[nodiscard]] std::span<const ControlOp> opening_ops();       // control_ops_open.cc
[[nodiscard]] std::span<const ControlOp> text_ops();          // control_ops_texts.cc
[[nodiscard]] std::span<const ControlOp> housekeeping_ops();  // control_ops_housekeeping.cc
[[nodiscard]] std::span<const ControlOp> abstract_ops();      // control_ops_abstracts.cc
// Tables that other parts of the daemon add (ls, stats, verify ...): before the first request.
void add_control_ops(std::span<const ControlOp> ops);
[[nodiscard]] const ControlOp* find_control_op(std::string_view name);

// ---- refusals with names and numbers ----

// A status has only static text. What else is to be said is kept beside it for the answer to this
// request: give the status to its `done` before this thread does anything else.
[[nodiscard]] Status refusal(Code code, const char* text, std::string detail);
// The text of a status, with its detail where it was the last refusal of this thread.
[[nodiscard]] std::string refusal_text(const Status& status);

// ---- what a body or payload names ----

// "target": a sequence by number or name.
[[nodiscard]] Result<StoredSequence*> target_sequence(EngineState& engine, const Json& body,
                                                      const char* key = "target");
[[nodiscard]] Result<StoredSpace*> space_of(EngineState& engine, const Json& body);
[[nodiscard]] Result<OpenSequence*> handle_of(Session& session, const Json& body);
[[nodiscard]] Result<std::vector<std::uint32_t>> ids_of(const std::vector<std::byte>& payload);
// "process 17 (chat)": the client that has it open.
[[nodiscard]] std::string process_text(EngineState& engine, const OpenSequence& open);
// The fields of a reply that say how far a prefix is stored.
[[nodiscard]] Json match_json(const MatchResult& match);

}  // namespace kvtier
