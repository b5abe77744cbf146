#include "tests/sim/sim_objects.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kvtier::sim {

namespace {
constexpr std::uint64_t kArgumentsAt = 2ull << 20;  // behind those of fetches
}  // namespace

SimObjects::SimObjects(SimClient& client) : client_(client) {
  Reply reply = client.control(Json{{"op", "staging"}, {"bytes", kSlots * kSlotBytes}});
  if (reply.ok() && reply.fds.size() == 1)
    staging_ = Mapping::map(reply.fds[0].get(), kSlots * kSlotBytes, true).value();
}

void SimObjects::start(ObjectCall* call) {
  KVT_CHECK(call->key.size() <= kObjectKeyBytesMax && call->value.size() <= kSlotBytes);
  call->slot = next_slot_++ % kSlots;
  const std::uint64_t arguments = kArgumentsAt + call->slot * kObjectKeyBytesMax;
  std::memcpy(client_.layout()->arguments + arguments, call->key.data(), call->key.size());
  Submission request{};
  request.op = static_cast<std::uint16_t>(call->op);
  request.priority = static_cast<std::uint8_t>(Priority::kDemand);
  request.argument_offset = arguments;
  request.count = static_cast<std::uint32_t>(call->key.size());
  request.value0 = call->slot * kSlotBytes;
  request.value1 = call->op == Op::kObjectGet ? kSlotBytes : call->value.size();
  if (call->op == Op::kObjectSet && !call->value.empty())
    std::memcpy(staging_.data() + request.value0, call->value.data(), call->value.size());
  call->user_data = client_.submit(request);
}

void SimObjects::answer(ObjectCall* call, const Completion& completion) {
  call->answered = true;
  call->code = static_cast<Code>(completion.status);
  call->value_bytes = completion.value0;
  if (call->op != Op::kObjectGet || call->code != Code::kOk) return;
  KVT_CHECK(completion.value0 <= kSlotBytes);
  call->got = std::string(reinterpret_cast<const char*>(staging_.data() + call->slot * kSlotBytes),
                          completion.value0);
}

bool SimObjects::poll(ObjectCall* call) {
  Completion completion{};
  if (call->answered) return true;
  if (!client_.poll(call->user_data, &completion)) return false;
  answer(call, completion);
  return true;
}

void SimObjects::wait(ObjectCall* call) {
  if (!call->answered) answer(call, client_.wait(call->user_data));
}

ObjectCall SimObjects::call(Op op, const std::string& key, const std::string& value) {
  ObjectCall one;
  one.op = op;
  one.key = key;
  one.value = value;
  start(&one);
  wait(&one);
  return one;
}

std::vector<ObjectModel::Value>& ObjectModel::possible(const std::string& key) {
  return possible_.try_emplace(key, std::vector<Value>{std::nullopt}).first->second;
}

void ObjectModel::allow_misses() {
  for (auto& [key, values] : possible_) values.push_back(std::nullopt);
}

std::string ObjectModel::note(const ObjectCall& call, bool lenient, bool rotten) {
  std::vector<Value>& values = possible(call.key);
  const auto possible = [&values](const Value& value) {
    return std::find(values.begin(), values.end(), value) != values.end();
  };
  const std::string name = "object " + call.key;
  const bool ok = call.answered && call.code == Code::kOk;
  const bool miss = call.answered && call.code == Code::kMiss;
  if (call.op == Op::kObjectSet || call.op == Op::kObjectDelete) {
    const Value after = call.op == Op::kObjectSet ? Value(call.value) : Value();
    if (miss && call.op == Op::kObjectDelete) {
      if (!possible(std::nullopt) && !rotten && !lenient) return name + ": a delete missed it";
      values = {std::nullopt};
      return "";
    }
    if (ok)
      values = {after};
    else
      values.push_back(after);
    const bool reason = ok || lenient || !call.answered;
    return reason ? "" : name + ": a write failed with " + code_name(call.code);
  }
  if (!call.answered) return "";
  if (miss)
    return possible(std::nullopt) || rotten || lenient ? "" : name + ": what was stored is a miss";
  if (!ok) return lenient ? "" : name + ": a read failed with " + code_name(call.code);
  if (call.op == Op::kObjectExists) {
    const bool right = std::any_of(values.begin(), values.end(), [&](const Value& value) {
      return value && value->size() == call.value_bytes;
    });
    return right ? "" : name + ": a lookup tells another length than any that was stored";
  }
  return possible(call.got) ? "" : "WRONG BYTES SERVED: " + name;
}

}  // namespace kvtier::sim
