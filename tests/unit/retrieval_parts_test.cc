// Parts of presets one by one: units of uneven length, clusters, codes, budgets, scopes.
#include <gtest/gtest.h>

#include <cmath>

#include "client/retrieval/selector.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint32_t kDim = 8;

// One segment whose unit u has the mean key `means[u]` along dimension 0, and one query along it.
struct Line {
  Line(std::vector<float> means, std::vector<std::uint16_t> starts_,
       std::vector<std::uint16_t> members_ = {})
      : starts(std::move(starts_)), members(std::move(members_)) {
    for (const float mean : means) {
      halves.push_back(f32_to_f16(mean));
      halves.resize(halves.size() + kDim - 1, 0);
    }
    segment.visible_tokens = starts.back();
    segment.units = static_cast<std::uint32_t>(means.size());
    segment.data = reinterpret_cast<const std::byte*>(halves.data());
    segment.starts = starts.data();
    segment.members = members.empty() ? nullptr : members.data();
  }
  SelectInput input(std::uint64_t budget) {
    SelectInput out;
    out.segments = {&segment, 1};
    out.queries = query.data();
    out.query_stride = kDim;
    out.query_count = 1;
    out.dim = kDim;
    out.budget_rows = budget;
    return out;
  }
  std::vector<std::uint16_t> starts, members, halves;
  std::vector<float> query = {1, 0, 0, 0, 0, 0, 0, 0};
  SegmentExtent segment;
};

std::vector<std::uint32_t> tokens_of(const Selection& selection) {
  return {selection.tokens.begin(), selection.tokens.end()};
}

Preset preset_of(const char* abstract) {
  Preset preset;
  preset.name = "test";
  preset.abstract = *parse_abstract_spec(abstract);
  return preset;
}

const KernelTable* kernels() { return *select_kernels("scalar"); }

