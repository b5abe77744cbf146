// RocksDB's FileSystem over SimDisk. Derived from the bare interface, not from a wrapper: what is
// not written here is not supported, and nothing can reach the real file system by accident.
//
// RocksDB's background thread flushes while the caller waits for it (CatalogueEnv::stepwise); one
// mutex around the disk hands it over.
#include "tiers/catalogue_env_sim.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/system_clock.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "tiers/catalogue_env.h"

namespace kvtier {

namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

IOStatus to_io_status(const Status& status, const std::string& path) {
  switch (status.code) {
    case Code::kOk:
      return IOStatus::OK();
    case Code::kNotFound:
      return IOStatus::PathNotFound(path);
    case Code::kNoSpace:
      return IOStatus::NoSpace(path);
    default:
      return IOStatus::IOError(path, status.message());
  }
}

// A disk and the process that uses it: after a power cut the process is dead and touches nothing.
struct Machine {
  Machine(SimDisk& on, Clock& by) : disk(on), clock(by), process(on.power_cuts()) {}

  SimDisk& disk;
  Clock& clock;
  std::mutex mutex;             // around everything below and the disk
  std::uint64_t process;        // power cuts when it began
  std::set<std::string> locks;  // of the running process

  // Runs `call` on the disk on behalf of a process.
  template <class Call>
  IOStatus on_disk(std::uint64_t caller, const std::string& path, Call&& call) {
    const std::lock_guard lock(mutex);
    if (caller != disk.power_cuts()) return IOStatus::IOError(path, "the power was cut");
    const Result<void> done = call(disk);
    return done ? IOStatus::OK() : to_io_status(done.error(), path);
  }
};

using MachinePtr = std::shared_ptr<Machine>;

Result<void> read_at(SimDisk& disk, const std::string& path, std::uint64_t offset, std::size_t n,
                     char* scratch, Slice* result) {
  std::uint64_t got = 0;
  KVT_TRY_VOID(disk.read(path, offset, {reinterpret_cast<std::byte*>(scratch), n}, &got));
  *result = Slice(scratch, static_cast<std::size_t>(got));
  return {};
}

class SimSequentialFile final : public rocksdb::FSSequentialFile {
 public:
  SimSequentialFile(MachinePtr machine, std::string path)
      : machine_(std::move(machine)), path_(std::move(path)), process_(machine_->process) {}
  IOStatus Read(std::size_t n, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) override {
    const IOStatus status = machine_->on_disk(process_, path_, [&](SimDisk& disk) {
      return read_at(disk, path_, offset_, n, scratch, result);
    });
    if (status.ok()) offset_ += result->size();
    return status;
  }
  IOStatus Skip(std::uint64_t n) override {
    offset_ += n;
    return IOStatus::OK();
  }

 private:
  MachinePtr machine_;
  std::string path_;
  std::uint64_t process_, offset_ = 0;
};

class SimRandomAccessFile final : public rocksdb::FSRandomAccessFile {
 public:
  SimRandomAccessFile(MachinePtr machine, std::string path)
      : machine_(std::move(machine)), path_(std::move(path)), process_(machine_->process) {}
  IOStatus Read(std::uint64_t offset, std::size_t n, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) const override {
    return machine_->on_disk(process_, path_, [&](SimDisk& disk) {
      return read_at(disk, path_, offset, n, scratch, result);
    });
  }

 private:
  MachinePtr machine_;
  std::string path_;
  std::uint64_t process_;
};

class SimWritableFile final : public rocksdb::FSWritableFile {
 public:
  SimWritableFile(MachinePtr machine, std::string path, std::uint64_t offset)
      : machine_(std::move(machine)),
        path_(std::move(path)),
        process_(machine_->process),
        offset_(offset) {}
  using FSWritableFile::Append;
  IOStatus Append(const Slice& data, const IOOptions&, IODebugContext*) override {
    const IOStatus status = machine_->on_disk(process_, path_, [&](SimDisk& disk) {
      return disk.write(path_, offset_, as_bytes(std::string_view(data.data(), data.size())));
    });
    if (status.ok()) offset_ += data.size();
    return status;
  }
  IOStatus Truncate(std::uint64_t size, const IOOptions&, IODebugContext*) override {
    const IOStatus status =
        machine_->on_disk(process_, path_, [&](SimDisk& disk) { return disk.resize(path_, size); });
    if (status.ok()) offset_ = size;
    return status;
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Flush(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    return machine_->on_disk(process_, path_, [&](SimDisk& disk) { return disk.sync(path_); });
  }
  bool IsSyncThreadSafe() const override { return true; }
  std::uint64_t GetFileSize(const IOOptions&, IODebugContext*) override { return offset_; }

 private:
  MachinePtr machine_;
  std::string path_;
  std::uint64_t process_, offset_;
};

class SimDirectory final : public rocksdb::FSDirectory {
 public:
  SimDirectory(MachinePtr machine, std::string path)
      : machine_(std::move(machine)), path_(std::move(path)), process_(machine_->process) {}
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return machine_->on_disk(process_, path_,
                             [&](SimDisk& disk) { return disk.sync_directory(path_); });
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }

