#include "client/view.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "client/kernel_choice.h"
#include "client/last_error.h"
#include "client/preset_files.h"
#include "client/profiles.h"
#include "client/retrieval/preset_text.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kShownQueries = 64;
constexpr int kMovedMax = 8;  // a rebuild moves them once per segment, and takes its time

// The preset and the budget that the model's profile names, where the caller does not.
Result<void> take_profile(const std::string& model, ViewOptions* options) {
  if (!options->preset.empty() && options->budget != kProfileBudget) return {};
  KVT_TRY(const std::optional<Profile> profile, find_profile(model));
  if (options->preset.empty() && profile) options->preset = profile->preset;
  if (options->budget != kProfileBudget) return {};
  if (!profile)
    return error_with(Code::kNotFound,
                      "no profile says which budget this model has: make one with kvtier tune, "
                      "or give a number of rows");
  options->budget = profile->budget;
  return {};
}

}  // namespace

Result<std::shared_ptr<View>> View::open(std::shared_ptr<Sequence> sequence, ViewOptions options) {
  KVT_TRY_VOID(take_profile(sequence->space().options().fingerprint.model, &options));
  KVT_TRY(Preset preset, load_preset(options.preset));
  KVT_TRY(const KernelTable* kernels, client_kernels());
  if (options.budget != 0 && preset.budget != BudgetKind::kKept && options.budget < options.sinks)
    return error_with(Code::kInvalid,
                      "a budget of %llu rows is below the %u sinks: raise it, or use preset window",
                      static_cast<unsigned long long>(options.budget), options.sinks);
  if (options.budget > kSequenceTokensMax || options.capacity > kSequenceTokensMax)
    return error_with(Code::kTooLarge,
                      "budget and capacity are at most %llu rows: use 0 for everything",
                      static_cast<unsigned long long>(kSequenceTokensMax));
  std::shared_ptr<View> view(new View(std::move(sequence), options, std::move(preset), kernels));
  // Now, so that they are built while a prompt is still being written.
  if (view->wants_abstracts()) {
    KVT_TRY_VOID(view->sequence_->refresh(Patience::kFull));
    KVT_TRY_VOID(view->want_abstracts());
  }
  return view;
}

View::View(std::shared_ptr<Sequence> sequence, const ViewOptions& options, Preset preset,
           const KernelTable* kernels)
    : sequence_(std::move(sequence)),
      options_(options),
      preset_(std::move(preset)),
      preset_text_("# " + preset_.name + "\n" + preset_toml(preset_)),
      kernels_(kernels),
      selector_(kernels, &preset_),
      units_(preset_.abstract),
      base_(preset_.precision) {
  observer_ = sequence_->add_observer([this](std::uint64_t length) {
    forget_coming();
    // What lies in the window now must be exact.
    const std::uint64_t kept =
        has_low_rank() ? length - std::min<std::uint64_t>(length, options_.window) : length;
    for (auto& [layer, caches] : caches_)
      for (SlotCache& cache : caches) cache.truncate(kept);
    for (auto& [layer, query] : layer_queries_) query.reset();
    fired_ = {};
    seen_version_ = UINT64_MAX;
  });
}

View::~View() {
  for (const auto& [layer, hint] : hints_) cancel_hint(hint);
  sequence_->remove_observer(observer_);
  drop_abstracts();
}

