// Selector: which units or tokens are taken, by their scores.
#include <algorithm>
#include <bit>
#include <cmath>

#include "client/retrieval/selector.h"

namespace kvtier {
namespace {

bool is_kept(std::span<const TokenRange> kept, std::uint64_t token) {
  return kept_in(kept, 0, token, token + 1) != 0;
}

// How widely estimated masses are spread over rows, those of a unit having the same each.
class Spread {
 public:
  void add(float mass, std::uint32_t rows) {
    if (!(mass < kFetchScore)) missing_rows_ += rows;
    if (!(mass > kLeast && mass < kFetchScore)) return;
    total_ += static_cast<double>(mass);
    weighted_ += static_cast<double>(mass * std::log(mass / static_cast<float>(rows)));
  }
  // Rows of a uniform distribution with the same entropy, from `least` on, and on top of them those
  // whose mass nobody knows.
  [[nodiscard]] std::uint64_t rows(std::uint64_t least) const {
    const double even = total_ > 0.0 ? std::exp(std::log(total_) - weighted_ / total_) : 0.0;
    return std::max(least, static_cast<std::uint64_t>(std::llround(even))) + missing_rows_;
  }

 private:
  static constexpr float kLeast = 1e-30f;  // less counts for nothing, and has no logarithm per row
  double total_ = 0.0;
  double weighted_ = 0.0;  // sum of mass times log(mass of a row)
  std::uint64_t missing_rows_ = 0;
};

}  // namespace

Result<std::span<float>> Selector::scores_of(const SelectInput& input) {
  if (!scores_units() || input.budget_rows == 0) return std::span<float>();
  const bool tree = preset_->search == SearchKind::kTree && !input.flat;
  return tree ? score_tree({&input, 1}) : score(input);
}

Result<Selection> Selector::select(const SelectInput& input) {
  KVT_TRY(const std::span<float> scores, scores_of(input));
  return choose(input, scores);
}

Result<Selection> Selector::choose(const SelectInput& input, std::span<float> scores) {
  KVT_TRY_VOID(check_input(input));
  Selection out = scores.empty() ? Selection{} : tally_;
  clear_marks();
  next_.clear();
  if (preset_->budget == BudgetKind::kAll) mark(0, end_token_);
  if (!scores.empty()) {
    if (scores.size() != units_) return error(Code::kInvalid, "scores of other segments");
    const bool tokens = preset_->abstract.partition == PartitionKind::kTokens;
    if (tokens && input.grain_tokens <= 1) {
      KVT_TRY_VOID(choose_tokens(input, scores, &out));
    } else {
      tokens ? collect_grains(input, scores) : collect(input, scores);
      KVT_TRY_VOID(choose_units(input, scores, &out));
    }
  }
  for (const TokenRange& range : input.kept) {
    const std::uint64_t last = std::min(range.last, end_token_);
    if (range.first >= last) continue;
    mark(range.first, last);
    out.kept_rows += last - range.first;
  }
  emit(&out);
  std::sort(next_.begin(), next_.end());
  out.next = next_;
  if (bounded_ && input.bound && !scores.empty()) KVT_TRY_VOID(bound_missed(input, &out));
  return out;
}

std::uint64_t Selector::rows_allowed(const SelectInput& input) const {
  if (preset_->budget != BudgetKind::kRatio) return input.budget_rows;
  const auto rows = static_cast<std::uint64_t>(
      std::ceil(static_cast<double>(preset_->share) * static_cast<double>(end_token_)));
  return std::min(percent_of(rows, input.ratio_percent), input.budget_rows);
}

// Of budget "entropy": rows that these scores are worth, `rows_of(i)` of them those of score i.
template <class RowsOf>
std::uint64_t Selector::rows_worth(const SelectInput& input, std::span<const float> scores,
                                   const RowsOf& rows_of) const {
  if (preset_->budget != BudgetKind::kEntropy) return input.budget_rows;
  Spread spread;
  for (std::size_t i = 0; i < scores.size(); ++i) spread.add(scores[i], rows_of(i));
  const double least = static_cast<double>(preset_->share) * static_cast<double>(input.budget_rows);
  return std::min(spread.rows(static_cast<std::uint64_t>(std::llround(least))), input.budget_rows);
}

template <class F>
void Selector::for_each_unit(const SelectInput& input, const F& f) const {
  const AbstractSpec& spec = preset_->abstract;
  std::size_t kept = 0;
  std::size_t at = 0;
  for (std::uint32_t s = 0; s < input.segments.size(); ++s) {
    const SegmentExtent& segment = input.segments[s];
    while (kept < input.kept.size() && input.kept[kept].last <= segment.first_token) ++kept;
    const std::uint32_t units = unit_count(segment, spec);
    const std::uint32_t fixed = segment.data == nullptr ? kMissingUnitTokens : spec.unit_tokens;
    for (std::uint32_t u = 0; u < units; ++u, ++at) {
      std::uint64_t cost = 0;
      if (segment.members != nullptr) {
        for (std::uint32_t i = segment.starts[u]; i < segment.starts[u + 1]; ++i) {
          const std::uint32_t member = segment.members[i];
          if (member >= segment.visible_tokens) continue;
          cost += is_kept(input.kept, segment.first_token + member) ? 0 : 1;
        }
      } else {
        const bool listed = segment.starts != nullptr && segment.data != nullptr;
        const std::uint32_t first = listed ? segment.starts[u] : u * fixed;
        const std::uint32_t last = std::min<std::uint32_t>(
            listed ? segment.starts[u + 1] : first + fixed, segment.visible_tokens);
        cost = last - first -
               kept_in(input.kept, kept, segment.first_token + first, segment.first_token + last);
      }
      f(Candidate{s, u, static_cast<std::uint32_t>(cost), static_cast<std::uint32_t>(at)});
    }
  }
}

// Lists the units that are not kept anyway, and moves their scores together.
void Selector::collect(const SelectInput& input, std::span<float> scores) {
  candidates_.clear();
  for_each_unit(input, [&](const Candidate& unit) {
    if (unit.cost == 0) return;
    scores[candidates_.size()] = scores[unit.place];
    candidates_.push_back(unit);
  });
}

void Selector::leave_out_kept(const SelectInput& input) {
  const auto leave_out = [&](std::uint64_t first, std::uint64_t last) {
    for (std::uint32_t i = 0; first < last && i < input.query_count; ++i)
      std::fill_n(scores_.data() + i * units_ + first, last - first, kNeverScore);
  };
  if (preset_->abstract.partition == PartitionKind::kTokens) {
    for (const TokenRange& range : input.kept)
      leave_out(range.first, std::min(range.last, end_token_));
  } else {
    for_each_unit(input, [&](const Candidate& unit) {
      if (unit.cost == 0) leave_out(unit.place, unit.place + 1);
    });
  }
}

// The same for tokens that are taken together, by the scores of those that are not kept: grains do
// not cross segments, so that they lie in few chunks.
void Selector::collect_grains(const SelectInput& input, std::span<float> scores) {
  candidates_.clear();
  // Masses add up; of logits and places the best counts.
  const bool sums =
      preset_->group == GroupMode::kMeanSoftmax || preset_->group == GroupMode::kMaxSoftmax;
  const std::uint32_t grain = std::min(input.grain_tokens, kSegmentTokensMax);
  for (std::uint32_t s = 0; s < input.segments.size(); ++s) {
    const SegmentExtent& segment = input.segments[s];
    for (std::uint32_t at = 0; at < segment.visible_tokens; at += grain) {
      const std::uint64_t first = segment.first_token + at;
      const std::uint64_t last = segment.first_token + std::min(at + grain, segment.visible_tokens);
      const std::uint64_t cost = last - first - kept_in(input.kept, 0, first, last);
      if (cost == 0) continue;
      float score = sums ? 0.0f : kNeverScore;
      for (std::uint64_t t = first; t < last; ++t) {
        if (cost != last - first && is_kept(input.kept, t)) continue;
        const float next = scores[static_cast<std::size_t>(t)];
        score = sums ? score + next : std::max(score, next);
      }
      scores[candidates_.size()] = score;
      candidates_.push_back({s, at / grain, static_cast<std::uint32_t>(cost), 0});
    }
  }
}

// The best units, whole, while they fit; the first that does not ends it, and is cut where the
// preset says so or units are grains: how rows travel makes a budget no smaller. With a budget of
// mass or entropy, until they hold the mass or have the rows; a cut makes the latter exact. With a
// certified one, until their bounds say that it is enough.
Result<void> Selector::choose_units(const SelectInput& input, std::span<float> scores,
                                    Selection* out) {
  const std::uint64_t count = candidates_.size();
  std::uint64_t found = 0;
  std::uint64_t left = rows_allowed(input);
  TopKArgs args;
  args.scores = scores.data();
  args.count = &count;
  args.k = std::min(count, left + input.next_rows);
  args.ordered = true;
  args.out_count = &found;
  make_room(&best_, args.k);
  args.out = best_.data();
  KVT_TRY_VOID(kernels_->top_k(args, nullptr));
  const bool masses = preset_->group == GroupMode::kMeanSoftmax;
  const bool cut = preset_->cut || preset_->abstract.partition == PartitionKind::kTokens;
  const std::uint64_t worth = rows_worth(input, scores.first(candidates_.size()),
                                         [this](std::size_t i) { return candidates_[i].cost; });
  if (cut) left = std::min(left, worth);
  const std::uint64_t listed = found;
  if (preset_->budget == BudgetKind::kCertified) {
    KVT_TRY(found, enough_units(input, found));
  }
  double total = 0.0, taken = 0.0;
  for (std::uint64_t i = 0; i < count && masses; ++i)
    if (scores[i] < kFetchScore) total += static_cast<double>(scores[i]);
  std::uint64_t i = 0;
  for (std::uint64_t rows = 0; i < found && rows < worth; ++i) {
    const Candidate& unit = candidates_[best_[i]];
    if (unit.cost > left) {
      if (cut) mark_first(input, unit, left);
      break;
    }
    if (preset_->budget == BudgetKind::kMass &&
        taken >= static_cast<double>(preset_->share) * total && scores[best_[i]] < kFetchScore)
      break;
    left -= unit.cost;
    rows += unit.cost;
    if (scores[best_[i]] < kFetchScore) taken += static_cast<double>(scores[best_[i]]);
    mark_unit(input, unit);
  }
  for (; i < listed && next_.size() < input.next_rows; ++i) add_next(input, candidates_[best_[i]]);
  if (masses && total > 0.0) out->mass = static_cast<float>(taken / total);
  return {};
}

// The same where every unit is a token: scores are in token order.
Result<void> Selector::choose_tokens(const SelectInput& input, std::span<float> scores,
                                     Selection* out) {
  // Masses add up to 1 per head.
  double total = static_cast<double>(input.summed_heads);
  for (const TokenRange& range : input.kept)
    for (std::uint64_t t = range.first; t < std::min(range.last, end_token_); ++t) {
      float& score = scores[static_cast<std::size_t>(t)];
      if (score < kFetchScore) total -= static_cast<double>(score);
      score = kNeverScore;
    }
  const std::uint64_t kept = kept_in(input.kept, 0, 0, end_token_);
  const std::uint64_t count = end_token_;
  const bool by_mass = preset_->budget == BudgetKind::kMass;
  std::uint64_t found = 0;
  TopKArgs args;
  args.scores = scores.data();
  args.count = &count;
  const std::uint64_t allowed =
      std::min(rows_allowed(input), rows_worth(input, scores, [](std::size_t) { return 1u; }));
  args.k = std::min(count - kept, allowed + input.next_rows);
  args.ordered = by_mass || input.next_rows != 0;
  args.out_count = &found;
  make_room(&best_, args.k);
  args.out = best_.data();
  KVT_TRY_VOID(kernels_->top_k(args, nullptr));
  double taken = 0.0;
  const bool masses = preset_->group == GroupMode::kMeanSoftmax;
  std::uint64_t i = 0;
  for (; i < std::min(found, allowed); ++i) {
    const float mass = scores[best_[i]];
    if (by_mass && mass < kFetchScore && taken >= static_cast<double>(preset_->share) * total)
      break;
    if (mass > 0.0f && mass < kFetchScore) taken += static_cast<double>(mass);
    mark(best_[i], best_[i] + 1);
  }
  for (; i < found && next_.size() < input.next_rows; ++i) next_.push_back(best_[i]);
  if (masses && total > 0.0) out->mass = static_cast<float>(std::min(1.0, taken / total));
  return {};
}

// ---- weigh --------------------------------------------------------------------------------------

Result<Selection> Selector::weigh(const SelectInput& input, std::span<const float> scores,
                                  std::span<const std::uint32_t> tokens) {
  KVT_TRY_VOID(check_input(input));
  if (scores.size() != units_) return error(Code::kInvalid, "scores of other segments");
  if (!tokens.empty() && tokens.back() >= end_token_)
    return error(Code::kInvalid, "a selection of other segments");
  Selection out = tally_;
  out.tokens = tokens;
  if (out.units_scored == 0) return out;
  if (preset_->abstract.partition != PartitionKind::kTokens) {
    clear_marks();
    for (const std::uint32_t token : tokens) mark(token, token + 1);
    for (const TokenRange& range : input.kept) mark(range.first, std::min(range.last, end_token_));
    out.mass = static_cast<float>(weigh_units(input, scores));
    return out;
  }
  // Masses add up to 1 per head, so that only tokens that are selected or kept are looked at.
  double total = static_cast<double>(input.summed_heads), held = 0.0;
  const auto mass_of = [&](std::uint64_t token) {
    const float mass = scores[static_cast<std::size_t>(token)];
    return mass < kFetchScore ? static_cast<double>(mass) : 0.0;
  };
  for (const TokenRange& range : input.kept)
    for (std::uint64_t t = range.first; t < std::min(range.last, end_token_); ++t)
      total -= mass_of(t);
  for (const std::uint32_t token : tokens)
    if (!is_kept(input.kept, token)) held += mass_of(token);
  if (total > 0.0) out.mass = static_cast<float>(std::min(1.0, held / total));
  return out;
}

double Selector::weigh_units(const SelectInput& input, std::span<const float> scores) const {
  double total = 0.0, held = 0.0;
  std::size_t at = 0;
  for (std::uint32_t s = 0; s < input.segments.size(); ++s) {
    const std::uint32_t units = unit_count(input.segments[s], preset_->abstract);
    for (std::uint32_t u = 0; u < units; ++u, ++at) {
      if (!(scores[at] < kFetchScore)) continue;
      const UnitRows rows = rows_of(input, {s, u, 0, 0});
      if (rows.free == 0) continue;
      total += static_cast<double>(scores[at]);
      held += static_cast<double>(scores[at]) * rows.marked / rows.free;
    }
  }
  return total > 0.0 ? held / total : 1.0;
}

Selector::UnitRows Selector::rows_of(const SelectInput& input, const Candidate& unit) const {
  UnitRows out;
  const SegmentExtent& segment = input.segments[unit.segment];
  if (segment.data != nullptr && segment.members != nullptr) {
    for_each_member(input, unit, [&](std::uint64_t t) {
      if (is_kept(input.kept, t)) return;
      ++out.free;
      out.marked += marked_in(t, t + 1);
    });
    return out;
  }
  const TokenRange range = range_of(input, unit);
  const auto kept = static_cast<std::uint32_t>(kept_in(input.kept, 0, range.first, range.last));
  out.free = static_cast<std::uint32_t>(range.last - range.first) - kept;
  out.marked = marked_in(range.first, range.last) - kept;
  return out;
}

// ---- marks --------------------------------------------------------------------------------------

void Selector::clear_marks() {
  chosen_.assign(static_cast<std::size_t>((end_token_ + 63) / 64), 0);
}

std::uint32_t Selector::marked_in(std::uint64_t first, std::uint64_t last) const {
  std::uint32_t count = 0;
  while (first < last) {
    const std::uint64_t end = std::min(last, (first / 64 + 1) * 64);
    const std::uint64_t from_first = chosen_[static_cast<std::size_t>(first / 64)] >> first % 64;
    const std::uint64_t bits = end - first;
    count += static_cast<std::uint32_t>(
        std::popcount(bits == 64 ? from_first : from_first & ((std::uint64_t{1} << bits) - 1)));
    first = end;
  }
  return count;
}

void Selector::mark(std::uint64_t first, std::uint64_t last) {
  for (; first < last && first % 64 != 0; ++first)
    chosen_[static_cast<std::size_t>(first / 64)] |= std::uint64_t{1} << first % 64;
  for (; first + 64 <= last; first += 64) chosen_[static_cast<std::size_t>(first / 64)] = ~0ull;
  for (; first < last; ++first)
    chosen_[static_cast<std::size_t>(first / 64)] |= std::uint64_t{1} << first % 64;
}

// Its visible tokens [first, last), or nothing where they are listed one by one.
TokenRange Selector::range_of(const SelectInput& input, const Candidate& unit) const {
  const SegmentExtent& segment = input.segments[unit.segment];
  const bool listed = segment.data != nullptr && segment.starts != nullptr;
  const bool grains = preset_->abstract.partition == PartitionKind::kTokens;
  const std::uint32_t fixed = grains ? std::min(input.grain_tokens, kSegmentTokensMax)
                              : segment.data == nullptr ? kMissingUnitTokens
                                                        : preset_->abstract.unit_tokens;
  const std::uint32_t first = listed ? segment.starts[unit.unit] : unit.unit * fixed;
  const std::uint32_t last = listed ? segment.starts[unit.unit + 1] : first + fixed;
  return {segment.first_token + first,
          segment.first_token + std::min(last, segment.visible_tokens)};
}

template <class F>
void Selector::for_each_member(const SelectInput& input, const Candidate& unit, const F& f) const {
  const SegmentExtent& segment = input.segments[unit.segment];
  if (segment.data == nullptr || segment.members == nullptr) {
    const TokenRange range = range_of(input, unit);
    for (std::uint64_t t = range.first; t < range.last; ++t) f(t);
    return;
  }
  for (std::uint32_t i = segment.starts[unit.unit]; i < segment.starts[unit.unit + 1]; ++i)
    if (segment.members[i] < segment.visible_tokens) f(segment.first_token + segment.members[i]);
}

void Selector::mark_unit(const SelectInput& input, const Candidate& unit) {
  const SegmentExtent& segment = input.segments[unit.segment];
  if (segment.data != nullptr && segment.members != nullptr)
    return mark_first(input, unit, unit.cost);  // no more, should the mapped list have changed
  const TokenRange range = range_of(input, unit);
  mark(range.first, range.last);
}

void Selector::mark_first(const SelectInput& input, const Candidate& unit, std::uint64_t rows) {
  for_each_member(input, unit, [&](std::uint64_t t) {
    if (rows == 0 || is_kept(input.kept, t)) return;
    mark(t, t + 1);
    --rows;
  });
}

void Selector::add_next(const SelectInput& input, const Candidate& unit) {
  for_each_member(input, unit, [&](std::uint64_t t) {
    if (next_.size() < input.next_rows && marked_in(t, t + 1) == 0 && !is_kept(input.kept, t))
      next_.push_back(static_cast<std::uint32_t>(t));
  });
}

void Selector::emit(Selection* out) {
  tokens_.clear();
  for (std::size_t word = 0; word < chosen_.size(); ++word)
    for (std::uint64_t bits = chosen_[word]; bits != 0; bits &= bits - 1)
      tokens_.push_back(
          static_cast<std::uint32_t>(word * 64 + static_cast<unsigned>(std::countr_zero(bits))));
  out->tokens = tokens_;
}

std::uint64_t Selector::memory_bytes() const noexcept {
  return (scores_.capacity() + moved_.capacity() + tables_.capacity() + weights_.capacity() +
          left_.capacity() + masses_.capacity() + missed_.capacity() + turned_.capacity() +
          lower_.capacity() + least_.capacity()) *
             sizeof(float) +
         (rest_.capacity() + taken_.capacity()) * sizeof(double) +
         (pieces_.capacity() + piece_starts_.capacity() + chosen_.capacity()) *
             sizeof(std::uint64_t) +
         tree_.memory_bytes() + candidates_.capacity() * sizeof(Candidate) +
         (best_.capacity() + tokens_.capacity() + next_.capacity()) * sizeof(std::uint32_t);
}

}  // namespace kvtier
