// View: one way to read a sequence: attention over all of it, or over the rows that a preset
// chooses within a budget.
//
// With a budget, one step of a layer is: choose tokens per KV head from the abstracts (Selector),
// see which of them the slot caches lack, fetch the chunks of those with one request for all heads,
// copy the rows, release; then attend over slot cache and tail, merged by log-sum-exp. Without one,
// and for several queries unless a preset chooses for blocks of them, stored chunks stream by in
// batches and are attended to where they lie (view_exact.cc). With a precision, chosen rows that
// the slot caches lack are attended to where their base rendition lies mapped, and of these only
// the few that have much of the mass are fetched (view_precision.cc); or only their values are
// fetched, and their keys rebuilt from a low-rank copy (view_low_rank.cc). Memory does not grow
// with the sequence but for tables of 4 bytes per unit and 32 per segment. One thread at a time,
// together with its sequence.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/limits.h"
#include "client/device/slot_cache.h"
#include "client/ipc/deadline.h"
#include "client/mapped_lane.h"
#include "client/retrieval/choice_width.h"
#include "client/retrieval/selector.h"
#include "client/retrieval/trigger.h"
#include "client/sequence.h"
#include "kernels/kernel_table.h"
#include "kernels/rotation.h"

namespace kvtier {

// As KVT_BUDGET_PROFILE.
inline constexpr std::uint64_t kProfileBudget = UINT64_MAX;

struct ViewOptions {
  std::uint32_t sinks = 16;
  std::uint32_t window = 64;
  std::uint64_t budget = 0;
  std::uint64_t capacity = 0;
  std::string preset;
  // How long a step waits where most abstracts must be loaded or built first; what is not there
  // then counts as wanted (fetched first) until it comes.
  std::uint32_t wait_ms = 10000;
};

// As kvt_view_stats.
struct ViewStats {
  std::uint64_t steps = 0;
  std::uint64_t selections = 0;
  std::uint64_t rows_attended = 0;
  std::uint64_t rows_fetched = 0;
  std::uint64_t chunks_fetched = 0;
  std::uint64_t bytes_host = 0;
  std::uint64_t bytes_disk = 0;
  std::uint64_t wait_ns = 0;
  std::uint64_t client_bytes = 0;
  std::uint64_t abstract_bytes = 0;
  std::uint64_t units_scored = 0;
  std::uint64_t units_missing = 0;  // scored without an abstract
  std::uint64_t rows_selected = 0;  // beside sinks and window
  double mass_sum = 0.0;            // of the selections: estimated share of the mass that they hold
  std::uint64_t rows_base = 0;      // attended from their base rendition
  std::uint64_t rows_refined = 0;   // above the preset's share of the mass, so fetched exactly
  std::uint64_t steps_refined = 0;  // that waited for such rows
  std::uint64_t base_bytes = 0;     // of the mapped base renditions, or low-rank keys
  double base_mass_sum = 0.0;       // of the steps: share of the mass from base renditions
  double base_error_sum = 0.0;      // of refined rows: how far off their base logits were
  std::uint64_t steps_repeated = 0;  // base renditions were moved while they were read
  std::uint64_t steps_waited = 0;    // rows had to come from the daemon first
  std::uint64_t rows_waited = 0;     // such rows
  // Steps at which the abstracts bound the share of the attention mass that was missed, and these
  // bounds: the sum of the means over the query heads, and the largest of any.
  std::uint64_t bound_steps = 0;
  double bound_sum = 0.0;
  double bound_max = 0.0;
  std::uint64_t rows_rebuilt = 0;  // of rows_fetched, whose keys are from a low-rank copy
  std::uint64_t rows_hinted = 0;   // runners-up that the daemon was told of
  double bound_last = 0.0;         // the largest of any query head at the newest of bound_steps
};

// What one attend call is about.
struct AttendStep {
  std::uint32_t layer = 0;
  std::uint32_t queries = 0;
  const float* q = nullptr;  // [queries][query_heads][dim]
  float scale = 1.0f;
  float* out = nullptr;       // [queries][query_heads][v_dim]
  float* lse = nullptr;       // [queries][query_heads]
  std::uint64_t visible = 0;  // tokens that the last query sees
  int attempt = 0;            // above 0: the same step once more
  bool block = false;         // of queries that choose together, be it one
  std::uint32_t kv_heads = 0;
  std::uint32_t group = 0;  // query heads per KV head
  std::uint32_t dim = 0;
  std::uint32_t v_dim = 0;
  // Tokens that query i sees.
  [[nodiscard]] std::uint64_t limit(std::uint32_t i) const noexcept {
    return visible - (queries - 1 - i);
  }
  // Queries [first, first + count) as a step of their own.
  [[nodiscard]] AttendStep part(std::uint32_t first, std::uint32_t count) const noexcept {
    AttendStep out = *this;
    const std::uint64_t heads = std::uint64_t{first} * kv_heads * group;
    out.queries = count;
    out.q += heads * dim;
    out.out += heads * v_dim;
    out.lse += heads;
    out.visible = limit(first + count - 1);
    return out;
  }
};

class View {
 public:
  // As load_preset where there is no such preset, as find_profile where one is to be used; kInvalid
  // where the budget is below the sinks.
  [[nodiscard]] static Result<std::shared_ptr<View>> open(std::shared_ptr<Sequence> sequence,
                                                          ViewOptions options);
  ~View();
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  // kvt_view_attend. `lse` may be null.
  [[nodiscard]] Result<void> attend(std::uint32_t layer, std::uint32_t queries, const float* q,
                                    float scale, float* out, float* lse);
  // kvt_view_look_ahead. Never waits; nothing of it fails but what the caller got wrong.
  [[nodiscard]] Result<void> look_ahead(std::uint32_t layer, const float* q, float scale);
  [[nodiscard]] bool looks_ahead() const noexcept {
    return wants_abstracts() && preset_.fetch == FetchKind::kAhead;
  }
  [[nodiscard]] ViewStats stats() const;
  [[nodiscard]] const KernelTable& kernels() const noexcept { return *kernels_; }
  [[nodiscard]] const std::string& preset_text() const noexcept { return preset_text_; }
  [[nodiscard]] Sequence& sequence() const noexcept { return *sequence_; }

