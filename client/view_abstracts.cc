// View: the abstracts that it scores, as they lie mapped.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/fault.h"
#include "client/last_error.h"
#include "client/view.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kSentence = 2;  // boundary class in token flags
// How long between two looks at what has come: an eighth of what was waited so far.
constexpr std::chrono::milliseconds kPauseMin{1}, kPauseMax{50};

}  // namespace

// A view asks for its abstracts, and for its renditions, when it begins to choose, and again
// on every new connection. Where a space has no codebook for its codes yet, the view has it trained
// from what is stored.
Result<void> View::want_abstracts() {
  const std::shared_ptr<Connection> connection = sequence_->connection();
  KVT_TRY(Sequence::AbstractProgress progress, sequence_->want_abstracts(preset_.abstract));
  if (may_calibrate(progress)) {
    calibrate();
    KVT_TRY(progress, sequence_->abstract_progress(progress.lane));
  }
  units_.told(progress.lane);
  take_codebook(progress);
  if (has_rendition()) {
    const auto base = sequence_->want_abstracts(preset_.precision);
    if (!base) {
      sequence_->drop_abstracts(units_.lane());
      units_.forget();
      return error(base.error());
    }
    base_.told(base->lane);
  }
  told_ = connection;
  seen_version_ = UINT64_MAX;
  begun_ = false;
  return {};
}

// Once, and again when twice as much is stored as when it failed.
bool View::may_calibrate(const Sequence::AbstractProgress& progress) const noexcept {
  return progress.codebook_missing && progress.segments != 0 &&
         sequence_->tail_first() >= 2 * calibration_failed_at_;
}

void View::calibrate() {
  const bool made = sequence_->calibrate(preset_.abstract).has_value();
  calibration_failed_at_ = made ? 0 : std::max<std::uint64_t>(1, sequence_->tail_first());
  if (!made) clear_error_text();  // the step goes on; the daemon's log says why
}

void View::take_codebook(const Sequence::AbstractProgress& progress) {
  codebook_offset_ = progress.codebook_offset;
  if (codebook_offset_ != UINT64_MAX) sequence_->space().queries().stop();
}

void View::drop_abstracts() noexcept {
  if (!wants_abstracts() || told_.lock() != sequence_->connection() || told_.lock() == nullptr)
    return;
  for (const MappedLane* lane : {&units_, &base_})
    if (lane->is_told()) sequence_->drop_abstracts(lane->lane());
}

Result<void> View::refresh_abstracts() {
  if (!wants_abstracts()) return {};
  if (told_.lock() != sequence_->connection()) {
    KVT_TRY_VOID(want_abstracts());
  }
  if (sequence_->directory().version() == seen_version_) return {};
  read_abstracts();
  const Deadline deadline = Deadline::after_ms(waited_in_vain_ ? 0 : options_.wait_ms);
  const auto begin = std::chrono::steady_clock::now();
  while (lacks_much()) {
    KVT_TRY(const Sequence::AbstractProgress progress, sequence_->abstract_progress(units_.lane()));
    if (may_calibrate(progress)) {
      calibrate();
      continue;
    }
    take_codebook(progress);
    bool settled = progress.settled();
    if (has_rendition()) {
      KVT_TRY(const Sequence::AbstractProgress base, sequence_->abstract_progress(base_.lane()));
      settled = settled && base.settled();
    }
    KVT_TRY_VOID(sequence_->refresh(Patience::kQuick));
    read_abstracts();
    if (settled) break;
    waited_in_vain_ = deadline.passed();
    if (waited_in_vain_) break;
    const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - begin);
    std::this_thread::sleep_for(std::clamp(waited / 8, kPauseMin, kPauseMax));
  }
  begun_ = begun_ || !units_.empty();
  return {};
}

// A view that begins wants all abstracts of what is stored; later, what was sealed last may lag,
// but with more than a quarter missing a choice would mostly be one by age.
bool View::lacks_much() const noexcept {
  const Directory& directory = sequence_->directory();
  const std::uint64_t missing = std::max(units_.missing_tokens(directory),
                                         has_rendition() ? base_.missing_tokens(directory) : 0);
  return begun_ ? missing * 4 > directory.tokens() : missing != 0;
}

