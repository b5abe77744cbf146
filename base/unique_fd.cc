#include "base/unique_fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>

namespace kvtier {

void UniqueFd::reset() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

void Mapping::reset() noexcept {
  if (data_ != nullptr) ::munmap(std::exchange(data_, nullptr), std::exchange(size_bytes_, 0));
}

Result<Mapping> Mapping::map(int fd, std::size_t size_bytes, bool writable) {
  void* data =
      ::mmap(nullptr, size_bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return error(Code::kIo, "cannot map shared memory", errno);
  ::madvise(data, size_bytes, MADV_DONTDUMP);
  ::madvise(data, size_bytes, MADV_DONTFORK);
  Mapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.size_bytes_ = size_bytes;
  return mapping;
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
