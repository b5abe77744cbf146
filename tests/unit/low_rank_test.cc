// Low-rank keys of a segment: what the builder makes of chunks, against keys that were made with a
// known rank and turned; layers that have none; and the turns themselves.
#include "tiers/low_rank.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/random.h"
#include "kernels/float16.h"
#include "tests/unit/segment_chunks.h"
#include "tiers/abstract_builder.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr AbstractSpec kSpec = {PartitionKind::kTokens, AbstractKind::kLowRank, 1, 10};
constexpr std::uint32_t kFirstPosition = 5000;

Geometry geometry_of(std::uint16_t heads, std::uint32_t dim, Dtype dtype = Dtype::kF32,
                     std::uint16_t heads_per_chunk = 1) {
  Geometry geometry;
  geometry.chunk_tokens = 16;
  geometry.heads_per_chunk = heads_per_chunk;
  LayerGeometry layer;
  layer.dtype = dtype;
  layer.kv_heads = heads;
  layer.query_heads = static_cast<std::uint16_t>(heads * 12);
  layer.k_row_bytes = dim * dtype_bytes(dtype);
  layer.v_row_bytes = 8 * dtype_bytes(dtype);
  geometry.layers.assign(1, layer);
  return geometry;
}

Rotation rotation_of(std::uint32_t pairs, Rotation::Pairing pairing) {
  Rotation rotation;
  rotation.pairing = pairing;
  for (std::uint32_t p = 0; p < pairs; ++p)
    rotation.frequencies.push_back(
        std::pow(10000.0f, -static_cast<float>(p) / static_cast<float>(pairs)));
  return rotation;
}

// With a gap now and then, as sequences have that were put together.
std::vector<TokenRecord> tokens_at_positions(std::uint32_t count) {
  std::vector<TokenRecord> tokens(count);
  for (std::uint32_t t = 0; t < count; ++t)
    tokens[t].position = kFirstPosition + t + (t > count / 2 ? 77 : 0);
  return tokens;
}

// Keys of one layer, [token][head][dim], of rank `rank` before they were turned but for noise.
struct Keys {
  Keys(const Geometry& geometry, std::uint32_t count, std::uint32_t rank, double noise,
       const Rotation& rotation)
      : heads(geometry.layers[0].kv_heads),
        dim(geometry.layers[0].k_row_bytes / dtype_bytes(geometry.layers[0].dtype)),
        width(heads * dim),
        tokens(tokens_at_positions(count)),
        turned(std::size_t{count} * width) {
    Random random(7);
    const auto draw = [&random] { return random.unit() * 2.0 - 1.0; };
    std::vector<double> basis(std::size_t{rank} * width), weight(rank);
    for (double& value : basis) value = draw();
    std::vector<float> turn(2 * rotation.frequencies.size());
    for (std::uint32_t t = 0; t < count; ++t) {
      for (double& value : weight) value = 2.0 * draw();
      float* row = &turned[std::size_t{t} * width];
      for (std::uint32_t w = 0; w < width; ++w) {
        double sum = noise * draw();
        noise_squared += sum * sum;
        for (std::uint32_t r = 0; r < rank; ++r) sum += weight[r] * basis[r * width + w];
        row[w] = static_cast<float>(sum);
        squared += sum * sum;
      }
      turns_of(rotation.frequencies, static_cast<double>(tokens[t].position), turn.data());
      for (std::uint32_t head = 0; head < heads; ++head)
        turn_row(rotation.pairing, static_cast<std::uint32_t>(rotation.frequencies.size()),
                 turn.data(), false, row + head * dim);
    }
  }
  ElementOf element() const {
    return [this](std::uint32_t, std::uint32_t head, std::uint32_t token, std::uint32_t which,
                  std::uint32_t d) {
      return which == 0 ? turned[std::size_t{token} * width + head * dim + d] : 1.0f;
    };
  }
  std::uint32_t heads, dim, width;
  std::vector<TokenRecord> tokens;
  std::vector<float> turned;
  double squared = 0.0, noise_squared = 0.0;
};

