// ArgumentArea: blocks of a connection's argument area, lent to requests under way.
//
// Two sizes: large ones hold a fetch of kFetchEntriesMax entries, small ones an opaque key. Guarded
// by the connection's mutex.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>

#include "base/limits.h"
#include "client/ipc/shm_layout.h"

namespace kvtier {

class ArgumentArea {
 public:
  static constexpr std::uint64_t kLargeBytes = kFetchEntriesMax * sizeof(FetchEntry);
  static constexpr std::uint64_t kSmallBytes = kObjectKeyBytesMax;
  static constexpr std::uint32_t kLargeBlocks = 24;
  static constexpr std::uint32_t kSmallBlocks = 1024;
  static_assert(kLargeBlocks * kLargeBytes + kSmallBlocks * kSmallBytes <= kArgumentBytes);

  // Offset of a free block that holds `size_bytes` (at most kLargeBytes), or nothing. `spare`: half
  // of the large blocks are left to those that must have one.
  [[nodiscard]] std::optional<std::uint64_t> take(std::uint64_t size_bytes, bool spare) noexcept {
    if (size_bytes <= kSmallBytes) return take_from(&small_, kSmallBytes, kSmallBase);
    if (spare && large_.count() >= kLargeBlocks / 2) return std::nullopt;
    return take_from(&large_, kLargeBytes, 0);
  }
  void give_back(std::uint64_t offset) noexcept {
    if (offset >= kSmallBase) {
      small_.reset(static_cast<std::size_t>((offset - kSmallBase) / kSmallBytes));
    } else {
      large_.reset(static_cast<std::size_t>(offset / kLargeBytes));
    }
  }

 private:
  static constexpr std::uint64_t kSmallBase = kLargeBlocks * kLargeBytes;

  template <std::size_t kCount>
  static std::optional<std::uint64_t> take_from(std::bitset<kCount>* used,
                                                std::uint64_t block_bytes,
                                                std::uint64_t base) noexcept {
    for (std::size_t i = 0; i < kCount; ++i) {
      if (used->test(i)) continue;
      used->set(i);
      return base + i * block_bytes;
    }
    return std::nullopt;
  }

  std::bitset<kLargeBlocks> large_;
  std::bitset<kSmallBlocks> small_;
};

}  // namespace kvtier
