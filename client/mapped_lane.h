// MappedLane: one kind of abstracts of a sequence as it lies mapped: which segments of the
// directory have it, and where. Reads what the directory says when it is told to, and checks every
// header before it believes it. One thread, together with its view.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "client/connection.h"
#include "client/directory.h"
#include "kernels/abstract_layout.h"

namespace kvtier {

class MappedLane {
 public:
  // `spec` none: a lane that is nowhere.
  explicit MappedLane(const AbstractSpec& spec) : spec_(spec) {}

  [[nodiscard]] const AbstractSpec& spec() const noexcept { return spec_; }
  // The number that the daemon gave it on a connection.
  void told(std::uint32_t lane) noexcept { lane_ = lane; }
  // A new connection knows nothing of it.
  void forget() noexcept { lane_.reset(); }
  [[nodiscard]] bool is_told() const noexcept { return lane_.has_value(); }
  // Only where it was told.
  [[nodiscard]] std::uint32_t lane() const noexcept { return *lane_; }

  // After told(). `codebook`: the id that codes must have; 0 for all else.
  void read(const Directory& directory, const Connection& connection, const Geometry& geometry,
            std::uint64_t codebook);
  // Of segment i of the directory as read; null: not there.
  [[nodiscard]] const AbstractLayout* layout(std::size_t segment) const noexcept {
    return segment < segments_.size() ? segments_[segment].layout : nullptr;
  }
  // Where layout() is not null: what its offsets count from.
  [[nodiscard]] const std::byte* data(std::size_t segment) const noexcept {
    return arena_ + segments_[segment].offset;
  }
  // What was there is where it was, and never left: what was read meanwhile is what was written.
  // `now`: the directory's segments as they are by then, of the same connection.
  [[nodiscard]] bool unmoved(std::span<const DirectoryEntry> now) const noexcept;
  // Visible tokens of segments without it.
  [[nodiscard]] std::uint64_t missing_tokens(const Directory& directory) const noexcept;
  [[nodiscard]] bool empty() const noexcept { return segments_.empty(); }
  // Of all that is there.
  [[nodiscard]] std::uint64_t mapped_bytes() const noexcept;

 private:
  struct Segment {
    std::uint64_t id = 0;
    std::uint64_t offset = 0;
    std::uint64_t placement = 0;
    const AbstractLayout* layout = nullptr;
  };

  const AbstractSpec spec_;
  std::optional<std::uint32_t> lane_;
  const std::byte* arena_ = nullptr;
  std::map<std::pair<std::uint32_t, std::uint32_t>, AbstractLayout> layouts_;  // by tokens, units
  std::vector<Segment> segments_;
};

}  // namespace kvtier
