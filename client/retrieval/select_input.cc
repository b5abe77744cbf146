#include "client/retrieval/select_input.h"

#include <algorithm>

namespace kvtier {
namespace {

std::uint32_t div_up(std::uint32_t count, std::uint32_t by) { return (count + by - 1) / by; }

}  // namespace

std::uint32_t unit_count(const SegmentExtent& segment, const AbstractSpec& spec) noexcept {
  if (segment.data == nullptr)
    return spec.partition == PartitionKind::kTokens
               ? segment.visible_tokens
               : div_up(segment.visible_tokens, kMissingUnitTokens);
  if (segment.members != nullptr) return segment.units;
  if (segment.starts != nullptr) {
    const auto* end = segment.starts + segment.units;
    return static_cast<std::uint32_t>(
        std::lower_bound(segment.starts, end, segment.visible_tokens) - segment.starts);
  }
  return div_up(segment.visible_tokens, spec.unit_tokens);
}

std::uint64_t kept_in(std::span<const TokenRange> kept, std::size_t from, std::uint64_t first,
                      std::uint64_t last) noexcept {
  std::uint64_t rows = 0;
  for (std::size_t i = from; i < kept.size() && kept[i].first < last; ++i)
    if (kept[i].last > first) rows += std::min(kept[i].last, last) - std::max(kept[i].first, first);
  return rows;
}

}  // namespace kvtier
