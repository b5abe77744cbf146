// What may have been meant by a name that is not known.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtier {

// Levenshtein distance: how many characters to insert, remove or replace.
[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// Up to `count_max` of `names`, the nearest first: those with few other characters, in all or
// behind their last dot, and those that hold the wanted one. Empty where none is like it.
[[nodiscard]] inline std::vector<std::string> near_names(std::string_view wanted,
                                                         const std::vector<std::string>& names,
                                                         std::size_t count_max = 3) {
  const auto tail_of = [](std::string_view name) {
    const std::size_t dot = name.rfind('.');
    return dot == std::string_view::npos ? name : name.substr(dot + 1);
  };
  const std::string_view tail = tail_of(wanted);
  std::vector<std::pair<std::size_t, const std::string*>> ranked;
  for (const std::string& name : names) {
    const std::size_t distance = edit_distance(wanted, name);
    const std::size_t tail_distance = edit_distance(tail, tail_of(name));
    const bool holds = wanted.size() >= 3 && name.find(wanted) != std::string::npos;
    if (holds || distance <= wanted.size() / 4 || tail_distance <= tail.size() / 3)
      ranked.emplace_back(std::min(distance, tail_distance + 1), &name);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> near;
  for (std::size_t i = 0; i < ranked.size() && i < count_max; ++i)
    near.push_back(*ranked[i].second);
  return near;
}

// "a, b, c".
[[nodiscard]] inline std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace kvtier
