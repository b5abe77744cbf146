#include "daemon/objects.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"
#include "base/log.h"
#include "client/ipc/shared_copy.h"
#include "daemon/engine_state.h"
#include "daemon/ring_server.h"
#include "tiers/object_format.h"

namespace kvtier {

namespace {

constexpr std::size_t kGhostsMax = 16384;

void count_miss(EngineState& engine, ObjectMiss reason) {
  ++engine.metrics.objects.misses[static_cast<std::size_t>(reason)];
}

std::uint64_t ghost_of(const std::string& key) { return hash64(as_bytes(key)); }

void miss(EngineState& engine, const ObjectJob& job, const ObjectValue* value) {
  if (job.op != Op::kObjectDelete) {
    if (value != nullptr)
      count_miss(engine, value->why_bad);
    else
      count_miss(engine, engine.objects.ghosts.contains(ghost_of(job.key)) ? ObjectMiss::kEvicted
                                                                           : ObjectMiss::kAbsent);
  }
  answer_object(engine, job, Code::kMiss);
}

void touch(EngineState& engine, Object& object) {
  object.last_used_unix_ns = engine.wall_ns();
  engine.objects.order.splice(engine.objects.order.begin(), engine.objects.order, object.place);
}

void mark_bad(EngineState& engine, ObjectValue& value, ObjectMiss why) {
  count_miss(engine, why);
  if (value.bad) return;
  value.bad = true;
  value.why_bad = why;
  ++engine.metrics.objects.bad;
  KVT_LOG(
      kWarn, "%s: %s; it is not served (run kvtier repair, or set the key again)",
      object_path(value.file).c_str(),
      why == ObjectMiss::kLost ? "the file is gone or has another size" : "the value is damaged");
}

void end_read(EngineState& engine, const ObjectJobPtr& job, Code code, std::uint64_t value_bytes,
              std::uint64_t bytes_disk = 0) {
  ObjectValue& value = *job->value;
  --value.reads;
  if (value.dead && value.reads == 0)
    static_cast<void>(engine.io->io().unlink(object_path(value.file)));
  if (job->file.value != 0) engine.io->io().close(job->file);
  answer_object(engine, *job, code, value_bytes, bytes_disk);
  leave_lane(engine, engine.objects.reads, *job);
}

// Compared in private memory, then copied to the client.
void check_and_copy(EngineState& engine, const ObjectJobPtr& job) {
  run_on_worker(
      engine,
      [job] {
        const ByteSpan value{job->buffer.data(), static_cast<std::size_t>(job->value->value_bytes)};
        job->sound = object_checksum(job->value->file, job->key, value) == job->value->checksum;
        if (job->sound)
          copy_to_shared(job->staging->mapping.data() + job->offset, value.data(), value.size());
      },
      [&engine, job] {
        const std::uint64_t read = job->buffer.size_bytes();
        if (!job->sound) {
          mark_bad(engine, *job->value, ObjectMiss::kChecksum);
          return end_read(engine, job, Code::kMiss, 0, read);
        }
        ++engine.metrics.objects.hits;
        end_read(engine, job, Code::kOk, job->value->value_bytes, read);
      });
}

void run_get(EngineState& engine, const ObjectJobPtr& job) {
  const ObjectValue& value = *job->value;
  Io& io = engine.io->io();
  const Result<FileId> file = io.open(
      object_path(value.file), {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  Result<std::uint64_t> size = object_file_bytes(value.value_bytes);
  if (file) {
    job->file = *file;
    size = io.size_bytes(*file);
  }
  const bool lost = file ? size && *size != object_file_bytes(value.value_bytes)
                         : file.error().code == Code::kNotFound;
  if (lost) {
    mark_bad(engine, *job->value, ObjectMiss::kLost);
    return end_read(engine, job, Code::kMiss, 0);
  }
  if (!file || !size) {
    ++engine.metrics.objects.failures;
    return end_read(engine, job, (file ? size.error() : file.error()).code, 0);
  }
  job->buffer = AlignedBuffer(job->buffer_bytes);
  job->parts_left =
      static_cast<std::uint32_t>((job->buffer_bytes + kReadBytesMax - 1) / kReadBytesMax);
  engine.metrics.objects.read_bytes += job->buffer_bytes;
  for (std::uint64_t at = 0; at < job->buffer_bytes; at += kReadBytesMax) {
    IoRequest read;
    read.op = IoOp::kRead;
    read.priority = job->priority;
    read.file = job->file;
    read.offset = kObjectHeaderBytes + at;
    read.pieces.push_back(
        {job->buffer.data() + at, std::min(kReadBytesMax, job->buffer_bytes - at)});
    read.done = [&engine, job](Result<void> result) {
      if (!result && job->failure.ok()) job->failure = result.error();
      if (--job->parts_left != 0) return;
      if (job->failure.ok()) return check_and_copy(engine, job);
      ++engine.metrics.objects.failures;
      end_read(engine, job, job->failure.code, 0);
    };
    engine.io->submit(std::move(read));
  }
}

void start_get(EngineState& engine, Object& object, const ObjectJobPtr& job) {
  const ObjectValuePtr& value = object.value;
  if (value == nullptr || value->bad) return miss(engine, *job, value.get());
  touch(engine, object);
  if (value->value_bytes > job->bytes)
    return answer_object(engine, *job, Code::kTooLarge, value->value_bytes);
  if (value->value_bytes == 0) {
    ++engine.metrics.objects.hits;
    return answer_object(engine, *job, Code::kOk);
  }
  job->value = value;
  ++value->reads;
  job->buffer_bytes = align_up(value->value_bytes, kDiskAlign);
  enter_lane(engine, engine.objects.reads, job);
}

void start(EngineState& engine, Object& object, const ObjectJobPtr& job) {
  switch (job->op) {
    case Op::kObjectExists:
      if (object.value == nullptr || object.value->bad)
        return miss(engine, *job, object.value.get());
      ++engine.metrics.objects.hits;
      touch(engine, object);
      return answer_object(engine, *job, Code::kOk, object.value->value_bytes);
    case Op::kObjectGet:
      return start_get(engine, object, job);
    case Op::kObjectDelete:
      // A row in doubt is removed all the same, or the value could come back after a crash.
      if (object.value == nullptr && !engine.objects.unsettled.contains(job->key))
        return miss(engine, *job, nullptr);
      object.writing = true;
      return start_object_delete(engine, job);
    default:
      object.writing = true;
      return start_object_set(engine, job);
  }
}

// Starts what waits for the key, as long as no write is under way; forgets a key without a value.
void run_waiting(EngineState& engine, const std::string& key) {
  Object& object = engine.objects.all.at(key);
  if (object.starting) return;  // further up in this call
  object.starting = true;
  while (!object.writing && !object.waiting.empty()) {
    const ObjectJobPtr next = std::move(object.waiting.front());
    object.waiting.pop_front();
    start(engine, object, next);
  }
  object.starting = false;
  if (object.value == nullptr && !object.writing) engine.objects.all.erase(key);
}

void run(EngineState& engine, const ObjectJobPtr& job) {
  const bool wanted = find_session(engine, job->session) != nullptr;
  if (!wanted && job->op == Op::kObjectGet) return end_read(engine, job, Code::kCancelled, 0);
  job->op == Op::kObjectGet ? run_get(engine, job) : run_object_set(engine, job);
}

}  // namespace

void answer_object(EngineState& engine, const ObjectJob& job, Code code, std::uint64_t value_bytes,
                   std::uint64_t bytes_disk) {
  Session* session = find_session(engine, job.session);
  if (session == nullptr) return;
  --session->object_requests;
  Completion completion{};
  completion.user_data = job.user_data;
  completion.status = static_cast<std::int32_t>(code);
  completion.value0 = value_bytes;
  completion.bytes_disk = bytes_disk;
  complete(engine, job.session, completion);
}

void enter_lane(EngineState& engine, ObjectLane& lane, const ObjectJobPtr& job) {
  lane.waiting.push_back(job);
  if (lane.waiting.size() > 1 || lane.bytes + job->buffer_bytes > kObjectLaneBytesMax) return;
  lane.waiting.pop_front();
  lane.bytes += job->buffer_bytes;
  run(engine, job);
}

void leave_lane(EngineState& engine, ObjectLane& lane, ObjectJob& job) {
  job.buffer = AlignedBuffer();
  lane.bytes -= std::exchange(job.buffer_bytes, 0);
  if (lane.starting) return;  // further up in this call
  lane.starting = true;
  while (!lane.waiting.empty() &&
         lane.bytes + lane.waiting.front()->buffer_bytes <= kObjectLaneBytesMax) {
    const ObjectJobPtr next = std::move(lane.waiting.front());
    lane.waiting.pop_front();
    lane.bytes += next->buffer_bytes;
    run(engine, next);
  }
  lane.starting = false;
}

void end_object_write(EngineState& engine, const ObjectJobPtr& job, Code code) {
  if (code != Code::kOk && code != Code::kMiss) ++engine.metrics.objects.failures;
  engine.objects.all.at(job->key).writing = false;
  answer_object(engine, *job, code,
                job->op == Op::kObjectSet && code == Code::kOk ? job->bytes : 0);
  run_waiting(engine, job->key);
}

void start_object_request(EngineState& engine, ObjectJobPtr job) {
  ObjectMetrics& metrics = engine.metrics.objects;
  ++(job->op == Op::kObjectSet      ? metrics.sets
     : job->op == Op::kObjectGet    ? metrics.gets
     : job->op == Op::kObjectExists ? metrics.lookups
                                    : metrics.deletes);
  const bool writes = job->op == Op::kObjectSet ||
                      (job->op == Op::kObjectDelete && engine.objects.unsettled.contains(job->key));
  const auto place =
      writes ? engine.objects.all.try_emplace(job->key).first : engine.objects.all.find(job->key);
  if (place == engine.objects.all.end()) return miss(engine, *job, nullptr);
  const std::string key = job->key;
  place->second.waiting.push_back(std::move(job));
  run_waiting(engine, key);
}

void install_object(EngineState& engine, const std::string& key, ObjectValuePtr value,
                    std::uint64_t used_unix_ns) {
  ObjectTable& table = engine.objects;
  const auto entry = table.all.try_emplace(key).first;
  Object& object = entry->second;
  if (object.value != nullptr) {
    table.disk_bytes -= object_file_bytes(object.value->value_bytes);
    bury_object(engine, *object.value);
    table.order.splice(table.order.begin(), table.order, object.place);
  } else {
    table.order.push_front(&entry->first);
    object.place = table.order.begin();
  }
  table.disk_bytes += object_file_bytes(value->value_bytes);
  object.value = std::move(value);
  object.last_used_unix_ns = used_unix_ns;
}

ObjectValuePtr take_object(EngineState& engine, const std::string& key) {
  ObjectTable& table = engine.objects;
  Object& object = table.all.at(key);
  KVT_CHECK(object.value != nullptr);
  table.disk_bytes -= object_file_bytes(object.value->value_bytes);
  table.order.erase(object.place);
  return std::exchange(object.value, nullptr);
}

void bury_object(EngineState& engine, ObjectValue& value) {
  value.dead = true;
  if (value.reads == 0) static_cast<void>(engine.io->io().unlink(object_path(value.file)));
}

const std::string* coldest_object(EngineState& engine, std::uint64_t* used_unix_ns) {
  ObjectTable& table = engine.objects;
  for (auto key = table.order.rbegin(); key != table.order.rend(); ++key) {
    const Object& object = table.all.at(**key);
    if (object.writing || object.value->reads != 0) continue;
    *used_unix_ns = object.last_used_unix_ns;
    return *key;
  }
  return nullptr;
}

std::uint64_t evict_object(EngineState& engine, const std::string& key) {
  ObjectTable& table = engine.objects;
  const std::string name = key;  // the table's own goes with the entry
  ObjectValuePtr value = take_object(engine, name);
  const std::uint64_t bytes = object_file_bytes(value->value_bytes);
  ++engine.metrics.objects.evicted;
  engine.metrics.objects.evicted_bytes += bytes;
  if (table.ghosts.insert(ghost_of(name)).second) table.ghost_order.push_back(ghost_of(name));
  if (table.ghost_order.size() > kGhostsMax) {
    table.ghosts.erase(table.ghost_order.front());
    table.ghost_order.pop_front();
  }
  table.unsettled[name].push_back(std::move(value));
  table.settle = true;
  const Object& object = table.all.at(name);
  if (object.waiting.empty() && !object.starting) table.all.erase(name);
  return bytes;
}

bool drop_object(EngineState& engine, const std::string& key, std::uint64_t file) {
  const auto found = engine.objects.all.find(key);
  if (found == engine.objects.all.end() || found->second.value == nullptr ||
      found->second.value->file != file)
    return true;
  if (found->second.writing || found->second.value->reads != 0) return false;
  engine.objects.unsettled[key].push_back(take_object(engine, key));
  engine.objects.settle = true;
  engine.objects.all.erase(found);
  publish_objects(engine);
  return true;
}

Result<void> recover_objects(EngineState& engine, std::vector<ObjectRow> rows,
                             CatalogueBatch* mend) {
  ObjectTable& table = engine.objects;
  KVT_TRY(const std::vector<std::string> names, engine.io->io().list("objects"));
  std::unordered_set<std::uint64_t> files;
  for (const std::string& name : names) {
    const Result<std::uint64_t> file = object_number_of(name);
    if (file) files.insert(*file);
  }
  // Hot first: the order of use is not kept over a restart, that of storing is.
  std::sort(rows.begin(), rows.end(),
            [](const ObjectRow& a, const ObjectRow& b) { return a.file < b.file; });
  for (ObjectRow& row : rows) {
    table.next_file = std::max(table.next_file, row.file + 1);
    if (files.erase(row.file) == 0) {
      KVT_LOG(kWarn, "%s is gone: its key is a miss", object_path(row.file).c_str());
      ++engine.metrics.objects.missing;
      mend->remove_object(row.key);
      continue;
    }
    auto value = std::make_shared<ObjectValue>();
    value->file = row.file;
    value->value_bytes = row.value_bytes;
    value->checksum = row.checksum;
    value->stored_unix_ns = row.stored_unix_ns;
    install_object(engine, row.key, std::move(value), row.stored_unix_ns);
    ++engine.metrics.objects.recovered;
  }
  for (const std::uint64_t file : files) {
    table.next_file = std::max(table.next_file, file + 1);
    // A row that is damaged or lost may have named it.
    if (engine.metrics.rows_damaged != 0 || rows_were_lost(engine)) continue;
    ++engine.metrics.files_dropped;
    KVT_LOG(kInfo, "%s was never published, or is of the past: removed", object_path(file).c_str());
    static_cast<void>(engine.io->io().unlink(object_path(file)));
  }
  return {};
}

}  // namespace kvtier
