#include "tiers/catalogue.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <utility>

#include "base/fault.h"
#include "base/log.h"
#include "base/shell_word.h"
#include "tiers/catalogue_env.h"
#include "tiers/catalogue_rows.h"

namespace kvtier {

namespace {

namespace rows = catalogue_rows;

constexpr std::size_t kWriteBufferBytes = 16u << 20;
constexpr std::size_t kBlockCacheBytes = 32u << 20;
constexpr std::size_t kLogsKept = 32;
constexpr std::uint64_t kWalBytesMax = 64u << 20;
constexpr std::uint64_t kStepwiseFlushBytes = 256u << 10;

// RocksDB's own log: warnings go to ours, the rest nowhere. No LOG file is written.
class LogBridge final : public rocksdb::Logger {
 public:
  explicit LogBridge(bool quiet)
      : Logger(quiet ? rocksdb::InfoLogLevel::FATAL_LEVEL : rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using Logger::Logv;
  void LogHeader(const char*, va_list) override {}
  void Logv(const char*, va_list) override {}
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < GetInfoLogLevel() || level >= rocksdb::InfoLogLevel::HEADER_LEVEL) return;
    char line[512];
    std::vsnprintf(line, sizeof(line), format, arguments);
    KVT_LOG(kWarn, "catalogue: %s", line);
  }
};

bool mentions(const rocksdb::Status& status, const char* text) {
  return status.getState() != nullptr &&
         std::string_view(status.getState()).find(text) != std::string_view::npos;
}

Status to_status(const rocksdb::Status& status) {
  if (status.ok()) return {};
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit)
    return {Code::kNoSpace, 0, "catalogue: the disk is full"};
  if (status.IsCorruption()) return {Code::kCorrupt, 0, "catalogue: RocksDB found damage"};
  if (status.IsIOError() &&
      (mentions(status, "lock hold by") || mentions(status, "While lock file")))
    return {Code::kBusy, 0, "catalogue: another process has it open"};
  if (status.IsIOError() && mentions(status, "Read-only file system"))
    return {Code::kReadOnly, 0, "catalogue: the file system is read-only"};
  if (status.IsIOError() && mentions(status, "Permission denied"))
    return {Code::kPermission, 0, "catalogue: no permission"};
  if (status.IsPathNotFound() || status.IsNotFound())
    return {Code::kNotFound, 0, "catalogue: not found"};
  return {Code::kIo, 0, "catalogue: RocksDB failed"};
}

// Of an open: what is not the moment's fault is damage, and says what mends it.
Status to_open_status(const rocksdb::Status& status) {
  static constexpr const char* kMend =
      "the catalogue is damaged: `kvtier repair --store PATH` makes a new one from the files";
  if (status.IsNotSupported())
    return {Code::kVersion, 0, "the catalogue was written by a newer kvtier: upgrade this one"};
  const Status plain = to_status(status);
  if (plain.code == Code::kCorrupt || plain.code == Code::kNotFound || status.IsInvalidArgument() ||
      (plain.code == Code::kIo && mentions(status, "No such file")))
    return {Code::kCorrupt, 0, kMend};
  return plain;
}

// RocksDB would begin anew where CURRENT is missing, whatever else lies there.
bool lost_current(rocksdb::Env* env, const std::string& path) {
  if (env->FileExists(path + "/CURRENT").ok()) return false;
  std::vector<std::string> names;
  if (!env->GetChildren(path, &names).ok()) return false;
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name.ends_with(".log") || name.ends_with(".sst") || name.starts_with("MANIFEST-");
  });
}

tl::unexpected<Status> failed(const char* what, const rocksdb::Status& status) {
  KVT_LOG(kError, "catalogue: %s: %s", what, status.ToString().c_str());
  return error(to_status(status));
}

constexpr Status kThrew{Code::kInternal, 0, "catalogue: RocksDB threw"};

// Runs a call into RocksDB; what it throws becomes a status.
template <class Call>
auto guarded(Call&& call) noexcept -> decltype(call()) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return error(Code::kFull, "catalogue: out of memory");
  } catch (const std::exception& thrown) {
    KVT_LOG(kError, "catalogue: %s", thrown.what());
    return error(kThrew);
  } catch (...) {
    return error(kThrew);
  }
}

