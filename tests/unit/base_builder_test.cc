// Base renditions of a segment: what the builder makes of chunks is, byte for byte, what the
// reference operation makes of each head's rows.
#include <gtest/gtest.h>

#include "tests/unit/segment_chunks.h"
#include "tiers/abstract_builder.h"

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

}  // namespace
}  // namespace kvtier
