// Abstract builder: from the rows of one segment to its abstracts (kernels/abstract_layout.h), as
// one spec says. Derived data: the same input gives the same bytes. All are of keys, but base
// renditions, which are of K and V. Low-rank keys need to know how keys were turned.
//
// A plan is made once per segment and spec; layers are then built in any order, and by several
// threads as long as each has its own layers. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "kernels/abstract_layout.h"
#include "kernels/codebook_layout.h"
#include "kernels/kernel_table.h"
#include "kernels/layout.h"
#include "kernels/rotation.h"
#include "tiers/partition.h"

namespace kvtier {

// A codebook in memory: constant, shared by workers.
struct Codebook {
  std::uint64_t id = 0;
  CodebookLayout layout;
  std::vector<std::byte> payload;
};

struct AbstractPlan {
  AbstractSpec spec;
  std::vector<std::uint32_t> starts;  // of sentences and spans: [units + 1]; else empty
  AbstractLayout layout;
  OutputUnits output = {};  // of segments: behind the clusters of the other tokens
  std::uint32_t sinks = 0;  // first tokens of a sequence, like no others: own codes leave them out
  // Of low-rank keys.
  Rotation rotation;
  std::vector<std::uint32_t> positions;  // by token
};

// `tokens`: all of the segment. What they are is looked at only where the units depend on them,
// where a sequence begins, and for their positions.
[[nodiscard]] AbstractPlan plan_abstract(const Geometry& geometry, AbstractSpec spec,
                                         std::span<const TokenRecord> tokens,
                                         const Rotation& rotation = {});
// The keys of some layer were turned, and only a rotation turns them back.
[[nodiscard]] bool needs_rotation(const Geometry& geometry, AbstractSpec spec);

// Header and what all layers share. `payload` has layout.size_bytes() and is zero.
void begin_abstract(const AbstractPlan& plan, std::uint64_t codebook, MutableByteSpan payload);

struct AbstractSource {
  const KernelTable* kernels = nullptr;
  const Geometry* geometry = nullptr;
  const PlaneLayout* plane = nullptr;
  std::span<std::byte* const> chunks;  // raw, by chunk index; of the layers asked for
  const Codebook* codebook = nullptr;  // for codes
};
// K rows of the first `tokens` tokens of one head as f32 [tokens][dim]. False where a kernel
// refuses.
[[nodiscard]] bool read_keys(const AbstractSource& source, std::uint32_t layer, std::uint32_t head,
                             std::uint32_t tokens, std::vector<float>* out);

// Layers [first, last) into their places. False where a kernel refuses, or the rotation is missing.
[[nodiscard]] bool build_abstract_layers(const AbstractSource& source, const AbstractPlan& plan,
                                         std::uint32_t first, std::uint32_t last,
                                         MutableByteSpan payload);

}  // namespace kvtier
