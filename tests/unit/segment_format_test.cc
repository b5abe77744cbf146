// Segment format: round trips, and that no changed byte, no cut and no impossible field passes.
#include "tiers/segment_format.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/hash.h"
#include "tests/unit/format_samples.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

// Offsets in the header that tests patch (docs/formats.md).
constexpr std::size_t kVersionAt = 8, kIdAt = 16, kSpaceAt = 24, kParentAt = 48,
                      kParentVisibleAt = 56, kTokensAt = 60, kStartAt = 64, kChunksAt = 96,
                      kMetaBytesAt = 104, kFileBytesAt = 112, kRegionsAt = 120;

template <class T>
void patch(std::vector<std::byte>* bytes, std::size_t offset, T value) {
  std::memcpy(bytes->data() + offset, &value, sizeof(T));
}
template <class T>
T peek(const std::vector<std::byte>& bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}
// Makes the header's checksum right again after a patch.
void sign_header(std::vector<std::byte>* bytes) {
  patch(bytes, kHeadChecksumOffset, hash64(ByteSpan(*bytes).first(kHeadChecksumOffset)));
}
// Makes the checksum of region `index` right again, then the header's.
void sign_region(std::vector<std::byte>* bytes, std::size_t index) {
  const std::size_t entry = kRegionsAt + 24 * index;
  const auto offset = peek<std::uint64_t>(*bytes, entry);
  const auto size = peek<std::uint64_t>(*bytes, entry + 8);
  patch(bytes, entry + 16, hash64(ByteSpan(*bytes).subspan(offset, size)));
  sign_header(bytes);
}
std::size_t region_offset(const std::vector<std::byte>& bytes, std::size_t index) {
  return peek<std::uint64_t>(bytes, kRegionsAt + 24 * index);
}

struct Sample {
  SegmentMeta meta;
  std::vector<std::byte> file;
  std::vector<std::byte> head;  // header and metadata
};
Sample make_sample(CodecId codec = CodecId::kRaw) {
  Sample sample;
  sample.meta = samples::make_meta(SegmentId{0xA2F}, 11, 2048, 7);
  sample.file = samples::make_segment_file(&sample.meta, 7, codec);
  sample.head = encode_segment_meta(sample.meta);
  return sample;
}

Code parse_code(const std::vector<std::byte>& bytes) {
  const Result<SegmentMeta> meta = parse_segment_meta(bytes);
  return meta ? Code::kOk : meta.error().code;
}

void expect_same(const SegmentMeta& a, const SegmentMeta& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.space, b.space);
  EXPECT_EQ(a.fingerprint, b.fingerprint);
  EXPECT_EQ(a.geometry, b.geometry);
  EXPECT_EQ(a.parent, b.parent);
  EXPECT_EQ(a.parent_visible, b.parent_visible);
  EXPECT_EQ(a.start_token, b.start_token);
  EXPECT_EQ(a.created_unix_ns, b.created_unix_ns);
  EXPECT_EQ(a.previous_chain, b.previous_chain);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.texts, b.texts);
  EXPECT_EQ(a.snapshot, b.snapshot);
  ASSERT_EQ(a.chunks.size(), b.chunks.size());
  for (std::size_t i = 0; i < a.chunks.size(); ++i)
    EXPECT_EQ(std::memcmp(&a.chunks[i], &b.chunks[i], sizeof(ChunkEntry)), 0) << i;
}

TEST(SegmentFormat, RoundTrips) {
  const Sample sample = make_sample();
  EXPECT_EQ(sample.head.size(), segment_meta_bytes(sample.meta));
  EXPECT_EQ(sample.file.size(), sample.meta.file_bytes());
  ASSERT_EQ(parse_segment_header(ByteSpan(sample.head).first(4096)), sample.head.size());
  const Result<SegmentMeta> parsed = parse_segment_meta(sample.head);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  expect_same(*parsed, sample.meta);
  EXPECT_EQ(encode_segment_meta(*parsed), sample.head);
  EXPECT_TRUE(parse_segment_meta(sample.file).has_value());  // more bytes than asked for do no harm
}

TEST(SegmentFormat, RoundTripsCompressedChunks) {
  SegmentMeta meta = samples::make_meta(SegmentId{5}, 64, 0, 9);
  for (TokenRecord& token : meta.tokens) token.id = 1;
  samples::make_segment_file(&meta, 9);
  std::uint64_t offset = segment_meta_bytes(meta);
  for (ChunkEntry& chunk : meta.chunks) {
    chunk.codec = CodecId::kZstd;
    chunk.stored_bytes = chunk.stored_bytes / 2;
    chunk.offset = offset;
    offset += 2 * kDiskAlign;  // a gap is allowed, an overlap is not
  }
  const Result<SegmentMeta> parsed = parse_segment_meta(encode_segment_meta(meta));
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  expect_same(*parsed, meta);
}

