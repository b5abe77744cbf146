// The table of all control requests, and what their functions read out of a body.
#include "daemon/control_ops.h"

#include <cstring>
#include <utility>
#include <vector>

#include "daemon/engine_state.h"
#include "daemon/matcher.h"

namespace kvtier {

namespace {

std::vector<ControlOp>& all_ops() {
  static std::vector<ControlOp> ops = [] {
    std::vector<ControlOp> made(sequence_ops().begin(), sequence_ops().end());
    for (const auto more : {opening_ops(), text_ops(), housekeeping_ops(), abstract_ops()})
      made.insert(made.end(), more.begin(), more.end());
    return made;
  }();
  return ops;
}

struct Refusal {
  const char* text = nullptr;
  std::string detail;
};
thread_local Refusal last_refusal;

}  // namespace

Status refusal(Code code, const char* text, std::string detail) {
  last_refusal = {text, std::move(detail)};
  return {code, 0, text};
}

std::string refusal_text(const Status& status) {
  const Refusal last = std::exchange(last_refusal, {});
  std::string text = status.message();
  if (status.text != nullptr && status.text == last.text) text += last.detail;
  return text;
}

void add_control_ops(std::span<const ControlOp> ops) {
  all_ops().insert(all_ops().end(), ops.begin(), ops.end());
}

const ControlOp* find_control_op(std::string_view name) {
  for (const ControlOp& op : all_ops()) {
    if (op.name == name) return &op;
  }
  return nullptr;
}

Result<StoredSequence*> target_sequence(EngineState& engine, const Json& body, const char* key) {
  const auto field = body.find(key);
  StoredSequence* sequence = nullptr;
  if (field == body.end())
    return error(Code::kInvalid, "which sequence? give its number or its name");
  if (field->is_number_unsigned())
    sequence = find_sequence(engine, SequenceId{field->get<std::uint64_t>()});
  else if (field->is_string())
    sequence = find_sequence_by_name(engine, field->get_ref<const std::string&>());
  else
    return error(Code::kInvalid, "a target is a number or a name");
  if (sequence != nullptr && !sequence->internal) return sequence;
  constexpr const char* kNone = "no such sequence";
  const bool shown =
      field->is_number() || field->get_ref<const std::string&>().size() <= kNameBytesMax;
  return error(refusal(Code::kNotFound, kNone, shown ? ": " + field->dump() : ""));
}

Result<StoredSpace*> space_of(EngineState& engine, const Json& body) {
  KVT_TRY(const std::uint64_t id, json_uint(body, "space", 0));
  StoredSpace* space = find_space(engine, SpaceId{id});
  if (space == nullptr) return error(Code::kNotFound, "no such space: open it first");
  return space;
}

std::string process_text(EngineState& engine, const OpenSequence& open) {
  const Session* session = find_session(engine, open.session);
  if (session == nullptr) return "a process that is gone";
  std::string text = "process " + std::to_string(session->pid);
  if (!session->name.empty()) text += " (" + session->name + ")";
  return text;
}

Result<std::vector<std::uint32_t>> ids_of(const std::vector<std::byte>& payload) {
  if (payload.size() % 4 != 0) return error(Code::kInvalid, "token ids are 4 bytes each");
  if (payload.size() / 4 > kSequenceTokensMax) return error(Code::kTooLarge, "too many tokens");
  std::vector<std::uint32_t> ids(payload.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), payload.data(), payload.size());
  return ids;
}

Result<OpenSequence*> handle_of(Session& session, const Json& body) {
  KVT_TRY(const std::uint64_t handle, json_uint(body, "handle", 0, UINT32_MAX));
  OpenSequence* open = find_open(session, static_cast<std::uint32_t>(handle));
  if (open == nullptr) return error(Code::kStale, "no such handle on this connection");
  return open;
}

Json match_json(const MatchResult& match) {
  Json body;
  body["tokens"] = match.tokens;
  body["differs_at"] = match.tokens;
  body["stored_token"] = match.has_stored_token ? Json(match.stored_token) : Json(nullptr);
  body["reason"] = match_end_name(match.end);
  return body;
}

}  // namespace kvtier
