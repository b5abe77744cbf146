// Spaces: everything that may be mixed lives in one. A space never goes away while the daemon runs,
// so others keep pointers to it. Owned by the engine's thread; `row`, `tail` and the layouts handed
// out are constant and may be read by workers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "kernels/layout.h"
#include "tiers/catalogue.h"
#include "tiers/prefix_index.h"

namespace kvtier {

struct EngineState;

struct Space {
  Space(SpaceRow made, std::uint64_t chain_key)
      : row(std::move(made)), tail(row.geometry), index(chain_key) {}

  SpaceRow row;  // constant but for texts that a rebuilt catalogue lacks (learn_texts)
  const TailLayout tail;
  PrefixIndex index;
  std::vector<SegmentId> roots;  // segments that begin at token 0
  std::uint64_t segments = 0;
  std::uint64_t sequences = 0;

  // Of a segment with that many tokens. Stays where it is.
  [[nodiscard]] const PlaneLayout& layout_of(std::uint32_t tokens);
  [[nodiscard]] AbstractKind abstract_kind() const noexcept {
    return static_cast<AbstractKind>(row.abstract_kind);
  }
  [[nodiscard]] AbstractLayout abstract_layout(std::uint32_t tokens) const {
    return {row.geometry, abstract_kind(), row.unit_tokens, tokens};
  }

 private:
  std::map<std::uint32_t, std::unique_ptr<PlaneLayout>> layouts_;
};

[[nodiscard]] Space* find_space(EngineState& engine, SpaceId id);
// Adds a space from its row, or gives the one that is there.
Space& add_space(EngineState& engine, SpaceRow row);
// The row that a request describes: digest and id computed, abstract kind and unit checked.
[[nodiscard]] Result<SpaceRow> make_space_row(const Fingerprint& fingerprint,
                                              std::uint32_t abstract_kind,
                                              std::uint32_t unit_tokens, bool private_only);

}  // namespace kvtier
