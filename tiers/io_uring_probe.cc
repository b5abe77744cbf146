// Does io_uring do here what the back end needs? Found out by doing: a ring, a write, a sync, a
// direct read and a read into registered memory on a scratch file. What a kernel, a sandbox and a
// file system say of themselves is not asked.
#include <string.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>

#include "tiers/io_backends.h"

namespace kvtier {
namespace {

constexpr std::chrono::seconds kProbeTime{5};

std::string reason_of(const char* step, const Status& status) {
  const char* const name = status.os_error != 0 ? ::strerrorname_np(status.os_error) : nullptr;
  return std::string("io_uring: ") + (name != nullptr ? name : code_name(status.code)) + ": " +
         step + (status.text != nullptr ? status.text : "failed");
}

// The status of one operation; kTimeout where it does not come back.
Status run_one(Io& io, IoOp op, FileId file, AlignedBuffer* page) {
  bool finished = false;
  Status status;
  IoRequest request;
  request.op = op;
  request.file = file;
  if (op != IoOp::kSync) request.pieces = {IoVec{page->data(), page->size_bytes()}};
  request.done = [&](Result<void> result) {
    finished = true;
    if (!result) status = result.error();
  };
  io.submit(std::move(request));
  const auto deadline = std::chrono::steady_clock::now() + kProbeTime;
  while (!finished) {
    if (io.poll() > 0) continue;
    if (std::chrono::steady_clock::now() > deadline)
      return Status{Code::kTimeout, 0, "an operation did not come back in 5 s"};
    io.wait();
  }
  return status;
}

std::string try_operations(Io& io, FileId file) {
  AlignedBuffer written(kDiskAlign), read(kDiskAlign);
  std::memset(written.data(), 0xA5, kDiskAlign);
  // Memory that cannot be registered (memlock) is no reason against the ring; register_memory says
  // so later.
  const bool registered = io.register_memory(read.data(), kDiskAlign);
  Status status = run_one(io, IoOp::kWrite, file, &written);
  if (!status.ok()) return reason_of("write of a scratch file: ", status);
  status = run_one(io, IoOp::kSync, file, nullptr);
  if (!status.ok()) return reason_of("sync of a scratch file: ", status);
  status = run_one(io, IoOp::kRead, file, &read);
  if (!status.ok()) return reason_of("direct read of a scratch file: ", status);
  if (std::memcmp(read.data(), written.data(), kDiskAlign) != 0)
    return "io_uring: a read gave other bytes than written";
  if (registered && io.stats().fixed_reads != 1)
    return "io_uring: a read into registered memory did not go as one";
  return "";
}

}  // namespace

std::string probe_uring(const IoOptions& options) {
  IoOptions small = options;
  small.depth = 8;
  Result<std::unique_ptr<Io>> ring = make_uring_io(small);
  if (!ring) return reason_of("", ring.error());
  Io& io = **ring;
  const std::string name = ".kvtier-io-probe-" + std::to_string(::getpid());
  static_cast<void>(io.unlink(name));  // of a process that died here; mostly absent
  const Result<FileId> file = io.open(name, OpenOptions{OpenMode::kCreateNew, true});
  if (!file) return reason_of("a scratch file to probe with: ", file.error());
  std::string reason = try_operations(io, *file);
  io.close(*file);
  static_cast<void>(io.unlink(name));
  return reason;
}

}  // namespace kvtier
