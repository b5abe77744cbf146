// Io: the one interface to disk files. Back ends: io_uring, thread pool, simulated; a faulty
// wrapper for tests.
//
// Namespace calls (open, list, rename ...) may block and belong to start-up and rare events. Data
// calls are values, submitted and drained: submit() queues, poll() runs the callbacks of what has
// finished. A callback never runs inside submit(). One thread owns an Io. Short transfers are
// continued inside; a callback sees all bytes or an error. Paths are relative to the root that the
// back end was made with, and hold no "..".
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/result.h"

namespace kvtier {

// What an operation is for, in falling order of urgency. The scheduler serves in this order; back
// ends ignore it.
enum class IoPriority : std::uint8_t {
  kCommit = 0,
  kDemand = 1,
  kPrefetch = 2,
  kWriteBack = 3,
  kBackground = 4
};
inline constexpr std::size_t kIoPriorities = 5;

enum class IoOp : std::uint8_t {
  kRead = 0,
  kWrite = 1,
  kSync = 2,           // fdatasync of a file
  kSyncDirectory = 3,  // makes created, renamed and unlinked names in a directory durable
  // Gives the file room up to `offset`, and that length where it is shorter; what is not written
  // reads as zeros. Writes that need no new room need not wait for each other. Where the file
  // system cannot, nothing happens.
  kAllocate = 4,
};

struct FileId {
  std::uint32_t value = 0;  // 0: none
  friend bool operator==(const FileId&, const FileId&) = default;
};

// Memory of the caller that stays valid and, for reads, untouched until the callback.
struct IoVec {
  std::byte* data = nullptr;
  std::uint64_t size_bytes = 0;
};

using IoDone = std::function<void(Result<void>)>;

struct IoRequest {
  IoOp op = IoOp::kRead;
  IoPriority priority = IoPriority::kDemand;
  FileId file;
  std::uint64_t offset = 0;
  std::vector<IoVec> pieces;  // at most kIoVecsMax; of transfers only
  std::string directory;      // kSyncDirectory, which names no file; "": the root
  IoDone done;

  [[nodiscard]] std::uint64_t size_bytes() const noexcept {
    std::uint64_t sum = 0;
    for (const IoVec& piece : pieces) sum += piece.size_bytes;
    return sum;
  }
};

enum class OpenMode : std::uint8_t {
  kRead,       // must exist
  kWrite,      // must exist; read and write
  kCreateNew,  // must not exist; read and write
};

struct OpenOptions {
  OpenMode mode = OpenMode::kRead;
  // Direct I/O where the back end has it: offsets, lengths and memory are then multiples of
  // kDiskAlign.
  bool direct = false;
};

struct IoStats {
  std::uint64_t reads = 0, writes = 0, syncs = 0, errors = 0;  // syncs: of files and directories
  std::uint64_t read_bytes = 0, written_bytes = 0;
  std::uint64_t fixed_reads = 0;  // through registered buffers
};

class Io {
 public:
  virtual ~Io() = default;

  // ---- namespace; may block ----
  [[nodiscard]] virtual Result<FileId> open(std::string_view path, OpenOptions options) = 0;
  virtual void close(FileId file) = 0;  // nothing of the file may be in flight
  [[nodiscard]] virtual Result<std::uint64_t> size_bytes(FileId file) = 0;
  // Cuts or extends (with zeros).
  [[nodiscard]] virtual Result<void> resize(FileId file, std::uint64_t size_bytes) = 0;
  [[nodiscard]] virtual Result<void> make_directory(
      std::string_view path) = 0;  // fine if it exists
  [[nodiscard]] virtual Result<std::vector<std::string>> list(
      std::string_view directory) = 0;  // names, sorted
  [[nodiscard]] virtual Result<void> rename(std::string_view from, std::string_view to) = 0;
  [[nodiscard]] virtual Result<void> unlink(std::string_view path) = 0;
  // As kSyncDirectory. May take as long as the disk likes: a thread that others wait for submits.
  [[nodiscard]] virtual Result<void> sync_directory(std::string_view path) = 0;
  // Bytes free for us on the file system.
  [[nodiscard]] virtual Result<std::uint64_t> free_bytes() = 0;

  // ---- data ----
  // Queues; the callback runs in a later poll(). A request that cannot be queued fails through its
  // callback.
  virtual void submit(IoRequest request) = 0;
  // Runs callbacks of finished operations; the count. Never blocks.
  virtual std::size_t poll() = 0;
  // Sleeps until poll() has something to do, 100 ms at most (the simulated one moves its clock
  // instead). For start-up, tools and tests: an owner with other work waits on event_fd().
  virtual void wait();
  [[nodiscard]] virtual std::size_t in_flight() const = 0;
  // Readable while poll() has something to do; -1: poll by hand (simulation).
  [[nodiscard]] virtual int event_fd() const = 0;
  // Registers an arena for faster transfers; false with a logged reason where it cannot. Once,
  // before any submit.
  virtual bool register_memory(std::byte* data, std::uint64_t size_bytes) = 0;

  // "io_uring", "threads", "simulated"; and why not a faster one ("" if it is the fastest).
  [[nodiscard]] virtual const char* name() const = 0;
  [[nodiscard]] virtual std::string note() const = 0;
  [[nodiscard]] virtual IoStats stats() const = 0;
};

// Blocking conveniences for start-up, tools and tests: submit, then poll until done.
[[nodiscard]] Result<void> read_fully(Io& io, FileId file, std::uint64_t offset,
                                      MutableByteSpan target);
[[nodiscard]] Result<void> write_fully(Io& io, FileId file, std::uint64_t offset, ByteSpan source);
[[nodiscard]] Result<void> sync_fully(Io& io, FileId file);

struct IoOptions {
  std::string root;              // directory; must exist
  std::string backend = "auto";  // "auto", "io_uring", "threads"
  std::uint32_t depth = 64;      // operations in flight, 1 .. kIoDepthMax
  std::uint32_t threads = 8;     // of the thread pool
};

// The thread that submits first owns the Io; until then any thread may hold it. The destructor
// waits for what is in flight and drops its callbacks.
//
// Probes io_uring by doing (ring, direct read, registered read, sync) and falls back to threads;
// note() says why. A forced back end that does not work is an error.
[[nodiscard]] Result<std::unique_ptr<Io>> make_io(const IoOptions& options);

// Makes one more Io over the same root, for a thread that blocks on it. Any thread.
using IoFactory = std::function<Result<std::unique_ptr<Io>>()>;

// Memory aligned for direct I/O.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::uint64_t size_bytes);  // rounded up to kDiskAlign, zeroed
  // The same, not zeroed: for what is read over all of it.
  [[nodiscard]] static AlignedBuffer unfilled(std::uint64_t size_bytes);
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] MutableByteSpan span() const noexcept {
    return {data_.get(), static_cast<std::size_t>(size_bytes_)};
  }

 private:
  struct Free {
    void operator()(std::byte* data) const noexcept;
  };
  std::unique_ptr<std::byte[], Free> data_;
  std::uint64_t size_bytes_ = 0;
};

}  // namespace kvtier
