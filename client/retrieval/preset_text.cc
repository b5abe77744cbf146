#include "client/retrieval/preset_text.h"

#include <array>
#include <charconv>
#include <span>
#include <variant>
#include <vector>

#include "base/toml.h"

namespace kvtier {
namespace {

using Member = std::variant<AbstractSpec Preset::*, QueryKind Preset::*, SearchKind Preset::*,
                            ScoreKind Preset::*, GroupMode Preset::*, ScopeKind Preset::*,
                            BudgetKind Preset::*, TriggerKind Preset::*, FetchKind Preset::*,
                            RefineKind Preset::*, float Preset::*, bool Preset::*,
                            std::uint32_t Preset::*, std::vector<std::uint32_t> Preset::*>;

// The words of a part, in the order of its enum's numbers.
constexpr std::array kQueries = {"current", "sentence", "step-before", "layer-before", "block"};
constexpr std::array kSearches = {"flat", "tree"};
constexpr std::array kScores = {"plain", "count", "largest"};
constexpr std::array kGroups = {"max", "mean-softmax", "mean-score", "max-softmax", "each"};
constexpr std::array kScopes = {"head", "layer"};
constexpr std::array kBudgets = {"all", "kept", "rows", "ratio", "mass", "entropy", "certified"};
constexpr std::array kTriggers = {"every-step", "every-n", "cosine", "cosine-head",
                                  "boundary",   "turn",    "mass"};
constexpr std::array kFetches = {"demand", "ahead", "behind"};
constexpr std::array kRefines = {"wait", "behind"};

// Key, place, and what it can be: one of `words`, or what `choices` says.
struct Part {
  std::string_view key;
  Member member;
  std::span<const char* const> words;
  const char* choices = nullptr;
};
constexpr std::string_view kAbstract = "abstract";
constexpr std::string_view kPartition = "partition";
constexpr std::string_view kShare = "share";
constexpr std::string_view kLayerPercent = "layer_percent";
constexpr std::string_view kLevel = "level";
constexpr std::string_view kFlatLayers = "flat_layers";
constexpr std::string_view kPrecision = "precision";
constexpr std::string_view kExactAbove = "exact_above";
constexpr std::string_view kRefine = "refine";
constexpr std::string_view kRunnersUp = "runners_up_percent";
constexpr std::string_view kRun = "run_tokens";
constexpr std::string_view kExact = "exact";  // precision of a preset that has none
constexpr std::array kParts = {
    Part{kPartition,
         &Preset::abstract,
         {},
         "tokens, or pages, sentences, spans, clusters or segments with their length in tokens, as "
         "\"pages:16\""},
    Part{
        kAbstract,
        &Preset::abstract,
        {},
        "box (\"box:3\" with further levels for search \"tree\"), mean, ball, representatives with "
        "the keys per unit, as \"representatives:4\", codes with the dimensions per code, as "
        "\"codes:4\", own-codes with the codes per key, as \"own-codes:2\", or none"},
    Part{"query", &Preset::query, kQueries},
    Part{"search", &Preset::search, kSearches},
    Part{"score", &Preset::score, kScores},
    Part{"group", &Preset::group, kGroups},
    Part{"scope", &Preset::scope, kScopes},
    Part{"budget", &Preset::budget, kBudgets},
    Part{kShare,
         &Preset::share,
         {},
         "above 0, at most 1: of budget \"ratio\", \"mass\", \"entropy\" or \"certified\""},
    Part{kLayerPercent,
         &Preset::layer_percent,
         {},
         "a list of whole numbers, 0 to 1000, as [200, 50]: per cent of the budget in the first "
         "layer, the next ones, and with the last number in all others"},
    Part{"cut", &Preset::cut, {}, "true or false"},
    Part{"trigger", &Preset::trigger, kTriggers},
    Part{kLevel,
         &Preset::level,
         {},
         "steps of trigger \"every-n\"; a share above 0, below 1, of \"mass\"; a cosine above -1, "
         "at most 1, of the other triggers and of query \"step-before\""},
    Part{"fetch", &Preset::fetch, kFetches},
    Part{kRunnersUp, &Preset::runners_up_percent, {}, "0 to 100, of the budget"},
    Part{kRun,
         &Preset::run_tokens,
         {},
         "0 to 256, of partition \"tokens\"; 0: as rows come from memory or disk"},
    Part{"residency_percent", &Preset::residency_percent, {}, "0 to 10000, of the budget"},
    Part{kPrecision,
         &Preset::precision,
         {},
         "exact, base with the bits of keys and those of values, 8, 6, 5, 4 or 3 each, as "
         "\"base:44\", or low-rank with the rank of keys, 1 to 32 64ths of their width, as "
         "\"low-rank:10\""},
    Part{kExactAbove, &Preset::exact_above, {}, "0 to 1, of precision \"base:44\" and the like"},
    Part{kRefine, &Preset::refine, kRefines},
    Part{"dense_layers", &Preset::dense_layers, {}, "0 to 256"},
    Part{kFlatLayers, &Preset::flat_layers, {}, "0 to 256, of search \"tree\""},
};

std::string choices_of(const Part& part) {
  if (part.choices != nullptr) return part.choices;
  std::string out;
  for (const char* word : part.words) out += (out.empty() ? "" : ", ") + std::string(word);
  return out;
}

const Part* find_part(std::string_view key) {
  for (const Part& part : kParts)
    if (key == part.key) return &part;
  return nullptr;
}

// What a file says about the parts that depend on each other.
struct Given {
  std::string abstract, partition;  // "": nothing
  bool share = false, level = false, flat_layers = false, exact_above = false, refine = false;
  bool layer_percent = false;
};

bool number_of(const TomlEntry& entry, double* out) {
  if (const auto* whole = std::get_if<std::int64_t>(&entry.value)) {
    *out = static_cast<double>(*whole);
    return true;
  }
  const auto* real = std::get_if<double>(&entry.value);
  if (real != nullptr) *out = *real;
  return real != nullptr;
}

// Enums, by the place of the word among the part's words.
template <class Value>
bool set_part(const Part& part, const TomlEntry& entry, Value Preset::*member, Preset* preset) {
  const auto* text = std::get_if<std::string>(&entry.value);
  for (std::size_t i = 0; text != nullptr && i < part.words.size(); ++i) {
    if (*text != part.words[i]) continue;
    preset->*member = static_cast<Value>(i);
    return true;
  }
  return false;
}

bool set_part(const Part&, const TomlEntry& entry, float Preset::*member, Preset* preset) {
  double number = 0.0;
  if (!number_of(entry, &number)) return false;
  preset->*member = static_cast<float>(number);
  return true;
}

bool set_part(const Part&, const TomlEntry& entry, bool Preset::*member, Preset* preset) {
  const auto* flag = std::get_if<bool>(&entry.value);
  if (flag != nullptr) preset->*member = *flag;
  return flag != nullptr;
}

bool set_part(const Part&, const TomlEntry& entry, std::uint32_t Preset::*member, Preset* preset) {
  const auto* number = std::get_if<std::int64_t>(&entry.value);
  if (number == nullptr || *number < 0 || *number > UINT32_MAX) return false;
  preset->*member = static_cast<std::uint32_t>(*number);
  return true;
}

bool set_part(const Part&, const TomlEntry& entry, std::vector<std::uint32_t> Preset::*member,
              Preset* preset) {
  const auto* numbers = std::get_if<std::vector<std::int64_t>>(&entry.value);
  if (numbers == nullptr) return false;
  (preset->*member).clear();
  for (const std::int64_t number : *numbers) {
    if (number < 0 || number > UINT32_MAX) return false;
    (preset->*member).push_back(static_cast<std::uint32_t>(number));
  }
  return true;
}

// Both texts of an abstract are put together when all are read (settle_abstract); a precision has
// one.
bool set_part(const Part& part, const TomlEntry& entry, AbstractSpec Preset::*member,
              Preset* preset) {
  const auto* text = std::get_if<std::string>(&entry.value);
  if (text == nullptr || text->empty() || text->find('/') != std::string::npos) return false;
  if (part.key != kPrecision) return true;
  const Result<AbstractSpec> spec =
      *text == kExact ? AbstractSpec{} : parse_abstract_spec(*text + "/tokens");
  if (!spec || (!spec->rendition() && *text != kExact)) return false;
  preset->*member = *spec;
  return true;
}

// "box" and "pages:16" of "box/pages:16".
std::pair<std::string, std::string> halves(const AbstractSpec& spec) {
  const std::string text = spec.text();
  const std::size_t slash = text.find('/');
  return {text.substr(0, slash), slash == std::string::npos ? "" : text.substr(slash + 1)};
}

Result<void> settle_abstract(const Given& given, Preset* preset, std::string* problem) {
  if (given.abstract.empty() && given.partition.empty()) return {};
  auto [abstract, partition] = halves(preset->abstract);
  if (!given.abstract.empty()) abstract = given.abstract;
  if (!given.partition.empty()) partition = given.partition;
  if (abstract == "none") {
    preset->abstract = {};
    if (given.partition.empty()) return {};
    *problem = "a partition needs an abstract: " + choices_of(*find_part(kAbstract));
    if (const std::size_t none = problem->rfind(", or none"); none != std::string::npos)
      problem->resize(none);  // that one least of all
    return error(Code::kInvalid, "a preset has a partition without an abstract");
  }
  if (partition.empty()) {
    *problem = "an abstract needs a partition: " + choices_of(*find_part(kPartition));
    return error(Code::kInvalid, "a preset has an abstract without a partition");
  }
  const Result<AbstractSpec> spec = parse_abstract_spec(abstract + "/" + partition);
  if (!spec) {
    *problem = "abstract \"" + abstract + "\" of partition \"" + partition +
               "\": " + spec.error().message();
    return error(spec.error());
  }
  preset->abstract = *spec;
  return {};
}

bool has_share(const Preset& preset) {
  return preset.budget == BudgetKind::kRatio || preset.budget == BudgetKind::kMass ||
         preset.budget == BudgetKind::kEntropy || preset.budget == BudgetKind::kCertified;
}
bool chooses(const Preset& preset) {
  return preset.budget != BudgetKind::kAll && preset.budget != BudgetKind::kKept;
}
enum class LevelUse { kNone, kSteps, kShare, kCosine };
LevelUse level_use(const Preset& preset) {
  switch (preset.trigger) {
    case TriggerKind::kEveryN:
      return LevelUse::kSteps;
    case TriggerKind::kMass:
      return LevelUse::kShare;
    case TriggerKind::kCosine:
    case TriggerKind::kCosineHead:
    case TriggerKind::kTurn:
      return LevelUse::kCosine;
    case TriggerKind::kEveryStep:
    case TriggerKind::kBoundary:
      break;
  }
  return preset.query == QueryKind::kStepBefore ? LevelUse::kCosine : LevelUse::kNone;
}
bool has_level(const Preset& preset) { return level_use(preset) != LevelUse::kNone; }
bool has_levels(const Preset& preset) { return preset.search == SearchKind::kTree; }
bool refines(const Preset& preset) { return preset.precision.abstract == AbstractKind::kBase; }

// A number that the base had a use for goes with that use; one that the file gives must have a use.
Result<void> settle_numbers(const Given& given, LevelUse of_base, Preset* preset,
                            std::string* problem) {
  if (!has_share(*preset)) preset->share = 0.0f;
  if (!has_level(*preset) || (!given.level && level_use(*preset) != of_base)) preset->level = 0.0f;
  if (!has_levels(*preset)) preset->flat_layers = 0;
  if (!chooses(*preset)) preset->layer_percent = Preset{}.layer_percent;
  if (!refines(*preset)) {
    preset->exact_above = Preset{}.exact_above;
    preset->refine = Preset{}.refine;
  }

  if (given.share && !has_share(*preset))
    *problem = "share needs budget \"ratio\", \"mass\", \"entropy\" or \"certified\"";
  else if (given.level && !has_level(*preset))
    *problem =
        "level needs trigger \"every-n\", \"cosine\", \"cosine-head\", \"turn\" or \"mass\", or "
        "query \"step-before\"";
  else if (given.layer_percent && !chooses(*preset))
    *problem =
        "budget \"all\" and \"kept\" choose nothing: layer_percent needs \"rows\", \"ratio\", "
        "\"mass\", \"entropy\" or \"certified\"";
  else if (given.flat_layers && !has_levels(*preset))
    *problem = "flat_layers needs search \"tree\"";
  else if (has_level(*preset) && !given.level && preset->level == 0.0f)
    *problem = "level is missing: " + choices_of(*find_part(kLevel));
  else if (has_share(*preset) && !given.share && preset->share == 0.0f)
    *problem = "share is missing: " + choices_of(*find_part(kShare));
  else if ((given.exact_above || given.refine) && !refines(*preset))
    *problem = "exact_above and refine need a base rendition as precision, as \"base:44\"";
  else
    return {};
  return error(Code::kInvalid, "a preset has a number without a use, or lacks one");
}

Result<Preset> base_of(const std::vector<TomlEntry>& entries, std::string* problem) {
  for (const TomlEntry& entry : entries) {
    if (entry.key != "base") continue;
    const auto* name = std::get_if<std::string>(&entry.value);
    const Result<const Preset*> base = find_preset(name != nullptr ? *name : "?");
    if (base && name != nullptr && !name->empty()) return **base;
    *problem = "base is the name of a built-in preset:";
    for (const Preset& preset : all_presets()) *problem += " " + preset.name;
    *problem += at_line(entry.line);
    return error(Code::kInvalid, "a preset has an unknown base");
  }
  return Preset{};
}

Result<void> take_entry(const TomlEntry& entry, Given* given, Preset* preset,
                        std::string* problem) {
  const Part* part = find_part(entry.key);
  if (part == nullptr) {
    *problem = "unknown key '" + entry.key + "'; a preset has base";
    for (const Part& known : kParts) *problem += ", " + std::string(known.key);
    return error(Code::kInvalid, "a preset has an unknown key");
  }
  const bool fits =
      std::visit([&](auto member) { return set_part(*part, entry, member, preset); }, part->member);
  if (!fits) {
    const auto* text = std::get_if<std::string>(&entry.value);
    *problem = entry.key + (text != nullptr ? " = \"" + *text + "\"" : "") +
               (part->words.empty() ? ": must be " : ": choose one of ") + choices_of(*part);
    return error(Code::kInvalid, "a part of a preset is unknown");
  }
  if (entry.key == kAbstract) given->abstract = std::get<std::string>(entry.value);
  if (entry.key == kPartition) given->partition = std::get<std::string>(entry.value);
  given->share = given->share || entry.key == kShare;
  given->layer_percent = given->layer_percent || entry.key == kLayerPercent;
  given->level = given->level || entry.key == kLevel;
  given->flat_layers = given->flat_layers || entry.key == kFlatLayers;
  given->exact_above = given->exact_above || entry.key == kExactAbove;
  given->refine = given->refine || entry.key == kRefine;
  return {};
}

template <class Value>
Json value_of(const Part& part, Value value) {
  return part.words[static_cast<std::size_t>(value)];
}
// By the shortest text that gives the same float: 0.7, not 0.699999988.
Json value_of(const Part&, float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return Json::parse(text, end);
}
Json value_of(const Part&, bool value) { return value; }
Json value_of(const Part&, std::uint32_t value) { return value; }
Json value_of(const Part&, const std::vector<std::uint32_t>& value) { return value; }
Json value_of(const Part& part, const AbstractSpec& spec) {
  if (part.key == kPrecision && spec.none()) return std::string(kExact);
  const auto [abstract, partition] = halves(spec);
  return part.key == kAbstract || part.key == kPrecision ? abstract : partition;
}

bool says_something(const Part& part, const Preset& preset) {
  if (part.key == kPartition) return !preset.abstract.none();
  if (part.key == kShare) return has_share(preset);
  if (part.key == kLayerPercent) return chooses(preset);
  if (part.key == kFlatLayers) return has_levels(preset);
  if (part.key == kExactAbove || part.key == kRefine) return refines(preset);
  if (part.key == kRunnersUp) return !preset.abstract.none() && !refines(preset);
  if (part.key == kRun)
    return !preset.abstract.none() && preset.abstract.partition == PartitionKind::kTokens &&
           !refines(preset);
  return part.key != kLevel || has_level(preset);
}

}  // namespace

Result<Preset> parse_preset(std::string_view name, std::string_view toml, std::string* problem) {
  KVT_TRY(const std::vector<TomlEntry> entries, parse_toml(toml, problem));
  KVT_TRY(Preset preset, base_of(entries, problem));
  preset.name = std::string(name);
  const LevelUse of_base = level_use(preset);
  Given given;
  for (const TomlEntry& entry : entries) {
    if (entry.key == "base") continue;
    const Result<void> taken = take_entry(entry, &given, &preset, problem);
    if (taken) continue;
    *problem += at_line(entry.line);
    return error(taken.error());
  }
  KVT_TRY_VOID(settle_abstract(given, &preset, problem));
  KVT_TRY_VOID(settle_numbers(given, of_base, &preset, problem));
  const Result<void> valid = preset.validate();
  if (!valid) {
    *problem = valid.error().message();
    return error(valid.error());
  }
  return preset;
}

Json preset_json(const Preset& preset) {
  Json out = Json::object();
  for (const Part& part : kParts)
    if (says_something(part, preset))
      out[std::string(part.key)] =
          std::visit([&](auto member) { return value_of(part, preset.*member); }, part.member);
  return out;
}

std::string preset_toml(const Preset& preset) {
  std::string out;
  const Json parts = preset_json(preset);
  for (const auto& [key, value] : parts.items()) out += key + " = " + value.dump() + "\n";
  return out;
}

}  // namespace kvtier
