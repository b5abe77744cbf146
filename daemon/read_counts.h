// ReadCounts: how often selections took each stored token of a sequence, per group of layers, since
// the last prompt. Filled from the touch records of its clients, for `kvtier explain`; in memory
// only. Counts of tokens that nobody read take no memory. Engine's thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace kvtier {

class ReadCounts {
 public:
  static constexpr std::uint32_t kGroups = 4;  // the layers, in quarters
  static constexpr std::uint32_t kPageTokens = 1024;
  static constexpr std::uint64_t kPageBytes = sizeof(std::uint16_t) * kGroups * kPageTokens;

  // `total_bytes` counts the pages of all sequences together: at most kReadCountBytesMax, beyond it
  // tokens of further pages are not counted until others' counts go (touch_entries). Outlives this.
  explicit ReadCounts(std::uint64_t* total_bytes) : total_bytes_(total_bytes) {}
  ~ReadCounts() { restart(); }
  ReadCounts(const ReadCounts&) = delete;
  ReadCounts& operator=(const ReadCounts&) = delete;

  void restart() noexcept;  // a new prompt: all counts are 0 again
  // The tokens `first_token` + i of the mask's bits i were chosen once more, in one layer of the
  // group.
  void add(std::uint32_t group, std::uint64_t first_token, std::uint64_t mask);
  // Tokens from `tokens` on were cut off.
  void truncate(std::uint64_t tokens) noexcept;

  [[nodiscard]] std::uint32_t count(std::uint32_t group, std::uint64_t token) const noexcept;
  std::uint64_t touched = 0;  // by the engine's count of touch requests
  [[nodiscard]] std::uint64_t bytes() const noexcept { return pages_.size() * kPageBytes; }
  [[nodiscard]] std::uint64_t rows() const noexcept { return rows_; }  // counted since the restart
  [[nodiscard]] bool complete() const noexcept { return complete_; }   // the limit left nothing out

 private:
  using Page = std::array<std::array<std::uint16_t, kPageTokens>, kGroups>;  // saturating
  Page* page(std::uint64_t number);

  std::uint64_t* const total_bytes_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Page>> pages_;  // by token / kPageTokens
  std::uint64_t rows_ = 0;
  bool complete_ = true;
};

// The group of a layer.
[[nodiscard]] constexpr std::uint32_t read_group(std::uint32_t layer,
                                                 std::uint32_t layers) noexcept {
  return layer * ReadCounts::kGroups / layers;
}

}  // namespace kvtier