 private:
  // A row that a slot cache lacks.
  struct WantedRow {
    std::uint64_t chunk_key = 0;  // segment number, chunk, head group: ascending in token order
    std::uint64_t target = 0;     // offset in the head's slot cache
    std::uint32_t head = 0;
    std::uint32_t place = 0;  // token in the chunk
    bool low_rank = false;    // only its values come
  };

  // Rows of a layer that come before the step that wants them: the slot caches wait for them.
  struct ComingRows {
    std::optional<Fetch> fetch;
    std::vector<WantedRow> rows;
    std::vector<std::uint32_t> first;  // of `rows`, per entry, and one past the end
  };

  // Runners-up of a layer that the daemon was told of.
  struct Hint {
    std::weak_ptr<Connection> connection;  // that it was told on
    Ticket ticket = 0;
    std::uint32_t calm = kCalmMax;  // choices since rows of the layer came from the disk
  };
  static constexpr std::uint32_t kCalmMax = 16;

  // With a precision, what one KV head of a layer remembers from step to step.
  struct ChosenRows {
    std::vector<std::uint32_t> tokens;  // of the last selection, ascending, kept ones included
    std::vector<std::uint32_t> behind;  // of them, those that must be exact from the next step on
  };
  // And what it attends to in one step.
  struct MixedRows {
    std::vector<std::uint32_t> exact;  // kept, in the slot cache, or without a base rendition
    std::vector<std::uint32_t> base;   // the others
    std::vector<std::uint32_t> hot;    // of `base`, those that must be exact
    std::vector<float> logits;         // [group][base]
    std::vector<float> total;          // of the step: logarithm of the mass, [group]
    std::vector<float> out, lse;       // over `base`: [group][v_dim], [group]
    std::vector<float> hot_lse;        // over `hot`, as the base has them
  };

  View(std::shared_ptr<Sequence> sequence, const ViewOptions& options, Preset preset,
       const KernelTable* kernels);

  Result<AttendStep> check_step(std::uint32_t layer, std::uint32_t queries, const float* q,
                                float scale, float* out, float* lse);
  Result<void> run_step(const AttendStep& step);
  // The attempt counts for nothing; what it fetched was fetched all the same.
  void discard_attempt(const ViewStats& before) noexcept;
  // Several queries choose what they attend to: all of them see everything that is stored.
  [[nodiscard]] bool chooses_for(const AttendStep& step) const noexcept {
    return preset_.query == QueryKind::kBlock && step.limit(0) >= sequence_->tail_first();
  }

