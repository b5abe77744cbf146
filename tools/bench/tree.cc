// Searching boxes from coarse to fine against scoring every one: a selection of one layer, its
// scoring and choice, over keys that drift as a text's do (a random walk beside noise; how much is
// looked at depends on the keys).
#include <algorithm>
#include <string>

#include "base/random.h"
#include "client/retrieval/selector.h"
#include "kernels/float16.h"
#include "kernels/registry.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kTreeDim = 128, kTreeHeads = 2, kTreeGroup = 4, kTreeLevels = 3;
constexpr std::uint32_t kUnitTokens = 16;

float noise(Random* random) { return static_cast<float>(random->unit() - 0.5); }

// Of one segment and KV head: the boxes of all levels, the finest first (kernels/abstract_spec.h).
void add_boxes(Random* random, std::vector<float>* drift, std::vector<std::uint16_t>* boxes) {
  constexpr std::size_t kUnits = kSegmentTokensMax / kUnitTokens;
  std::vector<float> low(kUnits * kTreeDim, 1e9f), high(kUnits * kTreeDim, -1e9f);
  for (std::size_t token = 0; token < kSegmentTokensMax; ++token)
    for (std::size_t d = 0; d < kTreeDim; ++d) {
      (*drift)[d] += noise(random) * 0.3f;
      const float key = (*drift)[d] + noise(random);
      const std::size_t at = token / kUnitTokens * kTreeDim + d;
      low[at] = std::min(low[at], key);
      high[at] = std::max(high[at], key);
    }
  for (std::uint32_t level = 0; level <= kTreeLevels; ++level)
    for (std::size_t unit = 0; unit < kUnits >> level; ++unit)
      for (const std::vector<float>* bound : {&low, &high})
        for (std::size_t d = 0; d < kTreeDim; ++d) {
          float value = (*bound)[(unit << level) * kTreeDim + d];
          for (std::size_t cell = unit << level; cell < (unit + 1) << level; ++cell) {
            const float other = (*bound)[cell * kTreeDim + d];
            value = bound == &low ? std::min(value, other) : std::max(value, other);
          }
          boxes->push_back(f32_to_f16(value));
        }
}

struct Layer {
  std::vector<std::vector<std::uint16_t>> boxes;  // by head and segment
  std::vector<std::vector<SegmentExtent>> extents;
  std::vector<float> queries;

  explicit Layer(std::uint64_t tokens) {
    const std::size_t segments = tokens / kSegmentTokensMax;
    Random random(23);
    boxes.resize(kTreeHeads * segments);
    extents.resize(kTreeHeads);
    for (std::size_t head = 0; head < kTreeHeads; ++head) {
      std::vector<float> drift(kTreeDim);
      for (std::size_t s = 0; s < segments; ++s) {
        std::vector<std::uint16_t>& mine = boxes[head * segments + s];
        add_boxes(&random, &drift, &mine);
        extents[head].push_back({s * kSegmentTokensMax, kSegmentTokensMax,
                                 kSegmentTokensMax / kUnitTokens,
                                 reinterpret_cast<const std::byte*>(mine.data())});
      }
    }
    queries.resize(std::size_t{kTreeHeads} * kTreeGroup * kTreeDim);
    for (float& value : queries) value = noise(&random);
  }
  [[nodiscard]] std::vector<SelectInput> inputs(std::uint64_t budget) const {
    std::vector<SelectInput> heads;
    for (std::size_t head = 0; head < kTreeHeads; ++head) {
      SelectInput input;
      input.segments = extents[head];
      input.queries = queries.data() + head * kTreeGroup * kTreeDim;
      input.query_stride = kTreeDim;
      input.query_count = kTreeGroup;
      input.dim = kTreeDim;
      input.scale = 0.09f;
      input.budget_rows = budget;
      heads.push_back(input);
    }
    return heads;
  }
};

// One selection for all heads; counts what was looked at.
Result<double> select(Selector* selector, const Layer& layer, std::uint64_t budget, bool tree,
                      std::uint64_t* scored) {
  const std::vector<SelectInput> heads = layer.inputs(budget);
  std::vector<float> sum;
  const double start = thread_seconds_now();
  std::span<float> scores;
  *scored = 0;
  if (tree) {
    KVT_TRY(scores, selector->score_tree(heads));
  } else {
    for (const SelectInput& head : heads) {
      KVT_TRY(const std::span<float> one, selector->score(head));
      sum.resize(one.size());
      for (std::size_t i = 0; i < one.size(); ++i) sum[i] += one[i];
      *scored += one.size();
    }
    scores = sum;
  }
  KVT_TRY(const Selection selection, selector->choose(heads[0], scores));
  const double seconds = thread_seconds_now() - start;
  if (tree) *scored = selection.units_scored;
  return seconds;
}

}  // namespace

Result<void> bench_tree(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const KernelTable* table, select_kernels("auto"));
  KVT_TRY(const Preset* leoam, find_preset("leoam"));
  Preset flat = *leoam;
  flat.abstract = *parse_abstract_spec("box/pages:16");
  flat.search = SearchKind::kFlat;
  flat.flat_layers = 0;
  const std::uint64_t k = 1 << 10;
  std::vector<std::uint64_t> lengths = {128 * k, 1024 * k};
  if (context.smoke()) lengths = {16 * k};
  for (const std::uint64_t tokens : lengths) {
    const Layer layer(tokens);
    for (const std::uint64_t budget : {1024ull, 4096ull}) {
      Selector coarse(table, leoam), all(table, &flat);
      std::uint64_t looked = 0, units = 0;
      KVT_TRY(const auto columns,
              interleave(context.rounds(5, 11),
                         {[&] { return select(&coarse, layer, budget, true, &looked); },
                          [&] { return select(&all, layer, budget, false, &units); }}));
      Figure figure = compare("coarse to fine boxes, " + std::to_string(tokens / k) +
                                  "k tokens, budget " + std::to_string(budget),
                              columns[0], columns[1]);
      scale(&figure, 1e3);
      figure.unit = "ms";
      figure.ceiling_name = "ms every box of 16";
      figure.note = "2 KV heads of 128 dims, 4 queries each; " + std::to_string(looked) +
                    " boxes looked at of " + std::to_string(units);
      figures->push_back(figure);
    }
  }
  return {};
}

}  // namespace kvtier::bench
