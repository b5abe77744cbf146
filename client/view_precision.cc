// View: chosen rows attended to from their base rendition, and those that matter most exactly.
//
// A step of a layer, for all heads together: kept rows, and rows that the slot caches hold or that
// have no base rendition, are exact. The others are attended to where their base rendition lies
// mapped; its logits say how much of the step's mass each row has. Rows above the preset's share
// are fetched with one request, and the base is attended to anew without them. Everything is merged
// by log-sum-exp, so what a row counts does not depend on the order.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "client/view.h"

namespace kvtier {
namespace {

float log_add(float a, float b) {
  const float high = std::max(a, b);
  if (high == -std::numeric_limits<float>::infinity()) return high;
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

bool within(std::span<const TokenRange> ranges, std::uint32_t token) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [token](const TokenRange& range) { return range.contains(token); });
}

}  // namespace

Result<void> View::split_rows(const AttendStep& step, std::vector<SlotCache>* caches) {
  std::vector<ChosenRows>& chosen = chosen_[step.layer];
  mixed_.resize(step.kv_heads);
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    SlotCache& cache = (*caches)[head];
    split_head(step, cache, &chosen[head], &mixed_[head]);
    KVT_TRY(const SlotCache::Missing missing, cache.select(mixed_[head].exact));
    want_rows(step, head, missing);
  }
  return {};
}

void View::split_head(const AttendStep& step, const SlotCache& cache, ChosenRows* chosen,
                      MixedRows* mixed) {
  mixed->exact.clear();
  mixed->base.clear();
  const auto segments = sequence_->directory().segments();
  const std::array<TokenRange, 2> kept = kept_ranges();
  std::size_t segment = 0;
  for (const std::uint32_t token : chosen->tokens) {
    while (token >= segments[segment].first_token + segments[segment].visible_tokens) ++segment;
    const AbstractLayout* layout = base_.layout(segment);
    const bool has_base = layout != nullptr && layout->has_layer(step.layer);
    const bool exact = !has_base || within(kept, token) || cache.contains(token) ||
                       std::binary_search(chosen->behind.begin(), chosen->behind.end(), token);
    (exact ? mixed->exact : mixed->base).push_back(token);
  }
  chosen->behind.clear();
}

Result<void> View::attend_base_rows(const AttendStep& step, std::vector<SlotCache>* caches) {
  bool any_hot = false;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    MixedRows& mixed = mixed_[head];
    mixed.hot.clear();
    if (mixed.base.empty()) continue;
    KVT_TRY_VOID(attend_base(step, head, mixed.base, true, &mixed));
    find_hot(step, head, &mixed);
    any_hot = any_hot || !mixed.hot.empty();
  }
  if (preset_.refine == RefineKind::kBehind) {
    if (any_hot) refine_behind(step);
  } else if (any_hot) {
    const auto refined = refine(step, caches);
    if (!refined) {
      for (SlotCache& cache : *caches) cache.abandon();
      layer_queries_[step.layer].forget();
      return refined;
    }
  }
  double mass = 0.0;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    MixedRows& mixed = mixed_[head];
    const std::size_t rows = mixed.base.size() - mixed.hot.size();
    if (rows == 0) continue;
    stats_.rows_base += rows;
    stats_.rows_attended += rows;
    KVT_TRY_VOID(merge_group(step, head, mixed.out.data(), mixed.lse.data()));
    for (std::uint32_t i = 0; i < step.group; ++i)
      mass += std::exp(static_cast<double>(mixed.lse[i]) -
                       static_cast<double>(step.lse[head * step.group + i]));
  }
  stats_.base_mass_sum += mass / (step.kv_heads * step.group);
  return {};
}

// Over `tokens`, ascending; into out, lse and, where wanted, logits.
Result<void> View::attend_base(const AttendStep& step, std::uint32_t head,
                               std::span<const std::uint32_t> tokens, bool logits,
                               MixedRows* mixed) {
  const LayerGeometry& shape = sequence_->space().geometry().layers[step.layer];
  KVT_TRY(const BaseFormat format, base_format(preset_.precision, shape));
  const auto segments = sequence_->directory().segments();
  pages_.clear();
  places_.clear();
  std::size_t segment = 0;
  const std::byte* data = nullptr;  // of the segment
  const std::byte* last = nullptr;  // chunk
  for (const std::uint32_t token : tokens) {
    while (token >= segments[segment].first_token + segments[segment].visible_tokens) {
      ++segment;
      data = nullptr;
    }
    if (data == nullptr)
      data = base_.data(segment) + base_.layout(segment)->head(step.layer, head).data;
    const std::uint64_t in_segment = token - segments[segment].first_token;
    const std::byte* chunk = data + in_segment / kBaseChunkTokens * format.chunk_bytes();
    if (chunk != last) pages_.push_back(reinterpret_cast<std::uintptr_t>(chunk));
    last = chunk;
    places_.push_back(static_cast<std::uint32_t>((pages_.size() - 1) * kBaseChunkTokens +
                                                 in_segment % kBaseChunkTokens));
  }
  const std::uint64_t range[2] = {0, tokens.size()};
  mixed->out.resize(static_cast<std::size_t>(step.group) * step.v_dim);
  mixed->lse.resize(step.group);
  AttendBaseArgs args;
  args.pages = {nullptr, pages_.data(), format};
  args.rows = {places_.data(), range};
  args.q = step.q + static_cast<std::uint64_t>(head) * step.group * step.dim;
  args.q_stride = step.dim;
  args.queries = step.group;
  args.scale = step.scale;
  args.out = mixed->out.data();
  args.out_stride = step.v_dim;
  args.lse = mixed->lse.data();
  if (logits) {
    mixed->logits.resize(step.group * tokens.size());
    args.logits = mixed->logits.data();
    args.logits_stride = tokens.size();
  }
  return kernels_->attend_base(args, nullptr);
}

