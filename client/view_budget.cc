// View: attention of one query, or of a block of them, over the rows that the preset chooses.
#include <algorithm>
#include <cmath>

#include "client/view.h"

namespace kvtier {
namespace {

// Queries that choose together. Each is scored by itself, so a block costs as many selections.
constexpr std::uint32_t kBlockQueries = 64;

}  // namespace

Result<void> View::attend_blocks(const AttendStep& step) {
  bool waited = false;
  for (std::uint32_t first = 0; first < step.queries; first += kBlockQueries) {
    AttendStep part = step.part(first, std::min(kBlockQueries, step.queries - first));
    part.block = step.queries > 1;
    KVT_TRY(const bool part_waited, attend_budget(part));
    waited = waited || part_waited;
  }
  if (waited) ++stats_.steps_waited;
  return {};
}

Result<bool> View::attend_budget(const AttendStep& step) {
  KVT_TRY(std::vector<SlotCache> * caches, caches_of(step));
  const bool late = take_coming(step.layer);
  const std::uint64_t waited_before = stats_.rows_waited;
  const auto ready = select_rows(step, caches);
  if (!ready || moved_) {
    for (SlotCache& cache : *caches) cache.abandon();
    layer_queries_[step.layer].forget();
    if (!ready) return error(ready.error());
    return false;
  }
  for (SlotCache& cache : *caches) cache.complete();
  if (step.attempt == 0) touch_rows(step, *caches);
  send_hints(step);
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    KVT_TRY_VOID(attend_cached(step, head, (*caches)[head]));
  }
  if (preset_.fetch == FetchKind::kBehind) send_for(step, step.q);
  if (has_base()) KVT_TRY_VOID(attend_base_rows(step, caches));
  return late || stats_.rows_waited != waited_before;
}

// Every query sees all that is stored.
Result<void> View::attend_cached(const AttendStep& step, std::uint32_t head,
                                 const SlotCache& cache) {
  if (cache.row_count() == 0) return {};
  return attend_run(step, head, cache.rows(), 0, cache.row_count());
}

Result<std::vector<SlotCache>*> View::caches_of(const AttendStep& step) {
  std::vector<SlotCache>& caches = caches_[step.layer];
  if (!caches.empty()) return &caches;
  const LayerGeometry& shape = sequence_->space().geometry().layers[step.layer];
  SlotCacheOptions options;
  options.capacity_rows = std::max<std::uint64_t>(
      1, preset_.cache_rows(budget_of(step.layer),
                            static_cast<std::uint64_t>(options_.sinks) + options_.window,
                            options_.capacity));
  options.k_row_bytes = shape.k_row_bytes;
  options.v_row_bytes = shape.v_row_bytes;
  options.dtype = shape.dtype;
  std::vector<SlotCache> made;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    KVT_TRY(SlotCache cache, SlotCache::make(options));
    made.push_back(std::move(cache));
  }
  caches = std::move(made);
  return &caches;
}

// A head whose trigger does not fire keeps what its slot cache has selected. A block always
// chooses, and the step behind it does so by its own query.
Result<void> View::select_rows(const AttendStep& step, std::vector<SlotCache>* caches) {
  LayerQuery& query = layer_queries_[step.layer];
  observe(step, &query);
  wanted_.clear();
  runners_up_.resize(step.kv_heads);
  for (std::vector<std::uint32_t>& tokens : runners_up_) tokens.clear();
  missed_.resize(std::size_t{step.kv_heads} * step.group);
  KVT_TRY_VOID(preset_.scope == ScopeKind::kLayer ? select_layer(step, &query, caches)
                                                  : select_heads(step, &query, caches));
  if (has_base()) {
    KVT_TRY_VOID(split_rows(step, caches));
  }
  if (wanted_.empty()) return {};
  const std::uint64_t rebuilt = stats_.rows_rebuilt;
  KVT_TRY_VOID(fetch_rows(step, caches));
  // Keys are in the slot caches for long: they must be of what the daemon had put there.
  if (stats_.rows_rebuilt != rebuilt) {
    KVT_TRY(moved_, base_moved());
  }
  return {};
}

void View::observe(const AttendStep& step, LayerQuery* query) {
  if (step.block) return query->begin_block(step.q, step.kv_heads);
  if (observed_) return query->forget();
  observed_ = true;
  query->observe(preset_,
                 {step.q, step.kv_heads, step.group, step.dim, ends_sentence(step.visible - 1),
                  sequence_->tail_first(), layer_before_.queries(), step.visible});
  if (preset_.abstract.partition == PartitionKind::kSegments) mark_token(step, *query);
}

