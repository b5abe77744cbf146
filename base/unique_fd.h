// UniqueFd owns a file descriptor; Mapping owns a memory mapping. Move-only; one thread each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/result.h"

namespace kvtier {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { reset(); }
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset() noexcept;

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      size_bytes_ = std::exchange(other.size_bytes_, 0);
    }
    return *this;
  }
  ~Mapping() { reset(); }

  // Maps `size_bytes` of `fd` from its beginning, shared. Never dumped, never inherited by a forked
  // child.
  [[nodiscard]] static Result<Mapping> map(int fd, std::size_t size_bytes, bool writable);

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] bool valid() const noexcept { return data_ != nullptr; }
  void reset() noexcept;
  // Frees the memory of whole pages in [offset, offset + size_bytes) for all who map the file; they
  // read as zeros afterwards. Of a memfd, mapped writable. Where the kernel refuses, they stay.
  void free_pages(std::size_t offset, std::size_t size_bytes) noexcept;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_bytes_ = 0;
};

// What a memfd allows its other holders.
enum class MemfdAccess {
  kSharedWrite,  // others may map it writable; size sealed
  kReadOnly,     // F_SEAL_FUTURE_WRITE: only the mapping returned here may write
};

struct Memfd {
  UniqueFd fd;
  Mapping mapping;  // writable
};

// An anonymous shared file of `size_bytes`, mapped writable here, its size sealed so that nobody
// can cut it under us. Pages come into being on first touch; `huge` asks for transparent huge
// pages.
[[nodiscard]] Result<Memfd> make_memfd(const char* name, std::size_t size_bytes, MemfdAccess access,
                                       bool huge);
// Memory that the file takes now, whoever touched it. 0 where it cannot be told.
[[nodiscard]] std::uint64_t memfd_resident_bytes(int fd) noexcept;

}  // namespace kvtier
