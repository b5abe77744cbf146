#include "tools/bench/replay_bound.h"

#include <limits>
#include <queue>
#include <unordered_map>
#include <unordered_set>

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

std::size_t begin_of(const References& references, std::size_t step) {
  return step == 0 ? 0 : references.step_ends[step - 1];
}

// For each reference the place of the next one of the same chunk.
std::vector<std::uint32_t> next_uses(const std::vector<std::uint32_t>& chunks) {
  std::vector<std::uint32_t> next(chunks.size(), kNever);
  std::unordered_map<std::uint32_t, std::uint32_t> seen;
  for (std::size_t i = chunks.size(); i-- > 0;) {
    const auto [place, first] = seen.try_emplace(chunks[i], static_cast<std::uint32_t>(i));
    if (!first) next[i] = place->second;
    place->second = static_cast<std::uint32_t>(i);
  }
  return next;
}

}  // namespace

std::uint64_t least_reads(const References& references, std::size_t first_step,
                          std::uint64_t capacity) {
  const std::vector<std::uint32_t> next = next_uses(references.chunks);
  const std::size_t counted_from = begin_of(references, first_step);
  // Resident chunks and their next use; the queue also holds uses that are past.
  std::unordered_map<std::uint32_t, std::uint32_t> resident;
  std::priority_queue<std::pair<std::uint32_t, std::uint32_t>> latest;
  std::uint64_t reads = 0;
  for (std::size_t i = 0; i < references.chunks.size(); ++i) {
    const std::uint32_t chunk = references.chunks[i];
    const bool hit = resident.count(chunk) != 0;
    if (!hit && i >= counted_from) ++reads;
    if (!hit && resident.size() >= capacity) {
      while (true) {
        const auto [use, victim] = latest.top();
        latest.pop();
        const auto place = resident.find(victim);
        if (place == resident.end() || place->second != use) continue;
        resident.erase(place);
        break;
      }
    }
    resident[chunk] = next[i];
    latest.push({next[i], chunk});
  }
  return reads;
}

std::uint64_t first_reads(const References& references, std::size_t first_step) {
  const std::size_t counted_from = begin_of(references, first_step);
  std::unordered_set<std::uint32_t> seen;
  std::uint64_t reads = 0;
  for (std::size_t i = 0; i < references.chunks.size(); ++i)
    if (seen.insert(references.chunks[i]).second && i >= counted_from) ++reads;
  return reads;
}

}  // namespace kvtier::bench
