// The search from coarse to fine boxes against its definition, step by step in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/retrieval/selector.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint32_t kDim = 8;
constexpr std::uint32_t kUnit = 16;
constexpr std::uint32_t kLevels = 3;
constexpr std::uint32_t kGroup = 3;
constexpr float kScale = 0.2f;

// Segments as two KV heads see them, with the boxes of all levels over drifting keys.
struct World {
  World(Random* random, const std::vector<std::uint32_t>& visible, std::uint32_t heads)
      : halves(heads), extents(heads), queries(heads) {
    for (std::uint32_t head = 0; head < heads; ++head) {
      queries[head] = random_floats(random, kGroup * kDim);
      std::uint64_t first = 0;
      for (const std::uint32_t tokens : visible) {
        const std::uint32_t stored = std::min(tokens + 37, kSegmentTokensMax);
        add_boxes(random, head, stored);
        extents[head].push_back({first, tokens, (stored + kUnit - 1) / kUnit, nullptr});
        first += tokens;
      }
      end = first;
    }
    for (std::uint32_t head = 0; head < heads; ++head)
      for (std::size_t s = 0; s < extents[head].size(); ++s)
        extents[head][s].data = reinterpret_cast<const std::byte*>(halves[head][s].data());
  }

  void add_boxes(Random* random, std::uint32_t head, std::uint32_t tokens) {
    std::vector<float> keys(std::size_t{tokens} * kDim);
    float drift[kDim] = {};
    for (std::size_t i = 0; i < keys.size(); ++i) {
      drift[i % kDim] += random_float(random) * 0.2f;
      keys[i] = drift[i % kDim] + random_float(random);
    }
    std::vector<std::uint16_t> boxes;
    for (std::uint32_t level = 0; level <= kLevels; ++level)
      for (std::uint32_t at = 0; at < tokens; at += kUnit << level)
        for (const bool largest : {false, true})
          for (std::uint32_t d = 0; d < kDim; ++d) {
            float bound = keys[std::size_t{at} * kDim + d];
            for (std::uint32_t t = at; t < std::min(tokens, at + (kUnit << level)); ++t) {
              const float key = keys[std::size_t{t} * kDim + d];
              bound = largest ? std::max(bound, key) : std::min(bound, key);
            }
            boxes.push_back(f32_to_f16(bound));
          }
    halves[head].push_back(std::move(boxes));
  }

  std::vector<SelectInput> inputs(std::span<const TokenRange> kept, std::uint64_t rows) const {
    std::vector<SelectInput> made;
    for (std::size_t head = 0; head < extents.size(); ++head)
      made.push_back({extents[head], kept, queries[head].data(), kDim, kGroup, kDim, kScale,
                      nullptr, rows});
    return made;
  }

  // Mean over the group, sum over the heads.
  double score(std::size_t segment, std::uint32_t level, std::uint32_t box) const {
    double sum = 0.0;
    for (std::size_t head = 0; head < extents.size(); ++head) {
      std::uint32_t before = box;
      for (std::uint32_t l = 0; l < level; ++l)
        before += (extents[head][segment].units + (1u << l) - 1) >> l;
      const std::uint16_t* at = halves[head][segment].data() + std::size_t{before} * 2 * kDim;
      for (std::uint32_t i = 0; i < kGroup * kDim; ++i) {
        const double q = static_cast<double>(queries[head][i]);
        sum += std::max(q * static_cast<double>(f16_to_f32(at[i % kDim])),
                        q * static_cast<double>(f16_to_f32(at[kDim + i % kDim])));
      }
    }
    return sum * static_cast<double>(kScale) / kGroup;
  }

  std::vector<std::vector<std::vector<std::uint16_t>>> halves;
  std::vector<std::vector<SegmentExtent>> extents;
  std::vector<std::vector<float>> queries;
  std::uint64_t end = 0;
};

struct Cell {
  std::size_t segment = 0;
  std::uint32_t unit = 0;
  std::uint64_t first = 0, last = 0;
  std::uint64_t cost = 0;
  std::uint32_t level = kLevels;
  double score = 0.0;
};

