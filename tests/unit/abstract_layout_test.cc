// Specs of abstracts: packed and text forms; layouts: that blocks tile the payload.
#include <gtest/gtest.h>

#include "kernels/abstract_layout.h"
#include "tests/unit/format_samples.h"

namespace kvtier {
namespace {

TEST(AbstractSpec, TextAndPackedFormsComeBack) {
  for (const char* text :
       {"box/pages:16", "box:3/pages:8", "mean/clusters:16", "mean/sentences:128", "ball/pages:32",
        "codes:4/tokens", "codes:8/tokens", "own-codes:2/tokens", "own-codes:16/tokens",
        "representatives:4/pages:32", "representatives:16/sentences:64", "mean/segments:16",
        "mean/spans:2048", "base:44/tokens", "base:85/tokens", "low-rank:10/tokens",
        "low-rank:32/tokens"}) {
    const Result<AbstractSpec> spec = parse_abstract_spec(text);
    ASSERT_TRUE(spec) << text;
    EXPECT_EQ(spec->text(), text);
    EXPECT_LT(spec->packed(), 1u << 28);
    const Result<AbstractSpec> back = unpack_abstract_spec(spec->packed());
    ASSERT_TRUE(back) << text;
    EXPECT_EQ(*back, *spec);
  }
  EXPECT_TRUE(parse_abstract_spec("none")->none());
  EXPECT_TRUE(parse_abstract_spec("")->none());
  EXPECT_EQ(AbstractSpec{}.packed(), 0u);
  EXPECT_EQ(parse_abstract_spec("codes/tokens")->text(), "codes:4/tokens");
  EXPECT_EQ(parse_abstract_spec("own-codes/tokens")->text(), "own-codes:2/tokens");
  EXPECT_EQ(parse_abstract_spec("base/tokens")->text(), "base:44/tokens");
  EXPECT_EQ(parse_abstract_spec("low-rank/tokens")->text(), "low-rank:10/tokens");
  EXPECT_EQ(parse_abstract_spec("representatives/pages")->text(), "representatives:4/pages:16");
}

TEST(AbstractSpec, WhatDoesNotFitIsRefused) {
  for (const char* text : {"box",
                           "boxes/pages:16",
                           "box/page:16",
                           "box/pages:0",
                           "box/pages:2049",
                           "box/pages:x",
                           "codes:4/pages:16",
                           "mean/tokens",
                           "codes:1/tokens",
                           "codes:17/tokens",
                           "box:8/pages:8",
                           "box:1/sentences:64",
                           "mean:1/pages:16",
                           "keys:4/pages:16",
                           "representatives:0/pages:16",
                           "representatives:17/pages:32",
                           "representatives:5/pages:4",
                           "representatives:1/tokens",
                           "/",
                           "none/pages:4",
                           "base:4/tokens",
                           "base:47/tokens",
                           "base:74/tokens",
                           "base:44/pages:32",
                           "base:444/tokens",
                           "low-rank:0/tokens",
                           "low-rank:33/tokens",
                           "low-rank:10/pages:16",
                           "own-codes:2/pages:16",
                           "own-codes:0/tokens",
                           "own-codes:17/tokens"}) {
    const Result<AbstractSpec> spec = parse_abstract_spec(text);
    ASSERT_FALSE(spec) << text;
    EXPECT_EQ(spec.error().code, Code::kInvalid) << text;
  }
  EXPECT_FALSE(unpack_abstract_spec(1));           // pages of nothing
  EXPECT_FALSE(unpack_abstract_spec(0xFFFFFFFF));  // everything
  EXPECT_FALSE(unpack_abstract_spec(0x10 | 1 << 28));
}

// Every block lies behind the one before, aligned, inside the payload.
void expect_tiles(const Geometry& geometry, const AbstractLayout& layout) {
  std::uint64_t end = sizeof(AbstractHeader);
  if (layout.starts_offset() != 0) end += (layout.units() + 1) * 2;
  if (layout.turns_offset() != 0) {
    EXPECT_EQ(layout.turns_offset(), end);
    end = layout.positions_offset() + layout.tokens() * 4;
    EXPECT_EQ(layout.positions_offset(), layout.turns_offset() + 8 + layout.turns_room() * 4);
  }
  for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer) {
    if (!layout.has_layer(layer)) continue;
    const LayerGeometry& shape = geometry.layers[layer];
    const std::uint32_t dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      const AbstractLayout::HeadBlock block = layout.head(layer, head);
      EXPECT_EQ(block.members != 0, layout.spec().by_head());
      EXPECT_EQ(block.starts != 0, block.members != 0);
      for (const auto& [offset, bytes] :
           {std::pair{block.members, std::uint64_t{layout.tokens()} * 2},
            std::pair{block.starts, (std::uint64_t{layout.units()} + 1) * 2}}) {
        if (offset == 0) continue;
        EXPECT_GE(offset, end);
        EXPECT_EQ(offset % 64, 0u);
        end = offset + bytes;
      }
      if (block.shared != 0 && head == 0) {
        EXPECT_GE(block.shared, end);
        EXPECT_EQ(block.shared % 64, 0u);
        end = block.shared + low_rank_shape(layout.spec(), geometry, layer, layout.tokens())
                                 ->coefficient_bytes(layout.tokens());
      }
      EXPECT_EQ(block.shared != 0, layout.spec().abstract == AbstractKind::kLowRank);
      EXPECT_GE(block.data, end);
      EXPECT_EQ(block.data % 64, 0u);
      const std::uint32_t levels =
          layout.spec().abstract == AbstractKind::kBox ? layout.spec().parameter : 0;
      const std::uint64_t last_level =
          layout.level_offset(layer, levels) +
          layout.level_units(levels) * unit_elements(layout.spec(), dim) * 2;
      end = block.data;
      if (layout.spec().abstract == AbstractKind::kCodes)
        end += code_bytes(layout.tokens(), code_count(layout.spec(), dim));
      else if (layout.spec().abstract == AbstractKind::kOwnCodes)
        end += own_code_layout(layout.spec(), dim).size_bytes(layout.tokens());
      else if (layout.spec().abstract == AbstractKind::kBase)
        end += (layout.tokens() + 31) / 32 * base_format(layout.spec(), shape)->chunk_bytes();
      else if (layout.spec().abstract == AbstractKind::kLowRank)
        end += low_rank_shape(layout.spec(), geometry, layer, layout.tokens())->basis_bytes();
      else
        end += last_level;
    }
  }
  EXPECT_LE(end, layout.size_bytes());
  EXPECT_LT(layout.size_bytes() - end, 64u);
}

