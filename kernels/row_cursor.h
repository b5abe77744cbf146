// RowCursor: walks the rows of a RowPages in token order, skipping what a mask leaves out, and
// gives addresses in batches.
//
// Host only; one division at the start and none per row. One thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace kvtier {

[[nodiscard]] inline const std::byte* address_of(const std::byte* base,
                                                 std::uint64_t offset) noexcept {
  return reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(base) + offset);
}

class RowCursor {
 public:
  // Tokens [first, last); row_masks as in AttendArgs.
  RowCursor(const RowPages& rows, std::uint64_t first, std::uint64_t last,
            const std::uint64_t* row_masks) noexcept
      : rows_(rows),
        masks_(row_masks),
        page_(first / rows.page_tokens),
        place_(first % rows.page_tokens),
        left_(last > first ? last - first : 0) {}

  // Addresses of the next rows, at most `room`; 0 at the end. `v` may be null.
  std::size_t next(const std::byte** k, const std::byte** v, std::size_t room) noexcept {
    std::size_t count = 0;
    while (left_ > 0 && count < room) {
      const std::uint64_t end =
          rows_.page_tokens - place_ < left_ ? rows_.page_tokens : place_ + left_;
      if (!find_place(end)) continue;
      const std::byte* page = address_of(rows_.base, rows_.pages[page_]);
      k[count] = page + place_ * rows_.k_stride;
      if (v != nullptr) v[count] = page + rows_.v_offset + place_ * rows_.v_stride;
      ++count;
      advance(1);
    }
    return count;
  }

 private:
  // Moves to the next wanted place below `end` of this page; false, and at `end`, where there is
  // none.
  bool find_place(std::uint64_t end) noexcept {
    if (masks_ == nullptr) return true;
    const std::uint64_t rest = masks_[page_] >> place_;
    const std::uint64_t skip = static_cast<std::uint64_t>(std::countr_zero(rest));
    if (rest == 0 || skip >= end - place_) {
      advance(end - place_);
      return false;
    }
    advance(skip);
    return true;
  }
  void advance(std::uint64_t tokens) noexcept {
    place_ += tokens;
    left_ -= tokens;
    if (place_ == rows_.page_tokens) {
      place_ = 0;
      ++page_;
    }
  }

  const RowPages rows_;
  const std::uint64_t* masks_;
  std::uint64_t page_;
  std::uint64_t place_;
  std::uint64_t left_;
};

}  // namespace kvtier