void View::mark_token(const AttendStep& step, const LayerQuery& query) {
  if (step.visible != fired_.visible) fired_ = {step.visible, {}};
  fired_.layers[step.layer] = query.fired();
  const auto& layers = sequence_->space().geometry().layers;
  std::size_t choosing = 0;
  for (std::size_t i = preset_.dense_layers; i < layers.size(); ++i)
    choosing += layers[i].kind == LayerKind::kFull ? 1 : 0;
  const bool cut = query.fired() && 2 * fired_.layers.count() >= choosing;
  sequence_->mark_token(step.visible - 1, kTokenOwn | (cut ? kTokenCut : 0));
}

// What a head attends to: with a precision, not only what its slot cache has exactly.
std::span<const std::uint32_t> View::chosen_by(const AttendStep& step, std::uint32_t head,
                                               const SlotCache& cache) {
  if (has_base()) return chosen_[step.layer][head].tokens;
  held_.resize(static_cast<std::size_t>(cache.row_count()));
  for (std::size_t i = 0; i < held_.size(); ++i) held_[i] = cache.selected(i);
  return held_;
}

Result<bool> View::still_holds(const SelectInput& input, std::span<const float> scores,
                               std::span<const std::uint32_t> chosen) {
  if (scores.empty()) return false;  // the layer has no budget
  KVT_TRY(const Selection now, selector_.weigh(input, scores, chosen));
  const bool holds = 1.0f - now.mass <= preset_.level;
  if (holds) {
    stats_.units_scored += now.units_scored * input.summed_heads;
    stats_.units_missing += now.units_missing * input.summed_heads;
  }
  return holds;
}

// The tail was attended to already. Kept rows are attended to once more with the rest of the
// selection: they are few, and their output here goes nowhere.
Result<void> View::hold_kept(const AttendStep& step, std::vector<SlotCache>* caches) {
  held_.clear();
  for (const TokenRange& range : kept_ranges())
    for (std::uint64_t token = range.first; token < range.last; ++token)
      held_.push_back(static_cast<std::uint32_t>(token));
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    KVT_TRY(const SlotCache::Missing missing, (*caches)[head].select(held_));
    want_rows(step, head, missing);
  }
  if (!wanted_.empty()) KVT_TRY_VOID(fetch_rows(step, caches));
  wanted_.clear();
  const std::size_t heads = std::size_t{step.kv_heads} * step.group;
  held_mass_.assign(step.lse, step.lse + heads);
  held_out_.assign(heads * step.v_dim, 0.0f);
  AttendStep kept = step;
  kept.lse = held_mass_.data();
  kept.out = held_out_.data();
  const std::uint64_t attended = stats_.rows_attended;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    (*caches)[head].complete();
    KVT_TRY_VOID(attend_cached(kept, head, (*caches)[head]));
  }
  stats_.rows_attended = attended;
  return {};
}

Result<void> View::select_heads(const AttendStep& step, LayerQuery* query,
                                std::vector<SlotCache>* caches) {
  const bool certified = preset_.budget == BudgetKind::kCertified;
  if (certified) KVT_TRY_VOID(hold_kept(step, caches));
  // Only a step's own queries say what it misses, and only exact rows what it does not.
  const bool own = preset_.query == QueryKind::kCurrent || preset_.query == QueryKind::kBlock;
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    if (!query->due(head)) continue;
    SelectInput input = select_input(step, query->vectors(), head);
    input.bound = own && !step.block && !has_rendition();
    input.held = certified ? held_mass_.data() + std::size_t{head} * step.group : nullptr;
    KVT_TRY(const std::span<float> scores, scores_of(step, &input));
    if (preset_.trigger == TriggerKind::kMass && query->has_chosen(head)) {
      const auto chosen = chosen_by(step, head, (*caches)[head]);
      KVT_TRY(const bool holds, still_holds(input, scores, chosen));
      if (holds) continue;
    }
    KVT_TRY(const Selection selection, selector_.choose(input, scores));
    KVT_TRY_VOID(take_selection(step, head, selection, &(*caches)[head]));
    query->chosen(head);
  }
  return {};
}