  [[nodiscard]] bool exact(const AttendStep& step) const noexcept {
    return options_.budget == 0 || preset_.budget == BudgetKind::kAll ||
           (step.queries > 1 && !chooses_for(step)) || step.layer < preset_.dense_layers;
  }

  // Of the layer, by the preset's plan. Not of one that attends exactly.
  [[nodiscard]] std::uint64_t budget_of(std::uint32_t layer) const noexcept {
    return preset_.rows_in(layer, options_.budget);
  }

  // view_budget.cc
  // Cut into blocks of queries that choose together, one alone or several.
  Result<void> attend_blocks(const AttendStep& step);
  // Whether it waited for rows.
  Result<bool> attend_budget(const AttendStep& step);
  Result<std::vector<SlotCache>*> caches_of(const AttendStep& step);
  Result<void> select_rows(const AttendStep& step, std::vector<SlotCache>* caches);
  std::span<const std::uint32_t> chosen_by(const AttendStep& step, std::uint32_t head,
                                           const SlotCache& cache);
  // Trigger "mass": what the head (of scope "layer": all heads) has chosen serves on.
  Result<bool> still_holds(const SelectInput& input, std::span<const float> scores,
                           std::span<const std::uint32_t> chosen);
  // Budget "certified": brings the kept rows of all heads, and says what these and the tail have of
  // the mass, exactly, in held_mass_.
  Result<void> hold_kept(const AttendStep& step, std::vector<SlotCache>* caches);
  // The step's queries to trigger and query of the layer.
  void observe(const AttendStep& step, LayerQuery* query);
  // Partition "segments": the step's token is the model's own, and a segment begins with it where
  // the trigger fired in at least half of the layers that choose.
  void mark_token(const AttendStep& step, const LayerQuery& query);
  Result<void> select_heads(const AttendStep& step, LayerQuery* query,
                            std::vector<SlotCache>* caches);
  Result<void> select_layer(const AttendStep& step, LayerQuery* query,
                            std::vector<SlotCache>* caches);
  // All heads together, over the levels of their boxes.
  Result<void> select_tree(const AttendStep& step, LayerQuery* query,
                           std::vector<SlotCache>* caches);
  Result<void> take_for_all(const AttendStep& step, const Selection& selection, LayerQuery* query,
                            std::vector<SlotCache>* caches);
  // After all rows of the step: what it can have missed.
  void count_bound(const AttendStep& step);
  // `vectors`: [query_heads][dim]. `same_borders`: as of extents_of.
  SelectInput select_input(const AttendStep& step, const float* vectors, std::uint32_t head,
                           bool same_borders = false);
  [[nodiscard]] std::array<TokenRange, 2> kept_ranges() const noexcept;
  // Scores of a head, as its selector has them; of a block, those of all its queries in one.
  Result<std::span<float>> scores_of(const AttendStep& step, SelectInput* input);
  Result<void> take_selection(const AttendStep& step, std::uint32_t head,
                              const Selection& selection, SlotCache* cache);
  // Rows [0, row_count) of the cache's selection.
  Result<void> attend_cached(const AttendStep& step, std::uint32_t head, const SlotCache& cache);
  void want_rows(const AttendStep& step, std::uint32_t head, const SlotCache::Missing& missing);
  // What is wanted, by chunks, into entries_ and first_wanted_.
  void list_entries(const AttendStep& step);
  Result<void> fetch_rows(const AttendStep& step, std::vector<SlotCache>* caches);
  Result<void> gather(const AttendStep& step, const Fetch& fetch, std::uint64_t first_entry,
                      std::uint64_t entries, std::vector<SlotCache>* caches);
  Result<void> flush_gather(const LayerGeometry& shape, SlotCache* cache);
  void account(const AttendStep& step, const FetchTally& tally) noexcept;

  // view_ahead.cc
  // Sends for the rows that `vectors` choose and the layer's slot caches lack.
  void send_for(const AttendStep& step, const float* vectors);
  Result<std::span<const std::uint32_t>> likely_rows(const AttendStep& step, const float* vectors,
                                                     std::uint32_t head);
  // Rows that were sent for and have come, of all layers.
  void collect_coming();
  // Those of the layer are in the slot caches afterwards, or are not: then the step fetches those
  // that it wants. True: it had to wait for them.
  bool take_coming(std::uint32_t layer);
  void end_coming(std::uint32_t layer, ComingRows* coming);
  // Before the caches are told of anything else.
  void forget_coming() noexcept;

