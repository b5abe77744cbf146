#include "kernels/abstract_spec.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/limits.h"
#include "kernels/base_layout.h"
#include "kernels/low_rank_layout.h"
#include "kernels/own_code_layout.h"

namespace kvtier {
namespace {

struct KindRow {
  AbstractKind kind;
  const char* name;
  std::uint8_t parameter_min, parameter_max, parameter_default;
};
constexpr std::array<KindRow, 9> kKinds = {{
    {AbstractKind::kNone, "none", 0, 0, 0},
    {AbstractKind::kBox, "box", 0, 7, 0},
    {AbstractKind::kMean, "mean", 0, 0, 0},
    {AbstractKind::kBall, "ball", 0, 0, 0},
    {AbstractKind::kCodes, "codes", 2, 16, 4},
    {AbstractKind::kRepresentatives, "representatives", 1, kRepresentativesMax, 4},
    {AbstractKind::kOwnCodes, "own-codes", 1, kOwnCodeSubspacesMax, 2},
    {AbstractKind::kBase, "base", 33, 88, 44},
    {AbstractKind::kLowRank, "low-rank", 1, kLowRankParameterMax, 10},
}};
constexpr std::array<const char*, 6> kPartitions = {"pages", "tokens",   "sentences",
                                                    "spans", "clusters", "segments"};

Result<std::uint32_t> number_of(std::string_view text) {
  std::uint32_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc() || end != text.data() + text.size())
    return error(Code::kInvalid,
                 "an abstract is written like \"box/pages:16\" or \"codes:4/tokens\"");
  return number;
}

// Of single tokens, by nature.
bool by_token(AbstractKind kind) {
  return kind == AbstractKind::kCodes || kind == AbstractKind::kOwnCodes ||
         kind == AbstractKind::kBase || kind == AbstractKind::kLowRank;
}

constexpr const char* kPartitionsText =
    "units are pages, tokens, sentences, spans, clusters or segments";
constexpr const char* kKindsText =
    "an abstract is box, mean, ball, representatives, codes, own-codes, base, low-rank or none";

// "name" or "name:number".
struct Word {
  std::string_view name;
  std::string_view number;  // empty: none
};
Word split(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) return {text, {}};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

}  // namespace

Result<void> AbstractSpec::validate() const noexcept {
  if (static_cast<std::size_t>(abstract) >= kKinds.size()) return error(Code::kInvalid, kKindsText);
  if (static_cast<std::size_t>(partition) >= kPartitions.size())
    return error(Code::kInvalid, kPartitionsText);
  const KindRow& kind = kKinds[static_cast<std::size_t>(abstract)];
  const bool base = abstract == AbstractKind::kBase;
  if (base && !(base_bits_fit(parameter / 10u) && base_bits_fit(parameter % 10u)))
    return error(Code::kInvalid,
                 "base has the bits of K and those of V, 8, 6, 5, 4 or 3 each, as \"base:44\"");
  if (parameter < kind.parameter_min || parameter > kind.parameter_max)
    return error(Code::kInvalid,
                 "box has 0 to 7 further levels, codes 2 to 16 dimensions, own-codes 1 to 16 "
                 "sub-spaces, representatives are 1 to 16, low-rank 1 to 32 64ths of the width");
  if (unit_tokens == 0 || unit_tokens > kSegmentTokensMax)
    return error(Code::kInvalid, "a unit has 1 to 2048 tokens");
  if ((partition == PartitionKind::kTokens) != by_token(abstract) && !none())
    return error(Code::kInvalid,
                 "codes, base and low-rank are of single tokens, everything else of longer units");
  if (partition == PartitionKind::kTokens && unit_tokens != 1)
    return error(Code::kInvalid, "units of the partition \"tokens\" have 1 token");
  if (abstract == AbstractKind::kRepresentatives && parameter > unit_tokens)
    return error(Code::kInvalid, "a unit has no more representatives than tokens");
  if (abstract == AbstractKind::kBox && parameter != 0 && partition != PartitionKind::kPages)
    return error(Code::kInvalid, "levels of boxes need pages");
  return {};
}

