// View: the abstracts that it scores, as they lie mapped.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "client/last_error.h"
#include "client/view.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kSentence = 2;  // boundary class in token flags
constexpr std::chrono::milliseconds kPauseMax{50};

}  // namespace

// A view asks for its abstracts when it begins to choose, and again on every new connection. Where
// a space has no codebook for its codes yet, the view has it trained from what is stored.
Result<void> View::want_abstracts() {
  const std::shared_ptr<Connection> connection = sequence_->connection();
  KVT_TRY(Sequence::AbstractProgress progress, sequence_->want_abstracts(preset_.abstract));
  if (may_calibrate(progress)) {
    calibrate();
    KVT_TRY(progress, sequence_->abstract_progress(progress.lane));
  }
  lane_ = progress.lane;
  take_codebook(progress);
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
  if (wants_abstracts() && told_.lock() == sequence_->connection() && told_.lock() != nullptr)
    sequence_->drop_abstracts(lane_);
}

Result<void> View::refresh_abstracts() {
  if (!wants_abstracts()) return {};
  if (told_.lock() != sequence_->connection()) {
    KVT_TRY_VOID(want_abstracts());
  }
  if (sequence_->directory().version() == seen_version_) return {};
  read_abstracts();
  const Deadline deadline = Deadline::after_ms(waited_in_vain_ ? 0 : options_.wait_ms);
  for (auto pause = std::chrono::milliseconds(1); lacks_much();
       pause = std::min(pause * 2, kPauseMax)) {
    KVT_TRY(const Sequence::AbstractProgress progress, sequence_->abstract_progress(lane_));
    if (may_calibrate(progress)) {
      calibrate();
      continue;
    }
    take_codebook(progress);
    const bool settled =
        progress.ready + progress.failed >= progress.segments && !progress.codebook_coming;
    KVT_TRY_VOID(sequence_->refresh(Patience::kQuick));
    read_abstracts();
    if (settled) break;
    waited_in_vain_ = deadline.passed();
    if (waited_in_vain_) break;
    std::this_thread::sleep_for(pause);
  }
  begun_ = begun_ || !segment_layouts_.empty();
  return {};
}

// A view that begins wants all abstracts of what is stored; later, what was sealed last may lag,
// but with more than a quarter missing a choice would mostly be one by age.
bool View::lacks_much() const noexcept {
  std::uint64_t all = 0, missing = 0;
  const auto segments = sequence_->directory().segments();
  for (std::size_t i = 0; i < segments.size(); ++i) {
    all += segments[i].visible_tokens;
    missing += i < segment_layouts_.size() && segment_layouts_[i] != nullptr
                   ? 0
                   : segments[i].visible_tokens;
  }
  return begun_ ? missing * 4 > all : missing != 0;
}

void View::read_abstracts() {
  const Directory& directory = sequence_->directory();
  seen_version_ = directory.version();
  const auto segments = directory.segments();
  const std::byte* arena = sequence_->connection()->abstracts();
  const std::uint64_t cap = sequence_->connection()->abstracts_bytes();
  codebook_ = nullptr;
  std::uint64_t codebook_id = 0;
  if (codes()) {
    if (!codebook_layout_)
      codebook_layout_.emplace(sequence_->space().geometry(), preset_.abstract);
    if (codebook_offset_ <= cap && codebook_layout_->size_bytes() <= cap - codebook_offset_) {
      codebook_ = arena + codebook_offset_;
      CodebookHeader header;
      std::memcpy(&header, codebook_, sizeof(header));
      codebook_id = header.id;
    }
  }
  segment_layouts_.assign(segments.size(), nullptr);
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::uint64_t offset = segments[i].abstract_offsets[lane_];
    if (offset > cap || sizeof(AbstractHeader) > cap - offset) continue;
    AbstractHeader header;
    std::memcpy(&header, arena + offset, sizeof(header));
    if (header.spec != preset_.abstract.packed() || header.tokens != segments[i].tokens ||
        header.units > header.tokens || header.version != kAbstractVersion ||
        header.codebook != codebook_id)
      continue;
    const AbstractLayout& layout =
        layouts_
            .try_emplace({header.tokens, header.units}, sequence_->space().geometry(),
                         preset_.abstract, header.tokens, header.units)
            .first->second;
    if (layout.size_bytes() <= cap - offset) segment_layouts_[i] = &layout;
  }
}

// The stored segments as this head sees them, cut off where the tail begins.
void View::extents_of(const AttendStep& step, std::uint32_t head) {
  const auto segments = sequence_->directory().segments();
  const std::uint64_t end = sequence_->tail_first();
  extents_.clear();
  for (std::size_t i = 0; i < segments.size() && segments[i].first_token < end; ++i) {
    SegmentExtent extent;
    extent.first_token = segments[i].first_token;
    extent.visible_tokens = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(segments[i].visible_tokens, end - segments[i].first_token));
    const AbstractLayout* layout = i < segment_layouts_.size() ? segment_layouts_[i] : nullptr;
    if (layout != nullptr && layout->has_layer(step.layer)) {
      const std::byte* base =
          sequence_->connection()->abstracts() + segments[i].abstract_offsets[lane_];
      const AbstractLayout::HeadBlock block = layout->head(step.layer, head);
      const auto list = [base](std::uint64_t offset) {
        return offset != 0 ? reinterpret_cast<const std::uint16_t*>(base + offset) : nullptr;
      };
      extent.units = layout->units();
      extent.data = base + block.data;
      extent.members = list(block.members);
      extent.starts = list(block.starts != 0 ? block.starts : layout->starts_offset());
    }
    extents_.push_back(extent);
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