void View::read_abstracts() {
  const Directory& directory = sequence_->directory();
  seen_version_ = directory.version();
  const Geometry& geometry = sequence_->space().geometry();
  const Connection& connection = *sequence_->connection();
  const std::uint64_t cap = connection.abstracts_bytes();
  codebook_ = nullptr;
  std::uint64_t codebook_id = 0;
  if (codes()) {
    if (!codebook_layout_) codebook_layout_.emplace(geometry, preset_.abstract);
    if (codebook_offset_ <= cap && codebook_layout_->size_bytes() <= cap - codebook_offset_) {
      codebook_ = connection.abstracts() + codebook_offset_;
      CodebookHeader header;
      std::memcpy(&header, codebook_, sizeof(header));
      codebook_id = header.id;
    }
  }
  units_.read(directory, connection, geometry, codebook_id);
  base_.read(directory, connection, geometry, 0);
}

// The stored segments as this head sees them, cut off where the tail begins.
void View::extents_of(const AttendStep& step, std::uint32_t head, bool same_borders) {
  const auto segments = sequence_->directory().segments();
  const std::uint64_t end = sequence_->tail_first();
  extents_.clear();
  for (std::size_t i = 0; i < segments.size() && segments[i].first_token < end; ++i) {
    SegmentExtent extent;
    extent.first_token = segments[i].first_token;
    extent.visible_tokens = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(segments[i].visible_tokens, end - segments[i].first_token));
    const AbstractLayout* layout = units_.layout(i);
    if (layout != nullptr && layout->has_layer(step.layer)) {
      const std::byte* data = units_.data(i);
      const AbstractLayout::HeadBlock block = layout->head(step.layer, head);
      const auto list = [data](std::uint64_t offset) {
        return offset != 0 ? reinterpret_cast<const std::uint16_t*>(data + offset) : nullptr;
      };
      extent.units = layout->units();
      extent.data = data + block.data;
      extent.members = list(block.members);
      extent.starts = list(block.starts != 0 ? block.starts : layout->starts_offset());
    }
    extents_.push_back(extent);
  }
  copy_starts(same_borders);
}

// What lies mapped may be overwritten while it is read (kvtier reindex): a selection then chooses
// by rubbish, but counts and ranges stay the same throughout, and within the segment.
void View::copy_starts(bool same_borders) {
  std::size_t size = 0;
  for (const SegmentExtent& extent : extents_)
    if (extent.starts != nullptr) size += extent.units + std::size_t{1};
  if (starts_.size() < size) starts_.resize(size);
  std::uint16_t* place = starts_.data();
  const bool overwritten = !same_borders && KVT_FAULT("view.borders");
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    SegmentExtent& extent = extents_[i];
    if (extent.starts == nullptr) continue;
    const auto tokens = static_cast<std::uint16_t>(sequence_->directory().segments()[i].tokens);
    const std::size_t count = extent.units + std::size_t{1};
    if (!same_borders) std::memcpy(place, extent.starts, count * sizeof(*place));
    if (overwritten) std::memset(place + 1, 0xFF, (count - 1) * sizeof(*place));
    std::uint16_t before = 0;
    for (std::size_t unit = 0; unit < count; ++unit)
      place[unit] = before = std::clamp(place[unit], before, tokens);
    extent.starts = std::exchange(place, place + count);
  }
}

const HeadCodebook* View::codebook_of(std::uint32_t layer, std::uint32_t head) noexcept {
  if (codebook_ == nullptr || !codebook_layout_->has_layer(layer)) return nullptr;
  head_codebook_ = codebook_layout_->head(codebook_, layer, head);
  return &head_codebook_;
}

bool View::ends_sentence(std::uint64_t token) const {
  const Tail* tail = sequence_->tail();
  if (tail == nullptr || token < tail->first_token()) return false;
  TokenRecord record;
  tail->copy_tokens(token, token + 1, &record);
  return (record.flags & 0xFF) >= kSentence;
}

}  // namespace kvtier
