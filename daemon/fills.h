// Fills: chunks on their way from segment files into slots of the host arena. Read in file order,
// neighbours merged into reads of at most kReadBytesMax; checked, and decoded by a worker where
// they are not raw, before anybody may see them. Engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "daemon/segments.h"

namespace kvtier {

struct ChunkKey {
  std::uint64_t segment = 0;
  std::uint32_t chunk = 0;
  friend bool operator==(const ChunkKey&, const ChunkKey&) = default;
};
struct ChunkKeyHash {
  std::size_t operator()(const ChunkKey& key) const noexcept {
    return static_cast<std::size_t>(key.segment * 0x9E3779B97F4A7C15ull +
                                    key.chunk * 0xC2B2AE3D27D4EB4Full);
  }
};

struct FillRead;  // one read of the disk, of one fill or of neighbours

// A chunk on its way into a slot.
struct Fill {
  struct Waiter {
    std::uint64_t job = 0;
    std::uint32_t entry = 0;
  };
  Segment* segment = nullptr;  // its `busy` is counted
  std::uint32_t chunk = 0;
  SlotId slot;
  std::uint64_t read_bytes = 0;
  std::uint64_t file_offset = 0;
  bool hinted = false;             // begun for a prefetch; counted in FetchTable::hinted_bytes
  AlignedBuffer staging;           // for chunks that are not raw
  std::shared_ptr<FillRead> read;  // null: not submitted yet
  std::vector<Waiter> waiters;
};

// A new fill of a chunk that is in nobody's way yet; the segment's metadata is loaded. It has begun
// when submit_fills() was called with it, and ends with answer_waiters().
[[nodiscard]] Fill& begin_fill(EngineState& engine, Segment& segment, std::uint32_t chunk,
                               SlotId slot);
// Reads these fills of one segment.
void submit_fills(EngineState& engine, Segment& segment, IoPriority priority,
                  std::vector<Fill*> fills);
// Somebody waits for it with this priority: where its read has not begun, it goes before what is
// less urgent.
void hasten_fill(EngineState& engine, Fill& fill, IoPriority priority);
// The job waits for this chunk no more. Where nobody else does, nor for what is read with it, and
// the read has not begun, there will be none: the fills end, their slots are free.
void leave_fill(EngineState& engine, ChunkKey key, std::uint64_t job);

}  // namespace kvtier
