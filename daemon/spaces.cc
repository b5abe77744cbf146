#include "daemon/spaces.h"

#include <algorithm>

#include "base/limits.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "tiers/abstract_builder.h"

namespace kvtier {

const PlaneLayout& StoredSpace::layout_of(std::uint32_t tokens) {
  std::unique_ptr<PlaneLayout>& layout = layouts_[tokens];
  if (layout == nullptr) layout = std::make_unique<PlaneLayout>(row.geometry, tokens);
  return *layout;
}

bool StoredSpace::in_memory_only(std::uint64_t codebook) const noexcept {
  return std::find(codebooks_in_memory.begin(), codebooks_in_memory.end(), codebook) !=
         codebooks_in_memory.end();
}

SpaceRow StoredSpace::stored_row() const {
  SpaceRow stored = row;
  std::erase_if(stored.codebooks,
                [this](const SpaceRow::Codebook& one) { return in_memory_only(one.id); });
  return stored;
}

StoredSpace* find_space(EngineState& engine, SpaceId id) {
  const auto place = engine.spaces.find(id);
  return place == engine.spaces.end() ? nullptr : place->second.get();
}

StoredSpace& add_space(EngineState& engine, SpaceRow row) {
  std::unique_ptr<StoredSpace>& space = engine.spaces[row.id];
  if (space == nullptr) space = std::make_unique<StoredSpace>(std::move(row), engine.chain_key);
  return *space;
}

void keep_space(EngineState& engine, StoredSpace& space, std::function<void(Result<void>)> done) {
  if (space.row_durable || space.row.private_only) return done({});
  CatalogueBatch batch;
  batch.put_space(space.stored_row());
  post_batch(engine, std::move(batch), true, [&space, done = std::move(done)](Result<void> kept) {
    if (kept) space.row_durable = true;
    done(kept);
  });
}

namespace {

// The state of other layers comes as snapshots. Files have a place for them, but no client can hand
// one over, and no match looks where one is: a prefix would come back without that state.
Result<void> check_layers(const Geometry& geometry) {
  for (std::size_t i = 0; i < geometry.layers.size(); ++i) {
    if (geometry.layers[i].kind == LayerKind::kFull) continue;
    const bool window = geometry.layers[i].kind == LayerKind::kSlidingWindow;
    return error(refusal(Code::kUnsupported,
                         "only models whose layers all keep K and V of every token can be stored",
                         ": layer " + std::to_string(i) +
                             (window ? " attends to a sliding window" : " is recurrent") +
                             ", and a stored prefix would come back without its state"));
  }
  return {};
}

}  // namespace

Result<SpaceRow> make_space_row(const Fingerprint& fingerprint, bool private_only) {
  KVT_TRY_VOID(fingerprint.geometry.validate());
  KVT_TRY_VOID(check_layers(fingerprint.geometry));
  SpaceRow row;
  row.digest = fingerprint_digest(fingerprint);
  row.id = SpaceId{row.digest.low != 0 ? row.digest.low : 1};
  row.model = fingerprint.model;
  row.runtime = fingerprint.runtime;
  row.detail = fingerprint.detail;
  row.geometry = fingerprint.geometry;
  row.private_only = private_only;
  return row;
}

bool lacks_rotation(const StoredSpace& space, AbstractSpec spec) {
  return !space.row.rotation.known() && needs_rotation(space.row.geometry, spec);
}

Result<std::uint32_t> lane_of(StoredSpace& space, AbstractSpec spec) {
  KVT_TRY_VOID(spec.validate());
  if (spec.none()) return error(Code::kInvalid, "no abstract is named");
  std::vector<std::uint32_t>& abstracts = space.row.abstracts;
  const auto place = std::find(abstracts.begin(), abstracts.end(), spec.packed());
  if (place != abstracts.end()) return static_cast<std::uint32_t>(place - abstracts.begin());
  if (abstracts.size() >= kSpaceAbstractsMax)
    return error(Code::kFull,
                 "the space has its maximum of 16 kinds of abstracts: use one that it has "
                 "(kvtier ls --json shows them)");
  abstracts.push_back(spec.packed());
  return static_cast<std::uint32_t>(abstracts.size() - 1);
}

}  // namespace kvtier
