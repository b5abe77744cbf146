// View: hints. What a choice would have taken next is likely to be taken soon: where a layer's rows
// come from the disk, the daemon is told of these runners-up after each choice, and reads them
// behind what anybody waits for. What it has not begun to read when the layer chooses anew is stale
// and is taken back. Nothing waits for hints, and nothing depends on them.
#include <algorithm>

#include "client/last_error.h"
#include "client/view.h"

namespace kvtier {

// As long as all that is wanted is in memory, hints would say what the daemon knows.
std::uint64_t View::hinted_rows(std::uint32_t layer) const noexcept {
  const auto hint = hints_.find(layer);
  if (hint == hints_.end() || !hint->second.from_disk) return 0;
  return options_.budget / 100 * preset_.runners_up_percent +
         options_.budget % 100 * preset_.runners_up_percent / 100;
}

void View::send_hints(const AttendStep& step) {
  if (std::all_of(runners_up_.begin(), runners_up_.end(),
                  [](const auto& tokens) { return tokens.empty(); }))
    return;
  Hint& hint = hints_[step.layer];
  if (hint.fetch) end_hint(&hint);
  wanted_.clear();
  const std::vector<SlotCache>& caches = caches_[step.layer];
  for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
    std::vector<std::uint32_t>& tokens = runners_up_[head];
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(),
                                [&](std::uint32_t t) { return caches[head].contains(t); }),
                 tokens.end());
    targets_.assign(tokens.size(), 0);  // decided when they are chosen
    want_rows(step, head, {tokens, targets_});
    tokens.clear();
  }
  targets_.clear();
  list_entries(step);
  const auto room = static_cast<std::size_t>(sequence_->connection()->limits().fetch_entries);
  const std::size_t count = std::min(entries_.size(), room);
  if (count == 0) return;
  auto sent = sequence_->prefetch(std::span(entries_).first(count));
  if (!sent) return clear_error_text();
  hint.fetch.emplace(*std::move(sent));
  stats_.rows_hinted += first_wanted_[count];
}

void View::end_hint(Hint* hint) noexcept {
  if (!hint->fetch->ready()) {
    hint->fetch->cancel();
    ++stats_.hints_stale;
  } else {
    if (!hint->fetch->wait(Deadline::after_ms(0))) clear_error_text();
    hint->from_disk = hint->fetch->bytes_disk() != 0;
    stats_.bytes_disk += hint->fetch->bytes_disk();
  }
  hint->fetch.reset();
}

}  // namespace kvtier