 private:
  MachinePtr machine_;
  std::string path_;
  std::uint64_t process_;
};

struct SimFileLock final : rocksdb::FileLock {
  SimFileLock(std::string at, std::uint64_t by) : path(std::move(at)), process(by) {}
  std::string path;
  std::uint64_t process;
};

class SimFileSystem final : public rocksdb::FileSystem {
 public:
  explicit SimFileSystem(MachinePtr machine) : machine_(std::move(machine)) {}
  const char* Name() const override { return "KvtSimFileSystem"; }

  IOStatus NewSequentialFile(const std::string& path, const FileOptions&,
                             std::unique_ptr<rocksdb::FSSequentialFile>* result,
                             IODebugContext*) override {
    return open_existing<SimSequentialFile>(path, result);
  }
  IOStatus NewRandomAccessFile(const std::string& path, const FileOptions&,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               IODebugContext*) override {
    return open_existing<SimRandomAccessFile>(path, result);
  }
  IOStatus NewWritableFile(const std::string& path, const FileOptions&,
                           std::unique_ptr<rocksdb::FSWritableFile>* result,
                           IODebugContext*) override {
    // RocksDB goes on without its OPTIONS file, and two syncs at each opening are saved.
    if (path.find("/OPTIONS-") != std::string::npos) return IOStatus::NotSupported(path);
    const IOStatus status = run(path, [&](SimDisk& disk) -> Result<void> {
      KVT_TRY_VOID(disk.create(path, false));
      return disk.resize(path, 0);
    });
    if (status.ok()) *result = std::make_unique<SimWritableFile>(machine_, path, 0);
    return status;
  }
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>* result,
                              IODebugContext*) override {
    std::uint64_t size = 0;
    const IOStatus status = run(path, [&](SimDisk& disk) -> Result<void> {
      KVT_TRY_VOID(disk.create(path, false));
      KVT_TRY(size, disk.size_bytes(path));
      return {};
    });
    if (status.ok()) *result = std::make_unique<SimWritableFile>(machine_, path, size);
    return status;
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions&,
                        std::unique_ptr<rocksdb::FSDirectory>* result, IODebugContext*) override {
    return open_existing<SimDirectory>(path, result);
  }

