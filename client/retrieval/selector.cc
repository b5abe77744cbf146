// Selector: the scores of units.
#include <algorithm>
#include <cmath>

#include "client/retrieval/selector.h"

namespace kvtier {

Result<void> Selector::check_input(const SelectInput& input) {
  std::uint64_t end = 0, units = 0;
  for (const SegmentExtent& segment : input.segments) {
    if (segment.first_token != end)
      return error(Code::kInvalid, "segments must follow each other without gaps");
    if (segment.visible_tokens > kSegmentTokensMax)
      return error(Code::kTooLarge, "a segment has at most 2048 tokens");
    end += segment.visible_tokens;
    units += unit_count(segment, preset_->abstract);
  }
  if (end > kSequenceTokensMax) return error(Code::kTooLarge, "the sequence is too long");
  std::uint64_t last = 0;
  for (const TokenRange& range : input.kept) {
    if (range.first < last || range.last < range.first)
      return error(Code::kInvalid, "kept ranges must be ascending and disjoint");
    last = range.last;
  }
  end_token_ = end;
  units_ = units;
  return {};
}

Result<std::span<float>> Selector::score(const SelectInput& input) {
  KVT_TRY_VOID(check_input(input));
  tally_ = {};
  if (input.query_count == 0) return error(Code::kInvalid, "a group has 1 query head or more");
  make_room(&scores_, units_ * input.query_count);
  if (preset_->abstract.abstract == AbstractKind::kCodes) {
    KVT_TRY_VOID(score_codes(input));
  } else {
    float* place = scores_.data();
    for (const SegmentExtent& segment : input.segments) {
      KVT_TRY_VOID(score_segment(input, segment, place));
      place += unit_count(segment, preset_->abstract);
    }
  }
  const AbstractKind kind = preset_->abstract.abstract;
  const bool certified = preset_->budget == BudgetKind::kCertified;
  bounded_ = (input.bound || certified) && preset_->score == ScoreKind::kPlain &&
             (kind == AbstractKind::kBox || kind == AbstractKind::kBall);
  if (certified) KVT_TRY_VOID(score_lower(input));
  if (preset_->group == GroupMode::kEach) leave_out_kept(input);
  if (bounded_) {  // the scores are needed once more
    make_room(&weights_, units_ * input.query_count);
    std::copy_n(scores_.data(), units_ * input.query_count, weights_.data());
  }
  if (preset_->score == ScoreKind::kCount) add_counts(input);
  GroupScoresArgs group;
  group.scores = bounded_ ? weights_.data() : scores_.data();
  group.stride = units_;
  group.unit_count = &units_;
  group.queries = input.query_count;
  group.mode = preset_->group;
  group.scale = input.scale;
  if (preset_->group == GroupMode::kEach) {
    group.places = rows_allowed(input) + input.next_rows;  // no choice takes more units
    make_room(&best_, std::min(group.places, units_) + 1);
    group.order = best_.data();
  }
  KVT_TRY_VOID(kernels_->group_scores(group, nullptr));
  return std::span<float>(group.scores, static_cast<std::size_t>(units_));
}

Result<std::span<float>> Selector::score_tree(std::span<const SelectInput> heads) {
  tally_ = {};
  bounded_ = false;
  if (heads.empty()) return error(Code::kInvalid, "a selection has 1 head or more");
  for (const SelectInput& head : heads) KVT_TRY_VOID(check_input(head));
  make_room(&scores_, units_);
  const std::span<float> scores(scores_.data(), static_cast<std::size_t>(units_));
  KVT_TRY_VOID(tree_.run(preset_->abstract, heads, rows_allowed(heads[0]), scores));
  tally_.units_scored = tree_.boxes_scored();
  tally_.units_missing = tree_.units_missing();
  tally_.abstract_bytes = tree_.boxes_scored() * unit_elements(preset_->abstract, heads[0].dim) * 2;
  return scores;
}

Result<void> Selector::score_segment(const SelectInput& input, const SegmentExtent& segment,
                                     float* out) {
  const AbstractSpec& spec = preset_->abstract;
  const std::uint64_t units = unit_count(segment, spec);
  // A directory may show more of a segment than its abstracts were built for only by mistake.
  const std::uint64_t known =
      segment.data != nullptr ? std::min<std::uint64_t>(segment.units, units) : 0;
  for (std::uint32_t i = 0; i < input.query_count; ++i)
    std::fill(out + i * units_ + known, out + i * units_ + units, kFetchScore);
  tally_.units_scored += known;
  tally_.units_missing += units - known;
  tally_.abstract_bytes += known * unit_elements(spec, input.dim) * 2;
  if (known == 0) return {};
  if (spec.abstract == AbstractKind::kOwnCodes) return score_own_codes(input, segment, known, out);
  ScoreArgs args;
  args.abstracts = reinterpret_cast<const std::uint16_t*>(segment.data);
  args.unit_count = &known;
  args.q = input.queries;
  args.q_stride = input.query_stride;
  args.queries = input.query_count;
  args.dim = input.dim;
  args.out = out;
  args.out_stride = units_;
  switch (spec.abstract) {
    case AbstractKind::kRepresentatives:
      return kernels_->score_representatives(
          {args, spec.parameter, preset_->score == ScoreKind::kLargest}, nullptr);
    case AbstractKind::kBox:
      return kernels_->score_box(args, nullptr);
    case AbstractKind::kBall:
      return kernels_->score_ball(args, nullptr);
    default:
      return kernels_->score_mean(args, nullptr);
  }
}

// Queries into the codebook's coordinates, and their products with its entries.
Result<void> Selector::make_tables(const SelectInput& input) {
  const HeadCodebook& codebook = *input.codebook;
  const std::size_t dim = input.dim;
  if (codebook.book.dim != dim) return error(Code::kInvalid, "a codebook of another head size");
  make_room(&moved_, dim * input.query_count);
  for (std::uint32_t i = 0; i < input.query_count; ++i) {
    float* out = moved_.data() + i * dim;
    std::fill_n(out, dim, 0.0f);
    for (std::size_t d = 0; d < dim; ++d) {
      const float value = input.queries[i * input.query_stride + d];
      const float* row = codebook.query_map + d * dim;
      for (std::size_t e = 0; e < dim; ++e) out[e] += value * row[e];
    }
  }
  const std::uint64_t table_stride = std::uint64_t{codebook.book.subspaces} * kCodeEntries;
  make_room(&tables_, table_stride * input.query_count);
  CodeTablesArgs tables;
  tables.book = codebook.book;
  tables.q = moved_.data();
  tables.q_stride = dim;
  tables.queries = input.query_count;
  tables.out = tables_.data();
  tables.out_stride = table_stride;
  return kernels_->code_tables(tables, nullptr);
}

// Units are tokens, so a token's number is the place of its score. Segments with codes that follow
// each other are scored in one go.
Result<void> Selector::score_codes(const SelectInput& input) {
  if (input.codebook == nullptr) {
    std::fill_n(scores_.data(), units_ * input.query_count, kFetchScore);
    tally_.units_missing = units_;
    return {};
  }
  KVT_TRY_VOID(make_tables(input));
  const CodeBook& book = input.codebook->book;
  for (std::size_t i = 0; i < input.segments.size();) {
    if (input.segments[i].data == nullptr) {
      const SegmentExtent& segment = input.segments[i++];
      for (std::uint32_t q = 0; q < input.query_count; ++q)
        std::fill_n(scores_.data() + q * units_ + segment.first_token, segment.visible_tokens,
                    kFetchScore);
      tally_.units_missing += segment.visible_tokens;
      continue;
    }
    pieces_.clear();
    piece_starts_.clear();
    for (; i < input.segments.size() && input.segments[i].data != nullptr; ++i) {
      const SegmentExtent& segment = input.segments[i];
      pieces_.push_back(reinterpret_cast<std::uintptr_t>(segment.data));
      piece_starts_.push_back(segment.first_token);
      tally_.units_scored += segment.visible_tokens;
      tally_.abstract_bytes += code_bytes(segment.visible_tokens, book.subspaces);
    }
    piece_starts_.push_back(i < input.segments.size() ? input.segments[i].first_token : end_token_);
    const std::uint64_t count = pieces_.size();
    ScoreCodesArgs args;
    args.codes.pieces = pieces_.data();
    args.codes.starts = piece_starts_.data();
    args.codes.count = &count;
    args.codes.subspaces = book.subspaces;
    args.tables = tables_.data();
    args.table_stride = std::uint64_t{book.subspaces} * kCodeEntries;
    args.queries = input.query_count;
    args.out = scores_.data();
    args.out_stride = units_;
    KVT_TRY_VOID(kernels_->score_codes(args, nullptr));
  }
  return {};
}

// The first `known` tokens of a segment, by products of the queries with its own entries.
Result<void> Selector::score_own_codes(const SelectInput& input, const SegmentExtent& segment,
                                       std::uint64_t known, float* out) {
  const OwnCodeLayout layout = own_code_layout(preset_->abstract, input.dim);
  tally_.abstract_bytes += layout.size_bytes(known);
  const std::uint64_t entries = kOwnCodeEntries;
  const std::uint64_t table_stride = layout.subspaces * entries;
  make_room(&tables_, table_stride * input.query_count);
  for (std::uint32_t m = 0; m < layout.subspaces; ++m) {
    ScoreArgs products;
    products.abstracts =
        reinterpret_cast<const std::uint16_t*>(segment.data + layout.entries_offset(m));
    products.unit_count = &entries;
    products.q = input.queries + layout.first(m);
    products.q_stride = input.query_stride;
    products.queries = input.query_count;
    products.dim = layout.width(m);
    products.out = tables_.data() + m * entries;
    products.out_stride = table_stride;
    KVT_TRY_VOID(kernels_->score_mean(products, nullptr));
  }
  ScoreOwnCodesArgs args;
  args.codes = reinterpret_cast<const std::uint8_t*>(segment.data + layout.codes_offset());
  args.token_count = &known;
  args.subspaces = layout.subspaces;
  args.tables = tables_.data();
  args.table_stride = table_stride;
  args.queries = input.query_count;
  args.out = out;
  args.out_stride = units_;
  return kernels_->score_own_codes(args, nullptr);
}

// log(tokens), in units of the dot product: the group's scale is applied later.
void Selector::add_counts(const SelectInput& input) {
  std::uint64_t at = 0;
  for (const SegmentExtent& segment : input.segments) {
    const std::uint32_t units = unit_count(segment, preset_->abstract);
    for (std::uint32_t u = 0; u < units && segment.data != nullptr && segment.starts != nullptr;
         ++u) {
      const int tokens = segment.starts[u + 1] - segment.starts[u];
      const float more = std::log(static_cast<float>(std::max(tokens, 1))) / input.scale;
      for (std::uint32_t i = 0; i < input.query_count; ++i) scores_[i * units_ + at + u] += more;
    }
    at += units;
  }
}

}  // namespace kvtier