// The heads' scores are added up, and one choice serves them all: units are read once, so that the
// heads agree on them whatever happens to the mapped ones.
Result<void> View::select_layer(const AttendStep& step, LayerQuery* query,
                                std::vector<SlotCache>* caches) {
  if (!query->due(0)) return {};
  if (preset_.search == SearchKind::kTree && step.layer >= preset_.flat_layers &&
      budget_of(step.layer) != 0)
    return select_tree(step, query, caches);
  layer_scores_.clear();
  for (std::uint32_t head = 0; head < step.kv_heads && selector_.scores_units(); ++head) {
    SelectInput input = select_input(step, query->vectors(), head, head != 0);
    KVT_TRY(const std::span<float> scores, scores_of(step, &input));
    if (head == 0) layer_scores_.assign(scores.size(), 0.0f);
    for (std::size_t i = 0; i < scores.size(); ++i) layer_scores_[i] += scores[i];
  }
  SelectInput input = select_input(step, query->vectors(), 0, !layer_scores_.empty());
  input.summed_heads = step.kv_heads * step.queries;
  if (preset_.trigger == TriggerKind::kMass && query->has_chosen(0)) {
    const auto chosen = chosen_by(step, 0, caches->front());
    KVT_TRY(const bool holds, still_holds(input, layer_scores_, chosen));
    if (holds) return {};
  }
  KVT_TRY(const Selection selection, selector_.choose(input, layer_scores_));
  return take_for_all(step, selection, query, caches);
}

Result<void> View::select_tree(const AttendStep& step, LayerQuery* query,
                               std::vector<SlotCache>* caches) {
  tree_heads_.clear();
  head_extents_.resize(step.kv_heads);
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    tree_heads_.push_back(select_input(step, query->vectors(), head));
    head_extents_[head].swap(extents_);
    tree_heads_.back().segments = head_extents_[head];
  }
  KVT_TRY(const std::span<float> scores, selector_.score_tree(tree_heads_));
  KVT_TRY(const Selection selection, selector_.choose(tree_heads_[0], scores));
  return take_for_all(step, selection, query, caches);
}

Result<void> View::take_for_all(const AttendStep& step, const Selection& selection,
                                LayerQuery* query, std::vector<SlotCache>* caches) {
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    KVT_TRY_VOID(take_selection(step, head, selection, &(*caches)[head]));
    query->chosen(head);
  }
  return {};
}

Result<std::span<float>> View::scores_of(const AttendStep& step, SelectInput* input) {
  if (!step.block) return selector_.scores_of(*input);
  const bool largest = preset_.group == GroupMode::kMax ||
                       preset_.group == GroupMode::kMaxSoftmax || preset_.group == GroupMode::kEach;
  for (std::uint32_t i = 0; i < step.queries; ++i) {
    KVT_TRY(const std::span<float> scores, selector_.scores_of(*input));
    if (i == 0) block_scores_.assign(scores.size(), largest ? kNeverScore : 0.0f);
    for (std::size_t unit = 0; unit < scores.size(); ++unit) {
      float& joined = block_scores_[unit];
      joined = largest ? std::max(joined, scores[unit]) : joined + scores[unit];
    }
    input->queries += std::uint64_t{step.kv_heads} * step.group * step.dim;
  }
  input->summed_heads = step.queries;
  return std::span<float>(block_scores_);
}

// What was attended to is known exactly, the tail included; what was not, by its bound.
void View::count_bound(const AttendStep& step) {
  if (bounded_heads_ != step.kv_heads) return;
  bounded_heads_ = 0;
  double sum = 0.0;
  stats_.bound_last = 0.0;
  for (std::size_t head = 0; head < missed_.size(); ++head) {
    if (missed_[head] == kNeverScore) continue;
    const double ahead = static_cast<double>(step.lse[head] - missed_[head]);
    const double share = 1.0 / (1.0 + std::exp(ahead));
    sum += share;
    stats_.bound_last = std::max(stats_.bound_last, share);
  }
  stats_.bound_max = std::max(stats_.bound_max, stats_.bound_last);
  ++stats_.bound_steps;
  stats_.bound_sum += sum / static_cast<double>(missed_.size());
}

std::array<TokenRange, 2> View::kept_ranges() const noexcept {
  const std::uint64_t end = sequence_->tail_first();
  const std::uint64_t sinks_end = std::min<std::uint64_t>(options_.sinks, end);
  return {
      TokenRange{0, sinks_end},
      TokenRange{std::max(sinks_end, end - std::min<std::uint64_t>(options_.window, end)), end}};
}