rocksdb::BlockBasedTableOptions table_options(bool stepwise) {
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  table.block_cache =
      rocksdb::NewLRUCache(stepwise ? kBlockCacheBytes / 32 : kBlockCacheBytes, 0, true);
  return table;
}

rocksdb::Options rocksdb_options(rocksdb::Env* env, bool stepwise) {
  rocksdb::Options options;
  options.env = env;
  options.create_if_missing = true;
  options.paranoid_checks = true;
  options.info_log = std::make_shared<LogBridge>(stepwise);
  options.info_log_level = options.info_log->GetInfoLogLevel();
  options.write_buffer_size = kWriteBufferBytes;
  options.max_total_wal_size = kWalBytesMax;
  options.max_background_jobs = 2;
  options.max_file_opening_threads = 1;
  options.compression = rocksdb::kNoCompression;
  // A power cut may tear what was written behind the last sync, also with a hole: a later page
  // kept, an earlier one lost. Everything synced lies before the first such record, so stopping
  // there loses no synced batch and never shows a batch without its predecessors.
  // (kTolerateCorruptedTailRecords would refuse to open over a hole, and kSkipAnyCorruptedRecords
  // would jump it.) Damage inside the synced part is caught by the sizes in the manifest where
  // whole pages are gone; rows that are lost to rot can be rebuilt from the segment files.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  options.track_and_verify_wals_in_manifest = true;
  options.avoid_flush_during_recovery = true;  // see renew_logs()
  options.fail_if_options_file_error = false;
  options.max_bgerror_resume_count = 0;  // resume() decides, nobody else
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.skip_stats_update_on_db_open = true;
  options.manifest_preallocation_size = 64 << 10;
  options.max_manifest_file_size = 4 << 20;
  options.db_host_id.clear();
  options.advise_random_on_open = false;
  if (stepwise) {
    options.max_background_jobs = 1;
    options.write_buffer_size = 256u << 20;  // flushed by hand long before
    options.arena_block_size = 64u << 10;
    options.disable_auto_compactions = true;
    options.level0_slowdown_writes_trigger = 1 << 28;
    options.level0_stop_writes_trigger = 1 << 28;
    options.allow_fallocate = false;
  }
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table_options(stepwise)));
  return options;
}

rocksdb::Status sync_directory(rocksdb::Env* env, const std::string& path) {
  std::unique_ptr<rocksdb::Directory> directory;
  rocksdb::Status status = env->NewDirectory(path, &directory);
  if (status.ok()) status = directory->Fsync();
  return status;
}

// Makes the directory and the names leading to it durable.
rocksdb::Status make_directories(rocksdb::Env* env, const std::string& path) {
  for (std::size_t end = 0; end != std::string::npos;) {
    end = path.find('/', end + 1);
    const std::string part = path.substr(0, end);
    if (part.empty() || part == "/" || env->FileExists(part).ok()) continue;
    if (const rocksdb::Status made = env->CreateDirIfMissing(part); !made.ok()) return made;
    const std::size_t slash = part.find_last_of('/');
    const std::string parent = slash == std::string::npos ? "."
                               : slash == 0               ? "/"
                                                          : part.substr(0, slash);
    if (const rocksdb::Status synced = sync_directory(env, parent); !synced.ok()) return synced;
  }
  return rocksdb::Status::OK();
}

bool no_room(const rocksdb::Status& status) {
  return status.IsNoSpace() || (status.IsIOError() && mentions(status, "quota"));
}

