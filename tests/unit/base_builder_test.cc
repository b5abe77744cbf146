// Base renditions and representatives of a segment: what the builder makes of chunks is, byte for
// byte, what the reference makes of each head's rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/float16.h"
#include "kernels/registry.h"
#include "tests/unit/segment_chunks.h"
#include "tiers/abstract_builder.h"
#include "tiers/representatives.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint32_t kTokens = 100;

Geometry geometry_of(std::uint16_t heads_per_chunk, Dtype dtype) {
  Geometry geometry;
  geometry.chunk_tokens = 16;
  geometry.heads_per_chunk = heads_per_chunk;
  LayerGeometry layer;
  layer.dtype = dtype;
  layer.kv_heads = 3;
  layer.query_heads = 6;
  layer.k_row_bytes = 40 * dtype_bytes(dtype);
  layer.v_row_bytes = 64 * dtype_bytes(dtype);
  geometry.layers.assign(2, layer);
  return geometry;
}

// Element d of a row, exact in every type.
float element(std::uint32_t layer, std::uint32_t head, std::uint32_t token, std::uint32_t which,
              std::uint32_t d) {
  const std::uint32_t mixed = (layer * 7 + head * 131 + token * 31 + which * 17 + d) * 2654435761u;
  return static_cast<float>(static_cast<std::int32_t>(mixed >> 25) - 64) / 32.0f;
}

std::vector<std::byte> expected(const LayerGeometry& shape, std::uint32_t layer, std::uint32_t head,
                                const BaseFormat& format) {
  const std::vector<std::byte> k = rows_of(shape, kTokens, layer, head, 0, element),
                               v = rows_of(shape, kTokens, layer, head, 1, element);
  const std::uint64_t page = reinterpret_cast<std::uintptr_t>(k.data());
  const std::uint64_t tokens = kTokens;
  std::vector<std::byte> out((kTokens + 31) / 32 * format.chunk_bytes());
  EncodeBaseArgs args;
  args.rows.pages = &page;
  args.rows.page_tokens = kTokens;
  args.rows.k_stride = shape.k_row_bytes;
  args.rows.v_offset = reinterpret_cast<std::uintptr_t>(v.data()) - page;
  args.rows.v_stride = shape.v_row_bytes;
  args.rows.dtype = shape.dtype;
  args.token_count = &tokens;
  args.format = format;
  args.out = out.data();
  EXPECT_TRUE(all_kernels().back()->encode_base(args, nullptr));
  return out;
}

TEST(BaseBuilder, GivesTheBytesOfTheReference) {
  std::vector<TokenRecord> tokens(kTokens);
  for (const char* text : {"base:44/tokens", "base:53/tokens", "base:86/tokens"})
    for (const std::uint16_t heads : {std::uint16_t{1}, std::uint16_t{0}})
      for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16})
        for (const KernelTable* kernels : all_kernels()) {
          SCOPED_TRACE(std::string(text) + " " + dtype_name(dtype) + " " + kernels->name);
          const Geometry geometry = geometry_of(heads, dtype);
          const SegmentChunks chunks(geometry, kTokens, element);
          const AbstractPlan plan = plan_abstract(geometry, *parse_abstract_spec(text), tokens);
          std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
          begin_abstract(plan, 0, payload);
          const AbstractSource source{kernels, &geometry, &chunks.plane, chunks.pointers, nullptr};
          ASSERT_TRUE(build_abstract_layers(source, plan, 0, 2, payload));
          for (std::uint32_t layer = 0; layer < 2; ++layer)
            for (std::uint32_t head = 0; head < 3; ++head) {
              const LayerGeometry& shape = geometry.layers[layer];
              const std::vector<std::byte> wanted =
                  expected(shape, layer, head, *base_format(plan.spec, shape));
              const std::byte* got = payload.data() + plan.layout.head(layer, head).data;
              EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), got)) << layer << " " << head;
            }
        }
}

