#include "client/retrieval/preset.h"

#include <algorithm>
#include <vector>

#include "base/limits.h"

namespace kvtier {
namespace {

AbstractSpec units(std::string_view text) { return *parse_abstract_spec(text); }

// The default first. What is not said has the default of preset.h.
std::vector<Preset> make_presets() {
  return {
      {.name = "codes", .abstract = units("codes:4/tokens")},
      {.name = "codes-lookahead", .abstract = units("codes:4/tokens"), .fetch = FetchKind::kAhead},
      {.name = "progressive",
       .abstract = units("codes:4/tokens"),
       .residency_percent = 100,
       .precision = units("base:44/tokens")},
      {.name = "progressive-lookahead",
       .abstract = units("codes:4/tokens"),
       .fetch = FetchKind::kAhead,
       .residency_percent = 100,
       .precision = units("base:44/tokens")},
      {.name = "quest", .abstract = units("box/pages:16")},
      {.name = "mean", .abstract = units("mean/pages:16")},
      {.name = "sentencekv",
       .abstract = units("mean/sentences:128"),
       .query = QueryKind::kSentence,
       .group = GroupMode::kMeanScore,
       .cut = true},
      {.name = "louiskv",
       .abstract = units("mean/segments:16"),
       .cut = true,
       .trigger = TriggerKind::kTurn,
       .level = 0.7f},
      {.name = "clusters",
       .abstract = units("mean/clusters:16"),
       .score = ScoreKind::kCount,
       .cut = true},
      {.name = "leoam",
       .abstract = units("box:3/pages:16"),
       .search = SearchKind::kTree,
       .group = GroupMode::kMeanScore,
       .scope = ScopeKind::kLayer,
       .cut = true,
       .flat_layers = 2},
      {.name = "freekv",
       .abstract = units("box/pages:32"),
       .query = QueryKind::kStepBefore,
       .level = 0.8f,
       .fetch = FetchKind::kBehind},
      {.name = "arkvale", .abstract = units("ball/pages:32")},
      {.name = "pqcache", .abstract = units("own-codes:2/tokens")},
      {.name = "shadow",
       .abstract = units("mean/pages:8"),
       .group = GroupMode::kMaxSoftmax,
       .precision = units("low-rank:10/tokens")},
      {.name = "window", .budget = BudgetKind::kKept, .residency_percent = 0},
      {.name = "full", .budget = BudgetKind::kAll},
  };
}

// Units that are built, and scores that mean something for them.
Result<void> validate_units(const Preset& preset) {
  const AbstractSpec& abstract = preset.abstract;
  if (abstract.rendition())
    return error(Code::kInvalid,
                 "base and low-rank are a precision: the abstract is box, mean, ball, "
                 "representatives, codes or own-codes");
  if (abstract.abstract == AbstractKind::kBox && abstract.parameter != 0 &&
      preset.search != SearchKind::kTree)
    return error(Code::kInvalid,
                 "levels of boxes are for search \"tree\": the abstract is \"box\"");
  if (preset.score == ScoreKind::kLargest && abstract.abstract != AbstractKind::kRepresentatives)
    return error(Code::kInvalid,
                 "score \"largest\" is of several keys per unit: its abstract is "
                 "\"representatives:4\", for example");
  if (preset.score == ScoreKind::kCount && !abstract.by_tokens() && !abstract.by_head())
    return error(Code::kInvalid,
                 "score \"count\" needs units of unequal length: clusters, segments, sentences or "
                 "spans");
  return {};
}

Result<void> validate_precision(const Preset& preset) {
  if (preset.precision.none()) return {};
  KVT_TRY_VOID(preset.precision.validate());
  if (!preset.precision.rendition())
    return error(Code::kInvalid,
                 "precision is \"exact\", a base rendition, as \"base:44\", or low-rank keys, as "
                 "\"low-rank:10\"");
  if (preset.query == QueryKind::kBlock)
    return error(Code::kInvalid, "query \"block\" goes with precision \"exact\"");
  if (preset.budget == BudgetKind::kAll || preset.budget == BudgetKind::kKept)
    return error(Code::kInvalid,
                 "a precision is of chosen rows: its budget is \"rows\", \"ratio\", \"mass\" or "
                 "\"entropy\"");
  if (!(preset.exact_above >= 0.0f && preset.exact_above <= 1.0f))
    return error(Code::kInvalid, "exact_above is a share of the mass: 0 to 1");
  return {};
}

// Whose bounds hold for every key, for the queries that are attended with.
Result<void> validate_certified(const Preset& preset) {
  if (preset.budget != BudgetKind::kCertified) return {};
  const AbstractKind kind = preset.abstract.abstract;
  if (std::any_of(preset.layer_percent.begin(), preset.layer_percent.end(),
                  [](std::uint32_t percent) { return percent == 0; }))
    return error(Code::kInvalid,
                 "budget \"certified\" promises nothing of a layer that chooses nothing: "
                 "layer_percent without 0");
  const bool bounds = kind == AbstractKind::kBox || kind == AbstractKind::kBall;
  const bool at_every_step = preset.query == QueryKind::kCurrent &&
                             preset.trigger == TriggerKind::kEveryStep &&
                             preset.fetch == FetchKind::kDemand;
  if (bounds && at_every_step && preset.search == SearchKind::kFlat &&
      preset.score == ScoreKind::kPlain && preset.scope == ScopeKind::kHead &&
      preset.precision.none())
    return {};
  return error(
      Code::kInvalid,
      "budget \"certified\" needs bounds for the step's own queries: abstract \"box\" or "
      "\"ball\", query \"current\", search \"flat\", score \"plain\", scope \"head\", trigger "
      "\"every-step\", fetch \"demand\" and precision \"exact\"");
}

// What is taken together, and what is hinted at.
Result<void> validate_travel(const Preset& preset) {
  if (preset.run_tokens > 1 && (preset.abstract.partition != PartitionKind::kTokens ||
                                preset.group != GroupMode::kMeanSoftmax || preset.abstract.none()))
    return error(
        Code::kInvalid,
        "run_tokens adds up the masses of single tokens: it needs partition \"tokens\" and "
        "group \"mean-softmax\"");
  if (preset.run_tokens > kRunTokensMax) return error(Code::kInvalid, "run_tokens is at most 256");
  if (preset.runners_up_percent > 100)
    return error(Code::kInvalid, "runners_up_percent is at most 100");
  const bool base = preset.precision.abstract == AbstractKind::kBase;
  if (base && (preset.run_tokens != 0 || preset.runners_up_percent != 0))
    return error(Code::kInvalid,
                 "chosen rows of a base rendition do not travel: run_tokens and runners_up_percent "
                 "go with precision \"exact\" and \"low-rank:10\" and the like");
  if (preset.runners_up_percent != 0 && preset.abstract.none())
    return error(Code::kInvalid, "runners_up_percent needs an abstract to choose by");
  return {};
}

// Rows that come early take the places of a choice that is made anew, head by head.
Result<void> validate_fetch(const Preset& preset) {
  if (preset.fetch == FetchKind::kDemand) return {};
  if (preset.abstract.none() || preset.trigger != TriggerKind::kEveryStep ||
      preset.scope != ScopeKind::kHead)
    return error(Code::kInvalid,
                 "fetch \"ahead\" and \"behind\" need an abstract, trigger \"every-step\" and "
                 "scope \"head\"");
  if (preset.precision.abstract == AbstractKind::kLowRank)
    return error(Code::kInvalid,
                 "keys are rebuilt in the step that chooses them: \"low-rank:10\" and the like go "
                 "with fetch \"demand\"");
  if (preset.fetch == FetchKind::kBehind && !preset.precision.none())
    return error(Code::kInvalid, "fetch \"behind\" goes with precision \"exact\"");
  if (!preset.precision.none() && (preset.abstract.partition != PartitionKind::kTokens ||
                                   preset.group != GroupMode::kMeanSoftmax))
    return error(Code::kInvalid,
                 "fetch \"ahead\" with a precision sends for rows with much of the mass: it needs "
                 "partition \"tokens\" and group \"mean-softmax\"");
  if (preset.fetch == FetchKind::kAhead && preset.query != QueryKind::kCurrent)
    return error(Code::kInvalid, "fetch \"ahead\" goes with query \"current\"");
  if (preset.fetch == FetchKind::kBehind && preset.query != QueryKind::kStepBefore)
    return error(Code::kInvalid, "fetch \"behind\" goes with query \"step-before\"");
  return {};
}

}  // namespace

std::uint32_t Preset::percent_in(std::uint32_t layer) const noexcept {
  return layer_percent[std::min<std::size_t>(layer, layer_percent.size() - 1)];
}

std::uint64_t Preset::rows_in(std::uint32_t layer, std::uint64_t budget_rows) const noexcept {
  return std::min(percent_of(budget_rows, percent_in(layer)), kSequenceTokensMax);
}

std::uint64_t Preset::cache_rows(std::uint64_t budget_rows, std::uint64_t kept_rows,
                                 std::uint64_t capacity) const noexcept {
  if (budget == BudgetKind::kKept) budget_rows = 0;
  const std::uint64_t wanted =
      capacity != 0 ? capacity : percent_of(budget_rows, residency_percent);
  return std::max(wanted, budget_rows + kept_rows);
}

Result<void> Preset::validate() const {
  KVT_TRY_VOID(abstract.validate());
  const bool chooses = budget != BudgetKind::kAll && budget != BudgetKind::kKept;
  if (chooses && abstract.none())
    return error(Code::kInvalid,
                 "budget \"rows\", \"ratio\", \"mass\", \"entropy\" and \"certified\" need an "
                 "abstract to choose by");
  if (!chooses && !abstract.none())
    return error(Code::kInvalid,
                 "budget \"all\" and \"kept\" choose nothing: their abstract is \"none\"");
  KVT_TRY_VOID(validate_units(*this));
  KVT_TRY_VOID(validate_precision(*this));
  KVT_TRY_VOID(validate_fetch(*this));
  KVT_TRY_VOID(validate_travel(*this));
  KVT_TRY_VOID(validate_certified(*this));
  if (scope == ScopeKind::kLayer && abstract.by_head())
    return error(Code::kInvalid,
                 "clusters and segments are of one KV head each: scope \"layer\" needs pages, "
                 "sentences, spans or tokens");
  if (scope == ScopeKind::kLayer && trigger == TriggerKind::kCosineHead)
    return error(Code::kInvalid,
                 "scope \"layer\" chooses for all heads at once: its trigger is \"cosine\"");
  if (scope == ScopeKind::kLayer && group == GroupMode::kEach)
    return error(
        Code::kInvalid,
        "group \"each\" gives places, which do not add up over heads: its scope is \"head\"");
  const bool by_mass = budget == BudgetKind::kMass || budget == BudgetKind::kEntropy;
  const bool by_share = by_mass || budget == BudgetKind::kRatio || budget == BudgetKind::kCertified;
  if (by_share && !(share > 0.0f && share <= 1.0f))
    return error(Code::kInvalid, "share is above 0 and at most 1");
  if (by_mass && group != GroupMode::kMeanSoftmax)
    return error(Code::kInvalid,
                 "budget \"mass\" and \"entropy\" need masses: group \"mean-softmax\"");
  if (trigger == TriggerKind::kMass && (!chooses || group != GroupMode::kMeanSoftmax))
    return error(Code::kInvalid,
                 "trigger \"mass\" needs masses of what can be chosen: group \"mean-softmax\" and "
                 "budget \"rows\", \"ratio\", \"mass\" or \"entropy\"");
  if (trigger == TriggerKind::kMass && !(level > 0.0f && level < 1.0f))
    return error(Code::kInvalid, "level of trigger \"mass\" is a share above 0 and below 1");
  if (search == SearchKind::kTree &&
      (abstract.abstract != AbstractKind::kBox || abstract.parameter == 0))
    return error(Code::kInvalid,
                 "search \"tree\" needs boxes with levels: abstract \"box:3\" of partition "
                 "\"pages:16\", for example");
  if (search == SearchKind::kTree && group != GroupMode::kMeanScore)
    return error(Code::kInvalid, "search \"tree\" needs group \"mean-score\"");
  if (query == QueryKind::kBlock && search != SearchKind::kFlat)
    return error(Code::kInvalid,
                 "query \"block\" adds up the scores of every unit: its search is \"flat\"");
  if (query == QueryKind::kStepBefore && trigger != TriggerKind::kEveryStep)
    return error(Code::kInvalid, "query \"step-before\" goes with trigger \"every-step\"");
  if (trigger == TriggerKind::kEveryN && !(level >= 1.0f && level <= 1e6f))
    return error(Code::kInvalid, "level of trigger \"every-n\" is 1 to 1000000 steps");
  if ((trigger == TriggerKind::kCosine || trigger == TriggerKind::kCosineHead ||
       trigger == TriggerKind::kTurn || query == QueryKind::kStepBefore) &&
      !(level > -1.0f && level <= 1.0f))
    return error(Code::kInvalid, "level of a cosine is above -1 and at most 1");
  if (residency_percent > 10000) return error(Code::kInvalid, "residency_percent is at most 10000");
  static_assert(kLayersMax == 256);
  if (dense_layers > kLayersMax || flat_layers > kLayersMax)
    return error(Code::kInvalid, "dense_layers and flat_layers are at most 256");
  const bool high = std::any_of(layer_percent.begin(), layer_percent.end(),
                                [](std::uint32_t percent) { return percent > kLayerPercentMax; });
  if (high || layer_percent.empty() || layer_percent.size() > kLayersMax)
    return error(Code::kInvalid, "layer_percent is a list of 1 to 256 numbers, 0 to 1000 each");
  return {};
}

std::span<const Preset> all_presets() {
  static const std::vector<Preset> presets = make_presets();
  return presets;
}

Result<const Preset*> find_preset(std::string_view name) {
  if (name.empty()) return &all_presets().front();
  for (const Preset& preset : all_presets())
    if (name == preset.name) return &preset;
  return error(
      Code::kNotFound,
      "there are codes, codes-lookahead, progressive, progressive-lookahead, quest, "
      "mean, sentencekv, louiskv, clusters, leoam, freekv, arkvale, pqcache, shadow, window "
      "or full");
}

}  // namespace kvtier
