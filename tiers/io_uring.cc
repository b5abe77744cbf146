// UringIo: the Io over io_uring; the only file that knows liburing.
//
// Up to `depth` operations are in the kernel; the rest wait in order. Transfers whose pieces make
// one run inside the registered arena go as READ_FIXED / WRITE_FIXED, which spares the pinning of
// pages (half the processor time from 256 KiB on); others as plain or vectored ones. The ring is
// made disabled and enabled by the thread that submits first, which owns it from then on. A short
// transfer goes on where it stopped; EAGAIN and EINTR go again.
#include <liburing.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "tiers/io_backends.h"
#include "tiers/io_files.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kRegisteredPieceBytes = kArenaPageBytes;  // doubled for large arenas
constexpr std::uint64_t kRegisteredPiecesMax = 4096;
constexpr std::uint64_t kSubmissionBytesMax =
    1ull << 30;  // of one submission; what is above goes on after it
constexpr unsigned kRegisteredFiles = 1024;
constexpr std::uint32_t kRetriesMax = 1000;  // of one operation that the kernel puts off

const char* errno_name(int os_error) {
  const char* const name = ::strerrorname_np(os_error);
  return name != nullptr ? name : "unknown error";
}

// What to do about a ring that cannot be made.
const char* mend_of_setup(int os_error) {
  switch (os_error) {
    case EPERM:
    case EACCES:
      return "blocked by seccomp or kernel.io_uring_disabled";
    case ENOSYS:
      return "not in this kernel, or hidden by a container's seccomp profile";
    case ENOMEM:
      return "no memory for the ring: raise the memlock limit (ulimit -l, LimitMEMLOCK=)";
    case EMFILE:
    case ENFILE:
      return "too many open files: raise the limit (ulimit -n; of a systemd unit LimitNOFILE=)";
    default:
      return "the kernel refuses the ring";
  }
}

class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (made_) io_uring_queue_exit(&ring_);
  }
  // The best way of running completions that the kernel has. 0 or an errno.
  int make(unsigned entries) {
    static constexpr unsigned kModes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int result = 0;
    for (const unsigned mode : kModes) {
      result = -io_uring_queue_init(entries, &ring_,
                                    mode | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP);
      made_ = result == 0;
      if (result != EINVAL) break;
    }
    return result;
  }
  io_uring* get() { return &ring_; }

 private:
  io_uring ring_{};
  bool made_ = false;
};

class UringIo final : public FileIo {
 public:
  UringIo(FileTable files, UniqueFd event, std::uint32_t depth);
  ~UringIo() override;
  [[nodiscard]] Result<void> start();

  Result<FileId> open(std::string_view path, OpenOptions options) override;
  void close(FileId file) override;
  void submit(IoRequest request) override;
  std::size_t poll() override;
  bool register_memory(std::byte* data, std::uint64_t size_bytes) override;
  const char* name() const override { return "io_uring"; }

 private:
  struct Waiting {
    IoRequest request;
    OpenFile* file = nullptr;
  };
  struct Operation {
    IoRequest request;
    OpenFile* file = nullptr;
    std::vector<iovec> rest;  // adjacent pieces joined; from `first` on still to do
    std::size_t first = 0;
    std::uint64_t offset = 0;
    std::uint32_t retries = 0;
    bool fixed = false;
  };
  struct Finished {
    IoRequest request;
    Result<void> result;
  };

  void enable();
  void start_waiting();
  void begin(Operation* operation, Waiting waiting);
  void prepare(std::uint32_t index);
  void prepare_transfer(const Operation& operation, int fd, io_uring_sqe* entry, int buffer);
  int registered_buffer(const iovec& piece);
  bool register_piece(std::uint64_t index);
  void registration_failed(int result, std::uint64_t size_bytes);
  void flush();
  bool reap();  // false: there was nothing
  void complete(std::uint32_t index, int result);
  void finish(std::uint32_t index, Result<void> result);

  const std::uint32_t depth_;
  Ring ring_;
  bool enabled_ = false;
  bool polling_ = false;
  std::byte* registered_ = nullptr;
  std::uint64_t registered_bytes_ = 0;
  std::uint64_t piece_bytes_ = 0;
  std::vector<bool> pieces_;     // by index: registered
  bool no_more_pieces_ = false;  // the kernel refused one
  std::vector<int> free_slots_;  // of registered files
  std::vector<Operation> operations_;
  std::vector<std::uint32_t> free_;   // operations that nobody uses
  std::vector<std::uint32_t> again_;  // operations to hand to the kernel again
  std::deque<Waiting> waiting_;
  std::vector<Finished> finished_;
};

