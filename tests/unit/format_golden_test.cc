// Golden files: what format version 1 looks like, byte by byte. A build that writes other bytes, or
// cannot read these, has changed the format: then the version must move. KVT_UPDATE_GOLDEN=1 writes
// them anew; nothing else does.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "kernels/float16.h"
#include "kernels/registry.h"
#include "tests/unit/format_samples.h"
#include "tests/unit/segment_chunks.h"
#include "tiers/abstract_builder.h"
#include "tiers/codec.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kSeed = 1;
const SegmentId kSegment{0xA2F};

std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const ByteSpan span = as_bytes({bytes.data(), bytes.size()});
  return {span.begin(), span.end()};
}

void write_file(const std::string& path, const std::vector<std::byte>& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.good()) << path;
}

bool updating() {
  const char* value = std::getenv("KVT_UPDATE_GOLDEN");
  return value != nullptr && std::string_view(value) == "1";
}

std::string path_of(const char* name) { return std::string(KVT_GOLDEN_DIR) + "/" + name; }

void expect_golden(const char* name, const std::vector<std::byte>& bytes) {
  if (updating()) write_file(path_of(name), bytes);
  const std::vector<std::byte> golden = read_file(path_of(name));
  ASSERT_FALSE(golden.empty()) << path_of(name) << " is missing; KVT_UPDATE_GOLDEN=1 writes it";
  ASSERT_EQ(golden.size(), bytes.size()) << name;
  const auto differ = std::ranges::mismatch(golden, bytes);
  EXPECT_TRUE(differ.in1 == golden.end())
      << name << " differs from byte " << differ.in1 - golden.begin();
}

std::vector<std::byte> segment_bytes() {
  SegmentMeta meta = samples::make_meta(kSegment, 11, 2048, kSeed);
  return samples::make_segment_file(&meta, kSeed);
}

std::vector<std::byte> log_bytes() {
  return samples::make_log(samples::make_log_header(SequenceId{0x77}, 3, 2048),
                           samples::small_geometry(), kSeed, {3, 1, 33});
}

TEST(Golden, Segment) { expect_golden("segment_v1.kvs", segment_bytes()); }
TEST(Golden, TailLog) { expect_golden("tail_log_v1.kvl", log_bytes()); }
TEST(Golden, Sidecar) {
  expect_golden("sidecar_v1.kva",
                samples::make_sidecar(kSegment, samples::small_geometry(), 11, kSeed));
}
// What builders put into a sidecar, of every kind: by the scalar kernels, from small integers, so
// that no rounding is in it. Low-rank keys, which come from iterations, are counted up instead.
struct Kind {
  const char* spec;
  const char* file;
};
class GoldenSidecar : public ::testing::TestWithParam<Kind> {};

float element(std::uint32_t layer, std::uint32_t head, std::uint32_t token, std::uint32_t which,
              std::uint32_t d) {
  return static_cast<float>((token * 7 + d * 3 + head * 5 + which * 11 + layer) % 16);
}

Geometry geometry_for(AbstractKind kind) {
  Geometry geometry = samples::codebook_geometry();
  if (kind == AbstractKind::kCodes) return geometry;  // keys of 8 dims
  for (LayerGeometry& layer : geometry.layers) layer.k_row_bytes = layer.v_row_bytes = 128;
  return geometry;
}

void count_up(const AbstractLayout& layout, const LowRankShape& shape, std::byte* payload) {
  const auto fill = [payload](std::uint64_t offset, std::uint64_t bytes) {
    for (std::uint64_t i = 0; i < bytes / 2; ++i) {
      const std::uint16_t value = f32_to_f16(static_cast<float>(i % 1024));
      std::memcpy(payload + offset + 2 * i, &value, 2);
    }
  };
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    fill(layout.head(layer, 0).shared, shape.coefficient_bytes(layout.tokens()));
    for (std::uint32_t head = 0; head < 2; ++head)
      fill(layout.head(layer, head).data, shape.basis_bytes());
  }
}

