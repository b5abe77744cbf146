// Golden files: what format version 1 looks like, byte by byte. A build that writes other bytes, or
// cannot read these, has changed the format: then the version must move. KVT_UPDATE_GOLDEN=1 writes
// them anew; nothing else does.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "tests/unit/format_samples.h"
#include "tiers/codec.h"

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
