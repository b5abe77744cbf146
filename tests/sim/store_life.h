// StoreLife: a simulated store, two clients of it, and what must hold whenever they look. The
// operations that happen in it are in store_sim.cc and store_sim_upkeep.cc.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/sim_objects.h"
#include "tests/sim/store_model.h"
#include "tests/sim/store_sim.h"

namespace kvtier::sim {

struct StoreLife {
  explicit StoreLife(const StoreSimOptions& in);

  // ---- the world ----
  void restart();
  void heal();  // the disk fails no more
  // The daemon dies, with the power or without; a new one must show what it may.
  void crash(bool power);
  void crash_somehow() { crash(options.power_cuts && !one_in(4)); }
  // A few turns of the world: something that was asked for gets somewhere.
  void turns(std::uint64_t most);

  // ---- what must hold ----
  void note(const std::string& line) { result.trace += line + "\n"; }
  void fail(const std::string& what);
  // An operation may fail where the disk does.
  void expect_fault(const std::string& what, const Status& status);
  // Opens for writing and compares row and content with what may be; open stays null where it
  // cannot be read now. False where it is gone, as it may. After a crash what is found is durable.
  [[nodiscard]] bool reopen(ModelSequence& sequence, bool after_crash);
  void close(ModelSequence& sequence);
  void check_fetch(SimClient& client, const DirectoryView& directory,
                   const std::vector<FetchEntry>& entries, const std::vector<std::uint64_t>& hashes,
                   const Completion& completion);
  void fetch_all(SimClient& client, SimSequence& open, const ModelSequence& model);
  void check_everything();
  void check_objects();
  bool note_evictions();
  void note_object(const ObjectCall& call);
  // Takes note of damage to a file, or of a new sequence that has damaged ones.
  void rotted_now(const std::string& path);
  void note_damage(ModelSequence& sequence);
  // The name was given up, acknowledged: it must not come back.
  void give_up(const std::string& name);

  // ---- operations of several parts ----
  [[nodiscard]] std::vector<ModelSequence*> all_open();
  [[nodiscard]] ModelSequence* pick();  // one that is open, or null
  [[nodiscard]] std::string new_name() { return "s" + std::to_string(next_name++); }
  void append(ModelSequence& sequence);
  void write(ModelSequence& sequence, bool seal, bool may_crash = true);
  [[nodiscard]] std::uint64_t now_unix_s() { return world.clock().wall_ns() / 1'000'000'000; }
  bool one_in(std::uint64_t n) { return random.one_in(n); }

  const StoreSimOptions options;
  Random random;
  SimWorld world;
  Geometry geometry = tiny_geometry();
  std::unique_ptr<SimClient> writer, reader;
  std::unique_ptr<SimObjects> objects;
  ObjectModel object_model;
  std::uint64_t evicted = 0;  // objects, by this daemon
  std::uint64_t space = 0;
  std::map<std::string, ModelSequence> sequences;  // by name
  std::vector<std::string> given_up;               // the last few names
  std::uint32_t next_name = 1;
  bool lenient = false;          // this daemon's disk fails: errors are fine, other content is not
  std::set<std::string> rotted;  // files with damaged bytes: what they hold may be missing
  StoreSimResult result;

 private:
  [[nodiscard]] std::unique_ptr<SimSequence> attach_by_any_name(const ModelSequence& sequence,
                                                                Reply* reply);
  bool note_absent(const ModelSequence& sequence, const Status& status, bool after_crash);
  void check_row(ModelSequence& sequence, const SimSequence& open);
  bool read_ids(const ModelSequence& sequence, const SimSequence& open, Ids* ids);
  [[nodiscard]] bool uses(const ModelSequence& sequence, const std::string& path);
  void check_given_up();
  std::uint64_t restarted_unix_s_ = 0;
};

// ---- store_sim_upkeep.cc ----

// rename, pin or expire.
void change_row(StoreLife& life, ModelSequence& sequence);
// Closes some or all, then gc, repair, or time goes by; opens them again. Or export and import.
void look_after(StoreLife& life);
// The disk fails no more, under the same daemon: from here on nothing may fail.
void get_well(StoreLife& life);
// What the store says of itself.
void verify(StoreLife& life);

}  // namespace kvtier::sim