  // view_hints.cc
  // Runners-up that a choice of this layer shall give.
  [[nodiscard]] std::uint64_t hinted_rows(std::uint32_t layer) const noexcept;
  // Tells the daemon of the runners-up of this step's choices; takes back what it was told before.
  void send_hints(const AttendStep& step);
  [[nodiscard]] bool hints_allowed();
  static void cancel_hint(const Hint& hint) noexcept;

  // view_precision.cc
  [[nodiscard]] bool has_rendition() const noexcept {
    return wants_abstracts() && !preset_.precision.none();
  }
  [[nodiscard]] bool has_base() const noexcept {
    return has_rendition() && preset_.precision.abstract == AbstractKind::kBase;
  }
  // Chosen rows of all heads: which are exact now, which come from the base rendition; the exact
  // ones become the caches' selection.
  Result<void> split_rows(const AttendStep& step, std::vector<SlotCache>* caches);
  void split_head(const AttendStep& step, const SlotCache& cache, ChosenRows* chosen,
                  MixedRows* mixed);
  // After exact rows and tail: base renditions, and what of them must be exact.
  Result<void> attend_base_rows(const AttendStep& step, std::vector<SlotCache>* caches);
  Result<void> attend_base(const AttendStep& step, std::uint32_t head,
                           std::span<const std::uint32_t> tokens, bool logits, MixedRows* mixed);
  void find_hot(const AttendStep& step, std::uint32_t head, MixedRows* mixed);
  // The hot rows of all heads are remembered for the next step, and their chunks asked for.
  void refine_behind(const AttendStep& step);
  // The hot rows of all heads, exactly; the base anew without them.
  Result<void> refine(const AttendStep& step, std::vector<SlotCache>* caches);
  Result<void> merge_group(const AttendStep& step, std::uint32_t head, const float* out,
                           const float* lse);
  // The renditions that the step has read were moved meanwhile.
  Result<bool> base_moved();
  Result<bool> step_is_void(const ViewStats& before);

  // view_low_rank.cc
  [[nodiscard]] bool has_low_rank() const noexcept {
    return has_rendition() && preset_.precision.abstract == AbstractKind::kLowRank;
  }
  // The row's keys can be had from a low-rank copy, and need not be exact.
  [[nodiscard]] bool takes_low_rank(const AttendStep& step, std::size_t segment,
                                    std::uint32_t token) const noexcept;
  // Of the head's rows from wanted_[first] on, into the slot cache.
  Result<void> rebuild_keys(const AttendStep& step, std::uint32_t head, std::size_t first,
                            SlotCache* cache);
  // Of the tokens places_ of one segment, to the offsets row_targets_.
  Result<void> rebuild_segment(const AttendStep& step, std::uint32_t head, std::size_t segment,
                               SlotCache* cache);

  // view_abstracts.cc
  // Tells the daemon which abstracts and base renditions the view wants.
  [[nodiscard]] bool wants_abstracts() const noexcept {
    return options_.budget != 0 && !preset_.abstract.none();
  }
  Result<void> want_abstracts();
  void drop_abstracts() noexcept;
  // After a new connection the daemon is told again; where segments came or went, what the mapped
  // abstracts say is read again, and where much is missing it is waited for, at most wait_ms.
  Result<void> refresh_abstracts();
  [[nodiscard]] bool may_calibrate(const Sequence::AbstractProgress& progress) const noexcept;
  void calibrate();
  void take_codebook(const Sequence::AbstractProgress& progress);
  void read_abstracts();
  [[nodiscard]] bool lacks_much() const noexcept;
  [[nodiscard]] bool codes() const noexcept {
    return preset_.abstract.abstract == AbstractKind::kCodes;
  }
  // `same_borders`: units are those of the call before, of another head of the same step.
  void extents_of(const AttendStep& step, std::uint32_t head, bool same_borders);
  void copy_starts(bool same_borders);
  // Valid until the next call.
  [[nodiscard]] const HeadCodebook* codebook_of(std::uint32_t layer, std::uint32_t head) noexcept;
  [[nodiscard]] bool ends_sentence(std::uint64_t token) const;

  // view_touch.cc
  // Tells the daemon which rows the layer's heads have chosen, for each block of queries, at the
  // first step after a prompt and then every kTouchSteps: what is used here stays in its memory,
  // and `kvtier explain` shows it.
  void touch_rows(const AttendStep& step, const std::vector<SlotCache>& caches);
  void touch_head(const AttendStep& step, std::uint32_t head, const SlotCache& cache);
  void send_touches();