Result<AttendStep> View::check_step(std::uint32_t layer, std::uint32_t queries, const float* q,
                                    float scale, float* out, float* lse) {
  KVT_TRY_VOID(sequence_->check_layer(layer));
  const LayerGeometry& shape = sequence_->space().geometry().layers[layer];
  if (shape.dtype == Dtype::kOpaque || shape.v_transposed)
    return error_with(Code::kUnsupported, "layer %u has %s: it can be read, not attended to", layer,
                      shape.v_transposed ? "transposed values" : "opaque rows");
  if (shape.query_heads == 0 || shape.query_heads % shape.kv_heads != 0)
    return error_with(Code::kInvalid,
                      "layer %u has %u query heads for %u KV heads: attention needs a multiple",
                      layer, shape.query_heads, shape.kv_heads);
  if (!(scale > 0.0f) || !std::isfinite(scale))
    return error(Code::kInvalid, "the scale must be above 0");
  AttendStep step;
  step.layer = layer;
  step.queries = queries;
  step.q = q;
  step.scale = scale;
  step.out = out;
  step.kv_heads = shape.kv_heads;
  step.group = shape.query_heads / shape.kv_heads;
  step.dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
  step.v_dim = shape.v_row_bytes / dtype_bytes(shape.dtype);
  const std::uint64_t elements = std::uint64_t{queries} * shape.query_heads * step.dim;
  std::uint64_t bad = 0;
  AllFiniteArgs finite;
  finite.data = reinterpret_cast<const std::byte*>(q);
  finite.count = &elements;
  finite.dtype = Dtype::kF32;
  finite.out_index = &bad;
  KVT_TRY_VOID(kernels_->all_finite(finite, nullptr));
  if (bad != elements)
    return error_with(Code::kNotFinite,
                      "layer %u, query %llu, head %llu: NaN or infinity; nothing was attended to",
                      layer, static_cast<unsigned long long>(bad / step.dim / shape.query_heads),
                      static_cast<unsigned long long>(bad / step.dim % shape.query_heads));
  if (lse == nullptr) {
    lse_.resize(static_cast<std::size_t>(queries) * shape.query_heads);
    lse = lse_.data();
  }
  step.lse = lse;
  return step;
}

Result<void> View::attend(std::uint32_t layer, std::uint32_t queries, const float* q, float scale,
                          float* out, float* lse) {
  if (queries == 0 || queries > kPieceTokensMax)
    return error_with(Code::kInvalid, "%u queries: give 1 to %u", queries, kPieceTokensMax);
  KVT_TRY(AttendStep step, check_step(layer, queries, q, scale, out, lse));
  // The newest, as of a prompt that comes in one call: a codebook is of all positions.
  const std::uint32_t shown = std::min(queries, kShownQueries);
  sequence_->observe_queries(
      layer, shown,
      q + static_cast<std::uint64_t>(queries - shown) * step.kv_heads * step.group * step.dim);
  observed_ = false;
  int moves = 0;
  bool lost = false;  // a daemon that is lost while one moves things has its own attempt
  for (int attempt = 0;; ++attempt) {
    const auto fresh = sequence_->refresh(Patience::kQuick);
    // Without a daemon, what is in tail and slot caches can still serve.
    if (!fresh && (fresh.error().code != Code::kDaemonLost || lost)) return fresh;
    clear_error_text();
    step.visible = sequence_->visible(layer);
    if (queries > step.visible)
      return error_with(Code::kInvalid,
                        "%u queries over %llu tokens of layer %u: write the rows first", queries,
                        static_cast<unsigned long long>(step.visible), layer);
    step.attempt = attempt;
    const ViewStats before = stats_;
    const auto done = run_step(step);
    if (done) {
      KVT_TRY(const bool is_void, step_is_void(before));
      if (is_void) {
        discard_attempt(before);
        if (++moves <= kMovedMax) continue;
        return error(Code::kBusy,
                     "renditions move faster than they can be read: try again when kvtier reindex "
                     "is done, or use a preset without a precision");
      }
    }
    if (done || done.error().code != Code::kDaemonLost || lost || !sequence_->connection()->lost())
      return done;
    lost = true;
  }
}