TEST(SegmentFormat, RoundTripsWithoutAnythingOptional) {
  SegmentMeta meta = samples::make_meta(SegmentId{1}, 1, 0, 3);
  meta.texts = TokenTexts();
  meta.texts.resize(1);
  meta.snapshot.clear();
  samples::make_segment_file(&meta, 3);
  const Result<SegmentMeta> parsed = parse_segment_meta(encode_segment_meta(meta));
  ASSERT_TRUE(parsed.has_value());
  expect_same(*parsed, meta);
}

TEST(SegmentFormat, ASegmentOfSnapshotsOnlyHasNoChunks) {
  SegmentMeta meta = samples::make_meta(SegmentId{1}, 20, 0, 3);
  for (LayerGeometry& layer : meta.geometry.layers) layer.kind = LayerKind::kSnapshot;
  const std::vector<std::byte> file = samples::make_segment_file(&meta, 3);
  EXPECT_EQ(file.size(), meta.file_bytes());
  const Result<SegmentMeta> parsed = parse_segment_meta(file);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_TRUE(parsed->chunks.empty());
}

TEST(SegmentFormat, AFullSegmentRoundTrips) {
  SegmentMeta meta = samples::make_meta(SegmentId{77}, kSegmentTokensMax, 4096, 3);
  meta.geometry.heads_per_chunk = 0;
  place_raw_chunks(&meta);
  const Result<SegmentMeta> parsed = parse_segment_meta(encode_segment_meta(meta));
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  expect_same(*parsed, meta);
}

TEST(SegmentFormat, EveryFlippedBitIsCorrupt) {
  std::vector<std::byte> head = make_sample().head;
  for (std::size_t i = 0; i < head.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      head[i] ^= static_cast<std::byte>(1 << bit);
      ASSERT_EQ(parse_code(head), Code::kCorrupt) << "byte " << i << " bit " << bit;
      head[i] ^= static_cast<std::byte>(1 << bit);
    }
  EXPECT_EQ(parse_code(head), Code::kOk);
}

TEST(SegmentFormat, EveryTruncationIsCorrupt) {
  const std::vector<std::byte> head = make_sample().head;
  for (std::size_t size = 0; size < head.size(); ++size) {
    const Result<SegmentMeta> meta = parse_segment_meta(ByteSpan(head).first(size));
    ASSERT_FALSE(meta.has_value()) << size;
    ASSERT_EQ(meta.error().code, Code::kCorrupt) << size;
    if (size < kSegmentHeaderBytes) {
      ASSERT_EQ(parse_segment_header(ByteSpan(head).first(size)).error().code, Code::kCorrupt);
    }
  }
}

TEST(SegmentFormat, ANewerVersionIsToldApart) {
  std::vector<std::byte> head = make_sample().head;
  patch<std::uint32_t>(&head, kVersionAt, kSegmentVersion + 1);
  EXPECT_EQ(parse_code(head), Code::kCorrupt);  // a flipped version is damage
  sign_header(&head);
  EXPECT_EQ(parse_code(head), Code::kVersion);
  EXPECT_EQ(parse_segment_header(head).error().code, Code::kVersion);
  patch<std::uint32_t>(&head, kVersionAt, 0);
  sign_header(&head);
  EXPECT_EQ(parse_code(head), Code::kCorrupt);
}

