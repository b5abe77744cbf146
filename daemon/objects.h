// Objects: values under opaque keys, for the store plug-ins of other servers.
//
// A value lies in a file of its own (tiers/object_format.h) and is never changed: a set writes a
// new file, syncs it, syncs the directory, and makes it visible with a synced catalogue batch,
// which it shares with all sets and deletes that are ready at that moment. Only then does the old
// file go. Requests of one key are carried out in order of arrival; gets of a key run side by side.
// A get reads into private memory and compares the checksum before a byte reaches the client; what
// a client hands over is copied once. Values are bounded by the store's disk limit together with
// the segments, the coldest first (reclaim.h); memory under way by two lanes, so that a bulk of
// sets does not hold up gets. Engine's thread; a job's buffer is a worker's while it works on it.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/metrics.h"
#include "daemon/sessions.h"
#include "tiers/catalogue.h"
#include "tiers/io.h"

namespace kvtier {

// One stored value. Its file goes when the value is dead and nobody reads it.
struct ObjectValue {
  std::uint64_t file = 0;
  std::uint64_t value_bytes = 0;
  std::uint64_t checksum = 0;
  std::uint64_t stored_unix_ns = 0;
  std::uint32_t reads = 0;
  bool dead = false;
  bool bad = false;  // damaged or lost: a miss until it is set again
  ObjectMiss why_bad = ObjectMiss::kChecksum;
};
using ObjectValuePtr = std::shared_ptr<ObjectValue>;

// A request under way.
struct ObjectJob {
  Op op = Op::kNop;
  SessionId session;
  std::uint64_t user_data = 0;
  IoPriority priority = IoPriority::kDemand;
  std::string key;
  std::shared_ptr<Memfd> staging;
  std::uint64_t offset = 0, bytes = 0;  // in the staging memory; of a get: its room
  ObjectValuePtr value;                 // that is read or written
  std::uint64_t buffer_bytes = 0;       // of its lane
  AlignedBuffer buffer;                 // the file, or its value; filled or checked by a worker
  bool sound = false;                   // the worker's verdict on what was read
  FileId file;
  std::uint32_t parts_left = 0;
  Status failure;
};
using ObjectJobPtr = std::shared_ptr<ObjectJob>;

struct Object {
  ObjectValuePtr value;  // null: nothing is stored yet, requests wait
  std::uint64_t last_used_unix_ns = 0;
  bool writing = false;  // a set or delete is under way: what comes later waits
  bool starting = false;
  std::deque<ObjectJobPtr> waiting;
  std::list<const std::string*>::iterator place;  // in ObjectTable::order while it has a value
};

// Memory for values under way, one direction.
struct ObjectLane {
  std::uint64_t bytes = 0;
  bool starting = false;  // what waits is being started, further up in the call
  std::deque<ObjectJobPtr> waiting;
};
inline constexpr std::size_t kObjectsMax = 1u << 20;  // keys; beyond it the coldest goes
inline constexpr std::uint64_t kObjectLaneBytesMax = kObjectBytesMax + 4096;

struct ObjectTable {
  std::unordered_map<std::string, Object> all;
  std::list<const std::string*> order;  // keys with a value, hot first
  std::uint64_t next_file = 1;
  std::uint64_t disk_bytes = 0;      // of the files of values that can be read
  std::uint64_t reserved_bytes = 0;  // of files being written
  ObjectLane reads, writes;
  // What the next catalogue batch holds, and whether one is under way.
  std::vector<ObjectJobPtr> ready;
  bool publishing = false;
  // Keys whose row may say something else than this table, because the value was taken out or a
  // batch failed, with the files that must stay until a batch has written the row anew.
  std::unordered_map<std::string, std::vector<ObjectValuePtr>> unsettled;
  bool settle = false;  // write one for them now; else the next write does it
  // Hashes of keys evicted lately, to tell why a get missed.
  std::unordered_set<std::uint64_t> ghosts;
  std::deque<std::uint64_t> ghost_order;
};

// A checked request off the ring (ring_server.cc); completes it now or later.
void start_object_request(EngineState& engine, ObjectJobPtr job);
// Rows and files of the last run. Blocks. `mend` gets the rows that must go.
[[nodiscard]] Result<void> recover_objects(EngineState& engine, std::vector<ObjectRow> rows,
                                           CatalogueBatch* mend);

// The key that was not used for longest and that nobody works on; null: none. Its time of use.
[[nodiscard]] const std::string* coldest_object(EngineState& engine, std::uint64_t* used_unix_ns);
// Takes a value out: the bytes that will be free. publish_objects() afterwards writes it down.
std::uint64_t evict_object(EngineState& engine, const std::string& key);
// Writes the next catalogue batch, unless one is under way or there is nothing to write.
void publish_objects(EngineState& engine);
// repair: drops the value where it still is this file. False: a request is under way.
[[nodiscard]] bool drop_object(EngineState& engine, const std::string& key, std::uint64_t file);

// ---- between objects.cc and object_writes.cc ----

void start_object_set(EngineState& engine, const ObjectJobPtr& job);
void run_object_set(EngineState& engine, const ObjectJobPtr& job);
void start_object_delete(EngineState& engine, const ObjectJobPtr& job);
// Completes the request. `value_bytes` where the code says that there is a value.
void answer_object(EngineState& engine, const ObjectJob& job, Code code,
                   std::uint64_t value_bytes = 0, std::uint64_t bytes_disk = 0);
// The set or delete is over: answers, and starts what waited for the key.
void end_object_write(EngineState& engine, const ObjectJobPtr& job, Code code);
// Takes `job->buffer_bytes` of the lane, or waits for them; then runs the job.
void enter_lane(EngineState& engine, ObjectLane& lane, const ObjectJobPtr& job);
void leave_lane(EngineState& engine, ObjectLane& lane, ObjectJob& job);
// Puts a value under a key and at the hot end; the value before it dies.
void install_object(EngineState& engine, const std::string& key, ObjectValuePtr value,
                    std::uint64_t used_unix_ns);
// Takes the value of a key out of the tables; it is not dead yet.
[[nodiscard]] ObjectValuePtr take_object(EngineState& engine, const std::string& key);
// No row names it any more: the file goes now, or after the last read.
void bury_object(EngineState& engine, ObjectValue& value);

}  // namespace kvtier
