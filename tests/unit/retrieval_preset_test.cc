// The table of presets: found by name, valid, how many rows they take; and how wide a choice is.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "client/retrieval/choice_width.h"
#include "client/retrieval/preset.h"

namespace kvtier {
namespace {

TEST(Presets, AreFoundByName) {
  std::set<std::string_view> names;
  for (const Preset& preset : all_presets()) {
    EXPECT_EQ(*find_preset(preset.name), &preset);
    EXPECT_TRUE(names.insert(preset.name).second);
  }
  EXPECT_TRUE(names.contains("full") && names.contains("window"));
  EXPECT_EQ(*find_preset(""), &all_presets().front());
  const auto unknown = find_preset("Quest");
  EXPECT_EQ(unknown.error().code, Code::kNotFound);
  for (const Preset& preset : all_presets())
    EXPECT_NE(std::string(unknown.error().text).find(preset.name), std::string::npos)
        << "the error does not name " << preset.name;
}

TEST(Presets, AreValidAndNonsenseIsNot) {
  for (const Preset& preset : all_presets()) EXPECT_TRUE(preset.validate()) << preset.name;
  Preset preset = **find_preset("quest");
  preset.abstract = {};
  EXPECT_EQ(preset.validate().error().code, Code::kInvalid) << "a budget without an abstract";
  preset = **find_preset("quest");
  preset.budget = BudgetKind::kRatio;
  EXPECT_FALSE(preset.validate()) << "no share";
  preset.share = 0.2f;
  EXPECT_TRUE(preset.validate());
  preset.budget = BudgetKind::kMass;
  preset.group = GroupMode::kMax;
  EXPECT_FALSE(preset.validate()) << "a largest score is no mass";
  preset = **find_preset("quest");
  preset.group = GroupMode::kEach;
  EXPECT_TRUE(preset.validate());
  preset.scope = ScopeKind::kLayer;
  EXPECT_FALSE(preset.validate()) << "places of several heads do not add up";
  preset = **find_preset("quest");
  preset.trigger = TriggerKind::kEveryN;
  EXPECT_FALSE(preset.validate()) << "every 0 steps";
  preset = **find_preset("louiskv");
  preset.scope = ScopeKind::kLayer;
  EXPECT_FALSE(preset.validate()) << "clusters are of one head";
}

TEST(Presets, CacheRows) {
  const Preset& quest = **find_preset("quest");
  EXPECT_EQ(quest.cache_rows(1024, 80, 0), 2048u);
  EXPECT_EQ(quest.cache_rows(1024, 80, 4096), 4096u);
  EXPECT_EQ(quest.cache_rows(1024, 80, 10), 1104u) << "one selection must fit";
  EXPECT_EQ(quest.cache_rows(16, 80, 0), 96u);
  EXPECT_EQ((*find_preset("window"))->cache_rows(1024, 80, 0), 80u);
}

TEST(Presets, RowsOfALayer) {
  Preset preset = **find_preset("quest");
  EXPECT_EQ(preset.rows_in(7, 1024), 1024u);
  preset.layer_percent = {250, 0, 33};
  EXPECT_EQ(preset.rows_in(0, 1024), 2560u);
  EXPECT_EQ(preset.rows_in(1, 1024), 0u);
  EXPECT_EQ(preset.rows_in(2, 101), 33u);
  EXPECT_EQ(preset.rows_in(200, 101), 33u) << "the last one is of all others";
  EXPECT_EQ(preset.rows_in(0, kSequenceTokensMax), kSequenceTokensMax);
}

// ---- the width of a choice ----

TEST(ChoiceWidth, ALayerThatReadsFromDiskChoosesRunsAndSwitchesBackLaterAndLater) {
  ChoiceWidth width;
  EXPECT_EQ(width.tokens(), ChoiceWidth::kRunTokens) << "nothing is known yet";
  width.observe(false);
  EXPECT_EQ(width.tokens(), 1u);
  for (std::uint32_t wait = 2; wait <= 2 * ChoiceWidth::kCalmFetchesMax; wait *= 2) {
    width.observe(true);
    std::uint32_t calm = 0;
    for (; width.tokens() != 1; ++calm) width.observe(false);
    EXPECT_EQ(calm, std::min(wait, ChoiceWidth::kCalmFetchesMax));
  }
  width.observe(true);
  for (int i = 0; i < 1000; ++i) {
    width.observe(true);
    width.observe(false);
    EXPECT_EQ(width.tokens(), ChoiceWidth::kRunTokens) << "calm once is not calm for long";
  }
  // Each kCalmFetchesMax fetches of tokens halve the time.
  for (std::uint32_t i = 0; i < 3 * ChoiceWidth::kCalmFetchesMax; ++i) width.observe(false);
  width.observe(true);
  std::uint32_t calm = 0;
  for (; width.tokens() != 1; ++calm) width.observe(false);
  EXPECT_EQ(calm, 2 * ChoiceWidth::kCalmFetchesMax / 4);
  EXPECT_TRUE(ChoiceWidth::much_from_disk(126, 1000));
  EXPECT_FALSE(ChoiceWidth::much_from_disk(125, 1000));
  EXPECT_FALSE(ChoiceWidth::much_from_disk(0, 0));
}

}  // namespace
}  // namespace kvtier
