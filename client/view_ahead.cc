// View: rows that come before the step that wants them, behind a computation: of the layer before
// (look_ahead), or of the step before.
//
// The layer's slot caches give places to the rows at once and wait for them; until they are there
// nothing else may be asked of those caches. What has come is copied when the view is next called
// for any layer; the layer's own next step waits for it, and then chooses as always. Whatever goes
// wrong with them, the step fetches what it wants.
#include <chrono>

#include "client/last_error.h"
#include "client/view.h"

namespace kvtier {
namespace {

// With a precision: a guess that gives a row this part of the share above which it must be exact is
// enough to send for it. On SmolLM2 half leaves 25 % of the layer-steps waiting; a twentieth leaves
// 7 %, and fetches 2 % of a budget of 1,024 (docs/retrieval.md).
constexpr float kLikelyExact = 0.05f;

}  // namespace

Result<void> View::look_ahead(std::uint32_t layer, const float* q, float scale) {
  if (!looks_ahead()) return {};
  KVT_TRY(AttendStep step, check_step(layer, 1, q, scale, nullptr, nullptr));
  collect_coming();
  if (layer >= preset_.dense_layers) send_for(step, q);
  return {};
}

// With abstracts as the last step left them: what changed since is that step's business.
void View::send_for(const AttendStep& step, const float* vectors) {
  if (budget_of(step.layer) == 0 || sequence_->tail_first() == 0 ||
      told_.lock() != sequence_->connection() || sequence_->directory().version() != seen_version_)
    return;
  const auto found = caches_of(step);
  if (!found) return;
  std::vector<SlotCache>& caches = **found;
  ComingRows& coming = coming_[step.layer];
  if (coming.fetch) return;  // of a guess that no step has followed
  wanted_.clear();
  bool whole = true;
  for (std::uint32_t head = 0; head < step.kv_heads && whole; ++head) {
    const auto likely = likely_rows(step, vectors, head);
    const auto missing =
        likely ? caches[head].select(*likely) : Result<SlotCache::Missing>(error(likely.error()));
    whole = missing.has_value();
    if (whole) want_rows(step, head, *missing);
  }
  list_entries(step);
  // More than fits one request is no little beside a step, but the first one: it waits for its own.
  whole = whole && entries_.size() <= sequence_->connection()->limits().fetch_entries;
  if (whole && !entries_.empty()) {
    const std::uint64_t slot_bytes = sequence_->space().geometry().slot_bytes(step.layer);
    auto sent = sequence_->fetch_ahead(entries_, entries_.size() * slot_bytes);
    whole = sent.has_value();
    if (whole) coming.fetch.emplace(*std::move(sent));
  }
  if (whole && coming.fetch) {
    coming.rows.swap(wanted_);
    coming.first.swap(first_wanted_);
  } else {
    for (SlotCache& cache : caches) cache.abandon();
    clear_error_text();
  }
}

// What `vectors` choose; with a precision, only what of it will have to be exact: its other rows
// are in the base rendition already.
Result<std::span<const std::uint32_t>> View::likely_rows(const AttendStep& step,
                                                         const float* vectors, std::uint32_t head) {
  SelectInput input = select_input(step, vectors, head);
  input.next_rows = 0;
  KVT_TRY(const std::span<float> scores, selector_.scores_of(input));
  KVT_TRY(const Selection selection, selector_.choose(input, scores));
  stats_.units_scored += selection.units_scored;
  if (!has_base()) return selection.tokens;
  likely_.clear();
  if (preset_.exact_above >= 1.0f) return std::span<const std::uint32_t>();  // nothing has to be
  const float least = preset_.exact_above * kLikelyExact;
  for (const std::uint32_t token : selection.tokens)
    if (scores[token] >= least && scores[token] < kFetchScore) likely_.push_back(token);
  return std::span<const std::uint32_t>(likely_);
}

// What has come gives its memory and its lease back soon, whichever layer is next.
void View::collect_coming() {
  for (auto& [layer, coming] : coming_)
    if (coming.fetch && coming.fetch->ready()) end_coming(layer, &coming);
}

bool View::take_coming(std::uint32_t layer) {
  const auto found = coming_.find(layer);
  if (found == coming_.end() || !found->second.fetch) return false;
  const auto begin = std::chrono::steady_clock::now();
  end_coming(layer, &found->second);
  stats_.wait_ns += static_cast<std::uint64_t>((std::chrono::steady_clock::now() - begin).count());
  return true;
}

void View::end_coming(std::uint32_t layer, ComingRows* coming) {
  AttendStep step;
  step.layer = layer;
  std::vector<SlotCache>& caches = caches_[layer];
  Fetch fetch = *std::move(coming->fetch);
  coming->fetch.reset();
  auto done = fetch.wait(Deadline::after_ms(ChunkStream::kWaitMs));
  FetchTally tally;
  tally.chunks = coming->first.size() - 1;
  const std::uint64_t slot_bytes = sequence_->space().geometry().slot_bytes(layer);
  for (std::size_t i = 0; done && i < tally.chunks; ++i)
    if (fetch.chunk(i, slot_bytes) == nullptr) done = error(Code::kMiss);
  if (done) {
    tally.bytes_disk = fetch.bytes_disk();
    account(step, tally);
    wanted_.swap(coming->rows);
    first_wanted_.swap(coming->first);
    done = gather(step, fetch, 0, tally.chunks, &caches);
  }
  for (SlotCache& cache : caches) done ? cache.complete() : cache.abandon();
  if (!done) clear_error_text();
}

void View::forget_coming() noexcept {
  for (auto& [layer, coming] : coming_) {
    if (!coming.fetch) continue;
    coming.fetch.reset();
    for (SlotCache& cache : caches_[layer]) cache.abandon();
  }
}

}  // namespace kvtier
