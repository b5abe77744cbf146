// Geometry and layouts: limits, byte form, and that rows, chunks and abstracts tile their planes
// without overlap.
#include "kernels/geometry.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "kernels/layout.h"
#include "tests/unit/format_samples.h"

namespace kvtier {
namespace {

Geometry plain(std::uint16_t layers, std::uint16_t heads, std::uint32_t row_bytes) {
  Geometry geometry;
  geometry.layers.assign(layers, {.dtype = Dtype::kF16,
                                  .kv_heads = heads,
                                  .query_heads = heads,
                                  .k_row_bytes = row_bytes,
                                  .v_row_bytes = row_bytes});
  return geometry;
}

std::vector<std::byte> encoded(const Geometry& geometry) {
  ByteWriter writer;
  encode_geometry(geometry, &writer);
  return writer.take();
}

TEST(Geometry, ValidateNamesWhatIsWrong) {
  struct Case {
    const char* what;
    Code code;
    std::function<void(Geometry*)> change;
  };
  const Case cases[] = {
      {"no layers", Code::kInvalid, [](Geometry* g) { g->layers.clear(); }},
      {"too many layers", Code::kInvalid,
       [](Geometry* g) { g->layers.resize(kLayersMax + 1, g->layers[0]); }},
      {"chunk_tokens 0", Code::kInvalid, [](Geometry* g) { g->chunk_tokens = 0; }},
      {"chunk_tokens 4", Code::kInvalid, [](Geometry* g) { g->chunk_tokens = 4; }},
      {"chunk_tokens 24", Code::kInvalid, [](Geometry* g) { g->chunk_tokens = 24; }},
      {"chunk_tokens 128", Code::kInvalid, [](Geometry* g) { g->chunk_tokens = 128; }},
      {"heads_per_chunk 2", Code::kInvalid, [](Geometry* g) { g->heads_per_chunk = 2; }},
      {"positions 0", Code::kInvalid, [](Geometry* g) { g->positions_per_token = 0; }},
      {"positions 5", Code::kInvalid, [](Geometry* g) { g->positions_per_token = 5; }},
      {"no heads", Code::kInvalid, [](Geometry* g) { g->layers[0].kv_heads = 0; }},
      {"too many heads", Code::kInvalid,
       [](Geometry* g) { g->layers[0].kv_heads = kHeadsMax + 1; }},
      {"query heads", Code::kInvalid, [](Geometry* g) { g->layers[0].query_heads = 5; }},
      {"no K", Code::kTooLarge, [](Geometry* g) { g->layers[0].k_row_bytes = 0; }},
      {"K row", Code::kTooLarge, [](Geometry* g) { g->layers[0].k_row_bytes = kRowBytesMax + 2; }},
      {"V row", Code::kTooLarge, [](Geometry* g) { g->layers[0].v_row_bytes = kRowBytesMax + 2; }},
      {"half an element", Code::kInvalid, [](Geometry* g) { g->layers[0].k_row_bytes = 33; }},
      {"a chunk of all heads above 2 MiB", Code::kTooLarge,
       [](Geometry* g) {
         g->heads_per_chunk = 0;
         g->chunk_tokens = 64;
         g->layers[0].kv_heads = g->layers[0].query_heads = 64;
         g->layers[0].k_row_bytes = 1024;
       }},
      {"a token of all layers above 4 MiB", Code::kTooLarge,
       [](Geometry* g) {
         g->layers[0].kv_heads = g->layers[0].query_heads = 16;
         g->layers[0].k_row_bytes = g->layers[0].v_row_bytes = 4096;
         g->layers.resize(33, g->layers[0]);  // 32 are exactly 4 MiB
       }},
  };
  ASSERT_TRUE(plain(2, 2, 64).validate().has_value());
  for (const Case& one : cases) {
    Geometry geometry = plain(2, 2, 64);
    one.change(&geometry);
    const Result<void> result = geometry.validate();
    ASSERT_FALSE(result.has_value()) << one.what;
    EXPECT_EQ(result.error().code, one.code) << one.what;
    EXPECT_NE(result.error().text, nullptr) << one.what;
  }
}

TEST(Geometry, ByteFormRoundTripsAndRefusesCuts) {
  const Geometry geometry = samples::small_geometry();
  const std::vector<std::byte> bytes = encoded(geometry);
  EXPECT_EQ(bytes.size(), 8 + 16 * geometry.layers.size());
  ByteReader reader(bytes);
  const Result<Geometry> decoded = decode_geometry(&reader);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(*decoded, geometry);
  EXPECT_EQ(reader.remaining(), 0u);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    ByteReader cut(ByteSpan(bytes).first(size));
    ASSERT_FALSE(decode_geometry(&cut).has_value()) << size;
  }
}

TEST(Geometry, UnknownKindsAreRefused) {
  for (const std::size_t field : {0u, 1u, 3u}) {  // kind, rope, dtype of the first layer
    std::vector<std::byte> bytes = encoded(samples::small_geometry());
    bytes[8 + field] = std::byte{200};
    ByteReader reader(bytes);
    EXPECT_FALSE(decode_geometry(&reader).has_value()) << field;
  }
}

TEST(Geometry, BytesPerTokenAndChunk) {
  const Geometry geometry =
      samples::small_geometry();  // bf16 2 heads (16 + 16), window, f32 1 head (16 + 32)
  EXPECT_EQ(geometry.token_bytes(), 2u * 32 + 48);
  EXPECT_EQ(geometry.chunk_bytes(0), 8u * 32);
  EXPECT_EQ(geometry.chunk_bytes(2), 8u * 48);
  EXPECT_EQ(geometry.slot_bytes(0), kDiskAlign);
  EXPECT_EQ(geometry.groups(0), 2u);
  EXPECT_EQ(geometry.groups(1), 0u);
  Geometry all_heads = geometry;
  all_heads.heads_per_chunk = 0;
  EXPECT_EQ(all_heads.groups(0), 1u);
  EXPECT_EQ(all_heads.chunk_bytes(0), 2 * geometry.chunk_bytes(0));
  const Geometry llama8b = plain(32, 8, 256);
  EXPECT_EQ(llama8b.token_bytes(), 128u << 10);
}

TEST(Geometry, DigestKnowsEveryField) {
  std::set<BlockHash> digests;
  const Fingerprint base{
      .model = "m", .runtime = "r", .detail = "d", .geometry = samples::small_geometry()};
  std::vector<Fingerprint> all(13, base);
  all[1].model = "n";
  all[2].runtime = "s";
  all[3].detail = "e";
  all[4].geometry.chunk_tokens = 16;
  all[5].geometry.heads_per_chunk = 0;
  all[6].geometry.positions_per_token = 3;
  all[7].geometry.layers[0].kind = LayerKind::kSnapshot;
  all[8].geometry.layers[0].rope = RopeState::kBefore;
  all[9].geometry.layers[0].v_transposed = true;
  all[10].geometry.layers[0].dtype = Dtype::kF16;
  all[11].geometry.layers[0].query_heads = 2;
  all[12].model = "mr";  // the border between two texts is part of the identity
  all[12].runtime = "";
  for (const Fingerprint& one : all) digests.insert(fingerprint_digest(one));
  EXPECT_EQ(digests.size(), all.size());
  EXPECT_EQ(fingerprint_digest(base), fingerprint_digest(all[0]));
}

TEST(PlaneLayout, ChunksTileThePlaneAndPlaceOfInverts) {
  for (const std::uint16_t heads_per_chunk : {std::uint16_t{0}, std::uint16_t{1}})
    for (const std::uint32_t tokens : {1u, 8u, 9u, 100u, kSegmentTokensMax}) {
      Geometry geometry = samples::small_geometry();
      geometry.heads_per_chunk = heads_per_chunk;
      const PlaneLayout layout(geometry, tokens);
      EXPECT_EQ(layout.chunks_per_layer(), (tokens + 7) / 8);
      std::uint64_t end = 0;
      std::uint32_t index = 0;
      for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer)
        for (std::uint32_t chunk = 0; chunk < layout.chunks_per_layer(); ++chunk)
          for (std::uint32_t group = 0; group < geometry.groups(layer); ++group, ++index) {
            ASSERT_EQ(layout.chunk_index(layer, chunk, group), index);
            ASSERT_EQ(layout.chunk_offset(layer, chunk, group), end);
            end += geometry.slot_bytes(layer);
            const PlaneLayout::ChunkPlace place = layout.place_of(index);
            ASSERT_EQ(place.layer, layer);
            ASSERT_EQ(place.chunk, chunk);
            ASSERT_EQ(place.group, group);
          }
      EXPECT_EQ(index, layout.chunks_total());
      EXPECT_EQ(end, layout.size_bytes());
    }
}