TEST(SegmentFormat, SignedNonsenseInTheHeaderIsCorrupt) {
  struct Case {
    const char* what;
    std::function<void(std::vector<std::byte>*)> change;
  };
  const Case cases[] = {
      {"magic", [](auto* b) { patch<char>(b, 0, 'X'); }},
      {"flags", [](auto* b) { patch<std::uint32_t>(b, 12, 1); }},
      {"no id", [](auto* b) { patch<std::uint64_t>(b, kIdAt, 0); }},
      {"no space", [](auto* b) { patch<std::uint64_t>(b, kSpaceAt, 0); }},
      {"visible tokens without parent", [](auto* b) { patch<std::uint64_t>(b, kParentAt, 0); }},
      {"parent without visible tokens",
       [](auto* b) { patch<std::uint32_t>(b, kParentVisibleAt, 0); }},
      {"too many visible tokens", [](auto* b) { patch<std::uint32_t>(b, kParentVisibleAt, 2049); }},
      {"no tokens", [](auto* b) { patch<std::uint32_t>(b, kTokensAt, 0); }},
      {"too many tokens", [](auto* b) { patch<std::uint32_t>(b, kTokensAt, 2049); }},
      {"one token more", [](auto* b) { patch<std::uint32_t>(b, kTokensAt, 12); }},
      {"start beyond all", [](auto* b) { patch<std::uint64_t>(b, kStartAt, kSequenceTokensMax); }},
      {"start overflows", [](auto* b) { patch<std::uint64_t>(b, kStartAt, UINT64_MAX); }},
      {"one chunk more", [](auto* b) { patch<std::uint32_t>(b, kChunksAt, 7); }},
      {"reserved", [](auto* b) { patch<std::uint32_t>(b, kChunksAt + 4, 1); }},
      {"meta_bytes", [](auto* b) { patch<std::uint64_t>(b, kMetaBytesAt, 4096); }},
      {"meta_bytes huge", [](auto* b) { patch<std::uint64_t>(b, kMetaBytesAt, 1ull << 60); }},
      {"file_bytes below meta", [](auto* b) { patch<std::uint64_t>(b, kFileBytesAt, 4096); }},
      {"file_bytes odd", [](auto* b) { patch<std::uint64_t>(b, kFileBytesAt, 100001); }},
      {"file_bytes too long", [](auto* b) { patch<std::uint64_t>(b, kFileBytesAt, 1ull << 40); }},
      {"region offset", [](auto* b) { patch<std::uint64_t>(b, kRegionsAt + 24, 8000); }},
      {"region size", [](auto* b) { patch<std::uint64_t>(b, kRegionsAt + 48 + 8, 8000); }},
      {"region size huge",
       [](auto* b) { patch<std::uint64_t>(b, kRegionsAt + 72 + 8, UINT64_MAX - 7); }},
      {"text above its limit",
       [](auto* b) { patch<std::uint64_t>(b, kRegionsAt + 48 + 8, kSegmentTextBytesMax + 1); }},
      {"padding of the header", [](auto* b) { patch<char>(b, 1000, 1); }},
  };
  for (const Case& one : cases) {
    std::vector<std::byte> head = make_sample().head;
    one.change(&head);
    sign_header(&head);
    EXPECT_EQ(parse_code(head), Code::kCorrupt) << one.what;
  }
}

TEST(SegmentFormat, SignedNonsenseInTheRegionsIsRefused) {
  struct Case {
    const char* what;
    std::size_t region;
    Code code;
    std::function<void(std::vector<std::byte>*, std::size_t)> change;
  };
  constexpr std::size_t kTable = 4;
  const Case cases[] = {
      {"no layers", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at + 6, 0); }},
      {"many layers", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at + 6, 65535); }},
      {"fewer layers", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at + 6, 2); }},
      {"chunk_tokens 7", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at, 7); }},
      {"chunk_tokens 16", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at, 16); }},
      {"odd truth", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint8_t>(b, at + 8 + 2, 2); }},
      {"layer kind", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint8_t>(b, at + 8, 3); }},
      {"row bytes", 0, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint32_t>(b, at + 8 + 8, 32); }},
      {"a text longer than it says", 2, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at, 1); }},
      {"a text above its limit", 2, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at, kTokenTextBytesMax + 1); }},
      {"chunk odd", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint64_t>(b, at, 8193); }},
      {"chunk in metadata", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint64_t>(b, at, 4096); }},
      {"chunk far away", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint64_t>(b, at, 1ull << 40); }},
      {"chunk wraps", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint64_t>(b, at, UINT64_MAX - 4095); }},
      {"chunks overlap", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch(b, at + 64, peek<std::uint64_t>(*b, at)); }},
      {"chunk short", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint32_t>(b, at + 8, 255); }},
      {"chunk long", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint32_t>(b, at + 8, UINT32_MAX); }},
      {"codec", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at + 12, 2); }},
      {"chunk flags", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<std::uint16_t>(b, at + 14, 1); }},
      {"chunk reserved", kTable, Code::kCorrupt,
       [](auto* b, auto at) { patch<char>(b, at + 63, 1); }},
      {"encrypted", kTable, Code::kVersion,
       [](auto* b, auto at) { patch<std::uint64_t>(b, at + 24, 1); }},
      {"tagged", kTable, Code::kVersion, [](auto* b, auto at) { patch<char>(b, at + 32, 1); }},
  };
  for (const Case& one : cases) {
    std::vector<std::byte> head = make_sample().head;
    one.change(&head, region_offset(head, one.region));
    sign_region(&head, one.region);
    EXPECT_EQ(parse_code(head), one.code) << one.what;
  }
  std::vector<std::byte> head = make_sample().head;  // bytes of no region
  head.back() = std::byte{1};
  EXPECT_EQ(parse_code(head), Code::kCorrupt);
}

