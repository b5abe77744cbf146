// Bounds-checked little-endian reading and writing: the only way in which bytes from a file or a
// peer become values.
//
// ByteReader never reads past its end: a short read turns it to failed and gives zeros from then
// on, so that a parser reads all fields first and asks ok() once. ByteWriter appends to a vector.
// One thread each. x86-64 and aarch64 are little-endian; the static assertion keeps it honest.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvtier {

static_assert(std::endian::native == std::endian::little,
              "formats are little-endian and read in place");

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

template <class T>
constexpr T align_up(T value, T alignment) noexcept {
  return (value + alignment - 1) / alignment * alignment;
}

class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) noexcept : bytes_(bytes) {}

  template <class T>
  T read() noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (!take(sizeof(T))) return value;
    std::memcpy(&value, bytes_.data() + offset_ - sizeof(T), sizeof(T));
    return value;
  }
  // A view of the next n bytes, or an empty one with failure.
  ByteSpan read_bytes(std::uint64_t n) noexcept {
    if (!take(n)) return {};
    return bytes_.subspan(offset_ - static_cast<std::size_t>(n), static_cast<std::size_t>(n));
  }
  void skip(std::uint64_t n) noexcept { take(n); }
  [[nodiscard]] bool ok() const noexcept { return ok_; }
  [[nodiscard]] std::size_t offset() const noexcept { return offset_; }
  [[nodiscard]] std::size_t remaining() const noexcept { return bytes_.size() - offset_; }

 private:
  bool take(std::uint64_t n) noexcept {
    if (!ok_ || n > remaining()) {
      ok_ = false;
      return false;
    }
    offset_ += static_cast<std::size_t>(n);
    return true;
  }

  ByteSpan bytes_;
  std::size_t offset_ = 0;
  bool ok_ = true;
};

class ByteWriter {
 public:
  template <class T>
  void write(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    write_bytes({reinterpret_cast<const std::byte*>(&value), sizeof(T)});
  }
  // Not by insert(): GCC 12 sees overflows in it that are none.
  void write_bytes(ByteSpan bytes) {
    if (bytes.empty()) return;
    bytes_.resize(bytes_.size() + bytes.size());
    std::memcpy(bytes_.data() + bytes_.size() - bytes.size(), bytes.data(), bytes.size());
  }
  void pad_to(std::size_t alignment) { bytes_.resize(align_up(bytes_.size(), alignment)); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  [[nodiscard]] ByteSpan view() const noexcept { return bytes_; }
  [[nodiscard]] std::vector<std::byte> take() noexcept { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

inline ByteSpan as_bytes(std::string_view text) noexcept {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
template <class T>
ByteSpan as_bytes_of(const T& value) noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const std::byte*>(&value), sizeof(T)};
}

}  // namespace kvtier
