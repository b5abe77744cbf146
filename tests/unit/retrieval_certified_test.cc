// Budget "certified": over real keys, what it takes is the fewest that its bounds allow, and what
// it promises of the exact mass holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "client/retrieval/selector.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint32_t kDim = 8, kUnit = 8, kGroup = 3;
constexpr float kScale = 0.5f;

Preset preset_of(AbstractKind kind, float share, bool cut = false) {
  Preset preset;
  preset.name = "test";
  preset.abstract = {PartitionKind::kPages, kind, kUnit};
  preset.budget = BudgetKind::kCertified;
  preset.share = share;
  preset.cut = cut;
  return preset;
}

// Pages of keys that lie `spread` around a middle of their own, abstracts made of them, and
// queries.
struct Pages {
  Pages(const KernelTable* kernels, AbstractKind kind_, std::uint32_t units, float spread,
        std::uint64_t seed)
      : kind(kind_) {
    Random random(seed);
    std::vector<float> middle(kDim);
    for (std::uint32_t t = 0; t < units * kUnit; ++t)
      for (std::uint32_t d = 0; d < kDim; ++d) {
        if (t % kUnit == 0) middle[d] = 2.0f * random_float(&random);
        keys.push_back(middle[d] + spread * random_float(&random));
      }
    queries = random_floats(&random, std::size_t{kGroup} * kDim);
    halves.resize(std::size_t{units} * abstract_elements(kind, kDim));
    const std::uint64_t tokens = units * kUnit;
    const std::uint64_t page = reinterpret_cast<std::uintptr_t>(keys.data());
    BuildAbstractArgs args;
    args.rows.pages = &page;
    args.rows.page_tokens = tokens;
    args.rows.k_stride = args.rows.v_stride = kDim * sizeof(float);
    args.rows.dtype = Dtype::kF32;
    args.token_count = &tokens;
    args.unit_tokens = kUnit;
    args.dim = kDim;
    args.kind = kind;
    args.out = halves.data();
    EXPECT_TRUE(kernels->build_abstract(args, nullptr));
    segment.visible_tokens = static_cast<std::uint32_t>(tokens);
    segment.units = units;
    segment.data = reinterpret_cast<const std::byte*>(halves.data());
  }
  SelectInput input(std::uint64_t budget) const {
    SelectInput out;
    out.segments = {&segment, 1};
    out.queries = queries.data();
    out.query_stride = kDim;
    out.query_count = kGroup;
    out.dim = kDim;
    out.scale = kScale;
    out.budget_rows = budget;
    return out;
  }
  std::uint32_t units() const { return segment.units; }
  double half(std::uint32_t unit, std::uint32_t element) const {
    return static_cast<double>(f16_to_f32(halves[unit * abstract_elements(kind, kDim) + element]));
  }
  double query(std::uint32_t i, std::uint32_t d) const {
    return static_cast<double>(queries[i * kDim + d]);
  }
  // exp(scale * q . k), exactly.
  double mass(std::uint32_t i, std::uint64_t token) const {
    double sum = 0.0;
    for (std::uint32_t d = 0; d < kDim; ++d)
      sum += query(i, d) * static_cast<double>(keys[token * kDim + d]);
    return std::exp(static_cast<double>(kScale) * sum);
  }
  // What a row of the unit has at most, and the mean row at least: the mean is rounded.
  std::pair<double, double> bounds(std::uint32_t i, std::uint32_t unit, bool whole) const {
    double most = 0.0, least = 0.0, mean = 0.0, squares = 0.0, rounded = 0.0;
    for (std::uint32_t d = 0; d < kDim; ++d) {
      const double q = query(i, d);
      squares += q * q;
      mean += q * half(unit, d);
      rounded += std::abs(q * half(unit, d)) * 0x1p-11;
      if (kind != AbstractKind::kBox) continue;
      most += std::max(q * half(unit, d), q * half(unit, kDim + d));
      least += std::min(q * half(unit, d), q * half(unit, kDim + d));
    }
    if (kind == AbstractKind::kBall) {
      const double reach = std::sqrt(squares) * half(unit, kDim);
      most = mean + reach;
      least = mean - (whole ? std::min(reach, rounded) : reach);
    }
    return {std::exp(static_cast<double>(kScale) * most),
            std::exp(static_cast<double>(kScale) * least)};
  }

  AbstractKind kind;
  std::vector<float> keys, queries;
  std::vector<std::uint16_t> halves;
  SegmentExtent segment;
};

// By definition: the largest share of any query that may be missed when `chosen` units are taken.
double missed_share(const Pages& pages, const std::vector<bool>& chosen,
                    const std::vector<std::uint32_t>& free, const std::vector<float>& held) {
  double largest = 0.0;
  for (std::uint32_t i = 0; i < kGroup; ++i) {
    double left = 0.0, taken = std::exp(static_cast<double>(held[i]));
    for (std::uint32_t u = 0; u < pages.units(); ++u) {
      const auto [most, least] = pages.bounds(i, u, free[u] == kUnit);
      (chosen[u] ? taken : left) += free[u] * (chosen[u] ? least : most);
    }
    largest = std::max(largest, left / (left + taken));
  }
  return largest;
}