TEST(Units, OfUnevenLengthAreTakenWholeWhileTheyFit) {
  const Preset preset = preset_of("mean/sentences:128");
  Selector selector(kernels(), &preset);
  Line line({1, 3, 2}, {0, 4, 9, 12});
  EXPECT_EQ(tokens_of(*selector.select(line.input(5))),
            (std::vector<std::uint32_t>{4, 5, 6, 7, 8}));
  EXPECT_EQ(tokens_of(*selector.select(line.input(8))),
            (std::vector<std::uint32_t>{4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_TRUE(selector.select(line.input(4))->tokens.empty()) << "the best does not fit";
  // A fork sees a part of the segment: the last sentence is cut off.
  line.segment.visible_tokens = 10;
  EXPECT_EQ(tokens_of(*selector.select(line.input(8))),
            (std::vector<std::uint32_t>{4, 5, 6, 7, 8, 9}));
}

TEST(Units, ClustersAreScattered) {
  const Preset preset = preset_of("mean/clusters:2");
  Selector selector(kernels(), &preset);
  Line line({1, 3, 2}, {0, 2, 4, 6}, {0, 5, 1, 3, 2, 4});
  EXPECT_EQ(tokens_of(*selector.select(line.input(2))), (std::vector<std::uint32_t>{1, 3}));
  EXPECT_EQ(tokens_of(*selector.select(line.input(4))), (std::vector<std::uint32_t>{1, 2, 3, 4}));
  line.segment.visible_tokens = 3;  // members beyond what is visible are not there
  EXPECT_EQ(tokens_of(*selector.select(line.input(2))), (std::vector<std::uint32_t>{1, 2}));
  SelectInput input = line.input(1);
  const TokenRange kept[] = {{1, 2}};
  input.kept = kept;
  EXPECT_EQ(tokens_of(*selector.select(input)), (std::vector<std::uint32_t>{1, 2}))
      << "the kept token of the best cluster costs nothing, its other one is not visible";
}

// Members lie mapped, where they may be overwritten between two looks.
TEST(Units, AClusterHasNoMoreRowsThanItCosts) {
  static std::uint16_t* changes;
  static const KernelTable* real;
  real = kernels();
  KernelTable table = *real;
  table.top_k = [](const TopKArgs& args, KernelStream stream) {
    *changes = 4;
    return real->top_k(args, stream);
  };
  const Preset preset = preset_of("mean/clusters:2");
  Selector selector(&table, &preset);
  Line line({1, 3, 2}, {0, 2, 4, 6}, {0, 5, 1, 3, 2, 4});
  changes = line.members.data() + 2;
  SelectInput input = line.input(1);
  const TokenRange kept[] = {{1, 2}};
  input.kept = kept;
  EXPECT_EQ(tokens_of(*selector.select(input)), (std::vector<std::uint32_t>{1, 4}));
}

TEST(Units, ACountedCentroidStandsForItsTokens) {
  Preset preset = preset_of("mean/clusters:4");
  Line line({1.0f, 1.5f}, {0, 7, 8}, {0, 1, 2, 3, 4, 5, 6, 7});
  Selector plain(kernels(), &preset);
  EXPECT_EQ(tokens_of(*plain.select(line.input(1))), (std::vector<std::uint32_t>{7}));
  preset.score = ScoreKind::kCount;  // log 7 > 0.5
  Selector counted(kernels(), &preset);
  EXPECT_TRUE(counted.select(line.input(1))->tokens.empty());
  EXPECT_EQ(counted.select(line.input(7))->tokens.size(), 7u);
}

TEST(Units, RepresentativesScoreTheirMeanOrTheLargest) {
  Preset preset = preset_of("representatives:2/sentences:128");
  // Two keys per unit: the first is better on average, the second has the best single key.
  Line line({2, 2, 0, 3.5f, 1, 1}, {0, 4, 8, 12});
  line.segment.units = 3;
  Selector mean(kernels(), &preset);
  auto selection = mean.select(line.input(4));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(selection->abstract_bytes, 3u * 2 * kDim * 2);
  EXPECT_NEAR(selection->mass, std::exp(2.0) / (std::exp(2.0) + std::exp(1.75) + std::exp(1.0)),
              1e-3);
  preset.score = ScoreKind::kLargest;
  Selector largest(kernels(), &preset);
  EXPECT_EQ(tokens_of(*largest.select(line.input(4))), (std::vector<std::uint32_t>{4, 5, 6, 7}));
}

// Codes of one sub-quantiser pair: dimension 0 has the entries 0 to 15, all else is 0.
struct Coded {
  explicit Coded(const std::vector<std::uint8_t>& values)
      : entries(16 * kDim, 0.0f), codes(code_bytes(values.size(), 2), 0) {
    for (std::size_t j = 0; j < 16; ++j) entries[j * 4] = static_cast<float>(j);
    for (std::size_t t = 0; t < values.size(); ++t) {
      const CodePlace place = code_place(t, 2, 0);
      codes[place.byte] = static_cast<std::uint8_t>(codes[place.byte] | values[t] << place.shift);
    }
    for (std::size_t d = 0; d < kDim; ++d) identity[d * kDim + d] = 1.0f;
    head.query_map = identity.data();
    CodeBook& book = head.book;
    book.entries = reinterpret_cast<const std::byte*>(entries.data());
    book.dims = dims.data();
    book.first = first.data();
    book.subspaces = 2;
    book.dim = kDim;
    segment.visible_tokens = segment.units = static_cast<std::uint32_t>(values.size());
    segment.data = reinterpret_cast<const std::byte*>(codes.data());
  }
  SelectInput input(std::uint64_t budget) {
    SelectInput out;
    out.segments = {&segment, 1};
    out.queries = query.data();
    out.query_stride = kDim;
    out.query_count = 1;
    out.dim = kDim;
    out.codebook = &head;
    out.budget_rows = budget;
    return out;
  }
  std::vector<float> entries;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> dims = {0, 1, 2, 3, 4, 5, 6, 7}, first = {0, 4, 8};
  std::vector<float> query = {1, 0, 0, 0, 0, 0, 0, 0};
  std::vector<float> identity = std::vector<float>(kDim * kDim, 0.0f);
  HeadCodebook head;
  SegmentExtent segment;
};

TEST(Codes, SingleTokensAreChosen) {
  const Preset preset = preset_of("codes:4/tokens");
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(70, 1);
  values[3] = 15;
  values[40] = 14;
  values[69] = 13;
  Coded coded(values);
  auto selection = selector.select(coded.input(2));
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{3, 40}));
  EXPECT_GT(selection->mass, 0.9f);
  SelectInput input = coded.input(2);
  const TokenRange kept[] = {{0, 4}, {60, 70}};
  input.kept = kept;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->tokens.size(), 16u);
  EXPECT_EQ(selection->kept_rows, 14u);
  EXPECT_TRUE(std::binary_search(selection->tokens.begin(), selection->tokens.end(), 40u));
  // Without codebook or codes everything is wanted, oldest first.
  input = coded.input(3);
  input.codebook = nullptr;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2}));
  EXPECT_EQ(selection->units_missing, 70u);
}