// Keys of a head as f32, and the units that the payload says (or pages).
struct HeadUnits {
  HeadUnits(const LayerGeometry& shape, const AbstractPlan& plan,
            std::span<const std::byte> payload, std::uint32_t layer, std::uint32_t head) {
    for (std::uint32_t t = 0; t < kTokens; ++t)
      for (std::uint32_t d = 0; d < 40; ++d) keys.push_back(element(layer, head, t, 0, d));
    const AbstractLayout::HeadBlock block = plan.layout.head(layer, head);
    starts = plan.starts;
    if (block.starts != 0) {
      starts = list(payload, block.starts, plan.layout.units() + 1);
      members = list(payload, block.members, kTokens);
    }
    for (std::uint32_t u = 0; starts.size() <= plan.layout.units(); ++u)
      starts.push_back(std::min<std::uint32_t>(u * plan.spec.unit_tokens, kTokens));
    EXPECT_EQ(shape.k_row_bytes, 40 * dtype_bytes(shape.dtype));
  }
  static std::vector<std::uint32_t> list(std::span<const std::byte> payload, std::uint64_t offset,
                                         std::size_t count) {
    const auto* first = reinterpret_cast<const std::uint16_t*>(payload.data() + offset);
    return {first, first + count};
  }
  KeyUnits units() const { return {keys, 40, starts, members}; }
  std::vector<float> keys;
  std::vector<std::uint32_t> starts, members;
};

TEST(RepresentativesBuilder, GivesTheKeysOfEveryPartition) {
  std::vector<TokenRecord> tokens(kTokens);
  for (std::uint32_t t = 0; t < kTokens; ++t) {
    tokens[t].flags = t % 7 == 6 ? 2 : 0;
    if (t >= 40 && t != 70) tokens[t].flags |= kTokenOwn | (t % 11 == 0 ? kTokenCut : 0);
    tokens[t].span = t / 30;
  }
  for (const char* text : {"representatives:3/pages:16", "representatives:4/sentences:12",
                           "representatives:2/spans:20", "representatives:5/clusters:9",
                           "representatives:2/segments:8"})
    for (const std::uint16_t heads : {std::uint16_t{1}, std::uint16_t{0}})
      for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16})
        for (const KernelTable* kernels : all_kernels()) {
          SCOPED_TRACE(std::string(text) + " " + dtype_name(dtype) + " " + kernels->name);
          const Geometry geometry = geometry_of(heads, dtype);
          const SegmentChunks chunks(geometry, kTokens, element);
          const AbstractPlan plan = plan_abstract(geometry, *parse_abstract_spec(text), tokens);
          std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
          begin_abstract(plan, 0, payload);
          const AbstractSource source{kernels, &geometry, &chunks.plane, chunks.pointers, nullptr};
          ASSERT_TRUE(build_abstract_layers(source, plan, 0, 2, payload));
          for (std::uint32_t layer = 0; layer < 2; ++layer)
            for (std::uint32_t head = 0; head < 3; ++head) {
              const HeadUnits made(geometry.layers[layer], plan, payload, layer, head);
              std::vector<std::uint16_t> wanted(std::size_t{plan.layout.units()} *
                                                plan.spec.parameter * 40);
              build_representatives(made.units(), plan.spec.parameter, wanted.data());
              EXPECT_EQ(std::memcmp(payload.data() + plan.layout.head(layer, head).data,
                                    wanted.data(), wanted.size() * 2),
                        0)
                  << layer << " " << head;
            }
        }
}