Result<void> View::run_step(const AttendStep& step) {
  const std::uint64_t rows_out =
      static_cast<std::uint64_t>(step.queries) * step.kv_heads * step.group;
  std::fill_n(step.out, rows_out * step.v_dim, 0.0f);
  std::fill_n(step.lse, rows_out, -std::numeric_limits<float>::infinity());
  if (step.queries > 1 && step.visible != prompt_end_) {
    prompt_end_ = step.visible;  // its further layers are of the same prompt
    prompted_ = true;
    steps_to_touch_.clear();
  }
  bounded_heads_ = 0;
  collect_coming();
  // While it waits, a seal may end and the tail begin later: what is stored and what is in the tail
  // is fixed only from here on.
  if (!exact(step) && sequence_->tail_first() != 0) KVT_TRY_VOID(refresh_abstracts());
  const std::uint64_t stored = sequence_->tail_first();
  if (preset_.query == QueryKind::kLayerBefore && step.queries == 1)
    layer_before_.observe({step.layer, step.visible, step.kv_heads * step.group, step.dim}, step.q);
  KVT_TRY_VOID(attend_tail(step));
  if (stored != 0) {
    KVT_TRY_VOID(exact(step) ? attend_sealed(step) : attend_blocks(step));
  } else if (!exact(step) && preset_.abstract.partition == PartitionKind::kSegments) {
    observe(step, &layer_queries_[step.layer]);  // what is written now is stored later
  }
  KVT_CHECK(sequence_->tail_first() == stored);
  if (!exact(step)) count_bound(step);
  ++stats_.steps;
  return {};
}

void View::discard_attempt(const ViewStats& before) noexcept {
  ViewStats kept = before;
  kept.rows_fetched = stats_.rows_fetched;
  kept.rows_refined = stats_.rows_refined;  // in the slot caches from here on
  kept.rows_rebuilt = stats_.rows_rebuilt;
  kept.chunks_fetched = stats_.chunks_fetched;
  kept.bytes_host = stats_.bytes_host;
  kept.bytes_disk = stats_.bytes_disk;
  kept.wait_ns = stats_.wait_ns;
  kept.rows_waited = stats_.rows_waited;
  kept.rows_hinted = stats_.rows_hinted;
  kept.steps_repeated = before.steps_repeated + 1;
  stats_ = kept;
}

ViewStats View::stats() const {
  ViewStats out = stats_;
  out.client_bytes = selector_.memory_bytes();
  for (const auto& [layer, caches] : caches_)
    for (const SlotCache& cache : caches) out.client_bytes += cache.memory_bytes();
  for (const auto& [layer, query] : layer_queries_) out.client_bytes += query.memory_bytes();
  out.client_bytes += layer_before_.memory_bytes();
  out.client_bytes +=
      (layer_scores_.capacity() + block_scores_.capacity()) * sizeof(float) +
      extents_.capacity() * sizeof(SegmentExtent) + starts_.capacity() * sizeof(std::uint16_t) +
      wanted_.capacity() * sizeof(WantedRow) +
      (entries_.capacity() + touches_.capacity()) * sizeof(FetchEntry) +
      first_wanted_.capacity() * sizeof(std::uint32_t) +
      (sources_.capacity() + targets_.capacity() + row_targets_.capacity() + pages_.capacity()) *
          sizeof(std::uint64_t) +
      (places_.capacity() + cold_.capacity() + held_.capacity() + likely_.capacity()) *
          sizeof(std::uint32_t) +
      (missed_.capacity() + held_mass_.capacity() + held_out_.capacity()) * sizeof(float) +
      (q_block_.capacity() + out_block_.capacity() + lse_block_.capacity() + lse_.capacity() +
       turns_.capacity()) *
          sizeof(float);
  for (const auto& [layer, coming] : coming_)
    out.client_bytes += coming.rows.capacity() * sizeof(WantedRow) +
                        coming.first.capacity() * sizeof(std::uint32_t);
  for (const auto& [layer, heads] : chosen_)
    for (const ChosenRows& rows : heads)
      out.client_bytes += (rows.tokens.capacity() + rows.behind.capacity()) * sizeof(std::uint32_t);
  for (const MixedRows& rows : mixed_)
    out.client_bytes += (rows.exact.capacity() + rows.base.capacity() + rows.hot.capacity()) *
                            sizeof(std::uint32_t) +
                        (rows.logits.capacity() + rows.total.capacity() + rows.out.capacity() +
                         rows.lse.capacity() + rows.hot_lse.capacity()) *
                            sizeof(float);
  out.abstract_bytes = units_.mapped_bytes();
  out.base_bytes = base_.mapped_bytes();
  return out;
}

}  // namespace kvtier
