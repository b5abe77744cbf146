// ChunkRange: the chunks that hold tokens [first, last) of one layer, as numbered fetch entries:
// chunk by chunk in token order, the head groups of a chunk side by side. A view of a directory's
// segments: use it before the directory changes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "client/ipc/shm_layout.h"
#include "kernels/geometry.h"

namespace kvtier {

class ChunkRange {
 public:
  struct Place {
    std::uint64_t first_token = 0;  // of the chunk, in the sequence
    std::uint32_t tokens = 0;       // visible ones of the chunk
    std::uint32_t chunk = 0;        // in its segment
    std::uint32_t group = 0;
    std::size_t segment = 0;  // number in the directory
  };

  // `last` is at most the end of the segments.
  ChunkRange(std::span<const DirectoryEntry> segments, const Geometry& geometry,
             std::uint32_t layer, std::uint64_t first, std::uint64_t last)
      : segments_(segments),
        chunk_tokens_(geometry.chunk_tokens),
        layer_(layer),
        groups_(geometry.groups(layer)) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const DirectoryEntry& segment = segments[i];
      const std::uint64_t begin = std::max(first, segment.first_token);
      const std::uint64_t end = std::min(last, segment.first_token + segment.visible_tokens);
      if (begin >= end) continue;
      const std::uint64_t first_chunk = (begin - segment.first_token) / chunk_tokens_;
      const std::uint64_t last_chunk = (end - segment.first_token - 1) / chunk_tokens_;
      parts_.push_back({i, entries_, static_cast<std::uint32_t>(first_chunk)});
      entries_ += (last_chunk - first_chunk + 1) * groups_;
    }
  }

  [[nodiscard]] std::uint64_t entries() const noexcept { return entries_; }
  [[nodiscard]] std::uint32_t groups() const noexcept { return groups_; }

  [[nodiscard]] Place place(std::uint64_t index) const noexcept {
    const auto after =
        std::upper_bound(parts_.begin(), parts_.end(), index,
                         [](std::uint64_t i, const Part& part) { return i < part.first_entry; });
    const Part& part = *(after - 1);
    const DirectoryEntry& segment = segments_[part.segment];
    const auto chunk =
        static_cast<std::uint32_t>(part.first_chunk + (index - part.first_entry) / groups_);
    const std::uint32_t offset = chunk * chunk_tokens_;
    return {segment.first_token + offset, std::min(chunk_tokens_, segment.visible_tokens - offset),
            chunk, static_cast<std::uint32_t>((index - part.first_entry) % groups_), part.segment};
  }
  [[nodiscard]] FetchEntry entry(std::uint64_t index) const noexcept {
    const Place at = place(index);
    FetchEntry entry{};
    entry.segment = segments_[at.segment].segment;
    entry.row_mask = at.tokens == 64 ? UINT64_MAX : (1ull << at.tokens) - 1;
    entry.layer = static_cast<std::uint16_t>(layer_);
    entry.chunk = static_cast<std::uint16_t>(at.chunk);
    entry.group = static_cast<std::uint16_t>(at.group);
    return entry;
  }

 private:
  struct Part {
    std::size_t segment;
    std::uint64_t first_entry;
    std::uint32_t first_chunk;
  };
  std::span<const DirectoryEntry> segments_;
  std::vector<Part> parts_;
  std::uint32_t chunk_tokens_;
  std::uint32_t layer_;
  std::uint32_t groups_;
  std::uint64_t entries_ = 0;
};

}  // namespace kvtier