UringIo::UringIo(FileTable files, UniqueFd event, std::uint32_t depth)
    : FileIo(std::move(files), std::move(event)), depth_(depth), operations_(depth) {
  for (std::uint32_t i = depth; i-- > 0;) free_.push_back(i);
}

Result<void> UringIo::start() {
  if (const int os_error = ring_.make(depth_); os_error != 0)
    return error(Code::kUnsupported, mend_of_setup(os_error), os_error);
  if (const int result = io_uring_register_eventfd(ring_.get(), event_.get()); result < 0)
    return error(Code::kUnsupported, "the ring takes no event descriptor", -result);
  if (io_uring_register_files_sparse(ring_.get(), kRegisteredFiles) == 0)
    for (int slot = kRegisteredFiles; slot-- > 0;) free_slots_.push_back(slot);
  return {};
}

UringIo::~UringIo() {
  waiting_.clear();
  // The kernel may still write into the callers' memory: wait for it.
  while (enabled_ && free_.size() + again_.size() < depth_) {
    const int result = io_uring_submit_and_wait(ring_.get(), 1);
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
      KVT_LOG(kError, "io_uring: closed with operations in flight: %s", errno_name(-result));
      return;
    }
    io_uring_cqe* entry = nullptr;
    while (io_uring_peek_cqe(ring_.get(), &entry) == 0) {
      free_.push_back(static_cast<std::uint32_t>(io_uring_cqe_get_data64(entry)));
      io_uring_cqe_seen(ring_.get(), entry);
    }
  }
}

// ---- files ----

Result<FileId> UringIo::open(std::string_view path, OpenOptions options) {
  KVT_TRY(const FileId id, files_.open(path, options));
  if (free_slots_.empty()) return id;
  OpenFile* const file = files_.find(id);
  const int slot = free_slots_.back();
  const int fd = file->fd.get();
  if (io_uring_register_files_update(ring_.get(), static_cast<unsigned>(slot), &fd, 1) == 1) {
    file->slot = slot;
    free_slots_.pop_back();
  }
  return id;
}

void UringIo::close(FileId id) {
  const OpenFile* const file = files_.find(id);
  if (file == nullptr) return;
  if (file->slot >= 0) {
    const int none = -1;
    // A slot that cannot be emptied keeps the file alive until another takes it; it is not lost.
    static_cast<void>(
        io_uring_register_files_update(ring_.get(), static_cast<unsigned>(file->slot), &none, 1));
    free_slots_.push_back(file->slot);
  }
  files_.close(id);
}

// ---- memory ----

// A registered buffer is pinned: its pages come into being at once, and take memory and seconds for
// a large arena. So there is only an empty table at first, and a piece is registered when the first
// read goes into it. The first one now, to know whether it can be had at all.
bool UringIo::register_memory(std::byte* data, std::uint64_t size_bytes) {
  KVT_CHECK(registered_ == nullptr && in_flight_ == 0);
  piece_bytes_ = kRegisteredPieceBytes;
  while ((size_bytes + piece_bytes_ - 1) / piece_bytes_ > kRegisteredPiecesMax) piece_bytes_ *= 2;
  const auto pieces = static_cast<unsigned>((size_bytes + piece_bytes_ - 1) / piece_bytes_);
  const int made = io_uring_register_buffers_sparse(ring_.get(), pieces);
  if (made != 0) {
    registration_failed(made, size_bytes);
    return false;
  }
  registered_ = data;
  registered_bytes_ = size_bytes;
  pieces_.assign(pieces, false);
  return register_piece(0);
}

bool UringIo::register_piece(std::uint64_t index) {
  if (no_more_pieces_) return false;
  const std::uint64_t at = index * piece_bytes_;
  const iovec piece{registered_ + at,
                    static_cast<std::size_t>(std::min(piece_bytes_, registered_bytes_ - at))};
  const int result = io_uring_register_buffers_update_tag(ring_.get(), static_cast<unsigned>(index),
                                                          &piece, nullptr, 1);
  if (result == 1) {
    pieces_[static_cast<std::size_t>(index)] = true;
    return true;
  }
  no_more_pieces_ = true;
  registration_failed(result == 0 ? -EIO : result, registered_bytes_);
  return false;
}