struct Built {
  Built(const Geometry& made, const Keys& keys, const Rotation& rotation,
        const KernelTable& kernels)
      : geometry(made),
        plan(plan_abstract(geometry, kSpec, keys.tokens, rotation)),
        payload(static_cast<std::size_t>(plan.layout.size_bytes())) {
    const SegmentChunks chunks(geometry, plan.layout.tokens(), keys.element());
    begin_abstract(plan, 0, payload);
    const AbstractSource source{&kernels, &geometry, &chunks.plane, chunks.pointers, nullptr};
    built = build_abstract_layers(source, plan, 0, 1, payload);
  }
  // As a view rebuilds them: [token][dim] of a head.
  std::vector<float> rebuilt(std::uint32_t head, const KernelTable& kernels) const {
    const LowRankShape shape = *low_rank_shape(kSpec, geometry, 0, plan.layout.tokens());
    const AbstractLayout::HeadBlock block = plan.layout.head(0, head);
    LowRankTurns turns;
    std::memcpy(&turns, payload.data() + plan.layout.turns_offset(), sizeof turns);
    const auto* frequencies =
        reinterpret_cast<const float*>(payload.data() + plan.layout.turns_offset() + sizeof turns);
    const auto* positions =
        reinterpret_cast<const std::uint32_t*>(payload.data() + plan.layout.positions_offset());
    const std::uint64_t count = plan.layout.tokens();
    Turns turner({frequencies, turns.pairs});
    std::vector<float> turn(count * 2 * turns.pairs), out(count * shape.dim);
    std::vector<std::uint64_t> offsets, targets;
    for (std::uint64_t t = 0; t < count; ++t) {
      offsets.push_back(block.shared + shape.coefficient_bytes(t));
      targets.push_back(t * shape.dim * sizeof(float));
      turner.at(positions[t], turn.data() + t * 2 * turns.pairs);
    }
    RebuildKeysArgs args;
    args.base = payload.data();
    args.offsets = offsets.data();
    args.count = &count;
    args.basis = reinterpret_cast<const std::uint16_t*>(payload.data() + block.data);
    args.rank = shape.rank;
    args.dim = shape.dim;
    args.pairing = static_cast<Rotation::Pairing>(turns.pairing);
    args.pairs = turns.pairs;
    args.turns = turn.data();
    args.out = reinterpret_cast<std::byte*>(out.data());
    args.out_offsets = targets.data();
    EXPECT_TRUE(kernels.rebuild_keys(args, nullptr));
    return out;
  }
  // Squared, over all keys.
  double error(const Keys& keys, const KernelTable& kernels) const {
    double sum = 0.0;
    for (std::uint32_t head = 0; head < keys.heads; ++head) {
      const std::vector<float> rows = rebuilt(head, kernels);
      for (std::size_t t = 0; t < keys.tokens.size(); ++t)
        for (std::uint32_t d = 0; d < keys.dim; ++d)
          sum += std::pow(static_cast<double>(rows[t * keys.dim + d] -
                                              keys.turned[t * keys.width + head * keys.dim + d]),
                          2);
    }
    return sum;
  }
  Geometry geometry;
  AbstractPlan plan;
  std::vector<std::byte> payload;
  bool built = false;
};

struct Shape {
  std::uint16_t heads;
  std::uint32_t dim;
  std::uint32_t pairs;
};

// The best approximation is no farther from the keys than what they were made of.
TEST(LowRank, KeysOfThatRankComeBack) {
  for (const auto& [heads, dim, pairs] : {Shape{1, 64, 32}, Shape{3, 64, 24}, Shape{2, 128, 64},
                                          Shape{1, 256, 128}, Shape{12, 64, 32}, Shape{4, 128, 64}})
    for (const double noise : {0.0, 0.3}) {
      const auto pairing =
          heads % 2 == 0 ? Rotation::Pairing::kNeighbours : Rotation::Pairing::kHalves;
      const Rotation rotation = rotation_of(pairs, pairing);
      const Geometry geometry = geometry_of(heads, dim);
      const std::uint32_t rank = heads * dim * 10 / 64;
      const Keys keys(geometry, 300, rank, noise, rotation);
      SCOPED_TRACE(std::to_string(heads) + " heads of " + std::to_string(dim));
      const KernelTable* kernels = all_kernels().front();
      const Built low(geometry, keys, rotation, *kernels);
      ASSERT_TRUE(low.built);
      EXPECT_EQ(low_rank_shape(kSpec, geometry, 0, 300)->rank, rank);
      const double error = low.error(keys, *kernels);
      EXPECT_LT(error, 1.02 * keys.noise_squared + 1e-6 * keys.squared);
      EXPECT_GE(error, 0.3 * keys.noise_squared);
      // Without turning them back they have no such rank.
      Geometry as_they_stand = geometry;
      as_they_stand.layers[0].rope = RopeState::kNone;
      const Built worse(as_they_stand, keys, {}, *kernels);
      ASSERT_TRUE(worse.built);
      EXPECT_GT(worse.error(keys, *kernels), 4.0 * error + 0.02 * keys.squared);
    }
}

TEST(LowRank, EveryDtypeAndChunkAndTheSameBytesAgain) {
  const Rotation rotation = rotation_of(16, Rotation::Pairing::kHalves);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16})
    for (const std::uint16_t heads_per_chunk : {std::uint16_t{1}, std::uint16_t{0}})
      for (const KernelTable* kernels : all_kernels()) {
        const Geometry geometry = geometry_of(3, 32, dtype, heads_per_chunk);
        const Keys keys(geometry, 100, 15, 0.0, rotation);
        const Built low(geometry, keys, rotation, *kernels);
        ASSERT_TRUE(low.built);
        const double rounding = dtype == Dtype::kBf16 ? 2e-5 : 1e-6;
        EXPECT_LT(low.error(keys, *kernels), rounding * keys.squared) << dtype_name(dtype);
        EXPECT_EQ(low.payload, Built(geometry, keys, rotation, *kernels).payload);
      }
}