SelectInput View::select_input(const AttendStep& step, const float* vectors, std::uint32_t head,
                               bool same_borders) {
  extents_of(step, head, same_borders);
  kept_ = kept_ranges();
  SelectInput input;
  input.segments = extents_;
  input.kept = kept_;
  input.queries = vectors + static_cast<std::uint64_t>(head) * step.group * step.dim;
  input.query_stride = step.dim;
  input.query_count = step.group;
  input.dim = step.dim;
  input.scale = step.scale;
  input.codebook = codebook_of(step.layer, head);
  input.budget_rows = budget_of(step.layer);
  input.ratio_percent = preset_.percent_in(step.layer);
  input.flat = step.layer < preset_.flat_layers;
  // Base renditions are read row by row, wherever exact ones lie.
  const ChoiceWidth& width = widths_.try_emplace(step.layer, ChoiceWidth(from_disk_)).first->second;
  input.grain_tokens = has_base()                ? 1
                       : preset_.run_tokens != 0 ? preset_.run_tokens
                                                 : width.tokens();
  input.next_rows = hinted_rows(step.layer);
  return input;
}

Result<void> View::take_selection(const AttendStep& step, std::uint32_t head,
                                  const Selection& selection, SlotCache* cache) {
  ++stats_.selections;
  stats_.units_scored += selection.units_scored * step.queries;
  stats_.units_missing += selection.units_missing * step.queries;
  stats_.rows_selected += selection.tokens.size() - selection.kept_rows;
  stats_.mass_sum += static_cast<double>(selection.mass);
  runners_up_[head].assign(selection.next.begin(), selection.next.end());
  if (!selection.missed.empty()) {
    std::copy(selection.missed.begin(), selection.missed.end(),
              missed_.begin() + static_cast<std::ptrdiff_t>(head * step.group));
    ++bounded_heads_;
  }
  if (has_base()) {
    std::vector<ChosenRows>& heads = chosen_[step.layer];
    heads.resize(step.kv_heads);
    heads[head].tokens.assign(selection.tokens.begin(), selection.tokens.end());
    return {};
  }
  KVT_TRY(const SlotCache::Missing missing, cache->select(selection.tokens));
  const std::size_t first = wanted_.size();
  want_rows(step, head, missing);
  return has_low_rank() ? rebuild_keys(step, head, first, cache) : Result<void>();
}

void View::want_rows(const AttendStep& step, std::uint32_t head,
                     const SlotCache::Missing& missing) {
  const Geometry& geometry = sequence_->space().geometry();
  const auto segments = sequence_->directory().segments();
  const std::uint32_t group = head / geometry.heads_in_group(step.layer);
  std::size_t segment = 0;
  for (std::size_t i = 0; i < missing.tokens.size(); ++i) {
    const std::uint32_t token = missing.tokens[i];
    if (i == 0) segment = sequence_->directory().segment_of(token);
    while (token >= segments[segment].first_token + segments[segment].visible_tokens) ++segment;
    const auto in_segment = static_cast<std::uint32_t>(token - segments[segment].first_token);
    WantedRow row;
    row.chunk_key = (static_cast<std::uint64_t>(segment) << 32) |
                    (in_segment / geometry.chunk_tokens) << 16 | group;
    row.target = missing.offsets[i];
    row.head = head;
    row.place = in_segment % geometry.chunk_tokens;
    row.low_rank = takes_low_rank(step, segment, token);
    wanted_.push_back(row);
  }
}

void View::list_entries(const AttendStep& step) {
  const Geometry& geometry = sequence_->space().geometry();
  const auto segments = sequence_->directory().segments();
  // Heads with chunks of their own are in order already: head by head, chunk by chunk.
  if (geometry.heads_in_group(step.layer) > 1)
    std::stable_sort(wanted_.begin(), wanted_.end(), [](const WantedRow& a, const WantedRow& b) {
      return a.chunk_key < b.chunk_key;
    });
  entries_.clear();
  first_wanted_.clear();
  for (std::size_t i = 0; i < wanted_.size(); ++i) {
    const WantedRow& row = wanted_[i];
    if (i == 0 || row.chunk_key != wanted_[i - 1].chunk_key) {
      FetchEntry entry{};
      entry.segment = segments[row.chunk_key >> 32].segment;
      entry.layer = static_cast<std::uint16_t>(step.layer);
      entry.chunk = static_cast<std::uint16_t>(row.chunk_key >> 16);
      entry.group = static_cast<std::uint16_t>(row.chunk_key);
      entries_.push_back(entry);
      first_wanted_.push_back(static_cast<std::uint32_t>(i));
    }
    entries_.back().row_mask |= 1ull << row.place;
  }
  first_wanted_.push_back(static_cast<std::uint32_t>(wanted_.size()));
}