TEST(PlaneLayout, LayersWithoutChunksAtBothEnds) {
  Geometry geometry = plain(5, 2, 64);
  for (const std::uint32_t layer : {0u, 2u, 4u})
    geometry.layers[layer].kind = LayerKind::kSlidingWindow;
  const PlaneLayout layout(geometry, 64);
  for (std::uint32_t i = 0; i < layout.chunks_total(); ++i) {
    const PlaneLayout::ChunkPlace place = layout.place_of(i);
    ASSERT_TRUE(place.layer == 1 || place.layer == 3);
    ASSERT_EQ(layout.chunk_index(place.layer, place.chunk, place.group), i);
  }
}

TEST(PlaneLayout, RowsNeverOverlapAndStayInTheirChunk) {
  for (const std::uint16_t heads_per_chunk : {std::uint16_t{0}, std::uint16_t{1}}) {
    Geometry geometry = samples::small_geometry();
    geometry.heads_per_chunk = heads_per_chunk;
    const PlaneLayout layout(geometry, 19);
    std::vector<bool> taken(layout.size_bytes());
    std::uint64_t bytes = 0;
    samples::visit_rows(geometry, layout, 0, 19, [&](const samples::RowPlace& row) {
      ASSERT_LE(row.offset + row.size_bytes, layout.size_bytes());
      for (std::uint64_t at = row.offset; at < row.offset + row.size_bytes; ++at) {
        ASSERT_FALSE(taken[at]);
        taken[at] = true;
      }
      const std::uint64_t slot = row.offset / kDiskAlign;  // slots of this geometry are one page
      ASSERT_EQ((row.offset + row.size_bytes - 1) / kDiskAlign, slot);
      bytes += row.size_bytes;
    });
    EXPECT_EQ(bytes, 19 * geometry.token_bytes());
  }
}