  IOStatus FileExists(const std::string& path, const IOOptions&, IODebugContext*) override {
    const IOStatus status = run(path, [&](SimDisk& disk) { return exists(disk, path); });
    return status.IsPathNotFound() ? IOStatus::NotFound(path) : status;
  }
  IOStatus GetChildren(const std::string& path, const IOOptions&, std::vector<std::string>* result,
                       IODebugContext*) override {
    return run(path, [&](SimDisk& disk) -> Result<void> {
      KVT_TRY(*result, disk.list(path));
      return {};
    });
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions&, IODebugContext*) override {
    return run(path, [&](SimDisk& disk) { return disk.unlink(path); });
  }
  IOStatus Truncate(const std::string& path, std::size_t size, const IOOptions&,
                    IODebugContext*) override {
    return run(path, [&](SimDisk& disk) { return disk.resize(path, size); });
  }
  IOStatus CreateDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    return run(path, [&](SimDisk& disk) -> Result<void> {
      if (disk.exists(path)) return error(Code::kExists);
      return disk.make_directory(path);
    });
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions&, IODebugContext*) override {
    return run(path, [&](SimDisk& disk) { return disk.make_directory(path); });
  }
  IOStatus DeleteDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    return run(path, [&](SimDisk& disk) { return disk.unlink(path); });
  }
  IOStatus GetFileSize(const std::string& path, const IOOptions&, std::uint64_t* size,
                       IODebugContext*) override {
    return run(path, [&](SimDisk& disk) -> Result<void> {
      KVT_TRY(*size, disk.size_bytes(path));
      return {};
    });
  }
  IOStatus GetFileModificationTime(const std::string& path, const IOOptions&,
                                   std::uint64_t* seconds, IODebugContext*) override {
    *seconds = 0;
    return run(path, [&](SimDisk& disk) { return exists(disk, path); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions&,
                      IODebugContext*) override {
    return run(from, [&](SimDisk& disk) { return disk.rename(from, to); });
  }
  IOStatus IsDirectory(const std::string& path, const IOOptions&, bool* is,
                       IODebugContext*) override {
    return run(path, [&](SimDisk& disk) {
      *is = disk.list(path).has_value();
      return exists(disk, path);
    });
  }
  IOStatus GetFreeSpace(const std::string& path, const IOOptions&, std::uint64_t* bytes,
                        IODebugContext*) override {
    return run(path, [&](SimDisk& disk) -> Result<void> {
      *bytes = disk.free_bytes();
      return {};
    });
  }

  IOStatus LockFile(const std::string& path, const IOOptions&, rocksdb::FileLock** result,
                    IODebugContext*) override {
    *result = nullptr;
    const IOStatus status = run(path, [&](SimDisk& disk) -> Result<void> {
      KVT_TRY_VOID(disk.create(path, false));
      if (!machine_->locks.insert(path).second)
        return error(Code::kBusy, "lock hold by current process");
      return {};
    });
    if (status.ok()) *result = new SimFileLock(path, machine_->process);  // UnlockFile deletes it
    return status;
  }
  IOStatus UnlockFile(rocksdb::FileLock* lock, const IOOptions&, IODebugContext*) override {
    const std::unique_ptr<SimFileLock> held(static_cast<SimFileLock*>(lock));
    const std::lock_guard guard(machine_->mutex);
    if (held->process == machine_->process) machine_->locks.erase(held->path);
    return IOStatus::OK();
  }
  IOStatus GetTestDirectory(const IOOptions&, std::string*, IODebugContext*) override {
    return IOStatus::NotSupported("GetTestDirectory");
  }
  IOStatus GetAbsolutePath(const std::string& path, const IOOptions&, std::string* absolute,
                           IODebugContext*) override {
    *absolute = path;
    return IOStatus::OK();
  }

 private:
  static Result<void> exists(const SimDisk& disk, const std::string& path) {
    if (!disk.exists(path)) return error(Code::kNotFound);
    return {};
  }
  template <class Call>
  IOStatus run(const std::string& path, Call&& call) {
    return machine_->on_disk(machine_->process, path, std::forward<Call>(call));
  }
  template <class File, class Base>
  IOStatus open_existing(const std::string& path, std::unique_ptr<Base>* result) {
    const IOStatus status = run(path, [&](SimDisk& disk) { return exists(disk, path); });
    if (status.ok()) *result = std::make_unique<File>(machine_, path);
    return status;
  }

  MachinePtr machine_;
};

// Time of the simulation; waiting is real, because only RocksDB's own threads wait.
class SimSystemClock final : public rocksdb::SystemClockWrapper {
 public:
  explicit SimSystemClock(MachinePtr machine)
      : SystemClockWrapper(rocksdb::SystemClock::Default()), machine_(std::move(machine)) {}
  const char* Name() const override { return "KvtSimClock"; }
  std::uint64_t NowMicros() override { return machine_->clock.wall_ns() / 1000; }
  std::uint64_t NowNanos() override { return machine_->clock.wall_ns(); }
  rocksdb::Status GetCurrentTime(std::int64_t* unix_time) override {
    *unix_time = static_cast<std::int64_t>(machine_->clock.wall_ns() / 1'000'000'000);
    return rocksdb::Status::OK();
  }

 private:
  MachinePtr machine_;
};

class SimEnv final : public rocksdb::EnvWrapper {
 public:
  explicit SimEnv(const MachinePtr& machine)
      : EnvWrapper(rocksdb::NewCompositeEnv(std::make_shared<SimFileSystem>(machine))) {
    system_clock_ = std::make_shared<SimSystemClock>(machine);
  }
  const char* Name() const override { return "KvtSimEnv"; }
};

class SimCatalogueEnv final : public CatalogueEnv {
 public:
  explicit SimCatalogueEnv(const MachinePtr& machine)
      : CatalogueEnv(std::make_unique<SimEnv>(machine), true), machine_(machine) {}
  void start() override {
    const std::lock_guard lock(machine_->mutex);
    if (machine_->process == machine_->disk.power_cuts()) return;
    machine_->process = machine_->disk.power_cuts();
    machine_->locks.clear();
  }

 private:
  MachinePtr machine_;
};

}  // namespace

std::shared_ptr<CatalogueEnv> make_sim_catalogue_env(SimDisk& disk, Clock& clock) {
  return std::make_shared<SimCatalogueEnv>(std::make_shared<Machine>(disk, clock));
}

}  // namespace kvtier
