#include "client/mapped_lane.h"

#include <cstring>

namespace kvtier {

void MappedLane::read(const Directory& directory, const Connection& connection,
                      const Geometry& geometry, std::uint64_t codebook) {
  const auto segments = directory.segments();
  arena_ = connection.abstracts();
  const std::uint64_t cap = connection.abstracts_bytes();
  segments_.assign(segments.size(), Segment{});
  if (!lane_) return;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::uint64_t offset = segments[i].abstract_offsets[*lane_];
    if (offset > cap || sizeof(AbstractHeader) > cap - offset) continue;
    AbstractHeader header;
    std::memcpy(&header, arena_ + offset, sizeof(header));
    if (header.spec != spec_.packed() || header.tokens != segments[i].tokens ||
        header.units > header.tokens || header.version != kAbstractVersion ||
        header.codebook != codebook)
      continue;
    const AbstractLayout& layout = layouts_
                                       .try_emplace({header.tokens, header.units}, geometry, spec_,
                                                    header.tokens, header.units)
                                       .first->second;
    if (layout.size_bytes() <= cap - offset)
      segments_[i] = {segments[i].segment, offset, header.placement, &layout};
  }
}

bool MappedLane::unmoved(std::span<const DirectoryEntry> now) const noexcept {
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    if (segments_[i].layout == nullptr) continue;
    if (i >= now.size() || now[i].segment != segments_[i].id ||
        now[i].abstract_offsets[*lane_] != segments_[i].offset)
      return false;
    AbstractHeader header;
    std::memcpy(&header, data(i), sizeof(header));
    if (header.placement != segments_[i].placement) return false;
  }
  return true;
}

std::uint64_t MappedLane::missing_tokens(const Directory& directory) const noexcept {
  std::uint64_t missing = 0;
  const auto segments = directory.segments();
  for (std::size_t i = 0; i < segments.size(); ++i)
    if (layout(i) == nullptr) missing += segments[i].visible_tokens;
  return missing;
}

std::uint64_t MappedLane::mapped_bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const Segment& segment : segments_)
    if (segment.layout != nullptr) bytes += segment.layout->size_bytes();
  return bytes;
}

}  // namespace kvtier
