#include "client/retrieval/selector.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace kvtier {
namespace {

// The score of a unit about which nothing is known.
constexpr float kFetch = std::numeric_limits<float>::infinity();

std::uint64_t visible_units(const SegmentExtent& segment, std::uint32_t unit_tokens) {
  return (static_cast<std::uint64_t>(segment.visible_tokens) + unit_tokens - 1) / unit_tokens;
}

// End of the sealed tokens.
Result<std::uint64_t> check_input(const SelectInput& input) {
  if (input.unit_tokens == 0 || input.unit_tokens > kSegmentTokensMax)
    return error(Code::kInvalid, "a unit has 1 to 2048 tokens");
  std::uint64_t end = 0;
  for (const SegmentExtent& segment : input.segments) {
    if (segment.first_token != end)
      return error(Code::kInvalid, "segments must follow each other without gaps");
    if (segment.visible_tokens > kSegmentTokensMax)
      return error(Code::kTooLarge, "a segment has at most 2048 tokens");
    end += segment.visible_tokens;
  }
  if (end > kSequenceTokensMax) return error(Code::kTooLarge, "the sequence is too long");
  std::uint64_t last = 0;
  for (const TokenRange& range : input.kept) {
    if (range.first < last || range.last < range.first)
      return error(Code::kInvalid, "kept ranges must be ascending and disjoint");
    last = range.last;
  }
  return end;
}

// Grows, never shrinks: scratch is reused from step to step.
template <class T>
void make_room(std::vector<T>* scratch, std::uint64_t count) {
  if (scratch->size() < count) scratch->resize(static_cast<std::size_t>(count));
}

}  // namespace

Result<Selection> Selector::select(const SelectInput& input) {
  Tally tally;
  KVT_TRY(tally.end_token, check_input(input));
  Selection out;
  best_.clear();
  candidates_.clear();
  if (preset_->budget == BudgetKind::kRows && input.budget_rows > 0) {
    for (const SegmentExtent& segment : input.segments)
      tally.units += visible_units(segment, input.unit_tokens);
    KVT_TRY_VOID(score(input, tally, &out));
    collect(input, &tally);
    KVT_TRY_VOID(choose(input, tally));
  }
  emit(input, tally, &out);
  return out;
}

// One score per visible unit, in the first row of scores_.
Result<void> Selector::score(const SelectInput& input, const Tally& tally, Selection* out) {
  if (input.query_count == 0) return error(Code::kInvalid, "a group has 1 query head or more");
  make_room(&scores_, tally.units * input.query_count);
  float* place = scores_.data();
  for (const SegmentExtent& segment : input.segments) {
    KVT_TRY_VOID(score_segment(input, segment, tally.units, place, out));
    place += visible_units(segment, input.unit_tokens);
  }
  GroupScoresArgs group;
  group.scores = scores_.data();
  group.stride = tally.units;
  group.unit_count = &tally.units;
  group.queries = input.query_count;
  group.mode = preset_->group;
  group.scale = input.scale;
  group.out = scores_.data();
  return kernels_->group_scores(group, nullptr);
}

Result<void> Selector::score_segment(const SelectInput& input, const SegmentExtent& segment,
                                     std::uint64_t row_units, float* out, Selection* totals) {
  const std::uint64_t units = visible_units(segment, input.unit_tokens);
  const std::uint64_t known =
      segment.abstracts != nullptr && preset_->abstract != AbstractKind::kNone
          ? std::min<std::uint64_t>(segment.units, units)
          : 0;
  for (std::uint32_t i = 0; i < input.query_count; ++i)
    std::fill(out + i * row_units + known, out + i * row_units + units, kFetch);
  totals->units_scored += known;
  totals->units_missing += units - known;
  totals->abstract_bytes +=
      known * abstract_elements(preset_->abstract, input.dim) * sizeof(*segment.abstracts);
  if (known == 0) return {};
  ScoreArgs args;
  args.abstracts = segment.abstracts;
  args.unit_count = &known;
  args.q = input.queries;
  args.q_stride = input.query_stride;
  args.queries = input.query_count;
  args.dim = input.dim;
  args.out = out;
  args.out_stride = row_units;
  return preset_->abstract == AbstractKind::kBox ? kernels_->score_box(args, nullptr)
                                                 : kernels_->score_mean(args, nullptr);
}

