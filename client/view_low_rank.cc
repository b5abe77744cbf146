// View: keys of chosen rows from their low-rank copy, ShadowKV's way (arXiv 2410.21465).
//
// A row that the slot cache lacks gets its key there and then: its coefficients times the basis of
// its segment, layer and head, turned to its position; only its values are fetched. Kept rows, and
// those whose segment or layer has no low-rank copy, come whole. A row stays as it came: one that
// leaves the window keeps its exact key for as long as the slot cache holds it.
#include <algorithm>
#include <cstring>

#include "client/view.h"

namespace kvtier {

bool View::takes_low_rank(const AttendStep& step, std::size_t segment,
                          std::uint32_t token) const noexcept {
  if (!has_low_rank()) return false;
  const AbstractLayout* layout = base_.layout(segment);
  if (layout == nullptr || !layout->has_layer(step.layer)) return false;
  const std::array<TokenRange, 2> kept = kept_ranges();
  return !kept[0].contains(token) && !kept[1].contains(token);
}

Result<void> View::rebuild_keys(const AttendStep& step, std::uint32_t head, std::size_t first,
                                SlotCache* cache) {
  const std::uint32_t chunk_tokens = sequence_->space().geometry().chunk_tokens;
  for (std::size_t i = first; i < wanted_.size();) {
    const std::uint64_t segment = wanted_[i].chunk_key >> 32;
    places_.clear();
    row_targets_.clear();
    for (; i < wanted_.size() && wanted_[i].chunk_key >> 32 == segment; ++i) {
      const WantedRow& row = wanted_[i];
      if (!row.low_rank) continue;
      const auto chunk = static_cast<std::uint32_t>(row.chunk_key >> 16 & 0xFFFF);
      places_.push_back(chunk * chunk_tokens + row.place);
      row_targets_.push_back(row.target);
    }
    if (places_.empty()) continue;
    KVT_TRY_VOID(rebuild_segment(step, head, static_cast<std::size_t>(segment), cache));
  }
  return {};
}

// What lies mapped may be overwritten meanwhile (View::step_is_void); then the keys are rubbish,
// and nothing else is.
Result<void> View::rebuild_segment(const AttendStep& step, std::uint32_t head, std::size_t segment,
                                   SlotCache* cache) {
  const Geometry& geometry = sequence_->space().geometry();
  const LayerGeometry& layer = geometry.layers[step.layer];
  const AbstractLayout& layout = *base_.layout(segment);
  const std::byte* data = base_.data(segment);
  KVT_TRY(const LowRankShape shape,
          low_rank_shape(preset_.precision, geometry, step.layer, layout.tokens()));

  LowRankTurns turns;
  std::memcpy(&turns, data + layout.turns_offset(), sizeof turns);
  const bool turned = layer.rope == RopeState::kAfter && turns.pairs <= layout.turns_room() &&
                      (turns.pairing == 1 || turns.pairing == 2);
  const std::uint32_t pairs = turned ? turned_pairs(turns.pairs, shape.dim) : 0;
  const auto* frequencies =
      reinterpret_cast<const float*>(data + layout.turns_offset() + sizeof turns);
  const auto* positions = reinterpret_cast<const std::uint32_t*>(data + layout.positions_offset());
  const auto known = turner_.frequencies();
  if (!std::equal(known.begin(), known.end(), frequencies, frequencies + pairs))
    turner_ = Turns({frequencies, pairs});

  const AbstractLayout::HeadBlock block = layout.head(step.layer, head);
  const std::uint64_t count = places_.size();
  pages_.resize(places_.size());
  turns_.resize(places_.size() * 2 * pairs);
  for (std::size_t i = 0; i < places_.size(); ++i) {
    pages_[i] =
        reinterpret_cast<std::uintptr_t>(data + block.shared) + shape.coefficient_bytes(places_[i]);
    if (pairs != 0) turner_.at(positions[places_[i]], turns_.data() + i * 2 * pairs);
  }
  RebuildKeysArgs args;
  args.offsets = pages_.data();
  args.count = &count;
  args.basis = reinterpret_cast<const std::uint16_t*>(data + block.data);
  args.rank = shape.rank;
  args.dim = shape.dim;
  args.pairing = turned ? static_cast<Rotation::Pairing>(turns.pairing) : Rotation::Pairing::kNone;
  args.pairs = pairs;
  args.turns = turns_.data();
  args.dtype = layer.dtype;
  args.out = cache->data();
  args.out_offsets = row_targets_.data();
  return kernels_->rebuild_keys(args, nullptr);
}

}  // namespace kvtier