// By definition: rank, take until the rows are covered (and what ties), split what was taken.
std::vector<Cell> define(const World& world, std::span<const TokenRange> kept, std::uint64_t rows) {
  std::vector<Cell> cells;
  for (std::size_t s = 0; s < world.extents[0].size(); ++s) {
    const SegmentExtent& segment = world.extents[0][s];
    for (std::uint32_t u = 0; u * kUnit < segment.visible_tokens; ++u) {
      Cell cell{s, u};
      cell.first = segment.first_token + u * kUnit;
      cell.last = segment.first_token + std::min((u + 1) * kUnit, segment.visible_tokens);
      for (std::uint64_t t = cell.first; t < cell.last; ++t)
        cell.cost += std::none_of(kept.begin(), kept.end(), [t](const TokenRange& range) {
          return t >= range.first && t < range.last;
        });
      cells.push_back(cell);
    }
  }
  for (std::uint32_t round = 0; round <= kLevels; ++round) {
    std::vector<const Cell*> order;
    for (Cell& cell : cells) {
      cell.score = world.score(cell.segment, cell.level, cell.unit >> cell.level);
      if (cell.cost != 0) order.push_back(&cell);
    }
    std::stable_sort(order.begin(), order.end(),
                     [](const Cell* a, const Cell* b) { return a->score > b->score; });
    double cut = HUGE_VAL;
    std::uint64_t covered = 0;
    for (std::size_t i = 0; i < order.size() && covered < rows; ++i) {
      covered += order[i]->cost;
      cut = order[i]->score;
    }
    // Cells of one box are split together or not at all: they have one score.
    for (Cell& cell : cells)
      if (cell.cost != 0 && cell.score >= cut && cell.level > 0 && round < kLevels) --cell.level;
  }
  return cells;
}

std::vector<std::uint32_t> choose(std::vector<Cell> cells, std::span<const TokenRange> kept,
                                  std::uint64_t rows) {
  std::vector<std::uint32_t> tokens;
  const auto is_kept = [&](std::uint64_t t) {
    return std::any_of(kept.begin(), kept.end(), [t](const TokenRange& range) {
      return t >= range.first && t < range.last;
    });
  };
  for (const Cell& cell : cells)
    for (std::uint64_t t = cell.first; t < cell.last; ++t)
      if (is_kept(t)) tokens.push_back(static_cast<std::uint32_t>(t));
  std::stable_sort(cells.begin(), cells.end(),
                   [](const Cell& a, const Cell& b) { return a.score > b.score; });
  for (const Cell& cell : cells)
    for (std::uint64_t t = cell.first; t < cell.last && rows > 0; ++t)
      if (!is_kept(t)) {
        tokens.push_back(static_cast<std::uint32_t>(t));
        --rows;
      }
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

class TreeSearchTest : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  Random random{5};
  const Preset& preset = **find_preset("leoam");
  Selector selector{GetParam(), &preset};
};

TEST_P(TreeSearchTest, EqualsItsDefinition) {
  for (const auto& visible :
       std::vector<std::vector<std::uint32_t>>{{1}, {130}, {2048, 2011, 500}, {2048, 300, 2048}})
    for (const std::uint32_t heads : {1u, 2u}) {
      const World world(&random, visible, heads);
      const std::vector<std::vector<TokenRange>> ranges = {
          {}, {{0, 16}, {std::max<std::uint64_t>(16, world.end - world.end / 4), world.end + 16}}};
      for (const auto& kept : ranges)
        for (const std::uint64_t rows : {1u, 40u, 256u, 1000u, 100000u}) {
          const std::vector<Cell> cells = define(world, kept, rows);
          const auto inputs = world.inputs(kept, rows);
          const auto scores = selector.score_tree(inputs);
          ASSERT_TRUE(scores);
          ASSERT_EQ(scores->size(), cells.size());
          for (std::size_t i = 0; i < cells.size(); ++i)
            if (cells[i].cost != 0) {
              ASSERT_NEAR((*scores)[i], cells[i].score, 1e-4) << "cell " << i;
            }
          const auto selection = selector.choose(inputs[0], *scores);
          ASSERT_TRUE(selection);
          EXPECT_EQ(std::vector<std::uint32_t>(selection->tokens.begin(), selection->tokens.end()),
                    choose(cells, kept, rows))
              << rows << " rows of " << world.end << ", " << heads << " heads";
        }
    }
}

TEST_P(TreeSearchTest, LooksAtFewerBoxesThanThereAreUnits) {
  const World world(&random, std::vector<std::uint32_t>(8, 2048), 1);
  const auto inputs = world.inputs({}, 256);
  const auto tree = selector.select(inputs[0]);
  ASSERT_TRUE(tree);
  SelectInput flat = inputs[0];
  flat.flat = true;
  const auto all = selector.select(flat);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->units_scored, 8u * 128u);
  EXPECT_LT(tree->units_scored, all->units_scored / 2);
  EXPECT_EQ(tree->tokens.size(), all->tokens.size());
}

TEST_P(TreeSearchTest, SegmentsWithoutBoxesAreFetchedFirst) {
  World world(&random, {2048, 100, 2048}, 1);
  world.extents[0][1].data = nullptr;
  const auto selection = selector.select(world.inputs({}, 200)[0]);
  ASSERT_TRUE(selection);
  EXPECT_EQ(selection->units_missing, 7u);
  EXPECT_EQ(selection->tokens.size(), 200u);
  for (std::uint32_t t = 2048; t < 2148; ++t)
    EXPECT_TRUE(std::binary_search(selection->tokens.begin(), selection->tokens.end(), t));
}

INSTANTIATE_TEST_SUITE_P(Kernels, TreeSearchTest,
                         ::testing::ValuesIn(all_kernels().begin(), all_kernels().end()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace kvtier