TEST(AbstractLayout, BlocksTileThePayload) {
  const Geometry geometry = samples::small_geometry();
  for (const char* text :
       {"box/pages:16", "box:3/pages:8", "mean/clusters:16", "mean/sentences:128", "ball/pages:32",
        "codes:2/tokens", "own-codes:2/tokens", "base:53/tokens", "low-rank:10/tokens",
        "representatives:3/pages:16", "representatives:2/clusters:16", "mean/segments:16"})
    for (const std::uint32_t tokens : {1u, 31u, 100u, 2048u}) {
      SCOPED_TRACE(std::string(text) + " " + std::to_string(tokens));
      const AbstractSpec spec = *parse_abstract_spec(text);
      const std::uint32_t units = spec.by_tokens() ? (tokens + 6) / 7 : spec.units_of(tokens);
      expect_tiles(geometry, AbstractLayout(geometry, spec, tokens, units));
    }
}

TEST(AbstractLayout, OnlyLayersWithKeysHaveBlocks) {
  Geometry geometry = samples::small_geometry();
  const AbstractSpec spec = *parse_abstract_spec("box/pages:16");
  EXPECT_TRUE(AbstractLayout(geometry, spec, 100, 7).has_layer(0));
  EXPECT_FALSE(AbstractLayout(geometry, spec, 100, 7).has_layer(1));
  geometry.layers[0].dtype = Dtype::kOpaque;
  EXPECT_FALSE(AbstractLayout(geometry, spec, 100, 7).has_layer(0));
  geometry.layers[2].dtype = Dtype::kOpaque;
  EXPECT_EQ(AbstractLayout(geometry, spec, 100, 7).size_bytes(), 0u);
  EXPECT_EQ(AbstractLayout(geometry, AbstractSpec{}, 100, 0).size_bytes(), 0u);
}

TEST(AbstractLayout, LayersThatABaseRenditionCannotHaveGoWithout) {
  Geometry geometry = samples::small_geometry();
  const AbstractSpec spec = *parse_abstract_spec("base:44/tokens");
  ASSERT_TRUE(AbstractLayout(geometry, spec, 100, 100).has_layer(0));
  for (const bool transposed : {true, false}) {
    Geometry other = geometry;
    if (transposed)
      other.layers[0].v_transposed = true;
    else
      other.layers[0].v_row_bytes = 3 * dtype_bytes(other.layers[0].dtype);
    EXPECT_FALSE(AbstractLayout(other, spec, 100, 100).has_layer(0));
    EXPECT_FALSE(base_format(spec, other.layers[0]));
    EXPECT_TRUE(AbstractLayout(other, *parse_abstract_spec("box/pages:16"), 100, 7).has_layer(0));
  }
  EXPECT_FALSE(base_format(*parse_abstract_spec("codes:4/tokens"), geometry.layers[0]));
}

TEST(AbstractLayout, CodesAreAFewPerCent) {
  Geometry geometry;
  LayerGeometry layer;
  layer.dtype = Dtype::kF16;
  layer.kv_heads = 3;
  layer.query_heads = 9;
  layer.k_row_bytes = layer.v_row_bytes = 128;
  geometry.layers.assign(30, layer);
  const AbstractLayout layout(geometry, *parse_abstract_spec("codes:4/tokens"), 2048, 2048);
  EXPECT_LE(static_cast<double>(layout.size_bytes()),
            0.032 * static_cast<double>(geometry.token_bytes()) * 2048);
  const AbstractLayout base(geometry, *parse_abstract_spec("base:44/tokens"), 2048, 2048);
  EXPECT_LE(static_cast<double>(base.size_bytes()),
            0.32 * static_cast<double>(geometry.token_bytes()) * 2048);
  const AbstractLayout low(geometry, *parse_abstract_spec("low-rank:10/tokens"), 2048, 2048);
  EXPECT_LE(static_cast<double>(low.size_bytes()),
            0.09 * static_cast<double>(geometry.token_bytes()) * 2048);
}

}  // namespace
}  // namespace kvtier
