// Spaces: everything that may be mixed lives in one. A space never goes away while the daemon runs,
// so others keep pointers to it. Owned by the engine's thread; `row`, `tail` and the layouts handed
// out are constant and may be read by workers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "kernels/abstract_spec.h"
#include "kernels/layout.h"
#include "tiers/catalogue.h"
#include "tiers/prefix_index.h"

namespace kvtier {

struct EngineState;

struct StoredSpace {
  StoredSpace(SpaceRow made, std::uint64_t chain_key)
      : row(std::move(made)), tail(row.geometry), index(chain_key) {}

  // Constant but for what a client brings when it opens the space (learn): texts that a rebuilt
  // catalogue lacks, the rotation, that the space is not private; and abstracts (lane_of).
  SpaceRow row;
  bool row_durable = false;  // the catalogue has the row, synced
  // Of row.codebooks those that were made of what is private, or in a store that took no writes:
  // never in the catalogue, and nothing on disk refers to them.
  std::vector<std::uint64_t> codebooks_in_memory;
  const TailLayout tail;
  PrefixIndex index;
  std::vector<SegmentId> roots;  // segments that begin at token 0
  std::uint64_t segments = 0;
  std::uint64_t sequences = 0;

  // As the catalogue has it.
  [[nodiscard]] SpaceRow stored_row() const;
  [[nodiscard]] bool in_memory_only(std::uint64_t codebook) const noexcept;
  // Of a segment with that many tokens. Stays where it is.
  [[nodiscard]] const PlaneLayout& layout_of(std::uint32_t tokens);
  // Lanes: the abstracts that the space has, in the order in which they were first wanted.
  [[nodiscard]] std::uint32_t lanes() const noexcept {
    return static_cast<std::uint32_t>(row.abstracts.size());
  }
  [[nodiscard]] AbstractSpec lane_spec(std::uint32_t lane) const noexcept {
    return *unpack_abstract_spec(row.abstracts[lane]);  // checked when it came
  }

 private:
  std::map<std::uint32_t, std::unique_ptr<PlaneLayout>> layouts_;
};

[[nodiscard]] StoredSpace* find_space(EngineState& engine, SpaceId id);
// Adds a space from its row, or gives the one that is there.
StoredSpace& add_space(EngineState& engine, SpaceRow row);
// `done` once the catalogue has the space's row, synced (at once where it has it): before, nothing
// may be committed in the space, since a start drops what no space is there for. Nothing to do for
// a space that is private. Any failure is tried again by whoever opens the space next.
void keep_space(EngineState& engine, StoredSpace& space, std::function<void(Result<void>)> done);
// The row that a request describes: digest and id computed. No abstracts yet.
// kUnsupported where a layer needs snapshots.
[[nodiscard]] Result<SpaceRow> make_space_row(const Fingerprint& fingerprint, bool private_only);
// Such abstracts cannot be built: no client has said how the runtime turns keys.
[[nodiscard]] bool lacks_rotation(const StoredSpace& space, AbstractSpec spec);
// The lane of these abstracts, made where it is new (the caller stores the row then). kFull at
// kSpaceAbstractsMax; kInvalid for none.
[[nodiscard]] Result<std::uint32_t> lane_of(StoredSpace& space, AbstractSpec spec);

}  // namespace kvtier