// From a disk neighbours come together: a grain counts with the sum of its tokens. The last one is
// cut, so that a budget is as large from the disk as from memory.
TEST(Codes, GrainsAreTakenTogether) {
  const Preset preset = preset_of("codes:4/tokens");
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(70, 1);
  values[3] = 9;
  for (std::size_t t = 40; t < 44; ++t) values[t] = 10;
  Coded coded(values);
  SelectInput input = coded.input(8);
  input.grain_tokens = 4;
  auto selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2, 3, 40, 41, 42, 43}));
  const TokenRange kept[] = {{0, 2}, {68, 70}};
  input.kept = kept;
  input.budget_rows = 6;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection),
            (std::vector<std::uint32_t>{0, 1, 2, 3, 40, 41, 42, 43, 68, 69}));
  EXPECT_EQ(selection->kept_rows, 4u);
  input.budget_rows = 5;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2, 40, 41, 42, 43, 68, 69}));
}

// Logits do not add up: a grain has that of its best token.
TEST(Codes, GrainsOfLogitsCountAsTheirBest) {
  Preset preset = preset_of("codes:4/tokens");
  std::vector<std::uint8_t> values(70, 0);
  values[20] = 15;
  values[21] = values[22] = values[23] = 1;
  for (std::size_t t = 40; t < 44; ++t) values[t] = 6;
  Coded coded(values);
  SelectInput input = coded.input(4);
  input.grain_tokens = 4;
  for (const GroupMode mode : {GroupMode::kMax, GroupMode::kMeanScore}) {
    preset.group = mode;
    Selector selector(kernels(), &preset);
    EXPECT_EQ(tokens_of(*selector.select(input)), (std::vector<std::uint32_t>{20, 21, 22, 23}));
  }
}

// By places: kept tokens have none, and a grain that of its best token.
TEST(Codes, EachHeadsBestTokensAndGrains) {
  Preset preset = preset_of("codes:4/tokens");
  preset.group = GroupMode::kEach;
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(70, 1);
  values[3] = values[33] = 9;
  for (std::size_t t = 40; t < 44; ++t) values[t] = 10;
  Coded coded(values);
  SelectInput input = coded.input(6);
  const TokenRange kept[] = {{0, 4}, {41, 44}};
  input.kept = kept;
  auto selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection),
            (std::vector<std::uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 33, 40, 41, 42, 43}));
  input = coded.input(8);
  input.grain_tokens = 4;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2, 3, 40, 41, 42, 43}));
  values[3] = 1;
  Coded other(values);
  input = other.input(8);
  input.grain_tokens = 4;
  selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{32, 33, 34, 35, 40, 41, 42, 43}));
}