TEST(LowRank, EqualKeysNoKeysAndOneToken) {
  const Rotation rotation = rotation_of(16, Rotation::Pairing::kHalves);
  const Geometry geometry = geometry_of(2, 32);
  const KernelTable* kernels = all_kernels().front();
  for (const float value : {0.0f, 1.5f, 60000.0f}) {
    Geometry still = geometry;
    still.layers[0].rope = RopeState::kBefore;
    Keys keys(still, 100, 1, 0.0, {});
    std::fill(keys.turned.begin(), keys.turned.end(), value);
    const Built low(still, keys, {}, *kernels);
    ASSERT_TRUE(low.built);
    for (const float got : low.rebuilt(1, *kernels))
      EXPECT_NEAR(got, value > 10000.0f ? 8188.0f : value, 2e-3f * value)
          << "a coefficient is cut at 65504";
  }
  for (const std::uint32_t count : {1u, 2u, 5u}) {
    const Keys keys(geometry, count, 30, 0.5, rotation);
    const Built low(geometry, keys, rotation, *kernels);
    ASSERT_TRUE(low.built);
    EXPECT_EQ(low_rank_shape(kSpec, geometry, 0, count)->rank, count) << "no more than tokens";
    EXPECT_LT(low.error(keys, *kernels), 1e-6 * keys.squared);
  }
}

TEST(LowRank, TurnedKeysNeedARotation) {
  Geometry geometry = geometry_of(2, 32);
  EXPECT_TRUE(needs_rotation(geometry, kSpec));
  const Keys keys(geometry, 40, 3, 0.0, rotation_of(16, Rotation::Pairing::kHalves));
  EXPECT_FALSE(Built(geometry, keys, {}, *all_kernels().back()).built);
  // More pairs than the layer has: nothing turns, and nothing fails.
  EXPECT_TRUE(
      Built(geometry, keys, rotation_of(64, Rotation::Pairing::kHalves), *all_kernels().back())
          .built);
  geometry.layers[0].rope = RopeState::kNone;
  EXPECT_FALSE(needs_rotation(geometry, kSpec));
  EXPECT_FALSE(needs_rotation(geometry_of(2, 32), *parse_abstract_spec("base:44/tokens")));
}

TEST(LowRank, LayersThatHaveNone) {
  const auto has = [](const Geometry& geometry) {
    return low_rank_shape(kSpec, geometry, 0, 100).has_value();
  };
  EXPECT_TRUE(has(geometry_of(8, 256)));
  EXPECT_FALSE(has(geometry_of(9, 256))) << "too wide";
  EXPECT_FALSE(has(geometry_of(2, 12)));
  EXPECT_FALSE(has(geometry_of(1, 1032)));
  Geometry geometry = geometry_of(2, 32);
  geometry.positions_per_token = 3;
  EXPECT_FALSE(has(geometry)) << "several positions turn its keys";
  EXPECT_EQ(AbstractLayout(geometry, kSpec, 100, 100).size_bytes(), 0u);
  geometry.layers[0].rope = RopeState::kBefore;
  EXPECT_TRUE(has(geometry));
  geometry.layers[0].dtype = Dtype::kOpaque;
  EXPECT_FALSE(has(geometry));
  EXPECT_FALSE(low_rank_shape(*parse_abstract_spec("base:44/tokens"), geometry_of(2, 32), 0, 9));
}

TEST(Turns, FollowOneAnotherWithoutDrifting) {
  const Rotation rotation = rotation_of(32, Rotation::Pairing::kHalves);
  Turns turns(rotation.frequencies);
  std::vector<float> got(64), wanted(64);
  for (const std::uint32_t begin : {0u, 100000u, 4000000000u})
    for (std::uint32_t i = 0; i < 3000; ++i) {
      turns.at(begin + i, got.data());
      if (i % 97 != 0 && i != 2999) continue;
      turns_of(rotation.frequencies, static_cast<double>(begin + i), wanted.data());
      // An angle itself is no more exact than that.
      const double tolerance = 2e-7 + 4e-16 * begin;
      for (std::size_t p = 0; p < 64; ++p) ASSERT_NEAR(got[p], wanted[p], tolerance) << begin + i;
    }
  turns.at(UINT32_MAX, got.data());
  turns.at(0, got.data());
  EXPECT_EQ(got[0], 1.0f) << "nothing follows the last position";
}

TEST(Turns, BackAndForthIsTheRow) {
  Random random(3);
  for (const auto pairing : {Rotation::Pairing::kHalves, Rotation::Pairing::kNeighbours}) {
    const Rotation rotation = rotation_of(12, pairing);
    std::vector<float> turn(24), row(32);
    for (float& value : row) value = static_cast<float>(random.unit());
    const std::vector<float> before = row;
    turns_of(rotation.frequencies, 12345.0, turn.data());
    turn_row(pairing, 12, turn.data(), false, row.data());
    EXPECT_NE(row, before);
    EXPECT_TRUE(std::equal(row.begin() + 24, row.end(), before.begin() + 24));
    turn_row(pairing, 12, turn.data(), true, row.data());
    for (std::size_t d = 0; d < row.size(); ++d) EXPECT_NEAR(row[d], before[d], 1e-6f);
  }
}

}  // namespace
}  // namespace kvtier
