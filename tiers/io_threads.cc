// ThreadIo: the Io over blocking system calls in a few threads. Works everywhere; costs two to four
// times the processor time of io_uring.
//
// The owner's thread checks and queues; workers transfer; finished operations wait in a list,
// announced by an eventfd, until the owner's poll() runs their callbacks.
#include <fcntl.h>
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

class ThreadIo final : public FileIo {
 public:
  ThreadIo(FileTable files, UniqueFd event, std::string note, std::uint32_t threads);
  ~ThreadIo() override;

  void submit(IoRequest request) override;
  std::size_t poll() override;
  bool register_memory(std::byte*, std::uint64_t) override {
    KVT_LOG(kInfo, "disk I/O by threads: there is nothing to register memory with");
    return false;
  }
  const char* name() const override { return "threads"; }

 private:
  struct Job {
    IoRequest request;
    OpenFile* file = nullptr;  // null: it failed before it began
    Result<void> result;
  };

  void work();
  void finish(Job job);

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

Result<void> allocate(const IoRequest& request, OpenFile& file) {
  while (::fallocate(file.fd.get(), 0, 0, static_cast<off_t>(request.offset)) != 0) {
    if (FileTable::cannot_allocate(errno)) return {};
    if (errno != EINTR) return error(FileTable::failed(file, request.op, errno));
  }
  return {};
}

Result<void> run(const IoRequest& request, OpenFile& file) {
  if (request.op == IoOp::kSyncDirectory) {
    if (::fsync(file.fd.get()) != 0) return error(FileTable::failed(file, request.op, errno));
    return {};
  }
  if (request.op == IoOp::kAllocate) return allocate(request, file);
  if (request.op != IoOp::kSync) return transfer(request, file);
  if (file.poisoned)
    return error(Code::kIo, "an earlier sync of this file failed: its data cannot be trusted");
  if (::fdatasync(file.fd.get()) != 0) return error(FileTable::failed(file, request.op, errno));
  return {};
}

ThreadIo::ThreadIo(FileTable files, UniqueFd event, std::string note, std::uint32_t threads)
    : FileIo(std::move(files), std::move(event)) {
  own_note_ = std::move(note);
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

void ThreadIo::submit(IoRequest request) {
  ++in_flight_;
  const Result<OpenFile*> file = files_.admit(request);
  if (!file) {
    finish(Job{std::move(request), nullptr, error(file.error())});
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    queue_request(&waiting_, Job{std::move(request), *file, {}});
  }
  wake_.notify_one();
}

void ThreadIo::finish(Job job) {
  const std::lock_guard lock(mutex_);
  finished_.push_back(std::move(job));
  signal();
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
    drain_event();
  }
  for (Job& job : finished) end(job.request, job.result);
  return finished.size();
}

}  // namespace

Result<std::unique_ptr<Io>> make_thread_io(const IoOptions& options, std::string note) {
  KVT_TRY(FileTable files, FileTable::open_root(options.root));
  KVT_TRY(UniqueFd event, make_io_event());
  return std::make_unique<ThreadIo>(std::move(files), std::move(event), std::move(note),
                                    options.threads);
}

}  // namespace kvtier
