// Names and descriptors of the real back ends, by openat and its family.
#include "tiers/io_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/fault.h"
#include "base/log.h"
#include "tiers/io_backends.h"

namespace kvtier {
namespace {

// A failure that is somebody's fault is logged here, once; "no such file" and "exists" are ordinary
// answers.
Result<void> failure(const char* what, std::string_view path, int os_error) {
  if (os_error != ENOENT && os_error != EEXIST)
    KVT_LOG(kError, "%s of %.*s: %s", what, static_cast<int>(path.size()), path.data(),
            std::strerror(os_error));
  return error(status_of_errno(os_error, nullptr));
}

std::string c_path(std::string_view path) {
  return path.empty() ? std::string(".") : std::string(path);
}

}  // namespace

Result<FileTable> FileTable::open_root(const std::string& root) {
  UniqueFd fd(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    const int os_error = errno;
    KVT_LOG(kError, "root of the disk tier, %s: %s", root.c_str(), std::strerror(os_error));
    return error(status_of_errno(os_error, "the root of the disk tier cannot be opened"));
  }
  return FileTable(std::move(fd));
}

Result<FileId> FileTable::open(std::string_view path, OpenOptions options) {
  KVT_TRY_VOID(check_io_path(path, false));
  if (KVT_FAULT("io.open")) return error(Code::kIo, "fault point io.open", EIO);
  int flags = O_CLOEXEC | O_NOFOLLOW;
  flags |= options.mode == OpenMode::kRead ? O_RDONLY : O_RDWR;
  if (options.mode == OpenMode::kCreateNew) flags |= O_CREAT | O_EXCL;
  const std::string name(path);
  auto opened = std::make_unique<OpenFile>();
  opened->fd = UniqueFd(::openat(root_.get(), name.c_str(), flags, 0600));
  if (!opened->fd.valid()) return error(failure("open", path, errno).error());
  // O_DIRECT comes after the open: with it, a refusing file system may leave a new file behind and
  // still fail.
  if (options.direct) {
    opened->direct_in_kernel = ::fcntl(opened->fd.get(), F_SETFL, O_DIRECT) == 0;
    if (!opened->direct_in_kernel && note_.empty()) {
      note_ = std::string("direct I/O: refused by the file system (") + std::strerror(errno) +
              "), buffered instead";
      KVT_LOG(kWarn, "%s", note_.c_str());
    }
  }
  opened->path = name;
  opened->direct = options.direct;
  opened->writable = options.mode != OpenMode::kRead;
  return add(std::move(opened));
}

FileId FileTable::add(std::unique_ptr<OpenFile> file) {
  const FileId id{next_++};
  files_.emplace(id.value, std::move(file));
  return id;
}

OpenFile* FileTable::find(FileId file) const {
  const auto found = files_.find(file.value);
  return found == files_.end() ? nullptr : found->second.get();
}

Result<std::uint64_t> FileTable::size_bytes(FileId file) const {
  const OpenFile* const found = find(file);
  if (found == nullptr) return error(Code::kInvalid, "the file is not open");
  struct stat status {};
  if (::fstat(found->fd.get(), &status) != 0)
    return error(failure("stat", found->path, errno).error());
  return static_cast<std::uint64_t>(status.st_size);
}

Result<void> FileTable::resize(FileId file, std::uint64_t size_bytes) {
  const OpenFile* const found = find(file);
  if (found == nullptr) return error(Code::kInvalid, "the file is not open");
  if (!found->writable) return error(Code::kInvalid, "the file is open for reading only");
  if (size_bytes > static_cast<std::uint64_t>(INT64_MAX))
    return error(Code::kTooLarge, "beyond the largest file");
  if (KVT_FAULT("io.resize")) return error(Code::kIo, "fault point io.resize", EIO);
  if (::ftruncate(found->fd.get(), static_cast<off_t>(size_bytes)) != 0)
    return failure("resize", found->path, errno);
  return {};
}

Result<void> FileTable::make_directory(std::string_view path) {
  KVT_TRY_VOID(check_io_path(path, false));
  const std::string name(path);
  if (::mkdirat(root_.get(), name.c_str(), 0700) == 0) return {};
  if (errno != EEXIST) return failure("mkdir", path, errno);
  struct stat status {};
  if (::fstatat(root_.get(), name.c_str(), &status, 0) != 0) return failure("stat", path, errno);
  if (!S_ISDIR(status.st_mode)) return error(Code::kExists, "a file has this name");
  return {};
}

Result<std::vector<std::string>> FileTable::list(std::string_view directory) const {
  KVT_TRY_VOID(check_io_path(directory, true));
  UniqueFd fd(::openat(root_.get(), c_path(directory).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return error(failure("list", directory, errno).error());
  DIR* const stream = ::fdopendir(fd.get());
  if (stream == nullptr) return error(failure("list", directory, errno).error());
  fd.release();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* const entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  const int os_error = errno;
  ::closedir(stream);
  if (os_error != 0) return error(failure("list", directory, os_error).error());
  std::sort(names.begin(), names.end());
  return names;
}

Result<void> FileTable::rename(std::string_view from, std::string_view to) {
  KVT_TRY_VOID(check_io_path(from, false));
  KVT_TRY_VOID(check_io_path(to, false));
  if (KVT_FAULT("io.rename")) return error(Code::kIo, "fault point io.rename", EIO);
  const std::string source(from), target(to);
  if (::renameat(root_.get(), source.c_str(), root_.get(), target.c_str()) != 0)
    return failure("rename", from, errno);
  return {};
}

Result<void> FileTable::unlink(std::string_view path) {
  KVT_TRY_VOID(check_io_path(path, false));
  if (KVT_FAULT("io.unlink")) return error(Code::kIo, "fault point io.unlink", EIO);
  if (::unlinkat(root_.get(), std::string(path).c_str(), 0) != 0)
    return failure("unlink", path, errno);
  return {};
}

Result<void> FileTable::sync_directory(std::string_view path) {
  KVT_TRY_VOID(check_io_path(path, true));
  if (KVT_FAULT("io.sync_directory")) return error(Code::kIo, "fault point io.sync_directory", EIO);
  const UniqueFd fd(
      ::openat(root_.get(), c_path(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return failure("sync", path, errno);
  if (::fsync(fd.get()) != 0) return failure("sync", path, errno);
  return {};
}

Result<std::uint64_t> FileTable::free_bytes() const {
  struct statvfs status {};
  if (::fstatvfs(root_.get(), &status) != 0) return error(failure("statvfs", ".", errno).error());
  return std::uint64_t{status.f_bavail} * status.f_frsize;
}

// Opened anew for each sync: none is then refused for an earlier one that failed, and opening a
// directory costs microseconds.
Result<OpenFile*> FileTable::admit_directory(IoRequest& request) {
  // Not the caller's to close at the end.
  if (std::exchange(request.file, FileId{}).value != 0)
    return error(Code::kInvalid, "a directory is synced by its name");
  KVT_TRY_VOID(check_io_path(request.directory, true));
  KVT_TRY_VOID(check_io_request(request, false, false));
  if (KVT_FAULT("io.sync_directory")) return error(Code::kIo, "fault point io.sync_directory", EIO);
  auto opened = std::make_unique<OpenFile>();
  opened->fd = UniqueFd(
      ::openat(root_.get(), c_path(request.directory).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened->fd.valid()) return error(failure("sync", request.directory, errno).error());
  opened->path = c_path(request.directory);
  request.file = add(std::move(opened));
  return find(request.file);
}

void FileTable::release(const IoRequest& request) {
  if (request.op == IoOp::kSyncDirectory) close(request.file);
}

Result<OpenFile*> FileTable::admit(IoRequest& request) {
  if (request.op == IoOp::kSyncDirectory) return admit_directory(request);
  OpenFile* const file = find(request.file);
  if (file == nullptr) return error(Code::kInvalid, "the file is not open");
  KVT_TRY_VOID(check_io_request(request, file->direct, file->writable));
  bool fault = false;
  switch (request.op) {
    case IoOp::kRead:
      fault = KVT_FAULT("io.read");
      break;
    case IoOp::kWrite:
      fault = KVT_FAULT("io.write");
      break;
    case IoOp::kSync:
      if (file->poisoned)
        return error(Code::kIo, "an earlier sync of this file failed: its data cannot be trusted");
      fault = KVT_FAULT("io.sync");
      break;
    case IoOp::kAllocate:
      fault = KVT_FAULT("io.allocate");
      break;
    case IoOp::kSyncDirectory:
      break;
  }
  if (fault) return error(failed(*file, request.op, EIO));
  return file;
}

bool FileTable::cannot_allocate(int os_error) {
  return os_error == EOPNOTSUPP || os_error == ENOSYS || os_error == EINVAL;
}

Status FileTable::failed(OpenFile& file, IoOp op, int os_error) {
  static constexpr const char* kWhat[] = {"read", "write", "sync", "sync", "allocation"};
  const char* const what = kWhat[static_cast<int>(op)];
  if (op == IoOp::kSync) file.poisoned = true;
  KVT_LOG(kError, "%s of %s: %s", what, file.path.c_str(), std::strerror(os_error));
  Status status = status_of_errno(os_error, nullptr);
  if (status.code == Code::kNotFound || status.code == Code::kUnsupported) status.code = Code::kIo;
  return status;
}

// ---- FileIo ----

std::string FileIo::note() const {
  if (own_note_.empty() || files_.note().empty()) return own_note_ + files_.note();
  return own_note_ + "; " + files_.note();
}

void FileIo::signal() const {
  const std::uint64_t one = 1;
  static_cast<void>(!::write(event_.get(), &one, sizeof one));  // cannot fail short of 2^64 writes
}

void FileIo::drain_event() const {
  std::uint64_t drained = 0;
  static_cast<void>(!::read(event_.get(), &drained, sizeof drained));
}

void FileIo::end(IoRequest& request, Result<void> result) {
  --in_flight_;
  files_.release(request);
  if (!result) {
    ++stats_.errors;
  } else if (request.op == IoOp::kRead) {
    ++stats_.reads;
    stats_.read_bytes += request.size_bytes();
  } else if (request.op == IoOp::kWrite) {
    ++stats_.writes;
    stats_.written_bytes += request.size_bytes();
  } else if (request.op != IoOp::kAllocate) {
    ++stats_.syncs;
  }
  if (request.done) request.done(result);
}

Result<UniqueFd> make_io_event() {
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return error(status_of_errno(errno, "no event descriptor"));
  return event;
}

}  // namespace kvtier
