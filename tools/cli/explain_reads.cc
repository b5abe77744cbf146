// What the daemon says of a sequence's text and of how often it was read.
#include <algorithm>
#include <functional>

#include "base/limits.h"
#include "tools/cli/explain.h"

namespace kvtier::cli {
namespace {

constexpr std::uint64_t kPassageTokensMax = 64;

bool read_texts(const Invocation& invocation, std::uint64_t tokens, ReadText* out, int* exit_code) {
  out->begins = {0};
  while (out->tokens() < tokens) {
    Json reply;
    const Json body{{"op", "texts"},
                    {"target", target_of(invocation.get("SEQUENCE"))},
                    {"first", out->tokens()},
                    {"count", std::min<std::uint64_t>(tokens - out->tokens(), kTextTokensMax)},
                    {"as_text", true}};
    if (!request(invocation, body, &reply, exit_code)) return false;
    out->text += text_of(reply, "text");
    const std::uint64_t before = out->tokens();
    for (const Json& bytes : reply["token_bytes"])
      out->begins.push_back(out->begins.back() + bytes.get<std::uint64_t>());
    if (out->tokens() == before) break;
  }
  // A token that begins within a character begins, for whoever is shown it, behind it.
  for (std::uint64_t& begin : out->begins)
    while (begin < out->text.size() &&
           (static_cast<unsigned char>(out->text[begin]) & 0xC0) == 0x80)
      ++begin;
  return true;
}

std::string layers_of(const Json& group) {
  const std::string first = std::to_string(number_of(group, "first_layer"));
  const std::string last = std::to_string(number_of(group, "last_layer"));
  return first == last ? "layer " + first : "layers " + first + "-" + last;
}

bool read_counts(const Invocation& invocation, ReadText* out, int* exit_code) {
  out->groups.assign(1, {"all layers", std::vector<std::uint32_t>(out->tokens()), {}, 0});
  for (std::uint64_t first = 0; first < out->tokens(); first += kReadCountTokensMax) {
    Json reply;
    const std::uint64_t count = std::min<std::uint64_t>(out->tokens() - first, kReadCountTokensMax);
    const Json body{{"op", "reads"},
                    {"target", target_of(invocation.get("SEQUENCE"))},
                    {"first", first},
                    {"count", count}};
    if (!request(invocation, body, &reply, exit_code)) return false;
    out->complete = out->complete && reply.value("complete", true);
    std::size_t place = 1;
    for (const Json& group : reply["groups"]) {
      if (place == out->groups.size())
        out->groups.push_back({layers_of(group), std::vector<std::uint32_t>(out->tokens()), {}, 0});
      ReadGroup& own = out->groups[place++];
      const Json& counts = group["counts"];
      for (std::size_t i = 0; i < counts.size() && i < count; ++i) {
        const auto value = counts[i].get<std::uint32_t>();
        own.counts[first + i] = value;
        own.total += value;
        out->groups[0].counts[first + i] += value;
        out->groups[0].total += value;
      }
    }
  }
  return true;
}

// One token in a hundred has the highest level; each level below begins at half as many reads, and
// what is below the lowest has none: nearly everything is read at some time by some head.
void set_levels(ReadGroup* group) {
  group->levels.assign(group->counts.size(), 0);
  if (group->counts.empty()) return;
  std::vector<std::uint32_t> sorted = group->counts;
  const auto top = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 100);
  std::nth_element(sorted.begin(), top, sorted.end(), std::greater<>());
  for (std::size_t i = 0; i < group->counts.size(); ++i) {
    const std::uint32_t count = group->counts[i];
    if (count == 0) continue;
    std::uint32_t level = kReadLevels - 1;
    for (double bound = *top; level > 0 && count < bound; bound /= 2) --level;
    group->levels[i] = static_cast<std::uint8_t>(level);
  }
}

// A token whose text ends a sentence or a line.
bool ends_passage(const std::string& text) {
  const std::size_t last = text.find_last_not_of(" \t");
  return last != std::string::npos && std::string(".!?\n").find(text[last]) != std::string::npos;
}

}  // namespace

bool read_reads(const Invocation& invocation, ReadText* out, int* exit_code) {
  Json shown;
  out->name = invocation.get("SEQUENCE");
  if (!request(invocation, Json{{"op", "show"}, {"target", target_of(out->name)}}, &shown,
               exit_code))
    return false;
  const std::uint64_t sealed = number_of(shown, "tokens") - number_of(shown, "tail_tokens");
  if (!read_texts(invocation, sealed, out, exit_code)) return false;
  if (!read_counts(invocation, out, exit_code)) return false;
  for (ReadGroup& group : out->groups) set_levels(&group);
  return true;
}

std::vector<Passage> passages_of(const ReadText& reads, std::size_t count) {
  std::vector<Passage> found;
  const ReadGroup& all = reads.groups[0];
  for (std::uint64_t first = 0; first < reads.tokens();) {
    std::uint64_t end = first, read = 0;
    do {
      read += all.counts[end++];
    } while (end < reads.tokens() && end - first < kPassageTokensMax &&
             !ends_passage(reads.text_of(end - 1, 1)));
    const double share = static_cast<double>(read) / static_cast<double>(all.total);
    const double usual = static_cast<double>(end - first) / static_cast<double>(reads.tokens());
    if (read != 0) found.push_back({first, end - first, share, share - usual});
    first = end;
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Passage& a, const Passage& b) { return a.above > b.above; });
  if (found.size() > count) found.resize(count);
  return found;
}

}  // namespace kvtier::cli