TEST_P(GoldenSidecar, IsWhatBuildersMake) {
  constexpr std::uint32_t kTokens = 40;  // a block of codes, a base chunk, and a part of one
  const AbstractSpec spec = *parse_abstract_spec(GetParam().spec);
  const Geometry geometry = geometry_for(spec.abstract);
  std::vector<TokenRecord> tokens(kTokens);
  for (std::uint32_t t = 0; t < kTokens; ++t) {
    tokens[t].position = 100 + t;
    tokens[t].flags = t % 7 == 6 ? 2 : 0;
  }
  const Rotation rotation{Rotation::Pairing::kHalves, std::vector<float>(16, 0.5f)};
  const AbstractPlan plan = plan_abstract(geometry, spec, tokens, rotation);
  const std::vector<std::byte> file = samples::make_codebook();
  const AbstractSpec codes = *parse_abstract_spec("codes:4/tokens");
  Codebook codebook{5, CodebookLayout(samples::codebook_geometry(), codes), {}};
  codebook.payload.assign(file.begin() + kHeadBytes, file.end());
  std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
  begin_abstract(plan, spec == codes ? codebook.id : 0, payload);
  if (spec.abstract == AbstractKind::kLowRank) {
    count_up(plan.layout, *low_rank_shape(spec, geometry, 0, kTokens), payload.data());
  } else {
    const testing::SegmentChunks chunks(geometry, kTokens, element);
    const KernelTable* const scalar = *select_kernels("scalar");
    const AbstractSource source{scalar, &geometry, &chunks.plane, chunks.pointers, &codebook};
    ASSERT_TRUE(build_abstract_layers(source, plan, 0, 2, payload));
  }
  expect_golden(GetParam().file, encode_sidecar({.segment = kSegment,
                                                 .fingerprint = samples::kFingerprint,
                                                 .kind = spec.packed(),
                                                 .version = 1,
                                                 .units = plan.layout.units(),
                                                 .tokens = kTokens},
                                                payload));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, GoldenSidecar,
    ::testing::Values(Kind{"codes:4/tokens", "sidecar_codes_v1.kva"},
                      Kind{"own-codes:2/tokens", "sidecar_own_codes_v1.kva"},
                      Kind{"base:44/tokens", "sidecar_base_44_v1.kva"},
                      Kind{"base:53/tokens", "sidecar_base_53_v1.kva"},
                      Kind{"low-rank:10/tokens", "sidecar_low_rank_v1.kva"},
                      Kind{"mean/clusters:8", "sidecar_clusters_v1.kva"},
                      Kind{"mean/sentences:12", "sidecar_sentences_v1.kva"},
                      Kind{"box:2/pages:4", "sidecar_boxes_v1.kva"}),
    [](const auto& info) {
      std::string name = info.param.spec;
      std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
      return name;
    });

TEST(Golden, Codebook) { expect_golden("codebook_v1.kvb", samples::make_codebook()); }
TEST(Golden, Object) {
  expect_golden("object_v1.kvo", samples::make_object(5, "layer0/\xff\x01", 5000, kSeed));
}
TEST(Golden, Export) {
  expect_golden("export_v1.kvx", samples::make_export({9, 2}, kSeed, CodecId::kRaw));
}
TEST(Golden, Geometry) {
  ByteWriter writer;
  encode_geometry(samples::small_geometry(), &writer);
  expect_golden("geometry_v1.bin", writer.take());
}

// Another libzstd may write other bytes for the same chunk; all must read these.
TEST(Golden, ZstdChunkDecodes) {
  std::vector<std::byte> raw(4096);
  for (std::size_t i = 0; i < raw.size(); ++i)
    raw[i] = static_cast<std::byte>(i % 2 == 0 ? i * i >> 4 : 0x3F);
  if (updating()) {
    CodecId used{};
    const std::vector<std::byte> stored = encode_chunk(CodecId::kZstd, raw, 2, &used);
    ASSERT_EQ(used, CodecId::kZstd);
    write_file(path_of("chunk_zstd_v1.bin"), stored);
  }
  std::vector<std::byte> decoded(raw.size());
  const std::vector<std::byte> golden = read_file(path_of("chunk_zstd_v1.bin"));
  ASSERT_TRUE(decode_chunk(CodecId::kZstd, golden, 2, decoded).has_value());
  EXPECT_EQ(decoded, raw);
}

TEST(Golden, FilesRead) {
  const std::vector<std::byte> segment = read_file(path_of("segment_v1.kvs"));
  const Result<SegmentMeta> meta = parse_segment_meta(segment);
  ASSERT_TRUE(meta.has_value()) << meta.error().message();
  EXPECT_EQ(meta->id, kSegment);
  EXPECT_EQ(meta->tokens, samples::make_meta(kSegment, 11, 2048, kSeed).tokens);
  for (std::uint32_t i = 0; i < meta->chunks.size(); ++i)
    EXPECT_EQ(chunk_checksum(
                  kSegment, i,
                  ByteSpan(segment).subspan(meta->chunks[i].offset, meta->chunks[i].stored_bytes)),
              meta->chunks[i].checksum);

  const std::vector<std::byte> log = read_file(path_of("tail_log_v1.kvl"));
  const Geometry geometry = samples::small_geometry();
  const PlaneLayout layout(geometry, kSegmentTokensMax);
  std::vector<TokenRecord> tokens(kSegmentTokensMax);
  std::vector<std::byte> plane(layout.size_bytes());
  const Result<TailReplay> replay =
      replay_tail_log(log, samples::make_log_header(SequenceId{0x77}, 3, 2048), geometry, layout,
                      tokens.data(), plane.data());
  ASSERT_TRUE(replay.has_value()) << replay.error().message();
  EXPECT_EQ(replay->tokens, 37u);
  EXPECT_EQ(replay->next_order, 3u);
  EXPECT_FALSE(replay->torn);

  const std::vector<std::byte> sidecar = read_file(path_of("sidecar_v1.kva"));
  const Result<SidecarHeader> header = parse_sidecar_header(sidecar);
  ASSERT_TRUE(header.has_value());
  EXPECT_TRUE(
      check_sidecar_payload(*header, ByteSpan(sidecar).subspan(kSidecarHeaderBytes)).has_value());
}

}  // namespace
}  // namespace kvtier