class Certified : public ::testing::TestWithParam<const KernelTable*> {};

// Sinks and a window that cut units in two, and a tail of some mass.
TEST_P(Certified, TakesTheFewestThatItsBoundsAllow) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  int stopped = 0;
  for (const AbstractKind kind : {AbstractKind::kBox, AbstractKind::kBall})
    for (const float share : {0.5f, 0.9f, 0.99f})
      for (const float spread : {0.0f, 0.02f, 0.3f})
        for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
          SCOPED_TRACE(std::string(abstract_kind_name(kind)) + ", share " + std::to_string(share) +
                       ", spread " + std::to_string(spread) + ", seed " + std::to_string(seed));
          const Pages pages(GetParam(), kind, 40, spread, seed);
          const std::uint64_t end = pages.segment.visible_tokens;
          const TokenRange kept[] = {{0, 12}, {end - 11, end}};
          std::vector<float> held(kGroup, kNever);
          std::vector<std::uint32_t> free(pages.units(), kUnit);
          free[0] = 0, free[1] = 4, free[38] = 5, free[39] = 0;
          for (std::uint32_t i = 0; i < kGroup; ++i) {
            double sum = seed == 1 ? 20.0 : 0.0;
            for (const TokenRange& range : kept)
              for (std::uint64_t t = range.first; t < range.last; ++t) sum += pages.mass(i, t);
            held[i] = static_cast<float>(std::log(sum));
          }
          const Preset preset = preset_of(kind, share);
          Selector selector(GetParam(), &preset);
          SelectInput input = pages.input(end);
          input.kept = kept;
          input.held = held.data();
          const auto scores = selector.scores_of(input);
          ASSERT_TRUE(scores);
          std::vector<std::uint32_t> order(pages.units());
          std::iota(order.begin(), order.end(), 0u);
          const std::vector<float> score(scores->begin(), scores->end());
          std::stable_sort(order.begin(), order.end(),
                           [&](std::uint32_t a, std::uint32_t b) { return score[a] > score[b]; });
          std::erase_if(order, [&](std::uint32_t u) { return free[u] == 0; });
          const auto selection = selector.choose(input, *scores);
          ASSERT_TRUE(selection);

          std::vector<bool> chosen(pages.units());
          for (const std::uint32_t token : selection->tokens) chosen[token / kUnit] = true;
          chosen[0] = chosen[39] = false;  // all of it is kept
          std::vector<double> exact(kGroup);
          std::uint64_t rows = 12 + 11;
          std::vector<bool> best(pages.units());
          double before = 1.0;
          std::size_t count = 0;
          const double allowed = 1.0 - static_cast<double>(share);
          for (; count < order.size() && missed_share(pages, best, free, held) > allowed; ++count) {
            before = missed_share(pages, best, free, held);
            best[order[count]] = true;
            rows += free[order[count]];
          }
          // Both are kept in part, so that their tokens say nothing.
          for (const std::uint32_t u : {1u, 38u}) chosen[u] = best[u];
          ASSERT_GT(before, allowed);
          EXPECT_EQ(chosen, best);
          EXPECT_EQ(selection->tokens.size(), rows);
          stopped += count < order.size() ? 1 : 0;
          for (std::uint32_t i = 0; i < kGroup; ++i) {
            double all = seed == 1 ? 20.0 : 0.0, seen = all;
            for (std::uint64_t t = 0; t < end; ++t) {
              all += pages.mass(i, t);
              const bool taken =
                  std::binary_search(selection->tokens.begin(), selection->tokens.end(), t);
              seen += taken ? pages.mass(i, t) : 0.0;
            }
            EXPECT_GE(seen / all, static_cast<double>(share) - 1e-5) << "query " << i;
          }
        }
  EXPECT_GT(stopped, 20) << "bounds are tight here: most need not take everything";
}

TEST_P(Certified, EqualKeysNeedTheirShareOfTheRows) {
  Pages pages(GetParam(), AbstractKind::kBox, 40, 0.0f, 1);
  std::fill(pages.halves.begin(), pages.halves.end(), f32_to_f16(0.5f));
  const auto rows = [&](float share, std::uint64_t budget, bool cut = false) {
    const Preset preset = preset_of(AbstractKind::kBox, share, cut);
    Selector selector(GetParam(), &preset);
    return selector.select(pages.input(budget))->tokens.size();
  };
  EXPECT_EQ(rows(0.89f, 1000), 36u * kUnit);
  EXPECT_EQ(rows(0.11f, 1000), 5u * kUnit);
  EXPECT_EQ(rows(1.0f, 1000), 40u * kUnit) << "nothing may be missed";
  EXPECT_EQ(rows(0.89f, 100), 96u) << "the view's budget is the limit";
  EXPECT_EQ(rows(0.89f, 100, true), 100u);
  EXPECT_EQ(rows(0.11f, 100, true), 5u * kUnit) << "what is certain is not cut";
}

