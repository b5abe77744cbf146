// View: what it tells the daemon of the rows that it reads without asking for them.
#include <algorithm>

#include "client/view.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kTouchSteps = 8;

}  // namespace

void View::touch_rows(const AttendStep& step, const std::vector<SlotCache>& caches) {
  std::uint32_t& left = steps_to_touch_[step.layer];
  if (left != 0 && !step.block) {
    --left;
    return;
  }
  left = kTouchSteps - 1;
  touches_.clear();
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) touch_head(step, head, caches[head]);
}

// Sinks and window are always read, and no choice. Rows from a base rendition are read, too.
void View::touch_head(const AttendStep& step, std::uint32_t head, const SlotCache& cache) {
  const Geometry& geometry = sequence_->space().geometry();
  const auto segments = sequence_->directory().segments();
  const std::uint64_t end = sequence_->tail_first();
  const std::uint64_t first = std::min<std::uint64_t>(options_.sinks, end);
  const std::uint64_t last = end - std::min<std::uint64_t>(options_.window, end);
  const std::vector<std::uint32_t>* chosen =
      has_base() ? &chosen_[step.layer][head].tokens : nullptr;
  const std::uint64_t count = chosen != nullptr ? chosen->size() : cache.row_count();
  std::size_t segment = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint32_t token =
        chosen != nullptr ? (*chosen)[static_cast<std::size_t>(i)] : cache.selected(i);
    if (token < first) continue;
    if (token >= last) break;
    while (token >= segments[segment].first_token + segments[segment].visible_tokens) ++segment;
    const auto in_segment = static_cast<std::uint32_t>(token - segments[segment].first_token);
    const auto chunk = static_cast<std::uint16_t>(in_segment / geometry.chunk_tokens);
    if (touches_.empty() || touches_.back().segment != segments[segment].segment ||
        touches_.back().chunk != chunk) {
      if (touches_.size() == kFetchEntriesMax) send_touches();
      FetchEntry entry{};
      entry.segment = segments[segment].segment;
      entry.layer = static_cast<std::uint16_t>(step.layer);
      entry.chunk = chunk;
      entry.group = static_cast<std::uint16_t>(head / geometry.heads_in_group(step.layer));
      touches_.push_back(entry);
    }
    touches_.back().row_mask |= 1ull << (in_segment % geometry.chunk_tokens);
  }
  send_touches();
}

void View::send_touches() {
  if (sequence_->touch(touches_, prompted_)) prompted_ = false;
  touches_.clear();
}

}  // namespace kvtier