// The step's mass is that of what is attended to already, exact rows and tail, and of the base.
void View::find_hot(const AttendStep& step, std::uint32_t head, MixedRows* mixed) {
  const std::size_t rows = mixed->base.size();
  const auto least = static_cast<double>(preset_.exact_above);
  mixed->total.resize(step.group);
  for (std::uint32_t i = 0; i < step.group; ++i)
    mixed->total[i] = log_add(step.lse[head * step.group + i], mixed->lse[i]);
  mixed->hot_lse.assign(step.group, -std::numeric_limits<float>::infinity());
  // The mean of the shares is not above what none of them is above: most rows need no exponential.
  const float log_least = std::log(preset_.exact_above);
  const auto log_share = [&](std::uint32_t i, std::size_t row) {
    return mixed->logits[i * rows + row] - mixed->total[i];
  };
  for (std::size_t row = 0; row < rows; ++row) {
    bool above = false;
    for (std::uint32_t i = 0; i < step.group; ++i) above = above || log_share(i, row) >= log_least;
    if (!above) continue;
    double share = 0.0;
    for (std::uint32_t i = 0; i < step.group; ++i)
      share += std::exp(static_cast<double>(log_share(i, row)));
    if (share / step.group <= least) continue;
    mixed->hot.push_back(mixed->base[row]);
    for (std::uint32_t i = 0; i < step.group; ++i)
      mixed->hot_lse[i] = log_add(mixed->hot_lse[i], mixed->logits[i * rows + row]);
  }
}

void View::refine_behind(const AttendStep& step) {
  std::vector<ChosenRows>& chosen = chosen_[step.layer];
  wanted_.clear();
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    std::vector<std::uint32_t>& hot = mixed_[head].hot;
    stats_.rows_refined += hot.size();
    targets_.assign(hot.size(), 0);  // decided when they come
    want_rows(step, head, {hot, targets_});
    chosen[head].behind.swap(hot);
    hot.clear();
  }
  targets_.clear();
  list_entries(step);
  const auto room = static_cast<std::size_t>(sequence_->connection()->limits().fetch_entries);
  // Nobody waits for its end: the next step asks for the rows themselves.
  if (!sequence_->prefetch(std::span(entries_).first(std::min(entries_.size(), room))))
    clear_error_text();
}

Result<void> View::refine(const AttendStep& step, std::vector<SlotCache>* caches) {
  wanted_.clear();
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    if (mixed_[head].hot.empty()) continue;
    KVT_TRY(const SlotCache::Missing missing, (*caches)[head].select(mixed_[head].hot));
    stats_.rows_refined += missing.tokens.size();
    want_rows(step, head, missing);
  }
  KVT_TRY_VOID(fetch_rows(step, caches));
  ++stats_.steps_refined;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    MixedRows& mixed = mixed_[head];
    if (mixed.hot.empty()) continue;
    (*caches)[head].complete();
    KVT_TRY_VOID(attend_cached(step, head, (*caches)[head]));
    double error = 0.0;
    for (std::uint32_t i = 0; i < step.group; ++i)
      error += std::abs(static_cast<double>(lse_block_[i] - mixed.hot_lse[i]));
    stats_.base_error_sum += error / step.group * static_cast<double>(mixed.hot.size());
    cold_.clear();
    std::set_difference(mixed.base.begin(), mixed.base.end(), mixed.hot.begin(), mixed.hot.end(),
                        std::back_inserter(cold_));
    if (cold_.empty()) continue;
    KVT_TRY_VOID(attend_base(step, head, cold_, false, &mixed));
  }
  return {};
}

Result<void> View::merge_group(const AttendStep& step, std::uint32_t head, const float* out,
                               const float* lse) {
  const std::uint64_t first = static_cast<std::uint64_t>(head) * step.group;
  MergeAttentionArgs merge;
  merge.out_a = step.out + first * step.v_dim;
  merge.lse_a = step.lse + first;
  merge.out_b = out;
  merge.lse_b = lse;
  merge.out_a_stride = merge.out_b_stride = step.v_dim;
  merge.queries = step.group;
  merge.v_dim = step.v_dim;
  return kernels_->merge_attention(merge, nullptr);
}

Result<bool> View::step_is_void(const ViewStats& before) {
  if (std::exchange(moved_, false)) return true;
  return stats_.rows_base != before.rows_base ? base_moved() : false;
}

Result<bool> View::base_moved() {
  if (!sequence_->directory().moved()) return false;
  // In the middle of a step: a refresh could take a seal that ended, and the tail would begin
  // later.
  KVT_TRY(const std::span<const DirectoryEntry> now, sequence_->newest_segments());
  return !base_.unmoved(now);
}

}  // namespace kvtier