TEST(PlaneLayout, OffsetsPastFourGibibytesDoNotWrap) {
  Geometry geometry = plain(256, 64, 512);
  geometry.heads_per_chunk = 0;
  const PlaneLayout layout(geometry, kSegmentTokensMax);
  EXPECT_EQ(layout.size_bytes(), 256ull * 64 * (2ull << 20));
  EXPECT_EQ(layout.chunk_offset(255, 63, 0), (256ull * 64 - 1) * (2ull << 20));
}

TEST(TailLayout, HalvesAreAlignedAndApart) {
  const TailLayout tail(samples::small_geometry());
  EXPECT_EQ(tail.tokens_bytes, kSegmentTokensMax * sizeof(TokenRecord));
  for (const std::uint32_t half : {0u, 1u}) {
    EXPECT_EQ(tail.tokens_offset(half) % kDiskAlign, 0u);
    EXPECT_EQ(tail.plane_offset(half) % kDiskAlign, 0u);
    EXPECT_GE(tail.plane_offset(half),
              tail.tokens_offset(half) + kSegmentTokensMax * sizeof(TokenRecord));
  }
  EXPECT_GE(tail.tokens_offset(1), tail.plane_offset(0) + tail.plane.size_bytes());
  EXPECT_GE(tail.size_bytes(), tail.plane_offset(1) + tail.plane.size_bytes());
}

}  // namespace
}  // namespace kvtier