// A segment of own codes in one sub-space: entry j is j, or 63 - j, along dimension 0.
struct OwnCoded {
  OwnCoded(const std::vector<std::uint8_t>& values, std::uint64_t first_token, bool turned)
      : data(static_cast<std::size_t>(kLayout.size_bytes(values.size()))) {
    auto* entries = reinterpret_cast<std::uint16_t*>(data.data());
    auto* codes = reinterpret_cast<std::uint8_t*>(data.data() + kLayout.codes_offset());
    for (std::uint32_t j = 0; j < 64; ++j)
      entries[j * kDim] = f32_to_f16(static_cast<float>(turned ? 63 - j : j));
    for (std::size_t t = 0; t < values.size(); ++t)
      put_own_code(codes, t, 1, 0, turned ? 63u - values[t] : values[t]);
    extent.first_token = first_token;
    extent.visible_tokens = extent.units = static_cast<std::uint32_t>(values.size());
    extent.data = data.data();
  }
  static constexpr OwnCodeLayout kLayout = OwnCodeLayout::of(1, kDim);
  std::vector<std::byte> data;
  SegmentExtent extent;
};

TEST(OwnCodes, EverySegmentIsScoredByItsOwnEntries) {
  const Preset preset = preset_of("own-codes:2/tokens");  // one sub-space: a key has 8 dimensions
  std::vector<std::uint8_t> one(70, 20), two(40, 20);
  one[3] = 60;
  one[68] = 61;
  two[5] = 62;
  two[33] = 59;
  OwnCoded first(one, 0, false), second(two, 70, true);
  std::vector<SegmentExtent> segments = {first.extent, second.extent};
  const std::vector<float> query = {0.5f, 0, 0, 0, 0, 0, 0, 0};
  SelectInput input;
  input.segments = segments;
  input.queries = query.data();
  input.query_stride = input.dim = kDim;
  input.query_count = 1;
  input.budget_rows = 3;
  for (const KernelTable* table : all_kernels()) {
    segments = {first.extent, second.extent};
    Selector selector(table, &preset);
    auto selection = selector.select(input);
    ASSERT_TRUE(selection);
    EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{3, 68, 75}));
    EXPECT_EQ(selection->units_scored, 110u);
    EXPECT_EQ(selection->abstract_bytes,
              OwnCoded::kLayout.size_bytes(70) + OwnCoded::kLayout.size_bytes(40));
    EXPECT_GT(selection->mass, 0.89f);
    // A fork sees a part of the first segment, and its own last one.
    segments[0].visible_tokens = 65;
    segments[1].first_token = 65;
    selection = selector.select(input);
    ASSERT_TRUE(selection);
    EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{3, 70, 98}));
    // What has no codes is fetched first, oldest first.
    segments[0].data = nullptr;
    selection = selector.select(input);
    ASSERT_TRUE(selection);
    EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 2}));
    EXPECT_EQ(selection->units_missing, 65u);
  }
}

TEST(Budgets, RatioAndMass) {
  Preset preset = preset_of("codes:4/tokens");
  std::vector<std::uint8_t> values(64, 0);
  for (std::size_t t = 0; t < 8; ++t) values[t * 8] = 15;  // eight tokens hold nearly all
  Coded coded(values);
  preset.budget = BudgetKind::kRatio;
  preset.share = 0.25f;
  Selector ratio(kernels(), &preset);
  EXPECT_EQ(ratio.select(coded.input(1000))->tokens.size(), 16u);
  EXPECT_EQ(ratio.select(coded.input(10))->tokens.size(), 10u) << "the view's budget is the limit";
  SelectInput half = coded.input(1000);
  half.ratio_percent = 50;
  EXPECT_EQ(ratio.select(half)->tokens.size(), 8u);
  preset.budget = BudgetKind::kMass;
  preset.share = 0.7f;
  Selector mass(kernels(), &preset);
  const auto selection = mass.select(coded.input(1000));
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->tokens.size(), 6u) << "six of eight hold 0.75";
  EXPECT_EQ(mass.select(coded.input(4))->tokens.size(), 4u);
}