// The same bytes in a new file in its place; where there is no room for it, a sync of this one must
// do.
rocksdb::Status renew(rocksdb::Env* env, const std::string& path) {
  std::string bytes;
  std::unique_ptr<rocksdb::WritableFile> file;
  rocksdb::Status status = rocksdb::ReadFileToString(env, path, &bytes);
  if (!status.ok() || bytes.empty()) return status;
  const std::string copy = path + ".copy";
  status = env->NewWritableFile(copy, &file, rocksdb::EnvOptions());
  if (status.ok()) status = file->Append(bytes);
  if (status.ok()) status = file->Sync();
  if (status.ok()) status = file->Close();
  if (status.ok()) status = env->RenameFile(copy, path);
  if (status.ok()) return status;
  env->DeleteFile(copy).PermitUncheckedError();
  if (!no_room(status)) return status;
  status = env->ReopenWritableFile(path, &file, rocksdb::EnvOptions());
  if (status.ok()) status = file->Sync();
  if (status.ok()) status = file->Close();
  return status;
}

// RocksDB's own lock of the directory: who has it writes to the logs there.
class DirectoryLock {
 public:
  DirectoryLock(rocksdb::Env* env, const std::string& path)
      : env_(env), status_(env->LockFile(path + "/LOCK", &lock_)) {}
  ~DirectoryLock() {
    if (status_.ok()) env_->UnlockFile(lock_).PermitUncheckedError();
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  [[nodiscard]] const rocksdb::Status& status() const { return status_; }

 private:
  rocksdb::Env* env_;
  rocksdb::FileLock* lock_ = nullptr;
  rocksdb::Status status_;
};

// Logs that a killed process left may hold batches that never reached the disk itself, and that no
// sync of theirs would bring there, if one has failed before. RocksDB replays them and goes on in a
// new log; a power cut would then lose the old log's end and, with it, every synced batch behind
// the gap. So they are written anew before they are replayed, damage and all: what RocksDB cannot
// read of them a repair may. `*logs`: how many there are.
rocksdb::Status renew_logs(rocksdb::Env* env, const std::string& path, std::size_t* logs) {
  std::vector<std::string> names;
  if (!env->GetChildren(path, &names).ok()) return rocksdb::Status::OK();  // nothing there yet
  for (const std::string& name : names) {
    if (name.ends_with(".log.copy")) env->DeleteFile(path + "/" + name).PermitUncheckedError();
    if (!name.ends_with(".log")) continue;
    ++*logs;
    if (const rocksdb::Status status = renew(env, path + "/" + name); !status.ok()) return status;
  }
  return *logs != 0 ? sync_directory(env, path) : rocksdb::Status::OK();
}

rocksdb::Slice slice(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

struct CatalogueBatch::State {
  rocksdb::WriteBatch batch;

  template <class Row>
  void put(const std::string& key, const Row& row) {
    batch.Put(key, slice(rows::encode(key, row)))
        .PermitUncheckedError();  // in memory: only its size could fail it
  }
  void remove(const std::string& key) { batch.Delete(key).PermitUncheckedError(); }
};

CatalogueBatch::CatalogueBatch() : state_(std::make_unique<State>()) {}
CatalogueBatch::~CatalogueBatch() = default;
CatalogueBatch::CatalogueBatch(CatalogueBatch&&) noexcept = default;
CatalogueBatch& CatalogueBatch::operator=(CatalogueBatch&&) noexcept = default;

void CatalogueBatch::put_space(const SpaceRow& row) {
  state_->put(rows::key_of(rows::Kind::kSpace, row.id.value), row);
}
void CatalogueBatch::put_segment(const SegmentRow& row) {
  state_->put(rows::key_of(rows::Kind::kSegment, row.id.value), row);
}
void CatalogueBatch::put_sequence(const SequenceRow& row) {
  state_->put(rows::key_of(rows::Kind::kSequence, row.id.value), row);
}
void CatalogueBatch::put_object(const ObjectRow& row) {
  state_->put(rows::key_of(rows::Kind::kObject, row.key), row);
}
void CatalogueBatch::put_number(std::string_view name, std::uint64_t value) {
  state_->put(rows::key_of(rows::Kind::kNumber, name), value);
}
void CatalogueBatch::remove_segment(SegmentId id) {
  state_->remove(rows::key_of(rows::Kind::kSegment, id.value));
}
void CatalogueBatch::remove_sequence(SequenceId id) {
  state_->remove(rows::key_of(rows::Kind::kSequence, id.value));
}
void CatalogueBatch::remove_object(std::string_view key) {
  state_->remove(rows::key_of(rows::Kind::kObject, key));
}
void CatalogueBatch::remove_number(std::string_view name) {
  state_->remove(rows::key_of(rows::Kind::kNumber, name));
}
bool CatalogueBatch::empty() const noexcept { return state_->batch.Count() == 0; }

struct Catalogue::State {
  std::string path;
  std::shared_ptr<CatalogueEnv> simulated;  // outlives db
  rocksdb::Env* env = nullptr;
  bool read_only = false, stepwise = false;
  std::unique_ptr<rocksdb::DB> db;  // null after a failed resume()
  Status stopped;                   // why no writes are taken
  std::uint64_t unflushed_bytes = 0;

  rocksdb::Status open(bool flush_recovered);
  rocksdb::Status write(rocksdb::WriteBatch* batch, bool sync);
  rocksdb::Status settle(bool flush);
};

rocksdb::Status Catalogue::State::open(bool flush_recovered) {
  rocksdb::Options options = rocksdb_options(env, stepwise);
  rocksdb::DB* opened = nullptr;
  rocksdb::Status status;
  if (read_only) {
    options.create_if_missing = false;
    status = rocksdb::DB::OpenForReadOnly(options, path, &opened);
  } else {
    std::size_t logs = 0;
    status = make_directories(env, path);
    if (status.ok()) {
      const DirectoryLock lock(env, path);
      status = lock.status();
      if (status.ok()) status = renew_logs(env, path, &logs);
    }
    // Every start leaves one more log: some are gathered, then they become a table.
    const bool flush = flush_recovered || logs > kLogsKept;
    options.avoid_flush_during_recovery = !flush;
    if (status.ok()) status = rocksdb::DB::Open(options, path, &opened);
    if (no_room(status) && flush && !flush_recovered) {
      options.avoid_flush_during_recovery = true;
      status = rocksdb::DB::Open(options, path, &opened);
    }
  }
  db.reset(opened);
  if (status.ok() && stepwise && !read_only) status = settle(false);
  return status;
}

// Brings RocksDB's threads to rest, after a flush where wanted: a simulated crash must find nobody
// at work.
rocksdb::Status Catalogue::State::settle(bool flush) {
  rocksdb::Status status;
  if (flush) {
    status = db->Flush(rocksdb::FlushOptions());
    unflushed_bytes = 0;
  }
  if (stepwise && db->PauseBackgroundWork().ok())
    db->ContinueBackgroundWork().PermitUncheckedError();
  return status;
}

rocksdb::Status Catalogue::State::write(rocksdb::WriteBatch* batch, bool sync) {
  rocksdb::WriteOptions options;
  options.sync = sync;
  const std::uint64_t bytes = batch->GetDataSize();
  rocksdb::Status status = db->Write(options, batch);
  if (!status.ok() || !stepwise) return status;
  unflushed_bytes += bytes;
  if (unflushed_bytes < kStepwiseFlushBytes) return status;
  // The batch itself is in: a flush that fails is reported by the next write, as in production.
  settle(true).PermitUncheckedError();
  return status;
}

std::string with_store_named(std::string text, const std::string& store_path) {
  constexpr std::string_view kPlace = "--store PATH";
  if (const std::size_t at = text.find(kPlace); at != std::string::npos)
    text.replace(at, kPlace.size(), "--store " + shell_word(store_path));
  return text;
}

Catalogue::Catalogue() = default;
Catalogue::~Catalogue() = default;

Result<std::unique_ptr<Catalogue>> Catalogue::open(const CatalogueOptions& options) {
  return guarded([&]() -> Result<std::unique_ptr<Catalogue>> {
    std::unique_ptr<Catalogue> catalogue(new Catalogue);
    catalogue->state_ = std::make_unique<State>();
    State& state = *catalogue->state_;
    state.path = options.path;
    state.simulated = options.env;
    state.env = options.env ? options.env->env() : rocksdb::Env::Default();
    state.stepwise = options.env && options.env->stepwise();
    state.read_only = options.read_only;
    if (options.env) options.env->start();
    if (options.read_only && !state.env->FileExists(options.path + "/CURRENT").ok())
      return error(Code::kNotFound, "catalogue: there is none at this path");
    if (lost_current(state.env, options.path))
      return error(to_open_status(rocksdb::Status::Corruption()));
    if (const rocksdb::Status status = state.open(false); !status.ok()) {
      // Who only looks reports what it found itself.
      if (state.read_only)
        KVT_LOG(kInfo, "catalogue: open: %s", status.ToString().c_str());
      else
        KVT_LOG(kError, "catalogue: open: %s", status.ToString().c_str());
      return error(to_open_status(status));
    }
    return catalogue;
  });
}

Result<void> Catalogue::salvage(const std::string& path) {
  return guarded([&]() -> Result<void> {
    rocksdb::Options options = rocksdb_options(rocksdb::Env::Default(), false);
    options.info_log.reset();  // into the copy's own file: that data may be lost is no news
    const rocksdb::Status status = rocksdb::RepairDB(path, options);
    if (status.ok()) return {};
    KVT_LOG(kInfo, "catalogue: salvage: %s", status.ToString().c_str());
    return error(to_open_status(status));
  });
}

Result<void> Catalogue::load(const CatalogueVisitor& visitor) {
  return guarded([&]() -> Result<void> {
    if (state_->db == nullptr) return error(state_->stopped);
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> row(state_->db->NewIterator(options));
    for (row->SeekToFirst(); row->Valid(); row->Next()) {
      const rocksdb::Slice value = row->value();
      rows::visit({row->key().data(), row->key().size()},
                  as_bytes(std::string_view(value.data(), value.size())), visitor);
    }
    if (row->status().ok()) return {};
    if (state_->read_only)
      KVT_LOG(kInfo, "catalogue: load: %s", row->status().ToString().c_str());
    else
      KVT_LOG(kError, "catalogue: load: %s", row->status().ToString().c_str());
    return error(to_open_status(row->status()));
  });
}

Result<void> Catalogue::write(CatalogueBatch batch, bool sync) {
  return guarded([&]() -> Result<void> {
    State& state = *state_;
    if (state.read_only) return error(Code::kReadOnly, "catalogue: opened read-only");
    if (!state.stopped.ok()) return error(state.stopped);
    if (KVT_FAULT("catalogue.write")) {
      state.stopped = {Code::kIo, 0, "catalogue: fault asked for"};
      return error(state.stopped);
    }
    state.stopped = kThrew;  // unless it returns
    const rocksdb::Status status = state.write(&batch.state_->batch, sync);
    if (status.ok() && !KVT_FAULT("catalogue.written")) {
      state.stopped = {};
      return {};
    }
    state.stopped =
        status.ok() ? Status{Code::kIo, 0, "catalogue: fault asked for"} : to_status(status);
    if (!status.ok()) KVT_LOG(kError, "catalogue: write: %s", status.ToString().c_str());
    return error(state.stopped);
  });
}

// By reopening: what RocksDB holds in memory is in its log too, and the log is read and flushed to
// new files, because a log whose write or sync failed once may end in half a record or claim bytes
// that never reached the disk. (DB::Resume() goes on in the old log where nothing waits to be
// flushed.)
Result<void> Catalogue::resume() {
  return guarded([&]() -> Result<void> {
    State& state = *state_;
    if (state.read_only) return error(Code::kReadOnly, "catalogue: opened read-only");
    state.stopped = kThrew;
    state.db.reset();
    if (const rocksdb::Status status = state.open(true); !status.ok()) {
      state.stopped = to_status(status);
      return failed("resume", status);
    }
    state.stopped = {};
    return {};
  });
}

std::uint64_t Catalogue::disk_bytes() const {
  std::vector<rocksdb::Env::FileAttributes> files;
  const auto listed = guarded([&]() -> Result<void> {
    state_->env->GetChildrenFileAttributes(state_->path, &files).PermitUncheckedError();
    return {};
  });
  std::uint64_t total = 0;
  if (listed) {
    for (const auto& file : files) total += file.size_bytes;
  }
  return total;
}

}  // namespace kvtier
