#include "daemon/spaces.h"

#include "base/limits.h"
#include "daemon/engine_state.h"

namespace kvtier {

const PlaneLayout& Space::layout_of(std::uint32_t tokens) {
  std::unique_ptr<PlaneLayout>& layout = layouts_[tokens];
  if (layout == nullptr) layout = std::make_unique<PlaneLayout>(row.geometry, tokens);
  return *layout;
}

Space* find_space(EngineState& engine, SpaceId id) {
  const auto place = engine.spaces.find(id);
  return place == engine.spaces.end() ? nullptr : place->second.get();
}

Space& add_space(EngineState& engine, SpaceRow row) {
  std::unique_ptr<Space>& space = engine.spaces[row.id];
  if (space == nullptr) space = std::make_unique<Space>(std::move(row), engine.chain_key);
  return *space;
}

Result<SpaceRow> make_space_row(const Fingerprint& fingerprint, std::uint32_t abstract_kind,
                                std::uint32_t unit_tokens, bool private_only) {
  KVT_TRY_VOID(fingerprint.geometry.validate());
  if (abstract_kind > static_cast<std::uint32_t>(AbstractKind::kMean))
    return error(Code::kInvalid, "abstract_kind is \"box\", \"mean\" or \"none\"");
  if (unit_tokens == 0 || unit_tokens > kSegmentTokensMax)
    return error(Code::kInvalid, "unit_tokens is 1 to 2048");
  SpaceRow row;
  row.digest = fingerprint_digest(fingerprint);
  row.id = SpaceId{row.digest.low != 0 ? row.digest.low : 1};
  row.model = fingerprint.model;
  row.runtime = fingerprint.runtime;
  row.detail = fingerprint.detail;
  row.geometry = fingerprint.geometry;
  row.abstract_kind = abstract_kind;
  row.unit_tokens = unit_tokens;
  row.private_only = private_only;
  return row;
}

}  // namespace kvtier
