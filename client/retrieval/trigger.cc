#include "client/retrieval/trigger.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvtier {

void LayerBefore::observe(const Step& step, const float* q) {
  if (step.layer != now_.step.layer || step.tokens != now_.step.tokens) std::swap(before_, now_);
  now_.step = step;
  now_.q.assign(q, q + std::size_t{step.query_heads} * step.dim);
}

const float* LayerBefore::queries() const noexcept {
  const Step &below = before_.step, &here = now_.step;
  const bool same_step = below.tokens == here.tokens && below.layer < here.layer;
  const bool same_shape = below.query_heads == here.query_heads && below.dim == here.dim;
  return same_step && same_shape ? before_.q.data() : nullptr;
}

std::uint64_t LayerBefore::memory_bytes() const noexcept {
  return (before_.q.capacity() + now_.q.capacity()) * sizeof(float);
}

void LayerQuery::observe(const Preset& preset, const Step& step) {
  if (step.kv_heads != kv_heads_ || step.group != group_ || step.dim != dim_) {
    kv_heads_ = step.kv_heads;
    group_ = step.group;
    dim_ = step.dim;
    sum_count_ = 0;
    has_before_ = false;
    chosen_.assign(kv_heads_, 0);
    anchor_.assign(std::size_t{kv_heads_} * group_ * dim_, 0.0f);
  }
  if (step.visible < visible_ || step.visible > visible_ + 1) reset();
  visible_ = step.visible;
  if (step.stored_tokens != stored_tokens_) forget();
  stored_tokens_ = step.stored_tokens;
  block_ = false;
  after_boundary_ = boundary_;
  boundary_ = step.boundary;
  q_ = vectors_ = step.q;
  for (std::uint64_t& steps : chosen_) steps += steps != 0 ? 1 : 0;
  due_.assign(kv_heads_, false);
  const bool by_choice = preset.trigger != TriggerKind::kTurn;
  std::uint32_t fired = 0;
  for (std::uint32_t head = 0; head < kv_heads_; ++head) {
    const bool fires_now = !(by_choice && chosen_[head] == 0) && fires(preset, head);
    due_[head] = chosen_[head] == 0 || fires_now;
    fired += fires_now ? 1 : 0;
  }
  fired_ = 2 * fired >= kv_heads_ && preset.trigger != TriggerKind::kEveryStep &&
           preset.trigger != TriggerKind::kMass;
  if (preset.query == QueryKind::kStepBefore) take_step_before(preset);
  if (preset.query == QueryKind::kLayerBefore && step.layer_before != nullptr)
    vectors_ = step.layer_before;
  if (preset.query == QueryKind::kStepBefore || preset.trigger == TriggerKind::kTurn) {
    before_.assign(step.q, step.q + anchor_.size());
    has_before_ = true;
  }
  if (preset.query != QueryKind::kSentence) return;
  const std::size_t count = anchor_.size();
  if (sum_count_ == 0) sum_.assign(count, 0.0f);
  mean_.resize(count);
  ++sum_count_;
  for (std::size_t i = 0; i < count; ++i) {
    sum_[i] += step.q[i];
    mean_[i] = sum_[i] / static_cast<float>(sum_count_);
  }
  if (step.boundary) sum_count_ = 0;
  vectors_ = mean_.data();
}

void LayerQuery::begin_block(const float* q, std::uint32_t kv_heads) {
  block_ = true;
  fired_ = false;
  vectors_ = q;
  chosen_.assign(kv_heads, 0);
  due_.assign(kv_heads, true);
}

// Heads whose queries turned keep this step's.
void LayerQuery::take_step_before(const Preset& preset) {
  if (!has_before_) return;
  mean_.assign(q_, q_ + anchor_.size());
  const std::size_t of_head = std::size_t{group_} * dim_;
  for (std::uint32_t head = 0; head < kv_heads_; ++head) {
    const double similar = cosine(before_, head * group_, (head + 1) * group_);
    if (similar >= static_cast<double>(preset.level))
      std::copy_n(before_.begin() + static_cast<std::ptrdiff_t>(head * of_head), of_head,
                  mean_.begin() + static_cast<std::ptrdiff_t>(head * of_head));
  }
  vectors_ = mean_.data();
}

double LayerQuery::cosine(const std::vector<float>& other, std::uint32_t first,
                          std::uint32_t last) const {
  double sum = 0.0;
  for (std::uint32_t head = first; head < last; ++head) {
    double dot = 0.0, ours = 0.0, theirs = 0.0;
    for (std::uint32_t d = 0; d < dim_; ++d) {
      const double a = static_cast<double>(q_[head * dim_ + d]);
      const double b = static_cast<double>(other[head * dim_ + d]);
      dot += a * b;
      ours += a * a;
      theirs += b * b;
    }
    sum += ours > 0.0 && theirs > 0.0 ? dot / std::sqrt(ours * theirs) : 0.0;
  }
  return sum / (last - first);
}

bool LayerQuery::fires(const Preset& preset, std::uint32_t kv_head) const {
  switch (preset.trigger) {
    case TriggerKind::kEveryStep:
    case TriggerKind::kMass:  // asks the scores, when they are there (View::still_holds)
      return true;
    case TriggerKind::kEveryN:
      return static_cast<float>(chosen_[kv_head] - 1) >= preset.level;
    case TriggerKind::kCosine:
      return cosine(anchor_, 0, kv_heads_ * group_) < static_cast<double>(preset.level);
    case TriggerKind::kCosineHead:
      return cosine(anchor_, kv_head * group_, (kv_head + 1) * group_) <
             static_cast<double>(preset.level);
    case TriggerKind::kBoundary:
      return after_boundary_;
    case TriggerKind::kTurn:
      return has_before_ &&
             cosine(before_, 0, kv_heads_ * group_) < static_cast<double>(preset.level);
  }
  return true;
}

void LayerQuery::chosen(std::uint32_t kv_head) {
  if (block_) return;
  chosen_[kv_head] = 1;
  const std::size_t first = std::size_t{kv_head} * group_ * dim_;
  std::copy_n(q_ + first, std::size_t{group_} * dim_,
              anchor_.begin() + static_cast<std::ptrdiff_t>(first));
}

std::uint64_t LayerQuery::memory_bytes() const noexcept {
  return (sum_.capacity() + mean_.capacity() + anchor_.capacity() + before_.capacity()) *
             sizeof(float) +
         chosen_.capacity() * sizeof(std::uint64_t);
}

}  // namespace kvtier
