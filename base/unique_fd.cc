#include "base/unique_fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#ifdef __SANITIZE_THREAD__
#include <map>
#include <mutex>
#include <tuple>
#endif

namespace kvtier {

void UniqueFd::reset() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

namespace {

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer goes by address: a daemon and a client in one process must see one mapping, or it
// sees neither their races nor what orders them. So a file is mapped once, writable, and counted.
struct SharedMappings {
  using File = std::tuple<pid_t, dev_t, ino_t, std::size_t>;  // a forked child maps its own
  struct Use {
    void* data = nullptr;
    int count = 0;
  };
  std::mutex mutex;
  std::map<File, Use> by_file;  // guarded by mutex
};

SharedMappings& shared_mappings() {
  static auto* const all = new SharedMappings;
  return *all;
}

void* map_pages(int fd, std::size_t size_bytes, bool) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return MAP_FAILED;
  SharedMappings& all = shared_mappings();
  std::lock_guard<std::mutex> lock(all.mutex);
  SharedMappings::Use& use = all.by_file[{::getpid(), status.st_dev, status.st_ino, size_bytes}];
  if (use.count == 0)
    use.data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (use.data != MAP_FAILED) ++use.count;
  return use.data;
}

void unmap_pages(void* data, std::size_t size_bytes) noexcept {
  SharedMappings& all = shared_mappings();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (auto& [file, use] : all.by_file) {
    if (use.data != data || use.count == 0) continue;
    if (--use.count == 0) {
      ::munmap(data, size_bytes);
      all.by_file.erase(file);
    }
    return;
  }
}
#else
void* map_pages(int fd, std::size_t size_bytes, bool writable) {
  return ::mmap(nullptr, size_bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                0);
}
void unmap_pages(void* data, std::size_t size_bytes) noexcept { ::munmap(data, size_bytes); }
#endif

}  // namespace

void Mapping::reset() noexcept {
  if (data_ != nullptr) unmap_pages(std::exchange(data_, nullptr), std::exchange(size_bytes_, 0));
}

Result<Mapping> Mapping::map(int fd, std::size_t size_bytes, bool writable) {
  void* data = map_pages(fd, size_bytes, writable);
  if (data == MAP_FAILED) return error(Code::kIo, "cannot map shared memory", errno);
  ::madvise(data, size_bytes, MADV_DONTDUMP);
  ::madvise(data, size_bytes, MADV_DONTFORK);
  Mapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.size_bytes_ = size_bytes;
  return mapping;
}

void Mapping::free_pages(std::size_t offset, std::size_t size_bytes) noexcept {
  if (offset >= size_bytes_ || size_bytes > size_bytes_ - offset) return;
  static_cast<void>(::madvise(data_ + offset, size_bytes, MADV_REMOVE));
}

std::uint64_t memfd_resident_bytes(int fd) noexcept {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return 0;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

Result<Memfd> make_memfd(const char* name, std::size_t size_bytes, MemfdAccess access, bool huge) {
  Memfd made;
  made.fd = UniqueFd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!made.fd.valid()) return error(Code::kIo, "memfd_create failed", errno);
  if (::ftruncate(made.fd.get(), static_cast<off_t>(size_bytes)) != 0)
    return error(Code::kNoSpace, "cannot size shared memory", errno);
  KVT_TRY(made.mapping, Mapping::map(made.fd.get(), size_bytes, true));
  if (huge) ::madvise(made.mapping.data(), size_bytes, MADV_HUGEPAGE);
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (access == MemfdAccess::kReadOnly) seals |= F_SEAL_FUTURE_WRITE;
  if (::fcntl(made.fd.get(), F_ADD_SEALS, seals) != 0)
    return error(Code::kUnsupported, "cannot seal shared memory", errno);
  return made;
}

}  // namespace kvtier