TEST(SegmentFormat, SalvageNamesWhatIsDamagedAndKeepsTheRest) {
  const Sample sample = make_sample();
  const SegmentSalvage whole = salvage_segment_meta(sample.head);
  EXPECT_TRUE(whole.damaged.empty());
  EXPECT_TRUE(whole.chunks_known);
  expect_same(whole.meta, sample.meta);
  const char* names[] = {"geometry", "tokens", "text", "snapshot", "chunk table"};
  for (std::size_t i = 0; i < std::size(names); ++i) {
    std::vector<std::byte> head = sample.head;
    head[region_offset(head, i)] ^= std::byte{1};
    const SegmentSalvage salvage = salvage_segment_meta(head);
    ASSERT_EQ(salvage.damaged.size(), 1u);
    EXPECT_STREQ(salvage.damaged[0], names[i]);
    EXPECT_EQ(salvage.chunks_known, i != 4);
    EXPECT_EQ(salvage.meta.geometry == sample.meta.geometry, i != 0);
    EXPECT_EQ(salvage.meta.tokens == sample.meta.tokens, i != 1);
    EXPECT_EQ(salvage.meta.texts == sample.meta.texts, i != 2);
    EXPECT_EQ(salvage.meta.snapshot == sample.meta.snapshot, i != 3);
    EXPECT_EQ(salvage.meta.chunks.size(), i != 4 ? sample.meta.chunks.size() : 0u);
  }
  std::vector<std::byte> head = sample.head;
  patch<std::uint64_t>(&head, kIdAt, 0);  // not signed: damaged, but it still says where things are
  SegmentSalvage salvage = salvage_segment_meta(head);
  ASSERT_EQ(salvage.damaged.size(), 1u);
  EXPECT_STREQ(salvage.damaged[0], "header");
  EXPECT_EQ(salvage.meta.tokens, sample.meta.tokens);
  head = sample.head;
  head.back() = std::byte{1};
  salvage = salvage_segment_meta(head);
  ASSERT_EQ(salvage.damaged.size(), 1u);
  EXPECT_STREQ(salvage.damaged[0], "padding");
  salvage = salvage_segment_meta(ByteSpan(sample.head).first(4096));  // all regions are cut off
  EXPECT_EQ(salvage.damaged.size(), 5u);
  EXPECT_EQ(salvage.meta_bytes, sample.head.size());
  EXPECT_EQ(salvage_segment_meta({}).meta_bytes, 0u);
}

TEST(SegmentFormat, ChunkChecksumKnowsSegmentPlaceAndEveryBit) {
  const Sample sample = make_sample();
  for (std::uint32_t i = 0; i < sample.meta.chunks.size(); ++i) {
    const ChunkEntry& chunk = sample.meta.chunks[i];
    std::vector<std::byte> stored(
        sample.file.begin() + static_cast<std::ptrdiff_t>(chunk.offset),
        sample.file.begin() + static_cast<std::ptrdiff_t>(chunk.offset + chunk.stored_bytes));
    EXPECT_EQ(chunk_checksum(sample.meta.id, i, stored), chunk.checksum);
    EXPECT_NE(chunk_checksum(SegmentId{sample.meta.id.value + 1}, i, stored), chunk.checksum);
    EXPECT_NE(chunk_checksum(sample.meta.id, i + 1, stored), chunk.checksum);
    for (std::size_t at = 0; at < stored.size(); ++at)
      for (int bit = 0; bit < 8; ++bit) {
        stored[at] ^= static_cast<std::byte>(1 << bit);
        ASSERT_NE(chunk_checksum(sample.meta.id, i, stored), chunk.checksum);
        stored[at] ^= static_cast<std::byte>(1 << bit);
      }
  }
}

TEST(SegmentFormat, NamesGoBothWays) {
  EXPECT_EQ(segment_path(SegmentId{0xA2F}), "segments/0000000000000a2f.kvs");
  EXPECT_EQ(segment_id_of("0000000000000a2f.kvs"), SegmentId{0xA2F});
  EXPECT_EQ(segment_id_of("ffffffffffffffff.kvs"), SegmentId{UINT64_MAX});
  for (const char* name : {"", ".kvs", "a2f.kvs", "0000000000000a2f.kva", "0000000000000A2F.kvs",
                           "0000000000000000.kvs", "00000000000000a2f.kvs", "0000000000000a2g.kvs",
                           "0000000000000a2f.kvs.tmp", "segments/0000000000000a2f.kvs"})
    EXPECT_EQ(segment_id_of(name).error().code, Code::kInvalid) << name;
}

TEST(FormatHead, HexadecimalDigits) {
  EXPECT_EQ(hex16(0x0123456789abcdefull), "0123456789abcdef");
  EXPECT_EQ(parse_hex16("0123456789abcdef"), 0x0123456789abcdefull);
  EXPECT_FALSE(parse_hex16("0123456789abcde").has_value());
  EXPECT_FALSE(parse_hex16(" 123456789abcdef").has_value());
}

}  // namespace
}  // namespace kvtier