// What is kept has no mass that could be chosen: in a run neither.
TEST(Budgets, KeptTokensOfARunDoNotCount) {
  Preset preset = preset_of("codes:4/tokens");
  preset.budget = BudgetKind::kMass;
  preset.share = 0.9f;
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(64, 0);
  values[0] = 10;
  for (std::size_t t = 40; t < 44; ++t) values[t] = 8;
  Coded coded(values);
  coded.query[0] = std::log(2.0f);  // 1,024, and four times 256
  SelectInput input = coded.input(1000);
  const TokenRange kept[] = {{0, 2}};
  input.kept = kept;
  for (const std::uint32_t grain : {1u, 4u}) {
    input.grain_tokens = grain;
    const auto selection = selector.select(input);
    ASSERT_TRUE(selection);
    EXPECT_EQ(tokens_of(*selection), (std::vector<std::uint32_t>{0, 1, 40, 41, 42, 43})) << grain;
    EXPECT_NEAR(selection->mass, 1024.0 / (1024 + 58), 0.01) << grain;
  }
}

// Eight equal tokens hold nearly all: their entropy is that of eight rows.
TEST(Budgets, EntropyGivesAFlatHeadMoreThanAPeakedOne) {
  Preset preset = preset_of("codes:4/tokens");
  preset.budget = BudgetKind::kEntropy;
  preset.share = 0.05f;
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(64, 0);
  for (std::size_t t = 0; t < 8; ++t) values[t * 8] = 15;
  Coded peaked(values);
  EXPECT_EQ(selector.select(peaked.input(40))->tokens.size(), 8u);
  EXPECT_EQ(selector.select(peaked.input(5))->tokens.size(), 5u) << "at most the view's budget";
  preset.share = 0.5f;
  EXPECT_EQ(selector.select(peaked.input(40))->tokens.size(), 20u) << "a share of it the floor";
  preset.share = 0.05f;
  Coded flat(std::vector<std::uint8_t>(64, 3));
  EXPECT_EQ(selector.select(flat.input(40))->tokens.size(), 40u);
  SelectInput input = peaked.input(40);
  const TokenRange kept[] = {{0, 2}, {56, 64}};  // two of the eight
  input.kept = kept;
  EXPECT_EQ(selector.select(input)->tokens.size(), 6u + 10u) << "what is kept does not count";
  input = peaked.input(40);
  input.codebook = nullptr;
  EXPECT_EQ(selector.select(input)->tokens.size(), 40u) << "nobody knows what they are worth";
}

// The mass of a unit lies on its rows alike. Units are taken whole until the rows are reached.
TEST(Budgets, EntropyOfUnitsIsThatOfTheirRows) {
  Preset preset = preset_of("mean/sentences:128");
  preset.budget = BudgetKind::kEntropy;
  preset.share = 0.01f;
  Selector selector(kernels(), &preset);
  Line line({100, 100 + std::log(2.0f), 0, 0}, {0, 4, 12, 40, 90});
  const auto rows = [&](std::uint64_t budget) {
    return selector.select(line.input(budget))->tokens.size();
  };
  EXPECT_EQ(rows(50), 12u) << "4 and 8 rows with a mass of 1/12 each";
  EXPECT_EQ(rows(11), 8u) << "the second does not fit";
  line = Line({100, 80, 0, 0}, {0, 4, 12, 40, 90});
  EXPECT_EQ(rows(50), 4u);
  preset.share = 0.2f;
  EXPECT_EQ(rows(50), 12u) << "a floor of 10 rows, in whole units";
  preset.cut = true;
  EXPECT_EQ(rows(50), 10u);
}

// ---- an earlier selection, weighed anew ----

float mass_of(Selector* selector, const SelectInput& input, std::vector<std::uint32_t> tokens) {
  const auto scores = selector->score(input);
  EXPECT_TRUE(scores);
  const auto now = selector->weigh(input, *scores, tokens);
  EXPECT_TRUE(now);
  EXPECT_EQ(now->tokens.data(), tokens.data());
  return now->mass;
}

