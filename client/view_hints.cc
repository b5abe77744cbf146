// View: hints. What a choice would have taken next is likely to be taken soon: where a layer's rows
// come from the disk, the daemon is told of these runners-up after each choice, and reads them
// behind what anybody waits for. What it has not begun to read when the layer chooses anew is stale
// and is taken back, but for what the new hint names as well. Nothing waits for hints, and nothing
// depends on them.
#include <algorithm>

#include "client/last_error.h"
#include "client/view.h"

namespace kvtier {
namespace {

// Hints under way, of all layers: each holds an argument block, of which other requests that need
// not be made want some, too.
constexpr std::size_t kHintsMax = 4;

}  // namespace

// As long as all that is wanted is in memory, hints would say what the daemon knows.
std::uint64_t View::hinted_rows(std::uint32_t layer) const noexcept {
  const auto hint = hints_.find(layer);
  if (hint == hints_.end() || hint->second.calm >= kCalmMax) return 0;
  return percent_of(budget_of(layer), preset_.runners_up_percent);
}

bool View::hints_allowed() {
  std::size_t under_way = 0;
  for (const auto& [layer, hint] : hints_) {
    const std::shared_ptr<Connection> connection = hint.connection.lock();
    under_way += hint.ticket != 0 && connection != nullptr && !connection->poll(hint.ticket);
  }
  return under_way < kHintsMax;
}

void View::send_hints(const AttendStep& step) {
  if (std::all_of(runners_up_.begin(), runners_up_.end(),
                  [](const auto& tokens) { return tokens.empty(); }))
    return;
  Hint& hint = hints_[step.layer];
  ++hint.calm;
  const Hint stale = hint;
  hint.ticket = 0;
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
  if (count != 0 && hints_allowed()) {
    const auto sent = sequence_->prefetch(std::span(entries_).first(count));
    if (sent) {
      hint.connection = sequence_->connection();
      hint.ticket = *sent;
      stats_.rows_hinted += first_wanted_[count];
    } else {
      clear_error_text();
    }
  }
  cancel_hint(stale);  // behind the new one, which keeps what both name
}

void View::cancel_hint(const Hint& hint) noexcept {
  const std::shared_ptr<Connection> connection = hint.connection.lock();
  if (hint.ticket != 0 && connection != nullptr && !connection->poll(hint.ticket))
    Fetch::cancel(*connection, hint.ticket);
}

}  // namespace kvtier
