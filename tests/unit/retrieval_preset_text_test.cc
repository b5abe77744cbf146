// Presets as text: what is printed parses to the same preset, every word is known both ways, and
// what does not fit is refused with what does.
#include <gtest/gtest.h>

#include "client/retrieval/preset_text.h"

namespace kvtier {
namespace {

std::string problem_of(std::string_view toml) {
  std::string problem;
  const auto preset = parse_preset("mine", toml, &problem);
  EXPECT_FALSE(preset) << toml;
  EXPECT_EQ(preset ? Code::kOk : preset.error().code, Code::kInvalid);
  return problem;
}

Preset taken(std::string_view toml) {
  std::string problem;
  const auto preset = parse_preset("mine", toml, &problem);
  EXPECT_TRUE(preset) << toml << ": " << problem;
  return preset ? *preset : Preset{};
}

void expect_problem(std::string_view toml, std::string_view says) {
  const std::string problem = problem_of(toml);
  EXPECT_NE(problem.find(says), std::string::npos) << toml << ": " << problem;
}

TEST(PresetText, EveryBuiltInIsPrintedAndReadBack) {
  for (const Preset& preset : all_presets()) {
    std::string problem;
    const auto back = parse_preset(preset.name, preset_toml(preset), &problem);
    ASSERT_TRUE(back) << preset.name << ": " << problem;
    EXPECT_EQ(*back, preset) << preset_toml(preset);
    EXPECT_EQ(taken("base = \"" + preset.name + "\"").abstract, preset.abstract);
  }
}

TEST(PresetText, EveryWordIsKnownBothWays) {
  Preset preset = **find_preset("clusters");
  preset.name = "mine";
  preset.share = 0.25f;
  preset.level = 0.75f;
  preset.trigger = TriggerKind::kEveryStep;
  const auto there_and_back = [](Preset wanted) {
    if (wanted.budget != BudgetKind::kRatio && wanted.budget != BudgetKind::kMass &&
        wanted.budget != BudgetKind::kEntropy && wanted.budget != BudgetKind::kCertified)
      wanted.share = 0;
    if (wanted.budget == BudgetKind::kCertified) {
      wanted.abstract = *parse_abstract_spec("ball/pages:16");
      wanted.score = ScoreKind::kPlain;
    }
    if (wanted.trigger == TriggerKind::kEveryN) wanted.level = 3.0f;
    const bool has_level =
        wanted.query == QueryKind::kStepBefore ||
        (wanted.trigger != TriggerKind::kEveryStep && wanted.trigger != TriggerKind::kBoundary);
    if (!has_level) wanted.level = 0;
    if (wanted.budget == BudgetKind::kAll || wanted.budget == BudgetKind::kKept) {
      wanted.abstract = {};
      wanted.score = ScoreKind::kPlain;
    }
    EXPECT_EQ(taken(preset_toml(wanted)), wanted) << preset_toml(wanted);
  };
  for (int i = 0; i < 7; ++i) {
    Preset one = preset;
    one.trigger = static_cast<TriggerKind>(i);
    there_and_back(one);
  }
  for (int i = 0; i < 7; ++i) {
    Preset one = preset;
    one.budget = static_cast<BudgetKind>(i);
    there_and_back(one);
  }
  for (int i = 0; i < 5; ++i) {
    Preset one = preset;
    one.query = static_cast<QueryKind>(i);
    there_and_back(one);
  }
  for (int i = 0; i < 5; ++i) {
    Preset one = preset;
    one.group = static_cast<GroupMode>(i);
    there_and_back(one);
  }
  for (int i = 0; i < 2; ++i) {
    Preset one = preset;
    one.cut = i == 0;
    there_and_back(one);
    one = preset;
    one.score = static_cast<ScoreKind>(i);
    there_and_back(one);
    one = preset;
    one.abstract = *parse_abstract_spec("representatives:2/sentences:32");
    one.score = i == 0 ? ScoreKind::kPlain : ScoreKind::kLargest;
    there_and_back(one);
    one = preset;
    one.abstract = *parse_abstract_spec("mean/spans:64");
    one.scope = static_cast<ScopeKind>(i);
    there_and_back(one);
    one = preset;
    one.precision = *parse_abstract_spec("base:53/tokens");
    one.exact_above = 0.25f;
    one.refine = static_cast<RefineKind>(i);
    there_and_back(one);
    one = preset;
    one.abstract = *parse_abstract_spec("codes:4/tokens");
    one.score = ScoreKind::kPlain;
    one.runners_up_percent = 25;
    one.run_tokens = i == 0 ? 0 : 16;
    there_and_back(one);
  }
}

TEST(PresetText, LayersHaveAList) {
  Preset wanted = **find_preset("quest");
  wanted.name = "mine";
  wanted.layer_percent = {200, 50, 0};
  EXPECT_EQ(taken("base = \"quest\"\nlayer_percent = [200, 50, 0]\n"), wanted);
  EXPECT_EQ(taken(preset_toml(wanted)), wanted) << preset_toml(wanted);
  const std::string base = "base = \"quest\"\nlayer_percent = ";
  for (const char* wrong : {"50", "[0.5]", "[-1]", "[\"50\"]", "[[50]]", "[4294967296]", "\"50\""})
    expect_problem(base + wrong, "must be a list of whole numbers, 0 to 1000, as [200, 50]");
  std::string many = "[1";
  for (int i = 1; i < 256; ++i) many += ",1";
  EXPECT_EQ(taken(base + many + "]").layer_percent.size(), 256u);
  for (const std::string& wrong : {std::string("[]"), std::string("[1001]"), many + ",1]"})
    expect_problem(base + wrong, "layer_percent is a list of 1 to 256 numbers, 0 to 1000 each");
  for (const char* none : {"window", "full"})
    expect_problem("base = \"" + std::string(none) + "\"\nlayer_percent = [100]",
                   "choose nothing: layer_percent needs \"rows\", \"ratio\"");
}

TEST(PresetText, ABaseIsStartedFromAndPartsReplaceItsOwn) {
  Preset wanted = **find_preset("quest");
  wanted.name = "mine";
  wanted.abstract = *parse_abstract_spec("box/pages:32");
  wanted.residency_percent = 400;
  EXPECT_EQ(taken("base = \"quest\"\npartition = \"pages:32\"\nresidency_percent = 400\n"), wanted);
  EXPECT_EQ(taken("partition = \"pages:32\"\nbase = \"quest\"\nresidency_percent = 400\n"), wanted)
      << "the base comes first wherever it stands";
  EXPECT_EQ(taken("base = \"louiskv\"\ntrigger = \"every-step\"\n").level, 0.0f)
      << "the base's level goes with its trigger";
  EXPECT_TRUE(taken("base = \"quest\"\nabstract = \"none\"\nbudget = \"kept\"").abstract.none());
  EXPECT_EQ(taken("base = \"codes\"\nabstract = \"codes:8\"").abstract.text(), "codes:8/tokens");
  EXPECT_EQ(taken("base = \"pqcache\"\nabstract = \"own-codes:4\"").abstract.text(),
            "own-codes:4/tokens");
  EXPECT_TRUE(taken("base = \"progressive\"\nprecision = \"exact\"").precision.none());
  EXPECT_EQ(taken("base = \"quest\"\nprecision = \"base:85\"").exact_above, 0.01f);
  EXPECT_EQ(taken("base = \"codes\"\nprecision = \"low-rank\"").precision.text(),
            "low-rank:10/tokens");
  EXPECT_EQ(taken("base = \"progressive\"\nprecision = \"low-rank:16\"\nresidency_percent = 200")
                .exact_above,
            0.01f)
      << "the base's share goes with its precision";
  EXPECT_EQ(taken("base = \"quest\"\ntrigger = \"every-n\"\nlevel = 4").level, 4.0f);
}

TEST(PresetText, WhatIsUnknownIsAnsweredWithWhatThereIs) {
  expect_problem("budgte = \"rows\"",
                 "unknown key 'budgte'; a preset has base, partition, abstract");
  expect_problem("[part]\nbudget = \"rows\"", "unknown key 'part.budget'");
  expect_problem(
      "base = \"quest\"\nbudget = \"some\"",
      "budget = \"some\": choose one of all, kept, rows, ratio, mass, entropy, certified "
      "(line 2)");
  expect_problem("trigger = 4", "trigger: choose one of every-step, every-n, cosine");
  expect_problem("base = \"qest\"",
                 "base is the name of a built-in preset: codes codes-lookahead progressive");
  expect_problem("base = \"\"", "base is the name of a built-in preset");
  expect_problem("base = \"quest\"\nabstract = \"cube\"", "an abstract is box, mean, ball, rep");
  expect_problem("base = \"quest\"\npartition = \"page:16\"", "units are pages, tokens");
  expect_problem("base = \"quest\"\npartition = 16", "partition: must be tokens, or pages");
  expect_problem("base = \"quest\"\nabstract = \"box/pages:16\"",
                 "abstract = \"box/pages:16\": must");
  expect_problem("base = \"quest\"\nlevel = \"high\"", "level = \"high\": must be steps");
  expect_problem("base = \"quest\"\nresidency_percent = -1",
                 "residency_percent: must be 0 to 10000");
  expect_problem("base = \"quest\"\nresidency_percent = 99999",
                 "residency_percent is at most 10000");
  expect_problem("base = \"quest\"\ncut = 1", "cut: must be true or false");
  expect_problem("base = \"codes\"\nrun_tokens = 257", "run_tokens is at most 256");
  expect_problem("base = \"codes\"\nrunners_up_percent = 101", "runners_up_percent is at most 100");
  expect_problem("base = \"codes\"\nrunners_up_percent = \"many\"",
                 "runners_up_percent = \"many\": must be 0 to 100");
  expect_problem("base = \"quest\"\ndense_layers = 4000",
                 "dense_layers and flat_layers are at most 256");
  for (const char* wrong :
       {"base:4", "base:47", "base:44/tokens", "low-rank:0", "low-rank:33", "codes:4", "4"})
    expect_problem("base = \"codes\"\nprecision = \"" + std::string(wrong) + "\"",
                   "precision = \"" + std::string(wrong) + "\": must be exact, base with");
  expect_problem("base = \"progressive\"\nexact_above = \"much\"",
                 "exact_above = \"much\": must be 0 to 1");
  expect_problem("base = \"progressive\"\nrefine = \"later\"", "choose one of wait, behind");
  expect_problem("base = ", "line 1");
}

TEST(PresetText, WhatDoesNotGoTogetherIsRefused) {
  expect_problem("", "need an abstract to choose by");
  expect_problem("abstract = \"box\"", "an abstract needs a partition: tokens, or pages");
  expect_problem("partition = \"pages:16\"", "a partition needs an abstract: box");
  expect_problem("base = \"quest\"\nabstract = \"codes:4\"",
                 "codes, base and low-rank are of single tokens");
  expect_problem("base = \"quest\"\nrun_tokens = 16", "it needs partition \"tokens\"");
  expect_problem("base = \"codes\"\ngroup = \"max\"\nrun_tokens = 16", "group \"mean-softmax\"");
  expect_problem("base = \"progressive\"\nrun_tokens = 16", "do not travel");
  expect_problem("base = \"progressive\"\nrunners_up_percent = 10", "do not travel");
  expect_problem("base = \"window\"\nrunners_up_percent = 10", "needs an abstract to choose by");
  expect_problem("base = \"quest\"\nabstract = \"keys:4\"", "an abstract is box, mean, ball");
  expect_problem("base = \"quest\"\nabstract = \"representatives:17\"", "1 to 16");
  expect_problem("base = \"quest\"\npartition = \"pages:4\"\nabstract = \"representatives:5\"",
                 "no more representatives than tokens");
  expect_problem("base = \"mean\"\nscore = \"largest\"", "\"representatives:4\", for example");
  expect_problem("base = \"quest\"\nabstract = \"box:2\"", "levels of boxes are for search");
  expect_problem("base = \"quest\"\nbudget = \"kept\"", "choose nothing");
  expect_problem("base = \"quest\"\nbudget = \"ratio\"", "share is missing: above 0");
  expect_problem("base = \"codes\"\nabstract = \"base:44\"", "are a precision");
  expect_problem("base = \"window\"\nprecision = \"base:44\"", "is of chosen rows");
  expect_problem("base = \"progressive\"\nexact_above = 1.5", "0 to 1");
  expect_problem("base = \"codes\"\nexact_above = 0.5",
                 "exact_above and refine need a base rendition");
  expect_problem("base = \"codes\"\nrefine = \"behind\"", "need a base rendition");
  expect_problem("base = \"shadow\"\nexact_above = 0.5", "need a base rendition");
  expect_problem("base = \"shadow\"\nfetch = \"ahead\"", "go with fetch \"demand\"");
  expect_problem("base = \"shadow\"\nquery = \"block\"", "precision \"exact\"");
  expect_problem("base = \"codes\"\nabstract = \"low-rank:10\"", "are a precision");
  expect_problem("base = \"quest\"\nshare = 0.5",
                 "share needs budget \"ratio\", \"mass\", \"entropy\" or");
  expect_problem("base = \"quest\"\nlevel = 0.5", "level needs trigger");
  for (const char* part : {"trigger = \"cosine\"", "trigger = \"turn\"", "trigger = \"every-n\"",
                           "trigger = \"mass\"", "query = \"step-before\""})
    expect_problem(std::string("base = \"quest\"\n") + part, "level is missing: steps of");
  EXPECT_EQ(taken("base = \"louiskv\"\ntrigger = \"cosine\"\n").level, 0.7f);
  // What is a cosine in the base is not taken for a share or a number of steps.
  expect_problem("base = \"louiskv\"\ntrigger = \"mass\"", "level is missing: steps of");
  expect_problem("base = \"freekv\"\nquery = \"current\"\ntrigger = \"mass\"", "level is missing");
  EXPECT_EQ(taken("base = \"quest\"\ntrigger = \"cosine\"\nlevel = 0").level, 0.0f);
  expect_problem("base = \"quest\"\nbudget = \"mass\"\nshare = 0.5\ngroup = \"max\"",
                 "mean-softmax");
  expect_problem("base = \"leoam\"\nbudget = \"entropy\"\nshare = 0.5",
                 "need masses: group \"mean-softmax\"");
  expect_problem("base = \"quest\"\nbudget = \"entropy\"", "share is missing: above 0");
  expect_problem("base = \"quest\"\nbudget = \"mass\"\nshare = 0.5\ngroup = \"each\"",
                 "need masses: group \"mean-softmax\"");
  expect_problem("base = \"quest\"\ntrigger = \"mass\"\nlevel = 0.5\ngroup = \"each\"",
                 "group \"mean-softmax\"");
  expect_problem("base = \"quest\"\nscope = \"layer\"\ngroup = \"each\"", "its scope is \"head\"");
  expect_problem("base = \"quest\"\nbudget = \"certified\"", "share is missing: above 0");
  const std::string certified = "budget = \"certified\"\nshare = 0.9\n";
  expect_problem("base = \"quest\"\nlayer_percent = [100, 0]\n" + certified,
                 "layer_percent without 0");
  for (const char* other :
       {"base = \"mean\"", "base = \"codes\"", "base = \"leoam\"", "base = \"freekv\"",
        "base = \"quest\"\nquery = \"sentence\"", "base = \"quest\"\nscope = \"layer\"",
        "base = \"quest\"\ntrigger = \"boundary\"", "base = \"quest\"\nfetch = \"ahead\"",
        "base = \"quest\"\npartition = \"sentences:64\"\nscore = \"count\"",
        "base = \"quest\"\nprecision = \"base:44\""})
    expect_problem(certified + other, "budget \"certified\" needs bounds");
  expect_problem("base = \"quest\"\nscore = \"count\"", "units of unequal length");
  expect_problem("base = \"louiskv\"\nscope = \"layer\"",
                 "clusters and segments are of one KV head each");
  expect_problem("base = \"quest\"\nscope = \"layer\"\ntrigger = \"cosine-head\"\nlevel = 0.5",
                 "for all heads at once");
  expect_problem("base = \"leoam\"\nsearch = \"flat\"", "levels of boxes are for search");
  expect_problem("base = \"leoam\"\nquery = \"block\"", "its search is \"flat\"");
  expect_problem("base = \"progressive\"\nquery = \"block\"", "precision \"exact\"");
  expect_problem("base = \"quest\"\nflat_layers = 2", "flat_layers needs search \"tree\"");
  expect_problem("base = \"quest\"\nsearch = \"tree\"", "needs boxes with levels");
  expect_problem("base = \"louiskv\"\nlevel = nan", "a cosine is above -1");
  expect_problem("base = \"quest\"\ntrigger = \"every-n\"\nlevel = inf", "1 to 1000000 steps");
  expect_problem("base = \"quest\"\ntrigger = \"mass\"\nlevel = 1", "a share above 0 and below 1");
  expect_problem("base = \"quest\"\ntrigger = \"mass\"\nlevel = 0.5\ngroup = \"max\"",
                 "group \"mean-softmax\" and budget \"rows\", \"ratio\", \"mass\" or");
  expect_problem("base = \"window\"\ntrigger = \"mass\"\nlevel = 0.5", "what can be chosen");
  expect_problem("base = \"quest\"\nbudget = \"ratio\"\nshare = 1.5", "share is above 0");
}

}  // namespace
}  // namespace kvtier
