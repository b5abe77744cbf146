// ChoiceWidth: whether one layer of a view chooses single tokens or runs of them.
//
// Memory gives rows, a disk chunks: what has to be read from disk is better taken in runs. What
// runs have brought is in memory, and the tokens that would be chosen singly are not, so each
// switch to tokens is paid for with reads. A layer that had to go back to runs therefore stays with
// them twice as long the next time, up to kCalmFetchesMax fetches that read little from disk; one
// that has then chosen tokens for so many fetches is trusted more again.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvtier {

class ChoiceWidth {
 public:
  static constexpr std::uint32_t kRunTokens = 16;
  static constexpr std::uint32_t kCalmFetchesMax = 256;

  explicit ChoiceWidth(bool runs = true) noexcept : runs_(runs) {}

  // An eighth of what a fetch brought came from disk.
  [[nodiscard]] static bool much_from_disk(std::uint64_t disk_bytes, std::uint64_t bytes) noexcept {
    return disk_bytes * 8 > bytes;
  }
  // After each fetch of the layer.
  void observe(bool much_from_disk) noexcept {
    if (much_from_disk && !runs_) wanted_ = std::min(2 * wanted_, kCalmFetchesMax);
    calm_ = much_from_disk ? 0 : calm_ + 1;
    runs_ = calm_ < wanted_;
    if (calm_ >= wanted_ + kCalmFetchesMax) calm_ = wanted_ = std::max(1u, wanted_ / 2);
  }
  [[nodiscard]] std::uint32_t tokens() const noexcept { return runs_ ? kRunTokens : 1; }

 private:
  bool runs_;
  std::uint32_t calm_ = 0;    // fetches since the disk was last read in large part
  std::uint32_t wanted_ = 1;  // of them, before single tokens are chosen
};

}  // namespace kvtier
