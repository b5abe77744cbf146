#include "tiers/partition.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kClause = 1, kSentence = 2;

std::uint32_t boundary_of(const TokenRecord& token) { return token.flags & 0xFF; }

}  // namespace

std::vector<std::uint32_t> cut_sentences(std::span<const TokenRecord> tokens,
                                         std::uint32_t unit_tokens) {
  std::vector<std::uint32_t> starts = {0};
  std::uint32_t clause = 0;  // behind the last clause boundary of the unit
  for (std::uint32_t i = 0; i < tokens.size(); ++i) {
    const std::uint32_t length = i + 1 - starts.back();
    if (boundary_of(tokens[i]) >= kSentence) {
      starts.push_back(i + 1);
      continue;
    }
    if (boundary_of(tokens[i]) == kClause) clause = i + 1;
    if (length < unit_tokens) continue;
    const bool at_clause = clause > starts.back() && clause - starts.back() > unit_tokens / 2;
    starts.push_back(at_clause ? clause : i + 1);
  }
  if (starts.back() != tokens.size()) starts.push_back(static_cast<std::uint32_t>(tokens.size()));
  return starts;
}

std::vector<std::uint32_t> cut_spans(std::span<const TokenRecord> tokens,
                                     std::uint32_t unit_tokens) {
  std::vector<std::uint32_t> starts = {0};
  for (std::uint32_t i = 1; i < tokens.size(); ++i)
    if (tokens[i].span != tokens[i - 1].span || i - starts.back() == unit_tokens)
      starts.push_back(i);
  if (!tokens.empty()) starts.push_back(static_cast<std::uint32_t>(tokens.size()));
  return starts;
}

OutputUnits cut_output(std::span<const TokenRecord> tokens, std::uint32_t unit_tokens) {
  OutputUnits out;
  out.starts = {0};
  for (std::uint32_t i = 0; i < tokens.size(); ++i) {
    if ((tokens[i].flags & kTokenOwn) == 0) {
      out.others.push_back(i);
      continue;
    }
    const auto at = static_cast<std::uint32_t>(out.tokens.size());
    const bool begins = i == 0 || (tokens[i - 1].flags & kTokenOwn) == 0 ||
                        (tokens[i].flags & kTokenCut) != 0 ||
                        at - out.starts.back() == kOutputUnitFactor * unit_tokens;
    if (begins && at != 0) out.starts.push_back(at);
    out.tokens.push_back(i);
  }
  if (!out.tokens.empty()) out.starts.push_back(static_cast<std::uint32_t>(out.tokens.size()));
  return out;
}

}  // namespace kvtier
