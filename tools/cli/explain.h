// What a reply was read from: the text of a sequence with how often its tokens were chosen, by
// groups of layers, since the last prompt. Plain values of one process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/cli/command.h"

namespace kvtier::cli {

// Counts of some layers.
struct ReadGroup {
  std::string layers;                 // "layers 0-7", "all layers"
  std::vector<std::uint32_t> counts;  // by token
  std::vector<std::uint8_t>
      levels;  // by token: 0 never or hardly chosen, to kReadLevels - 1 most often
  std::uint64_t total = 0;
};
inline constexpr std::uint32_t kReadLevels = 5;

// Consecutive tokens up to the end of a sentence or line.
struct Passage {
  std::uint64_t first_token = 0;
  std::uint64_t tokens = 0;
  double share = 0.0;  // of all reads
  double above = 0.0;  // the share less what its length alone would have
};

struct ReadText {
  std::string name;                   // as the user gave it
  std::string text;                   // empty: the client gave none
  std::vector<std::uint64_t> begins;  // byte of `text` where token i begins; one more at the end
  std::vector<ReadGroup> groups;      // the first: all layers
  bool complete = true;               // the daemon's memory held all counts

  [[nodiscard]] std::uint64_t tokens() const { return begins.size() - 1; }
  [[nodiscard]] std::string text_of(std::uint64_t first, std::uint64_t count) const {
    return text.substr(begins[first], begins[first + count] - begins[first]);
  }
};

// Asks the daemon. False where it cannot be had; `*exit_code` then.
[[nodiscard]] bool read_reads(const Invocation& invocation, ReadText* out, int* exit_code);
// Those that were read most above what their length would have, the first the most.
[[nodiscard]] std::vector<Passage> passages_of(const ReadText& reads, std::size_t count);
// One self-contained page.
[[nodiscard]] std::string explain_page(const ReadText& reads, const std::vector<Passage>& most);

}  // namespace kvtier::cli
