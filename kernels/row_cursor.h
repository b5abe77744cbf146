// Where arguments say that rows and units lie. RowCursor walks the rows of a RowPages in token
// order, skipping what a mask leaves out, UnitCursor those of one unit; both give addresses in
// batches.
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

// The unit whose score is number i.
[[nodiscard]] inline std::uint64_t unit_of(const ScoreArgs& args, std::uint64_t i) noexcept {
  return args.unit_list != nullptr ? args.unit_list[i] : i;
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

// K rows of places [first, last) of a list of tokens, or of tokens [first, last) where there is
// none: the tokens of a unit.
class UnitCursor {
 public:
  UnitCursor(const RowPages& rows, const std::uint32_t* members, std::uint64_t first,
             std::uint64_t last) noexcept
      : cursor_(rows, first, members == nullptr ? last : first, nullptr),
        rows_(rows),
        members_(members),
        place_(first),
        last_(last) {}

  // As RowCursor::next.
  std::size_t next(const std::byte** k, std::size_t room) noexcept {
    if (members_ == nullptr) return cursor_.next(k, nullptr, room);
    std::size_t count = 0;
    for (; place_ < last_ && count < room; ++place_, ++count) {
      const std::uint64_t token = members_[place_];
      k[count] = address_of(rows_.base, rows_.pages[token / rows_.page_tokens]) +
                 token % rows_.page_tokens * rows_.k_stride;
    }
    return count;
  }

 private:
  RowCursor cursor_;
  const RowPages& rows_;
  const std::uint32_t* members_;
  std::uint64_t place_;
  std::uint64_t last_;
};

// The places that each unit of a BuildAbstractArgs covers, one after the other.
class UnitWalk {
 public:
  explicit UnitWalk(const BuildAbstractArgs& args) noexcept : args_(args) {}
  // False at the end.
  bool next(std::uint64_t* first, std::uint64_t* last) noexcept {
    if (args_.starts != nullptr) {
      if (unit_ >= *args_.unit_count) return false;
      *first = args_.starts[unit_];
      *last = args_.starts[++unit_];
      return true;
    }
    const std::uint64_t tokens = *args_.token_count;
    *first = unit_++ * args_.unit_tokens;
    if (*first >= tokens) return false;
    *last = tokens - *first < args_.unit_tokens ? tokens : *first + args_.unit_tokens;
    return true;
  }

 private:
  const BuildAbstractArgs& args_;
  std::uint64_t unit_ = 0;
};

}  // namespace kvtier