// What the model wrote lies behind the clusters of the rest, in all heads alike.
TEST(SegmentsBuilder, ClustersThePromptAndCutsTheOutput) {
  const Geometry geometry = geometry_of(1, Dtype::kF32);
  const SegmentChunks chunks(geometry, kTokens, element);
  const KernelTable* kernels = *select_kernels("scalar");
  std::vector<TokenRecord> tokens(kTokens);
  const auto built = [&](const char* text, const AbstractPlan& plan) {
    std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
    begin_abstract(plan, 0, payload);
    const AbstractSource source{kernels, &geometry, &chunks.plane, chunks.pointers, nullptr};
    EXPECT_TRUE(build_abstract_layers(source, plan, 0, 2, payload)) << text;
    return payload;
  };
  const AbstractSpec segments = *parse_abstract_spec("mean/segments:8");
  const AbstractSpec clusters = *parse_abstract_spec("mean/clusters:8");
  AbstractPlan plan = plan_abstract(geometry, segments, tokens);
  const AbstractPlan same = plan_abstract(geometry, clusters, tokens);
  EXPECT_EQ(plan.layout.units(), 13u);
  std::vector<std::byte> payload = built("prompt", plan), other = built("clusters", same);
  EXPECT_TRUE(std::equal(payload.begin() + sizeof(AbstractHeader), payload.end(),
                         other.begin() + sizeof(AbstractHeader), other.end()))
      << "a prompt alone is clustered";
  for (std::uint32_t t = 60; t < kTokens; ++t)
    tokens[t].flags = kTokenOwn | (t == 75 ? kTokenCut : 0);
  plan = plan_abstract(geometry, segments, tokens);
  EXPECT_EQ(plan.layout.units(), 8u + 2u);
  payload = built("both", plan);
  for (std::uint32_t head = 0; head < 3; ++head) {
    const HeadUnits made(geometry.layers[1], plan, payload, 1, head);
    std::vector<std::uint32_t> prompt(made.members.begin(), made.members.begin() + 60);
    std::sort(prompt.begin(), prompt.end());
    for (std::uint32_t t = 0; t < 60; ++t) EXPECT_EQ(prompt[t], t);
    for (std::uint32_t t = 60; t < kTokens; ++t) EXPECT_EQ(made.members[t], t);
    EXPECT_EQ(std::vector<std::uint32_t>(made.starts.end() - 3, made.starts.end()),
              (std::vector<std::uint32_t>{60, 75, kTokens}));
    float sum = 0.0f;
    for (std::uint32_t t = 60; t < 75; ++t) sum += element(1, head, t, 0, 3);
    const auto* means =
        reinterpret_cast<const std::uint16_t*>(payload.data() + plan.layout.head(1, head).data);
    EXPECT_NEAR(f16_to_f32(means[8 * 40 + 3]), sum / 15.0f, 2e-3f);
  }
  for (TokenRecord& token : tokens) token.flags = kTokenOwn;
  plan = plan_abstract(geometry, segments, tokens);
  EXPECT_EQ(plan.layout.units(), 2u) << "no prompt: 64 tokens at most each";
  built("output", plan);
}

// ---- which keys ----

std::vector<std::uint32_t> chosen(const std::vector<float>& line, std::uint32_t count,
                                  std::vector<std::uint32_t> members = {}) {
  const auto size = static_cast<std::uint32_t>(members.empty() ? line.size() : members.size());
  const std::vector<std::uint32_t> starts = {0, size};
  std::vector<std::uint32_t> out;
  choose_representatives({line, 1, starts, members}, 0, count, &out);
  return out;
}

TEST(Representatives, AreTheMiddleAndThenTheFarthest) {
  using Places = std::vector<std::uint32_t>;
  const std::vector<float> line = {0, 1, 2, 3, 10, 11, 4};  // mean 4.4
  EXPECT_EQ(chosen(line, 1), (Places{6}));
  EXPECT_EQ(chosen(line, 2), (Places{6, 5}));
  EXPECT_EQ(chosen(line, 3), (Places{6, 5, 0}));
  EXPECT_EQ(chosen(line, 4), (Places{6, 5, 0, 2})) << "2 is the last that is two from any";
  EXPECT_EQ(chosen(line, 2, {5, 4, 0}), (Places{1, 2})) << "places in the list of members";
  EXPECT_EQ(chosen({5, 5, 5}, 3), (Places{0, 0, 0})) << "equal keys: the oldest";
  EXPECT_EQ(chosen({1, 2}, 4), (Places{0, 1, 0, 0})) << "fewer keys than wanted";
  EXPECT_EQ(chosen({3}, 2), (Places{0, 0}));
  EXPECT_EQ(chosen({0, 4, 1, 3, 2}, 3), (Places{4, 0, 1})) << "ties go to the older";
}

TEST(Representatives, AreSaturatedAndLeaveEmptyUnitsAlone) {
  const std::vector<float> keys = {1e9f, -1e9f, 2.0f};
  const std::vector<std::uint32_t> starts = {0, 1, 1, 3};
  std::vector<std::uint16_t> out(3 * 2, 7);
  build_representatives({keys, 1, starts, {}}, 2, out.data());
  EXPECT_EQ(out, (std::vector<std::uint16_t>{0x7BFF, 0x7BFF, 7, 7, 0xFBFF, f32_to_f16(2.0f)}));
}

}  // namespace
}  // namespace kvtier
