// ThreadIo: the Io over blocking system calls in a few threads. Works everywhere; costs two to four
// times the processor time of io_uring.
//
// The owner's thread checks and queues; workers transfer; finished operations wait in a list,
// announced by an eventfd, until the owner's poll() runs their callbacks.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "tiers/io_backends.h"
#include "tiers/io_files.h"

namespace kvtier {
namespace {

class ThreadIo final : public Io {
 public:
  ThreadIo(FileTable files, UniqueFd event, std::string note, std::uint32_t threads);
  ~ThreadIo() override;

  Result<FileId> open(std::string_view path, OpenOptions options) override {
    return files_.open(path, options);
  }
  void close(FileId file) override { files_.close(file); }
  Result<std::uint64_t> size_bytes(FileId file) override { return files_.size_bytes(file); }
  Result<void> resize(FileId file, std::uint64_t size) override {
    return files_.resize(file, size);
  }
  Result<void> make_directory(std::string_view path) override {
    return files_.make_directory(path);
  }
  Result<std::vector<std::string>> list(std::string_view directory) override {
    return files_.list(directory);
  }
  Result<void> rename(std::string_view from, std::string_view to) override {
    return files_.rename(from, to);
  }
  Result<void> unlink(std::string_view path) override { return files_.unlink(path); }
  Result<void> sync_directory(std::string_view path) override {
    return files_.sync_directory(path);
  }
  Result<std::uint64_t> free_bytes() override { return files_.free_bytes(); }

  void submit(IoRequest request) override;
  std::size_t poll() override;
  std::size_t in_flight() const override { return in_flight_; }
  int event_fd() const override { return event_.get(); }
  bool register_memory(std::byte*, std::uint64_t) override {
    KVT_LOG(kInfo, "disk I/O by threads: there is nothing to register memory with");
    return false;
  }
  const char* name() const override { return "threads"; }
  std::string note() const override;
  IoStats stats() const override { return stats_; }

 private:
  struct Job {
    IoRequest request;
    OpenFile* file = nullptr;  // null: it failed before it began
    Result<void> result;
  };

  void work();
  void finish(Job job);
  void count(const Job& job);

  FileTable files_;  // owner's thread
  const UniqueFd event_;
  const std::string note_;
  std::size_t in_flight_ = 0;  // owner's thread
  IoStats stats_;              // owner's thread
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> waiting_;    // guarded by mutex_
  std::vector<Job> finished_;  // guarded by mutex_
  bool stopping_ = false;      // guarded by mutex_
  std::vector<std::thread> threads_;
};

// The rest of a transfer as preadv takes it.
void skip_bytes(std::vector<iovec>* pieces, std::size_t* first, std::size_t count) {
  while (count > 0) {
    iovec& piece = (*pieces)[*first];
    const std::size_t step = std::min(count, piece.iov_len);
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + step;
    piece.iov_len -= step;
    count -= step;
    if (piece.iov_len == 0) ++*first;
  }
}

Result<void> transfer(const IoRequest& request, OpenFile& file) {
  std::vector<iovec> pieces;
  pieces.reserve(request.pieces.size());
  for (const IoVec& piece : request.pieces)
    pieces.push_back({piece.data, static_cast<std::size_t>(piece.size_bytes)});
  std::size_t first = 0;
  std::uint64_t offset = request.offset;
  while (first < pieces.size()) {
    const int count = static_cast<int>(pieces.size() - first);
    const ssize_t moved =
        request.op == IoOp::kRead
            ? ::preadv(file.fd.get(), &pieces[first], count, static_cast<off_t>(offset))
            : ::pwritev(file.fd.get(), &pieces[first], count, static_cast<off_t>(offset));
    if (moved < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return error(FileTable::failed(file, request.op, errno));
    }
    const auto bytes = static_cast<std::size_t>(moved);
    skip_bytes(&pieces, &first, bytes);
    offset += bytes;
    // A direct read that stops at an odd place stopped at the end of the file; going on would be
    // EINVAL.
    const bool at_end = bytes == 0 || (file.direct_in_kernel && bytes % kDiskAlign != 0);
    if (first < pieces.size() && at_end) {
      if (request.op == IoOp::kWrite) return error(FileTable::failed(file, request.op, EIO));
      return error(Code::kCorrupt, "file is shorter than it should be");
    }
  }
  return {};
}

Result<void> run(const IoRequest& request, OpenFile& file) {
  if (request.op != IoOp::kSync) return transfer(request, file);
  if (file.poisoned)
    return error(Code::kIo, "an earlier sync of this file failed: its data cannot be trusted");
  if (::fdatasync(file.fd.get()) != 0) return error(FileTable::failed(file, request.op, errno));
  return {};
}

ThreadIo::ThreadIo(FileTable files, UniqueFd event, std::string note, std::uint32_t threads)
    : files_(std::move(files)), event_(std::move(event)), note_(std::move(note)) {
  threads_.reserve(threads);
  for (std::uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ThreadIo::~ThreadIo() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::string ThreadIo::note() const {
  if (note_.empty() || files_.note().empty()) return note_ + files_.note();
  return note_ + "; " + files_.note();
}

void ThreadIo::submit(IoRequest request) {
  ++in_flight_;
  const Result<OpenFile*> file = files_.admit(request);
  if (!file) {
    finish(Job{std::move(request), nullptr, error(file.error())});
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(Job{std::move(request), *file, {}});
  }
  wake_.notify_one();
}

void ThreadIo::finish(Job job) {
  const std::lock_guard lock(mutex_);
  finished_.push_back(std::move(job));
  const std::uint64_t one = 1;
  static_cast<void>(!::write(event_.get(), &one, sizeof one));  // cannot fail short of 2^64 writes
}

void ThreadIo::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    Job job = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    job.result = run(job.request, *job.file);
    finish(std::move(job));
    lock.lock();
  }
}

std::size_t ThreadIo::poll() {
  std::vector<Job> finished;
  {
    const std::lock_guard lock(mutex_);
    finished.swap(finished_);
    std::uint64_t drained = 0;
    static_cast<void>(!::read(event_.get(), &drained, sizeof drained));
  }
  for (Job& job : finished) {
    --in_flight_;
    count(job);
    if (job.request.done) job.request.done(job.result);
  }
  return finished.size();
}

void ThreadIo::count(const Job& job) {
  if (!job.result) {
    ++stats_.errors;
    return;
  }
  switch (job.request.op) {
    case IoOp::kRead:
      ++stats_.reads;
      stats_.read_bytes += job.request.size_bytes();
      break;
    case IoOp::kWrite:
      ++stats_.writes;
      stats_.written_bytes += job.request.size_bytes();
      break;
    case IoOp::kSync:
      ++stats_.syncs;
      break;
  }
}

}  // namespace

Result<std::unique_ptr<Io>> make_thread_io(const IoOptions& options, std::string note) {
  KVT_TRY(FileTable files, FileTable::open_root(options.root));
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return error(status_of_errno(errno, "no event descriptor"));
  return std::make_unique<ThreadIo>(std::move(files), std::move(event), std::move(note),
                                    options.threads);
}

}  // namespace kvtier
