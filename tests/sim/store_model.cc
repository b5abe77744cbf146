#include "tests/sim/store_model.h"

#include <algorithm>

namespace kvtier::sim {

Ids first_of(Ids ids, std::uint64_t tokens) {
  ids.resize(std::min<std::size_t>(ids.size(), static_cast<std::size_t>(tokens)));
  return ids;
}

bool is_prefix(const Ids& a, const Ids& b) {
  return a.size() <= b.size() && std::equal(a.begin(), a.end(), b.begin());
}

void ModelSequence::acknowledge() {
  acknowledged = true;
  durable = ids;
  maybe.clear();
}

void ModelSequence::acknowledge_row(const Traits& row) {
  traits = row;
  maybe_traits.clear();
  if (!acknowledged) durable = first_of(ids, open->tokens_sealed);
  acknowledged = true;
  std::erase_if(maybe, [](const auto& one) { return !one; });
}

void ModelSequence::found(Ids content) {
  durable = std::move(content);
  acknowledged = true;
  maybe.clear();
}

void ModelSequence::cut(std::uint64_t tokens) {
  ids = first_of(std::move(ids), tokens);
  durable = first_of(std::move(durable), tokens);
  for (auto& one : maybe)
    if (one) one = first_of(*std::move(one), tokens);
}

void ModelSequence::maybe_cut(std::uint64_t tokens) {
  const std::vector<std::optional<Ids>> before = maybe;
  for (const auto& one : before)
    if (one) maybe.push_back(first_of(*one, tokens));
  maybe.push_back(first_of(durable, tokens));
}

void ModelSequence::close() {
  open.reset();
  ids = durable;
}

bool ModelSequence::may_be_absent(std::uint64_t now_unix_s) const {
  const auto expired = [now_unix_s](const Traits& row) { return row.expired(now_unix_s); };
  return !acknowledged || expired(traits) ||
         std::any_of(maybe_traits.begin(), maybe_traits.end(), expired) ||
         std::any_of(maybe.begin(), maybe.end(), [](const auto& one) { return !one; });
}

bool ModelSequence::must_be_absent(std::uint64_t now_unix_s) const {
  return traits.expired(now_unix_s) &&
         std::all_of(maybe_traits.begin(), maybe_traits.end(),
                     [now_unix_s](const Traits& row) { return row.expired(now_unix_s); });
}

bool ModelSequence::may_hold(const Ids& content) const {
  const auto is = [&](const Ids& whole) {
    return damaged ? is_prefix(content, whole) : content == whole;
  };
  if (acknowledged && is(durable)) return true;
  if (!acknowledged && content.empty()) return true;
  return std::any_of(maybe.begin(), maybe.end(), [&](const auto& one) { return one && is(*one); });
}

bool ModelSequence::may_have(const Traits& row) const {
  return row == traits ||
         std::find(maybe_traits.begin(), maybe_traits.end(), row) != maybe_traits.end();
}

std::string ModelSequence::describe(const Ids& content) const {
  std::string text = "sequence " + name() + " has " + std::to_string(content.size()) +
                     " tokens, acknowledged were " + std::to_string(durable.size());
  for (const auto& one : maybe)
    text += one ? ", or " + std::to_string(one->size()) : std::string(", or absent");
  return text;
}

}  // namespace kvtier::sim