TEST(Weigh, OfUnitsByTheShareOfTheirRows) {
  const Preset preset = preset_of("mean/sentences:128");
  Selector selector(kernels(), &preset);
  Line line({std::log(4.0f), 0, 0}, {0, 4, 8, 12});  // masses 4, 1, 1 of 6
  EXPECT_NEAR(mass_of(&selector, line.input(4), {0, 1, 2, 3}), 4.0 / 6, 1e-3);
  EXPECT_NEAR(mass_of(&selector, line.input(4), {0, 4, 5, 6, 7}), 2.0 / 6, 1e-3);
  EXPECT_NEAR(mass_of(&selector, line.input(4), {}), 0.0, 1e-6);
  SelectInput input = line.input(4);
  const TokenRange kept[] = {{0, 2}, {8, 12}};  // half of the first, all of the last
  input.kept = kept;
  EXPECT_NEAR(mass_of(&selector, input, {0, 1, 8, 9, 10, 11}), 0.0, 1e-6) << "kept ones count not";
  EXPECT_NEAR(mass_of(&selector, input, {0, 1, 3, 8, 9, 10, 11}), 2.0 / 5, 1e-3);
  const auto chosen = selector.select(input);
  ASSERT_TRUE(chosen);
  EXPECT_NEAR(mass_of(&selector, input, tokens_of(*chosen)), chosen->mass, 1e-6);
}

TEST(Weigh, OfClustersByTheirMembers) {
  const Preset preset = preset_of("mean/clusters:2");
  Selector selector(kernels(), &preset);
  Line line({std::log(2.0f), 0, std::log(3.0f)}, {0, 2, 4, 6}, {0, 5, 1, 3, 2, 4});
  EXPECT_NEAR(mass_of(&selector, line.input(2), {2, 4}), 3.0 / 6, 1e-3);
  EXPECT_NEAR(mass_of(&selector, line.input(2), {0, 2}), 2.5 / 6, 1e-3);
}

TEST(Weigh, OfSingleTokens) {
  const Preset preset = preset_of("codes:4/tokens");
  Selector selector(kernels(), &preset);
  std::vector<std::uint8_t> values(64, 0);
  for (std::size_t t = 0; t < 8; ++t) values[t * 8] = 15;
  Coded coded(values);
  EXPECT_NEAR(mass_of(&selector, coded.input(4), {0, 1, 16, 24}), 3.0 / 8, 1e-3);
  SelectInput input = coded.input(4);
  const TokenRange kept[] = {{0, 2}, {50, 64}};
  input.kept = kept;
  EXPECT_NEAR(mass_of(&selector, input, {0, 1, 16, 24, 50}), 2.0 / 6, 1e-3);
  input.codebook = nullptr;
  EXPECT_EQ(mass_of(&selector, input, {0, 1}), 1.0f) << "nobody knows better";
  const std::uint32_t beyond[] = {64};
  const auto scores = selector.score(input);
  ASSERT_TRUE(scores);
  EXPECT_EQ(selector.weigh(input, *scores, beyond).error().code, Code::kInvalid);
}

TEST(Scopes, ALayersScoresAreAddedUp) {
  const Preset preset = preset_of("mean/pages:2");
  Selector selector(kernels(), &preset);
  Line one({3, 0, 2}, {0, 2, 4, 6}), two({0, 3, 2.5f}, {0, 2, 4, 6});
  std::vector<float> sum(3, 0.0f);
  for (Line* line : {&one, &two}) {
    line->segment.starts = nullptr;
    const auto scores = selector.score(line->input(2));
    ASSERT_TRUE(scores);
    for (std::size_t i = 0; i < 3; ++i) sum[i] += (*scores)[i];
  }
  // Each head alone prefers another page; together the third is not the best of either.
  EXPECT_EQ(tokens_of(*selector.choose(one.input(2), sum)).size(), 2u);
  std::vector<float> wrong(2, 0.0f);
  EXPECT_EQ(selector.choose(one.input(2), wrong).error().code, Code::kInvalid);
}

}  // namespace
}  // namespace kvtier
