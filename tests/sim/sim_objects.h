// SimObjects: opaque keys of a simulated client; ObjectModel: what a get of each may return.
//
// The daemon carries out the requests of one key in order, so a set or delete that is acknowledged
// leaves one answer; one that is not adds its own to those before. A crash picks one of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/sim_client.h"

namespace kvtier::sim {

struct ObjectCall {
  Op op = Op::kNop;
  std::string key;
  std::string value;            // of a set
  std::uint64_t user_data = 0;  // given by start()
  std::uint32_t slot = 0;
  // the answer
  bool answered = false;
  Code code = Code::kDaemonLost;
  std::optional<std::string> got;
  std::uint64_t value_bytes = 0;
};

class SimObjects {
 public:
  static constexpr std::uint32_t kSlots = 16;
  static constexpr std::uint64_t kSlotBytes = 16 * 1024;

  // Maps a staging memory; the client must outlive it.
  explicit SimObjects(SimClient& client);
  [[nodiscard]] bool ready() const { return staging_.data() != nullptr; }
  // At most kSlots at a time; slots are taken in turn.
  void start(ObjectCall* call);
  // Takes the answer where it has come.
  bool poll(ObjectCall* call);
  // start() and wait for the answer.
  ObjectCall call(Op op, const std::string& key, const std::string& value = "");
  void wait(ObjectCall* call);

 private:
  void answer(ObjectCall* call, const Completion& completion);

  SimClient& client_;
  Mapping staging_;
  std::uint32_t next_slot_ = 0;
};

class ObjectModel {
 public:
  using Value = std::optional<std::string>;  // null: a miss

  // Takes note of a call and its answer, calls in the order in which they were started; "" or what
  // is wrong. `lenient`: the disk fails; `rotten`: stored bytes were damaged.
  [[nodiscard]] std::string note(const ObjectCall& call, bool lenient, bool rotten);
  // After a crash, what is found now stays.
  void found(const std::string& key, const Value& value) { possible_[key] = {value}; }
  // Anything may have been evicted.
  void allow_misses();
  [[nodiscard]] const std::map<std::string, std::vector<Value>>& all() const { return possible_; }

 private:
  [[nodiscard]] std::vector<Value>& possible(const std::string& key);

  std::map<std::string, std::vector<Value>> possible_;
};

}  // namespace kvtier::sim
