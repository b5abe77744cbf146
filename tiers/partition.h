// Partitions that depend on the tokens alone: sentences, client spans, and segments of what the
// model wrote. (Pages and single tokens need no table; clusters depend on keys: tiers/cluster.h.)
// Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/layout.h"

namespace kvtier {

// Unit u is tokens [out[u], out[u + 1]); out has one element more than there are units; the first
// is 0, the last tokens.size(). No unit is empty, none longer than `unit_tokens`.

// A unit ends behind a token whose boundary class is sentence or paragraph (SentenceKV,
// arXiv 2504.00970, section 3: the sentence includes its closing token), else at the limit, and
// then behind the last clause boundary of its second half where there is one. Tokens without flags
// make pages of the limit.
[[nodiscard]] std::vector<std::uint32_t> cut_sentences(std::span<const TokenRecord> tokens,
                                                       std::uint32_t unit_tokens);
// A unit ends where the span changes, or at the limit.
[[nodiscard]] std::vector<std::uint32_t> cut_spans(std::span<const TokenRecord> tokens,
                                                   std::uint32_t unit_tokens);

// What the model wrote itself (kTokenOwn), cut where its queries turned (kTokenCut), as LouisKV
// (arXiv 2510.11292) has output in segments and prompt in clusters. A unit begins at the first such
// token behind others, at one that is marked as a cut, or after kOutputUnitFactor * `unit_tokens`
// tokens. The other tokens are left to clusters.
struct OutputUnits {
  std::vector<std::uint32_t> others;  // ascending
  std::vector<std::uint32_t> tokens;  // what the model wrote, ascending
  std::vector<std::uint32_t> starts;  // units of `tokens`: [units + 1], the first is 0
};
inline constexpr std::uint32_t kOutputUnitFactor = 8;
[[nodiscard]] OutputUnits cut_output(std::span<const TokenRecord> tokens,
                                     std::uint32_t unit_tokens);

}  // namespace kvtier
