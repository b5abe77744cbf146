// The blocking conveniences, aligned memory, and the checks that all back ends share.
#include "tiers/io.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/check.h"
#include "tiers/io_backends.h"

namespace kvtier {
namespace {

// Bytes of one request and requests in flight of the *_fully functions.
constexpr std::uint64_t kFullyPieceBytes = 1ull << 20;
constexpr std::uint64_t kFullyPieces = 8;

Result<void> transfer_fully(Io& io, IoOp op, FileId file, std::uint64_t offset, std::byte* data,
                            std::uint64_t size) {
  if (size > UINT64_MAX - offset) return error(Code::kInvalid, "offset and length overflow");
  std::uint64_t begun = 0, open = 0;
  Result<void> result;
  do {
    while (result && open < kFullyPieces && begun < size) {
      const std::uint64_t piece = std::min(kFullyPieceBytes, size - begun);
      IoRequest request;
      request.op = op;
      request.file = file;
      request.offset = offset + begun;
      request.pieces = {IoVec{data + begun, piece}};
      request.done = [&](Result<void> done) {
        --open;
        if (!done && result) result = done;
      };
      ++open;
      begun += piece;
      io.submit(std::move(request));
    }
    if (io.poll() == 0 && open > 0) io.wait();
  } while (open > 0 || (result && begun < size));
  return result;
}

}  // namespace

void Io::wait() {
  const int fd = event_fd();
  if (fd < 0) return;
  pollfd wanted{fd, POLLIN, 0};
  ::poll(&wanted, 1, 100);
}

Result<void> read_fully(Io& io, FileId file, std::uint64_t offset, MutableByteSpan target) {
  return transfer_fully(io, IoOp::kRead, file, offset, target.data(), target.size());
}

Result<void> write_fully(Io& io, FileId file, std::uint64_t offset, ByteSpan source) {
  // A write only reads its pieces.
  return transfer_fully(io, IoOp::kWrite, file, offset, const_cast<std::byte*>(source.data()),
                        source.size());
}

Result<void> sync_fully(Io& io, FileId file) {
  bool finished = false;
  Result<void> result;
  IoRequest request;
  request.op = IoOp::kSync;
  request.file = file;
  request.done = [&](Result<void> done) {
    finished = true;
    result = done;
  };
  io.submit(std::move(request));
  while (!finished)
    if (io.poll() == 0 && !finished) io.wait();
  return result;
}

AlignedBuffer::AlignedBuffer(std::uint64_t size_bytes) : AlignedBuffer(unfilled(size_bytes)) {
  if (size_bytes_ != 0) std::memset(data_.get(), 0, static_cast<std::size_t>(size_bytes_));
}

AlignedBuffer AlignedBuffer::unfilled(std::uint64_t size_bytes) {
  AlignedBuffer out;
  out.size_bytes_ = align_up(size_bytes, kDiskAlign);
  if (out.size_bytes_ == 0) return out;
  void* data = std::aligned_alloc(kDiskAlign, static_cast<std::size_t>(out.size_bytes_));
  KVT_CHECK(data != nullptr);
  out.data_.reset(static_cast<std::byte*>(data));
  return out;
}

void AlignedBuffer::Free::operator()(std::byte* data) const noexcept { std::free(data); }

Status status_of_errno(int os_error, const char* text) noexcept {
  Code code = Code::kIo;
  switch (os_error) {
    case ENOENT:
      code = Code::kNotFound;
      break;
    case EEXIST:
    case ENOTEMPTY:
      code = Code::kExists;
      break;
    case ENOSPC:
    case EDQUOT:
      code = Code::kNoSpace;
      break;
    case EROFS:
      code = Code::kReadOnly;
      break;
    case EACCES:
    case EPERM:
      code = Code::kPermission;
      break;
    case EFBIG:
    case ENAMETOOLONG:
      code = Code::kTooLarge;
      break;
    case EINVAL:
    case EISDIR:
    case ENOTDIR:
    case ELOOP:
    case EBADF:
    case EXDEV:
      code = Code::kInvalid;
      break;
    case EMFILE:
    case ENFILE:
      code = Code::kFull;
      break;
    case EBUSY:
    case ETXTBSY:
      code = Code::kBusy;
      break;
    case EOPNOTSUPP:
    case ENOSYS:
      code = Code::kUnsupported;
      break;
    default:
      break;
  }
  return Status{code, os_error, text};
}

Result<void> check_io_path(std::string_view path, bool root_allowed) {
  if (path.empty() || path == ".") {
    if (root_allowed) return {};
    return error(Code::kInvalid, "a file name is missing");
  }
  if (path.front() == '/')
    return error(Code::kInvalid, "paths of the store are relative to its root");
  if (path.find('\0') != std::string_view::npos) return error(Code::kInvalid, "a path holds a NUL");
  while (true) {
    const std::size_t slash = path.find('/');
    if (path.substr(0, slash) == "..")
      return error(Code::kInvalid, "paths of the store hold no '..'");
    if (slash == std::string_view::npos) return {};
    path.remove_prefix(slash + 1);
  }
}

Result<void> check_io_request(const IoRequest& request, bool direct, bool writable) {
  const bool writes = request.op == IoOp::kWrite || request.op == IoOp::kAllocate;
  if (writes && !writable) return error(Code::kInvalid, "the file is open for reading only");
  if (request.op != IoOp::kRead && request.op != IoOp::kWrite) {
    if (!request.pieces.empty()) return error(Code::kInvalid, "only a transfer has pieces");
    if (request.offset > static_cast<std::uint64_t>(INT64_MAX))
      return error(Code::kTooLarge, "beyond the largest file");
    return {};
  }
  if (request.pieces.empty() || request.pieces.size() > kIoVecsMax)
    return error(Code::kInvalid, "a transfer has 1 .. 256 pieces");
  std::uint64_t end = request.offset;
  std::uint64_t together = request.offset;
  for (const IoVec& piece : request.pieces) {
    if (piece.data == nullptr || piece.size_bytes == 0)
      return error(Code::kInvalid, "a piece of a transfer is empty");
    if (piece.size_bytes > static_cast<std::uint64_t>(INT64_MAX) ||
        end > INT64_MAX - piece.size_bytes)
      return error(Code::kInvalid, "a transfer ends beyond the largest file");
    end += piece.size_bytes;
    together |= piece.size_bytes | reinterpret_cast<std::uintptr_t>(piece.data);
  }
  if (direct && together % kDiskAlign != 0)
    return error(Code::kInvalid, "direct I/O wants offset, length and memory in multiples of 4096");
  return {};
}

}  // namespace kvtier