Result<void> View::fetch_rows(const AttendStep& step, std::vector<SlotCache>* caches) {
  list_entries(step);
  stats_.rows_waited += wanted_.size();
  const Geometry& geometry = sequence_->space().geometry();
  ChunkStreamOptions options;
  options.total = entries_.size();
  options.slot_bytes = geometry.slot_bytes(step.layer);
  FetchTally tally;
  const auto done = sequence_->chunk_stream(&tally).run(
      options, [&](std::uint64_t i) { return entries_[static_cast<std::size_t>(i)]; },
      [&](std::uint64_t first, std::uint64_t count, const Fetch& fetch) {
        return gather(step, fetch, first, count, caches);
      });
  account(step, tally);
  return done;
}

void View::account(const AttendStep& step, const FetchTally& tally) noexcept {
  const std::uint64_t fetched_bytes =
      tally.chunks * sequence_->space().geometry().chunk_bytes(step.layer);
  if (tally.chunks != 0) {
    from_disk_ = ChoiceWidth::much_from_disk(tally.bytes_disk, fetched_bytes);
    widths_[step.layer].observe(from_disk_);
    if (tally.bytes_disk != 0) hints_[step.layer].calm = 0;
  }
  stats_.chunks_fetched += tally.chunks;
  stats_.bytes_disk += tally.bytes_disk;
  stats_.wait_ns += tally.wait_ns;
}

Result<void> View::gather(const AttendStep& step, const Fetch& fetch, std::uint64_t first_entry,
                          std::uint64_t entries, std::vector<SlotCache>* caches) {
  const Geometry& geometry = sequence_->space().geometry();
  const LayerGeometry& shape = geometry.layers[step.layer];
  const std::uint32_t group_heads = geometry.heads_in_group(step.layer);
  const std::uint64_t slot_bytes = geometry.slot_bytes(step.layer);
  sources_.clear();
  targets_.clear();
  std::uint32_t head = wanted_[first_wanted_[static_cast<std::size_t>(first_entry)]].head;
  for (std::uint64_t i = 0; i < entries; ++i) {
    const std::byte* chunk = fetch.chunk(static_cast<std::size_t>(i), slot_bytes);
    const auto entry = static_cast<std::size_t>(first_entry + i);
    for (std::uint32_t w = first_wanted_[entry]; w < first_wanted_[entry + 1]; ++w) {
      const WantedRow& row = wanted_[w];
      if (row.head != head) {
        KVT_TRY_VOID(flush_gather(shape, &(*caches)[head]));
        head = row.head;
      }
      sources_.push_back(row.low_rank
                             ? 0
                             : reinterpret_cast<std::uintptr_t>(chunk) +
                                   k_row_offset(geometry, shape, head % group_heads, row.place));
      sources_.push_back(reinterpret_cast<std::uintptr_t>(chunk) +
                         v_row_offset(geometry, shape, head % group_heads, row.place));
      targets_.push_back(row.target);
    }
  }
  return flush_gather(shape, &(*caches)[head]);
}

// Copies what gather() listed for one head: K and V sources by turns, K of 0 where it is rebuilt.
Result<void> View::flush_gather(const LayerGeometry& shape, SlotCache* cache) {
  for (const bool is_key : {true, false}) {
    pages_.clear();
    row_targets_.clear();
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      const std::uint64_t source = sources_[2 * i + (is_key ? 0 : 1)];
      if (source == 0) continue;
      pages_.push_back(source);
      row_targets_.push_back(targets_[i] + (is_key ? 0 : shape.k_row_bytes));
    }
    const std::uint64_t count = pages_.size();
    GatherRowsArgs args;
    args.offsets = pages_.data();
    args.count = &count;
    args.row_bytes = is_key ? shape.k_row_bytes : shape.v_row_bytes;
    args.out = cache->data();
    args.out_stride = args.row_bytes;
    args.out_offsets = row_targets_.data();
    KVT_TRY_VOID(kernels_->gather_rows(args, nullptr));
    stats_.bytes_host += count * args.row_bytes;
    if (is_key) stats_.rows_rebuilt += targets_.size() - count;
  }
  stats_.rows_fetched += targets_.size();
  sources_.clear();
  targets_.clear();
  return {};
}

}  // namespace kvtier