void UringIo::registration_failed(int result, std::uint64_t size_bytes) {
  const auto mib = static_cast<unsigned long long>(size_bytes >> 20);
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  char text[256];
  if (result == -ENOMEM || result == -EPERM)
    ::snprintf(text, sizeof text,
               "registered buffers: %s: the memlock limit of %llu KiB is below the arena's %llu "
               "MiB; `kvtier doctor` says how to raise it",
               errno_name(-result), static_cast<unsigned long long>(limit.rlim_cur >> 10), mib);
  else
    ::snprintf(text, sizeof text, "registered buffers: %s for %llu MiB", errno_name(-result), mib);
  own_note_ = text;
  KVT_LOG(kWarn, "%s; goes on without, at more processor time", text);
}

// The registered buffer in which the piece lies as a whole, or -1.
int UringIo::registered_buffer(const iovec& piece) {
  const auto begin = reinterpret_cast<std::uintptr_t>(piece.iov_base);
  const auto arena = reinterpret_cast<std::uintptr_t>(registered_);
  if (registered_ == nullptr || begin < arena) return -1;
  const std::uint64_t at = begin - arena;
  if (at >= registered_bytes_ || piece.iov_len > registered_bytes_ - at) return -1;
  const std::uint64_t index = at / piece_bytes_;
  if ((at + piece.iov_len - 1) / piece_bytes_ != index) return -1;
  return pieces_[static_cast<std::size_t>(index)] || register_piece(index) ? static_cast<int>(index)
                                                                           : -1;
}

// ---- the way down ----

void UringIo::enable() {
  if (enabled_) return;
  enabled_ = true;
  // By system call: liburing 2.3 declares io_uring_enable_rings, but its library does not export
  // it.
  if (::syscall(SYS_io_uring_register, ring_.get()->ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr,
                0) < 0)
    KVT_LOG(kError, "io_uring: the ring cannot be enabled: %s", errno_name(errno));
}

void UringIo::submit(IoRequest request) {
  enable();
  ++in_flight_;
  const Result<OpenFile*> file = files_.admit(request);
  if (!file) {
    finished_.push_back(Finished{std::move(request), error(file.error())});
    signal();
    return;
  }
  queue_request(&waiting_, Waiting{std::move(request), *file});
  start_waiting();
  // What callbacks submit goes down together at the end of poll().
  if (!polling_) flush();
}

void UringIo::start_waiting() {
  std::vector<std::uint32_t> again;
  again.swap(again_);
  for (const std::uint32_t index : again) prepare(index);
  while (!waiting_.empty() && !free_.empty()) {
    const std::uint32_t index = free_.back();
    free_.pop_back();
    begin(&operations_[index], std::move(waiting_.front()));
    waiting_.pop_front();
    prepare(index);
  }
}

void UringIo::begin(Operation* operation, Waiting waiting) {
  operation->request = std::move(waiting.request);
  operation->file = waiting.file;
  operation->first = 0;
  operation->offset = operation->request.offset;
  operation->retries = 0;
  operation->fixed = false;
  std::vector<iovec>& rest = operation->rest;
  rest.clear();
  for (const IoVec& piece : operation->request.pieces) {
    const auto size = static_cast<std::size_t>(piece.size_bytes);
    if (!rest.empty() &&
        static_cast<std::byte*>(rest.back().iov_base) + rest.back().iov_len == piece.data)
      rest.back().iov_len += size;
    else
      rest.push_back({piece.data, size});
  }
}

void UringIo::prepare(std::uint32_t index) {
  Operation& operation = operations_[index];
  io_uring_sqe* const entry = io_uring_get_sqe(ring_.get());
  if (entry == nullptr) {  // the kernel has not taken what was prepared before
    again_.push_back(index);
    signal();
    return;
  }
  const bool in_slot = operation.file->slot >= 0;
  const int fd = in_slot ? operation.file->slot : operation.file->fd.get();
  if (operation.request.op == IoOp::kSync) {
    io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
  } else if (operation.request.op == IoOp::kSyncDirectory) {
    io_uring_prep_fsync(entry, fd, 0);
  } else if (operation.request.op == IoOp::kAllocate) {
    io_uring_prep_fallocate(entry, fd, 0, 0, static_cast<off_t>(operation.request.offset));
  } else {
    const bool one_run = operation.rest.size() - operation.first == 1;
    const int buffer = one_run ? registered_buffer(operation.rest[operation.first]) : -1;
    operation.fixed = buffer >= 0;
    prepare_transfer(operation, fd, entry, buffer);
  }
  if (in_slot) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(entry, index);
}