TEST_P(Certified, WhatIsHeldLeavesLessToTake) {
  Pages pages(GetParam(), AbstractKind::kBox, 40, 0.0f, 1);
  std::fill(pages.halves.begin(), pages.halves.end(), std::uint16_t{0});  // a mass of 1 per row
  const Preset preset = preset_of(AbstractKind::kBox, 0.89f);
  Selector selector(GetParam(), &preset);
  SelectInput input = pages.input(1000);
  std::vector<float> held(kGroup, std::log(320.0f));
  input.held = held.data();
  EXPECT_EQ(selector.select(input)->tokens.size(), 32u * kUnit) << "70.4 of 640 may be missed";
  held.assign(kGroup, std::log(100000.0f));
  EXPECT_TRUE(selector.select(input)->tokens.empty());
  held[1] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(selector.select(input)->tokens.size(), 36u * kUnit) << "every query must be content";
}

// Two units of equal keys: the mean of the first is written larger than it is.
TEST_P(Certified, ARoundedMeanPromisesNoMoreThanTheKeysHave) {
  constexpr std::uint32_t kWide = 128;
  constexpr float kKeys[] = {8.004f, 8.0f}, kWideScale = 0.088f;
  std::vector<float> keys;
  for (const float key : kKeys) keys.insert(keys.end(), std::size_t{kUnit} * kWide, key);
  const std::vector<float> query(kWide, 5.0f);
  std::vector<std::uint16_t> halves(2 * abstract_elements(AbstractKind::kBall, kWide));
  const std::uint64_t tokens = 2 * kUnit;
  const std::uint64_t page = reinterpret_cast<std::uintptr_t>(keys.data());
  BuildAbstractArgs args;
  args.rows.pages = &page;
  args.rows.page_tokens = tokens;
  args.rows.k_stride = args.rows.v_stride = kWide * sizeof(float);
  args.rows.dtype = Dtype::kF32;
  args.token_count = &tokens;
  args.unit_tokens = kUnit;
  args.dim = kWide;
  args.kind = AbstractKind::kBall;
  args.out = halves.data();
  ASSERT_TRUE(GetParam()->build_abstract(args, nullptr));
  SegmentExtent segment;
  segment.visible_tokens = 2 * kUnit;
  segment.units = 2;
  segment.data = reinterpret_cast<const std::byte*>(halves.data());
  SelectInput input;
  input.segments = {&segment, 1};
  input.queries = query.data();
  input.query_stride = input.dim = kWide;
  input.query_count = 1;
  input.scale = kWideScale;
  input.budget_rows = 1000;
  const Preset preset = preset_of(AbstractKind::kBall, 0.58f);
  Selector selector(GetParam(), &preset);
  const auto selection = selector.select(input);
  ASSERT_TRUE(selection);
  double all = 0.0, seen = 0.0;
  for (std::uint32_t t = 0; t < tokens; ++t) {
    const double above = static_cast<double>(kKeys[t / kUnit]) - 8.0;
    const double mass = std::exp(static_cast<double>(kWideScale) * 5.0 * kWide * above);
    const auto& taken = selection->tokens;
    all += mass;
    seen += std::binary_search(taken.begin(), taken.end(), t) ? mass : 0.0;
  }
  EXPECT_GE(seen / all, static_cast<double>(preset.share));
}

// What nobody knows comes first, and nothing is certain before it is there.
TEST_P(Certified, WhatIsNotKnownIsTaken) {
  Pages pages(GetParam(), AbstractKind::kBall, 40, 0.0f, 1);
  const Preset preset = preset_of(AbstractKind::kBall, 0.01f);
  Selector selector(GetParam(), &preset);
  pages.segment.units = 30;
  std::vector<float> held(kGroup, 100.0f);
  SelectInput input = pages.input(1000);
  input.held = held.data();
  const auto selection = selector.select(input);
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->tokens.size(), 10u * kUnit);
  EXPECT_EQ(selection->tokens.front(), 30u * kUnit);
  EXPECT_EQ(selection->units_missing, 10u);
  EXPECT_EQ(selection->units_scored, 30u) << "twice, but these are the same units";
  pages.segment.data = nullptr;
  EXPECT_EQ(selector.select(input)->tokens.size(), 40u * kUnit);
  EXPECT_TRUE(selector.select(input)->missed.empty()) << "nobody asked";
}

TEST_P(Certified, NothingIsAllocatedAfterTheFirstStep) {
  const Pages pages(GetParam(), AbstractKind::kBall, 100, 0.1f, 1);
  const Preset preset = preset_of(AbstractKind::kBall, 0.9f);
  Selector selector(GetParam(), &preset);
  ASSERT_TRUE(selector.select(pages.input(1000)));
  const std::uint64_t before = selector.memory_bytes();
  for (const std::uint64_t budget : {100u, 0u, 500u, 1000u})
    ASSERT_TRUE(selector.select(pages.input(budget)));
  EXPECT_EQ(selector.memory_bytes(), before);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Certified,
                         ::testing::ValuesIn(all_kernels().begin(), all_kernels().end()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace kvtier
