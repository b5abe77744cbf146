// The writing half of objects.h: sets, deletes, and the catalogue batches that they share.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/fault.h"
#include "base/log_limit.h"
#include "client/ipc/shared_copy.h"
#include "daemon/engine_state.h"
#include "daemon/objects.h"
#include "daemon/reclaim.h"
#include "tiers/object_format.h"

namespace kvtier {

namespace {

constexpr std::size_t kBatchKeysMax = 1024;

Status injected() { return {Code::kIo, 0, "injected"}; }

std::uint64_t file_bytes(const ObjectJob& job) { return object_file_bytes(job.bytes); }

void log_failure(const EngineState& engine, const ObjectJob& job, const Status& status) {
  static LogLimit limit;
  limit.warn(engine.now_ns(), static_cast<int>(status.code),
             "an opaque key of %zu bytes was not stored: %s", job.key.size(), status.message());
}

// No row names the file: it goes, and the value before stays.
void fail_set(EngineState& engine, const ObjectJobPtr& job, const Status& status) {
  log_failure(engine, *job, status);
  if (job->value != nullptr) engine.objects.reserved_bytes -= file_bytes(*job);
  if (job->file.value != 0) {
    engine.io->io().close(job->file);
    static_cast<void>(engine.io->io().unlink(object_path(job->value->file)));
  }
  end_object_write(engine, job, status.code);
  leave_lane(engine, engine.objects.writes, *job);
}

// Worker: header and value into one aligned buffer, copied once out of what the client can write.
void encode_set(ObjectJob& job) {
  job.buffer = AlignedBuffer(file_bytes(job));
  std::byte* value = job.buffer.data() + kObjectHeaderBytes;
  if (job.bytes != 0)
    copy_from_shared(value, job.staging->mapping.data() + job.offset,
                     static_cast<std::size_t>(job.bytes));
  job.value->checksum =
      object_checksum(job.value->file, job.key, {value, static_cast<std::size_t>(job.bytes)});
  const std::vector<std::byte> header =
      encode_object_header({job.value->file, job.key, job.value->value_bytes, job.value->checksum});
  std::memcpy(job.buffer.data(), header.data(), header.size());
}

void file_is_durable(EngineState& engine, const ObjectJobPtr& job) {
  engine.io->io().close(std::exchange(job->file, FileId{}));
  engine.metrics.objects.written_bytes += file_bytes(*job);
  engine.objects.ready.push_back(job);
  publish_objects(engine);
  leave_lane(engine, engine.objects.writes, *job);
}

void sync_set(EngineState& engine, const ObjectJobPtr& job) {
  if (KVT_FAULT("object.written")) return fail_set(engine, job, injected());
  IoRequest sync;
  sync.op = IoOp::kSync;
  sync.priority = IoPriority::kWriteBack;
  sync.file = job->file;
  sync.done = [&engine, job](Result<void> synced) {
    if (!synced) return fail_set(engine, job, synced.error());
    if (KVT_FAULT("object.synced")) return fail_set(engine, job, injected());
    file_is_durable(engine, job);
  };
  engine.io->submit(std::move(sync));
}

void write_set(EngineState& engine, const ObjectJobPtr& job) {
  if (KVT_FAULT("object.copied")) return fail_set(engine, job, injected());
  const Result<FileId> file =
      engine.io->io().open(object_path(job->value->file),
                           {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return fail_set(engine, job, file.error());
  job->file = *file;
  const std::uint64_t bytes = job->buffer.size_bytes();
  job->parts_left = static_cast<std::uint32_t>((bytes + kReadBytesMax - 1) / kReadBytesMax);
  for (std::uint64_t at = 0; at < bytes; at += kReadBytesMax) {
    IoRequest write;
    write.op = IoOp::kWrite;
    write.priority = IoPriority::kWriteBack;
    write.file = job->file;
    write.offset = at;
    write.pieces.push_back({job->buffer.data() + at, std::min(kReadBytesMax, bytes - at)});
    write.done = [&engine, job](Result<void> result) {
      if (!result && job->failure.ok()) job->failure = result.error();
      if (--job->parts_left != 0) return;
      job->failure.ok() ? sync_set(engine, job) : fail_set(engine, job, job->failure);
    };
    engine.io->submit(std::move(write));
  }
}

// A group of changes that one catalogue batch makes durable.
struct Publication {
  std::vector<ObjectJobPtr> jobs;
  std::unordered_map<std::string, std::vector<ObjectValuePtr>> settled;
};
using PublicationPtr = std::shared_ptr<Publication>;

ObjectRow row_of(const std::string& key, const ObjectValue& value) {
  return {.key = key,
          .file = value.file,
          .value_bytes = value.value_bytes,
          .checksum = value.checksum,
          .stored_unix_ns = value.stored_unix_ns};
}

CatalogueBatch rows_of(EngineState& engine, const Publication& publication) {
  CatalogueBatch batch;
  for (const auto& [key, files] : publication.settled) {
    const auto found = engine.objects.all.find(key);
    if (found != engine.objects.all.end() && found->second.value != nullptr)
      batch.put_object(row_of(key, *found->second.value));
    else
      batch.remove_object(key);
  }
  for (const ObjectJobPtr& job : publication.jobs)
    job->op == Op::kObjectSet ? batch.put_object(row_of(job->key, *job->value))
                              : batch.remove_object(job->key);
  return batch;
}

// The rows are written: what only a row in doubt named goes.
void bury_settled(EngineState& engine, const Publication& publication) {
  auto& unsettled = engine.objects.unsettled;
  for (const auto& [key, files] : publication.settled) {
    const auto found = unsettled.find(key);
    for (const ObjectValuePtr& value : files) {
      bury_object(engine, *value);
      std::erase(found->second, value);
    }
    if (found->second.empty()) unsettled.erase(found);
  }
}

void end_publication(EngineState& engine, const PublicationPtr& publication,
                     const Result<void>& result) {
  ObjectTable& table = engine.objects;
  if (result) bury_settled(engine, *publication);
  for (const ObjectJobPtr& job : publication->jobs) {
    const bool set = job->op == Op::kObjectSet;
    Code code = result ? Code::kOk : result.error().code;
    if (set) table.reserved_bytes -= file_bytes(*job);
    if (!result) {
      log_failure(engine, *job, result.error());
      auto& files = table.unsettled[job->key];
      if (set) files.push_back(job->value);
    } else if (set) {
      install_object(engine, job->key, job->value, job->value->stored_unix_ns);
    } else if (table.all.at(job->key).value != nullptr) {
      bury_object(engine, *take_object(engine, job->key));
    } else {
      code = Code::kMiss;
    }
    end_object_write(engine, job, code);
  }
  table.publishing = false;
  publish_objects(engine);
}

bool is_set(const ObjectJobPtr& job) { return job->op == Op::kObjectSet; }

// The sets leave the group: nobody may name their files.
void fail_sets(EngineState& engine, Publication* publication, const Status& status) {
  std::vector<ObjectJobPtr> failed, kept;
  for (ObjectJobPtr& job : publication->jobs)
    (is_set(job) ? failed : kept).push_back(std::move(job));
  publication->jobs = std::move(kept);
  for (const ObjectJobPtr& job : failed) {
    bury_object(engine, *job->value);
    engine.objects.reserved_bytes -= file_bytes(*job);
    log_failure(engine, *job, status);
    end_object_write(engine, job, status.code);
  }
}

using Written = std::function<void(Result<void>)>;

void write_rows(EngineState& engine, const Publication& publication, const Written& written) {
  CatalogueBatch batch = rows_of(engine, publication);
  if (batch.empty()) return written({});
  ++engine.metrics.objects.batches;
  post_batch(engine, std::move(batch), true, [written](Result<void> result) {
    if (result && KVT_FAULT("object.published")) result = error(injected());
    written(result);
  });
}

// The names of new files must be durable before rows name them.
void sync_names(EngineState& engine, const PublicationPtr& publication) {
  const Written end = [&engine, publication](Result<void> result) {
    end_publication(engine, publication, result);
  };
  if (std::none_of(publication->jobs.begin(), publication->jobs.end(), is_set))
    return write_rows(engine, *publication, end);
  const auto sync = [&engine](const Written& synced) {
    sync_directory(engine, "objects", IoPriority::kWriteBack, synced);
  };
  if (KVT_FAULT("object.publish_early"))  // what must never be, tests only: the rows come first
    return write_rows(engine, *publication,
                      [sync, end](Result<void> written) { written ? sync(end) : end(written); });
  sync([&engine, publication, end](Result<void> synced) {
    if (!synced) fail_sets(engine, publication.get(), synced.error());
    write_rows(engine, *publication, end);
  });
}

}  // namespace

void start_object_set(EngineState& engine, const ObjectJobPtr& job) {
  if (engine.draining) return end_object_write(engine, job, Code::kCancelled);
  if (engine.read_only) return end_object_write(engine, job, Code::kReadOnly);
  job->buffer_bytes = file_bytes(*job);
  enter_lane(engine, engine.objects.writes, job);
}

void run_object_set(EngineState& engine, const ObjectJobPtr& job) {
  // Its client is gone: nobody was told, nobody waits.
  if (find_session(engine, job->session) == nullptr)
    return fail_set(engine, job, {Code::kCancelled, 0, nullptr});
  if (const Result<void> room = reserve_disk(engine, file_bytes(*job)); !room)
    return fail_set(engine, job, room.error());
  ObjectTable& table = engine.objects;
  std::uint64_t used_unix_ns = 0;
  if (table.order.size() >= kObjectsMax) {
    if (const std::string* cold = coldest_object(engine, &used_unix_ns); cold != nullptr)
      evict_object(engine, *cold);
  }
  table.reserved_bytes += file_bytes(*job);
  job->value = std::make_shared<ObjectValue>();
  job->value->file = table.next_file++;
  job->value->value_bytes = job->bytes;
  job->value->stored_unix_ns = engine.wall_ns();
  run_on_worker(
      engine, [job] { encode_set(*job); }, [&engine, job] { write_set(engine, job); });
}

void start_object_delete(EngineState& engine, const ObjectJobPtr& job) {
  if (engine.draining) return end_object_write(engine, job, Code::kCancelled);
  if (engine.read_only) return end_object_write(engine, job, Code::kReadOnly);
  engine.objects.ready.push_back(job);
  publish_objects(engine);
}

void publish_objects(EngineState& engine) {
  ObjectTable& table = engine.objects;
  if (table.publishing || (table.ready.empty() && !table.settle)) return;
  table.publishing = true;
  auto publication = std::make_shared<Publication>();
  const std::size_t count = std::min(table.ready.size(), kBatchKeysMax);
  const auto end = table.ready.begin() + static_cast<std::ptrdiff_t>(count);
  publication->jobs.assign(table.ready.begin(), end);
  table.ready.erase(table.ready.begin(), end);
  table.settle = false;
  publication->settled = table.unsettled;
  sync_names(engine, publication);
}

}  // namespace kvtier