std::uint32_t AbstractSpec::packed() const noexcept {
  if (none()) return 0;
  return static_cast<std::uint32_t>(partition) | static_cast<std::uint32_t>(abstract) << 4 |
         (unit_tokens - 1u) << 8 | static_cast<std::uint32_t>(parameter) << 20;
}

std::string AbstractSpec::text() const {
  if (none()) return "none";
  std::string out = abstract_kind_name(abstract);
  if (parameter != 0) out += ':' + std::to_string(parameter);
  out += std::string("/") + partition_kind_name(partition);
  if (partition != PartitionKind::kTokens) out += ':' + std::to_string(unit_tokens);
  return out;
}

std::uint32_t AbstractSpec::units_of(std::uint32_t tokens) const noexcept {
  return (tokens + unit_tokens - 1u) / unit_tokens;
}

Result<AbstractSpec> unpack_abstract_spec(std::uint32_t packed) noexcept {
  AbstractSpec spec;
  if (packed == 0) return spec;
  spec.partition = static_cast<PartitionKind>(packed & 0xF);
  spec.abstract = static_cast<AbstractKind>(packed >> 4 & 0xF);
  spec.unit_tokens = static_cast<std::uint16_t>((packed >> 8 & 0xFFF) + 1);
  spec.parameter = static_cast<std::uint8_t>(packed >> 20 & 0xFF);
  if (!spec.validate() || spec.none() || spec.packed() != packed)
    return error(Code::kCorrupt, "not the number of an abstract");
  return spec;
}

Result<AbstractSpec> parse_abstract_spec(std::string_view text) {
  AbstractSpec spec;
  if (text.empty() || text == "none") return spec;
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos)
    return error(Code::kInvalid,
                 "an abstract is written like \"box/pages:16\" or \"codes:4/tokens\"");
  const Word kind = split(text.substr(0, slash));
  const Word partition = split(text.substr(slash + 1));
  bool known = false;
  for (const KindRow& row : kKinds) {
    if (kind.name != row.name) continue;
    known = row.kind != AbstractKind::kNone;
    spec.abstract = row.kind;
    spec.parameter = row.parameter_default;
  }
  if (!known) return error(Code::kInvalid, kKindsText);
  known = false;
  for (std::size_t i = 0; i < kPartitions.size(); ++i) {
    if (partition.name != kPartitions[i]) continue;
    known = true;
    spec.partition = static_cast<PartitionKind>(i);
    spec.unit_tokens = spec.partition == PartitionKind::kTokens ? 1 : 16;
  }
  if (!known) return error(Code::kInvalid, kPartitionsText);
  if (!kind.number.empty()) {
    KVT_TRY(const std::uint32_t number, number_of(kind.number));
    spec.parameter = static_cast<std::uint8_t>(std::min(number, 255u));
  }
  if (!partition.number.empty()) {
    KVT_TRY(const std::uint32_t number, number_of(partition.number));
    spec.unit_tokens = static_cast<std::uint16_t>(std::min(number, 65535u));
  }
  KVT_TRY_VOID(spec.validate());
  return spec;
}

const char* abstract_kind_name(AbstractKind kind) noexcept {
  const auto index = static_cast<std::size_t>(kind);
  return index < kKinds.size() ? kKinds[index].name : "unknown";
}

std::uint32_t abstract_elements(AbstractKind kind, std::uint32_t dim) noexcept {
  switch (kind) {
    case AbstractKind::kBox:
      return 2 * dim;
    case AbstractKind::kMean:
      return dim;
    case AbstractKind::kBall:
      return dim + kBallTail;
    case AbstractKind::kNone:
    case AbstractKind::kCodes:
    case AbstractKind::kRepresentatives:
    case AbstractKind::kOwnCodes:
    case AbstractKind::kBase:
    case AbstractKind::kLowRank:
      return 0;
  }
  return 0;
}

const char* partition_kind_name(PartitionKind kind) noexcept {
  const auto index = static_cast<std::size_t>(kind);
  return index < kPartitions.size() ? kPartitions[index] : "unknown";
}

}  // namespace kvtier
