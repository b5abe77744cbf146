#include "daemon/read_counts.h"

#include <algorithm>
#include <bit>

#include "base/limits.h"

namespace kvtier {

void ReadCounts::restart() noexcept {
  *total_bytes_ -= pages_.size() * kPageBytes;
  pages_.clear();
  rows_ = 0;
  complete_ = true;
}

ReadCounts::Page* ReadCounts::page(std::uint64_t number) {
  const auto place = pages_.find(number);
  if (place != pages_.end()) return place->second.get();
  if (kPageBytes > kReadCountBytesMax - *total_bytes_) return nullptr;
  *total_bytes_ += kPageBytes;
  return pages_.emplace(number, std::make_unique<Page>()).first->second.get();
}

void ReadCounts::add(std::uint32_t group, std::uint64_t first_token, std::uint64_t mask) {
  // A chunk may begin anywhere in a sequence, and so lie in two pages.
  std::uint64_t number = UINT64_MAX;
  Page* counts = nullptr;
  for (; mask != 0; mask &= mask - 1) {
    const std::uint64_t token = first_token + static_cast<std::uint32_t>(std::countr_zero(mask));
    if (token / kPageTokens != number) {
      number = token / kPageTokens;
      counts = page(number);
    }
    if (counts == nullptr) {
      complete_ = false;
      continue;
    }
    std::uint16_t& count = (*counts)[group][token % kPageTokens];
    if (count != UINT16_MAX) ++count;
    ++rows_;
  }
}

void ReadCounts::truncate(std::uint64_t tokens) noexcept {
  for (auto place = pages_.begin(); place != pages_.end();) {
    const std::uint64_t first = place->first * kPageTokens;
    if (first >= tokens) {
      *total_bytes_ -= kPageBytes;
      place = pages_.erase(place);
      continue;
    }
    if (tokens < first + kPageTokens)
      for (auto& group : *place->second)
        std::fill(group.begin() + static_cast<std::ptrdiff_t>(tokens - first), group.end(),
                  std::uint16_t{0});
    ++place;
  }
}

std::uint32_t ReadCounts::count(std::uint32_t group, std::uint64_t token) const noexcept {
  const auto place = pages_.find(token / kPageTokens);
  return place == pages_.end() ? 0 : (*place->second)[group][token % kPageTokens];
}

}  // namespace kvtier
