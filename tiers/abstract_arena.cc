// First fit over a map of free extents, neighbours joined at once. Extents are few (one per
// attached segment and kind), so the walk is short.
#include <algorithm>
#include <iterator>
#include <map>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "tiers/host_arena.h"

namespace kvtier {

namespace {
constexpr std::uint64_t kAlign = 64;
}

struct AbstractArena::State {
  Memfd memfd;
  std::uint64_t size_bytes = 0, used_bytes = 0;
  std::map<std::uint64_t, std::uint64_t>
      free_extents;                              // offset -> size; never adjacent to each other
  std::map<std::uint64_t, std::uint64_t> taken;  // offset -> size
};

AbstractArena::AbstractArena() = default;
AbstractArena::~AbstractArena() = default;

Result<std::unique_ptr<AbstractArena>> AbstractArena::make(std::uint64_t size_bytes) {
  if (size_bytes > (1ull << 44))
    return error(Code::kTooLarge, "abstracts arena: the size is above 16 TiB");
  const std::uint64_t size = align_up(std::max(size_bytes, kDiskAlign), kDiskAlign);
  std::unique_ptr<AbstractArena> arena(new AbstractArena);
  arena->state_ = std::make_unique<State>();
  KVT_TRY(arena->state_->memfd, make_memfd("kvtier-abstracts", size, MemfdAccess::kReadOnly, true));
  arena->state_->size_bytes = size;
  arena->state_->free_extents.emplace(0, size);
  return arena;
}

Result<std::uint64_t> AbstractArena::allocate(std::uint64_t size_bytes) {
  if (size_bytes == 0) return error(Code::kInvalid, "an extent has at least one byte");
  if (size_bytes > state_->size_bytes)
    return error(Code::kFull, "abstracts arena: larger than the arena");
  const std::uint64_t wanted = align_up(size_bytes, kAlign);
  auto& free_extents = state_->free_extents;
  for (auto extent = free_extents.begin(); extent != free_extents.end(); ++extent) {
    const auto [offset, size] = *extent;
    if (size < wanted) continue;
    free_extents.erase(extent);
    if (size > wanted) free_extents.emplace(offset + wanted, size - wanted);
    state_->taken.emplace(offset, wanted);
    state_->used_bytes += wanted;
    return offset;
  }
  return error(Code::kFull, "abstracts arena: no extent is large enough");
}

void AbstractArena::free(std::uint64_t offset) {
  const auto taken = state_->taken.find(offset);
  KVT_CHECK(taken != state_->taken.end());
  std::uint64_t begin = offset;
  std::uint64_t size = taken->second;
  state_->taken.erase(taken);
  state_->used_bytes -= size;
  auto& free_extents = state_->free_extents;
  auto behind = free_extents.lower_bound(begin);
  if (behind != free_extents.end() && behind->first == begin + size) {
    size += behind->second;
    behind = free_extents.erase(behind);
  }
  if (behind != free_extents.begin()) {
    const auto before = std::prev(behind);
    if (before->first + before->second == begin) {
      begin = before->first;
      size += before->second;
      free_extents.erase(before);
    }
  }
  free_extents.emplace(begin, size);
}

std::byte* AbstractArena::data(std::uint64_t offset) const noexcept {
  return state_->memfd.mapping.data() + offset;
}
int AbstractArena::fd() const noexcept { return state_->memfd.fd.get(); }
std::uint64_t AbstractArena::size_bytes() const noexcept { return state_->size_bytes; }
std::uint64_t AbstractArena::used_bytes() const noexcept { return state_->used_bytes; }

}  // namespace kvtier
