#include "client/retrieval/tree_search.h"

#include <algorithm>

#include "kernels/abstract_layout.h"

namespace kvtier {
namespace {

// Boxes of a level over `units` of the finest.
std::uint32_t boxes_of(std::uint32_t units, std::uint32_t level) {
  return (units + (1u << level) - 1u) >> level;
}

}  // namespace

Result<void> TreeSearch::run(const AbstractSpec& spec, std::span<const SelectInput> heads,
                             std::uint64_t rows, std::span<float> scores) {
  spec_ = spec;
  boxes_scored_ = units_missing_ = 0;
  list_cells(heads);
  if (costs_.size() != scores.size()) return error(Code::kInvalid, "scores of other segments");
  KVT_TRY_VOID(score_coarsest(heads, scores));
  for (std::uint32_t round = 0; round < spec.parameter; ++round) {
    KVT_TRY(const bool any, mark_best(rows, scores));
    if (!any) break;
    KVT_TRY_VOID(score_split(heads, scores));
  }
  return {};
}

void TreeSearch::list_cells(std::span<const SelectInput> heads) {
  const SelectInput& input = heads[0];
  costs_.clear();
  levels_.clear();
  for (const SegmentExtent& segment : input.segments) {
    const std::uint32_t units = unit_count(segment, spec_);
    const std::uint32_t tokens = segment.data == nullptr ? kMissingUnitTokens : spec_.unit_tokens;
    if (segment.data == nullptr) units_missing_ += units * heads.size();
    levels_.insert(levels_.end(), units, segment.data == nullptr ? 0 : spec_.parameter);
    for (std::uint32_t u = 0; u < units; ++u) {
      const std::uint32_t first = u * tokens;
      const std::uint32_t last = std::min(first + tokens, segment.visible_tokens);
      const std::uint64_t kept =
          kept_in(input.kept, 0, segment.first_token + first, segment.first_token + last);
      costs_.push_back(static_cast<std::uint16_t>(last - first - kept));
    }
  }
}

Result<void> TreeSearch::score_coarsest(std::span<const SelectInput> heads,
                                        std::span<float> scores) {
  std::uint64_t cell = 0;
  const auto segments = heads[0].segments;
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const std::uint32_t units = unit_count(segments[s], spec_);
    const bool there = segments[s].data != nullptr;
    const std::uint32_t known = there ? std::min(units, segments[s].units) : 0;
    std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>(cell), units, kFetchScore);
    Run run{s, cell, spec_.parameter, 0, boxes_of(known, spec_.parameter)};
    if (run.last > 0) KVT_TRY_VOID(score_run(heads, run, scores));
    cell += units;
  }
  return {};
}

// The best cells until they cover the rows, with all that score as the last of them.
Result<bool> TreeSearch::mark_best(std::uint64_t rows, std::span<const float> scores) {
  const std::uint64_t count = scores.size();
  masked_.resize(static_cast<std::size_t>(count));
  std::uint64_t free = 0;
  for (std::size_t i = 0; i < count; ++i) {
    masked_[i] = costs_[i] == 0 ? kNeverScore : scores[i];
    free += costs_[i] != 0;
  }
  std::uint64_t found = 0;
  TopKArgs args;
  args.scores = masked_.data();
  args.count = &count;
  args.k = std::min(free, rows);
  args.ordered = true;
  args.out_count = &found;
  if (best_.size() < args.k) best_.resize(static_cast<std::size_t>(args.k));
  args.out = best_.data();
  KVT_TRY_VOID(kernels_->top_k(args, nullptr));
  std::uint64_t covered = 0;
  float cut = kFetchScore;
  for (std::uint64_t i = 0; i < found && covered < rows; ++i) {
    covered += costs_[best_[i]];
    cut = masked_[best_[i]];
  }
  split_.assign(static_cast<std::size_t>(count), 0);
  bool any = false;
  for (std::size_t i = 0; i < count && covered > 0; ++i) {
    split_[i] = costs_[i] != 0 && levels_[i] > 0 && !(masked_[i] < cut);
    any = any || split_[i] != 0;
  }
  return any;
}

// Cells of a box all have its score, but some may be kept: they are split with it, or not at all.
Result<void> TreeSearch::score_split(std::span<const SelectInput> heads, std::span<float> scores) {
  std::uint64_t base = 0;
  const auto segments = heads[0].segments;
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const std::uint32_t units = unit_count(segments[s], spec_);
    Run run{s, base, 0, 0, 0};
    for (std::uint32_t u = 0; u < units; ++u) {
      const auto cell = static_cast<std::size_t>(base + u);
      if (split_[cell] == 0) continue;
      const std::uint32_t level = levels_[cell] - 1u;
      const std::uint32_t box = u >> level;
      if (run.last != run.first && (level != run.level || box > run.last)) {
        KVT_TRY_VOID(score_run(heads, run, scores));
        run.last = run.first = 0;
      }
      if (run.last == run.first) {
        run.level = level;
        run.first = box;
      }
      run.last = box + 1;
    }
    if (run.last != run.first) KVT_TRY_VOID(score_run(heads, run, scores));
    base += units;
  }
  return {};
}

Result<void> TreeSearch::score_run(std::span<const SelectInput> heads, const Run& run,
                                   std::span<float> scores) {
  const std::uint64_t boxes = run.last - run.first;
  const std::uint32_t units = unit_count(heads[0].segments[run.segment], spec_);
  of_boxes_.assign(static_cast<std::size_t>(boxes), 0.0f);
  for (const SelectInput& head : heads) {
    const SegmentExtent& segment = head.segments[run.segment];
    std::uint64_t before = run.first;  // boxes of the finer levels lie before
    for (std::uint32_t level = 0; level < run.level; ++level)
      before += boxes_of(segment.units, level);
    of_queries_.resize(static_cast<std::size_t>(boxes * head.query_count));
    ScoreArgs args;
    args.abstracts = reinterpret_cast<const std::uint16_t*>(segment.data) +
                     before * unit_elements(spec_, head.dim);
    args.unit_count = &boxes;
    args.q = head.queries;
    args.q_stride = head.query_stride;
    args.queries = head.query_count;
    args.dim = head.dim;
    args.out = of_queries_.data();
    args.out_stride = boxes;
    KVT_TRY_VOID(kernels_->score_box(args, nullptr));
    GroupScoresArgs group;
    group.scores = of_queries_.data();
    group.stride = boxes;
    group.unit_count = &boxes;
    group.queries = head.query_count;
    group.mode = GroupMode::kMeanScore;
    group.scale = head.scale;
    KVT_TRY_VOID(kernels_->group_scores(group, nullptr));
    for (std::size_t i = 0; i < boxes; ++i) of_boxes_[i] += of_queries_[i];
    boxes_scored_ += boxes;
  }
  const std::uint32_t first = run.first << run.level;
  const std::uint32_t last = std::min(units, run.last << run.level);
  for (std::uint32_t u = first; u < last; ++u) {
    const auto cell = static_cast<std::size_t>(run.first_cell + u);
    scores[cell] = of_boxes_[(u >> run.level) - run.first];
    levels_[cell] = static_cast<std::uint8_t>(run.level);
  }
  return {};
}

std::uint64_t TreeSearch::memory_bytes() const noexcept {
  return levels_.capacity() + split_.capacity() + costs_.capacity() * sizeof(std::uint16_t) +
         best_.capacity() * sizeof(std::uint32_t) +
         (masked_.capacity() + of_queries_.capacity() + of_boxes_.capacity()) * sizeof(float);
}

}  // namespace kvtier