void UringIo::prepare_transfer(const Operation& operation, int fd, io_uring_sqe* entry,
                               int buffer) {
  const bool read = operation.request.op == IoOp::kRead;
  const iovec& piece = operation.rest[operation.first];
  const auto count = static_cast<unsigned>(operation.rest.size() - operation.first);
  if (count > 1) {
    if (read)
      io_uring_prep_readv(entry, fd, &piece, count, operation.offset);
    else
      io_uring_prep_writev(entry, fd, &piece, count, operation.offset);
    return;
  }
  const auto size =
      static_cast<unsigned>(std::min<std::uint64_t>(piece.iov_len, kSubmissionBytesMax));
  if (buffer >= 0 && read)
    io_uring_prep_read_fixed(entry, fd, piece.iov_base, size, operation.offset, buffer);
  else if (buffer >= 0)
    io_uring_prep_write_fixed(entry, fd, piece.iov_base, size, operation.offset, buffer);
  else if (read)
    io_uring_prep_read(entry, fd, piece.iov_base, size, operation.offset);
  else
    io_uring_prep_write(entry, fd, piece.iov_base, size, operation.offset);
}

void UringIo::flush() {
  while (io_uring_sq_ready(ring_.get()) > 0) {
    const int result = io_uring_submit(ring_.get());
    if (result > 0) continue;
    if (result < 0 && result != -EAGAIN && result != -EBUSY && result != -EINTR)
      KVT_LOG(kError, "io_uring: submit: %s", errno_name(-result));
    signal();  // the next poll() tries again
    return;
  }
}

// ---- the way up ----

std::size_t UringIo::poll() {
  // The descriptor is emptied before reaping, so that nothing is missed, and once more after it:
  // with deferred task work the reaping itself signals, and the owner would wake for nothing.
  do {
    drain_event();
    if (in_flight_ == 0) return 0;
  } while (reap());
  start_waiting();
  flush();
  std::vector<Finished> finished;
  finished.swap(finished_);
  polling_ = true;
  for (Finished& each : finished) end(each.request, each.result);
  polling_ = false;
  flush();
  return finished.size();
}

bool UringIo::reap() {
  bool any = false;
  io_uring_cqe* entry = nullptr;
  while (io_uring_peek_cqe(ring_.get(), &entry) == 0) {
    const auto index = static_cast<std::uint32_t>(io_uring_cqe_get_data64(entry));
    const int result = entry->res;
    io_uring_cqe_seen(ring_.get(), entry);
    complete(index, result);
    any = true;
  }
  return any;
}

void UringIo::complete(std::uint32_t index, int result) {
  Operation& operation = operations_[index];
  const IoOp op = operation.request.op;
  if ((result == -EAGAIN || result == -EINTR) && ++operation.retries < kRetriesMax) {
    again_.push_back(index);
    return;
  }
  if (op == IoOp::kAllocate && FileTable::cannot_allocate(-result)) return finish(index, {});
  if (result < 0) {
    finish(index, error(FileTable::failed(*operation.file, op, -result)));
    return;
  }
  auto moved = static_cast<std::size_t>(result);
  // A direct read that stops at an odd place stopped at the end of the file; going on would be
  // EINVAL.
  const bool at_end = moved == 0 || (operation.file->direct_in_kernel && moved % kDiskAlign != 0);
  operation.offset += moved;
  while (moved > 0) {
    iovec& piece = operation.rest[operation.first];
    const std::size_t step = std::min(moved, piece.iov_len);
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + step;
    piece.iov_len -= step;
    moved -= step;
    if (piece.iov_len == 0) ++operation.first;
  }
  if (operation.first == operation.rest.size()) {  // a sync has no pieces
    finish(index, {});
  } else if (!at_end) {
    again_.push_back(index);
  } else if (op == IoOp::kWrite) {
    finish(index, error(FileTable::failed(*operation.file, op, EIO)));
  } else {
    finish(index, error(Code::kCorrupt, "file is shorter than it should be"));
  }
}

void UringIo::finish(std::uint32_t index, Result<void> result) {
  Operation& operation = operations_[index];
  if (result && operation.fixed && operation.request.op == IoOp::kRead) ++stats_.fixed_reads;
  finished_.push_back(Finished{std::move(operation.request), result});
  operation.file = nullptr;
  free_.push_back(index);
}

}  // namespace

Result<std::unique_ptr<Io>> make_uring_io(const IoOptions& options) {
  KVT_TRY(FileTable files, FileTable::open_root(options.root));
  KVT_TRY(UniqueFd event, make_io_event());
  auto io = std::make_unique<UringIo>(std::move(files), std::move(event), options.depth);
  KVT_TRY_VOID(io->start());
  return io;
}

}  // namespace kvtier