// Lists the units that are not kept anyway, and moves their scores together.
void Selector::collect(const SelectInput& input, Tally* tally) {
  auto kept = input.kept.begin();
  std::uint64_t unit_index = 0;
  for (const SegmentExtent& segment : input.segments) {
    for (std::uint32_t at = 0; at < segment.visible_tokens; at += input.unit_tokens, ++unit_index) {
      const std::uint64_t first = segment.first_token + at;
      const std::uint64_t last = first + std::min(input.unit_tokens, segment.visible_tokens - at);
      while (kept != input.kept.end() && kept->last <= first) ++kept;
      std::uint64_t cost = last - first;
      for (auto range = kept; range != input.kept.end() && range->first < last; ++range)
        cost -= std::min(range->last, last) - std::max(range->first, first);
      if (cost == 0) continue;
      scores_[candidates_.size()] = scores_[unit_index];
      candidates_.push_back({static_cast<std::uint32_t>(first),
                             static_cast<std::uint16_t>(last - first),
                             static_cast<std::uint16_t>(cost)});
      if (cost < input.unit_tokens) ++tally->short_units;
    }
  }
}

// The best candidates, whole, while they fit into the budget; the first that does not ends it.
Result<void> Selector::choose(const SelectInput& input, const Tally& tally) {
  const std::uint64_t count = candidates_.size();
  std::uint64_t found = 0;
  TopKArgs args;
  args.scores = scores_.data();
  args.count = &count;
  args.k = std::min(count, input.budget_rows / input.unit_tokens + tally.short_units);
  args.ordered = true;
  args.out_count = &found;
  make_room(&best_, args.k);
  args.out = best_.data();
  KVT_TRY_VOID(kernels_->top_k(args, nullptr));
  std::uint64_t left = input.budget_rows;
  std::uint64_t chosen = 0;
  while (chosen < found && candidates_[best_[chosen]].cost <= left)
    left -= candidates_[best_[chosen++]].cost;
  best_.resize(chosen);
  std::sort(best_.begin(), best_.end());
  return {};
}

// Writes the union of kept ranges and chosen units.
void Selector::emit(const SelectInput& input, const Tally& tally, Selection* out) {
  tokens_.clear();
  std::uint64_t next = 0;  // tokens below are done
  const auto add = [&](std::uint64_t first, std::uint64_t last) {
    for (next = std::max(next, first); next < std::min(last, tally.end_token); ++next)
      tokens_.push_back(static_cast<std::uint32_t>(next));
  };
  auto unit = best_.begin();
  for (const TokenRange& range : input.kept) {
    for (; unit != best_.end() && candidates_[*unit].first < range.first; ++unit)
      add(candidates_[*unit].first, candidates_[*unit].first + candidates_[*unit].length);
    add(range.first, range.last);
    out->kept_rows +=
        std::min(range.last, tally.end_token) - std::min(range.first, tally.end_token);
  }
  for (; unit != best_.end(); ++unit)
    add(candidates_[*unit].first, candidates_[*unit].first + candidates_[*unit].length);
  if (preset_->budget == BudgetKind::kAll) {
    tokens_.clear();
    next = 0;
    add(0, tally.end_token);
  }
  out->tokens = tokens_;
}

std::uint64_t Selector::memory_bytes() const noexcept {
  return scores_.capacity() * sizeof(float) + candidates_.capacity() * sizeof(Candidate) +
         (best_.capacity() + tokens_.capacity()) * sizeof(std::uint32_t);
}

}  // namespace kvtier