  // view_exact.cc
  Result<void> attend_sealed(const AttendStep& step);
  Result<void> attend_tail(const AttendStep& step);
  // All queries over `count` tokens from `first_token` on, each as far as it sees.
  Result<void> attend_run(const AttendStep& step, std::uint32_t head, const RowPages& rows,
                          std::uint64_t first_token, std::uint64_t count);
  // Queries [first_query, first_query + count) over tokens [begin, end) of the pages; merged into
  // the step's outputs.
  Result<void> attend_block(const AttendStep& step, std::uint32_t head, const RowPages& rows,
                            std::uint32_t first_query, std::uint32_t count, std::uint64_t begin,
                            std::uint64_t end);

  const std::shared_ptr<Sequence> sequence_;
  const ViewOptions options_;
  const Preset preset_;  // before selector_, which refers to it
  const std::string preset_text_;
  const KernelTable* const kernels_;
  std::uint64_t observer_ = 0;
  Selector selector_;
  ViewStats stats_;

  std::unordered_map<std::uint32_t, std::vector<SlotCache>>
      caches_;                                                   // by layer; one cache per KV head
  std::unordered_map<std::uint32_t, LayerQuery> layer_queries_;  // by layer
  std::unordered_map<std::uint32_t, ComingRows> coming_;         // by layer
  std::unordered_map<std::uint32_t, Hint> hints_;                // by layer
  LayerBefore layer_before_;
  struct {
    std::uint64_t visible = 0;  // of the step
    std::bitset<kLayersMax> layers;
  } fired_;  // in which layers the trigger has
  std::unordered_map<std::uint32_t, std::uint32_t> steps_to_touch_;  // by layer
  std::uint64_t prompt_end_ = 0;  // tokens at the last call of several queries
  bool prompted_ = true;          // no touch was sent since then
  bool observed_ = false;         // layer_queries_ have this call's queries
  std::unordered_map<std::uint32_t, ChoiceWidth> widths_;  // by layer
  bool from_disk_ = true;  // the last fetch of any layer: a layer's first choice knows no better

  // The abstracts, and the base renditions of a precision, on the connection that was told.
  std::weak_ptr<Connection> told_;
  MappedLane units_, base_;
  bool moved_ = false;                       // low-rank keys were, while the step read them
  bool begun_ = false;                       // it has chosen on this connection
  bool waited_in_vain_ = false;              // abstracts did not come in time: not waited for again
  std::uint64_t calibration_failed_at_ = 0;  // stored tokens; 0: it never failed
  std::uint64_t codebook_offset_ = UINT64_MAX;
  const std::byte* codebook_ = nullptr;  // as mapped; null: not there
  std::optional<CodebookLayout> codebook_layout_;
  HeadCodebook head_codebook_;
  std::uint64_t seen_version_ = UINT64_MAX;                            // of the directory
  std::unordered_map<std::uint32_t, std::vector<ChosenRows>> chosen_;  // by layer, then KV head

  // Scratch, reused.
  std::array<TokenRange, 2> kept_;
  std::vector<float> layer_scores_, block_scores_;
  std::vector<std::uint32_t> held_, likely_;
  std::vector<float> missed_;                // bounds of this step's selections, [query_heads]
  std::vector<float> held_mass_, held_out_;  // of a certified budget: log-sum-exp, [query_heads]
  std::uint32_t bounded_heads_ = 0;          // KV heads that have theirs
  std::vector<SegmentExtent> extents_;
  std::vector<std::uint16_t> starts_;  // that extents_ point to
  std::vector<std::vector<SegmentExtent>> head_extents_;
  std::vector<SelectInput> tree_heads_;
  std::vector<WantedRow> wanted_;
  std::vector<std::vector<std::uint32_t>> runners_up_;  // of this step's choices, by KV head
  std::vector<FetchEntry> entries_, touches_;
  std::vector<std::uint32_t> first_wanted_;  // per entry, and one past the end
  std::vector<std::uint64_t> sources_, targets_, row_targets_;
  std::vector<std::uint64_t> pages_;
  std::vector<std::uint32_t> places_, cold_;
  std::vector<MixedRows> mixed_;  // by KV head
  std::vector<float> q_block_, out_block_, lse_block_, lse_;
  Turns turner_;  // as the low-rank copy read last has it
  std::vector<float> turns_;
};

}  // namespace kvtier
