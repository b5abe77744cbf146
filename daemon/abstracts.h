// Abstracts: derived from a segment's keys, kept in a sidecar file, shown to clients in the
// abstracts arena.
//
// Built by the worker that seals, from the copy it just made; rebuilt from the stored chunks where
// the sidecar is missing or damaged, one segment at a time. In the arena while an open sequence
// names the segment. Being derived, a sidecar is never synced: its checksum decides. Engine's
// thread but for build_abstracts.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "daemon/segments.h"
#include "kernels/kernel_table.h"

namespace kvtier {

struct Sequence;

struct AbstractSource {
  const KernelTable* kernels = nullptr;
  const Space* space = nullptr;
  std::uint32_t tokens = 0;
  const PlaneLayout* layout = nullptr;
  const std::vector<std::byte*>& chunks;  // by chunk index
};
// The sidecar's payload (AbstractLayout order); empty where the space has no abstracts. Any thread.
[[nodiscard]] std::vector<std::byte> build_abstracts(const AbstractSource& source);
// The same for layers [first, last) only, into their places in `payload`, which has the size of
// all; needs only the chunks of these layers. False where a kernel refuses.
[[nodiscard]] bool build_layer_abstracts(const AbstractSource& source, std::uint32_t first,
                                         std::uint32_t last, MutableByteSpan payload);

// A segment is being published: its abstracts into the arena, and to its sidecar in the background.
void install_abstracts_of_seal(EngineState& engine, Segment& segment,
                               std::vector<std::byte> payload);
// For every segment of an open sequence: into the arena, from sidecars or rebuilt. Directories move
// as they come.
void want_abstracts(EngineState& engine, Sequence& sequence);
// No handle names the segment any more.
void release_abstracts(EngineState& engine, Segment& segment);

struct AbstractTable {
  std::deque<SegmentId> rebuilds;
  bool rebuilding = false;
};

}  // namespace kvtier
