// Sidecar format: round trips, every flipped bit, every cut, signed nonsense, names.
#include "tiers/sidecar_format.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/hash.h"
#include "tests/unit/format_samples.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr SegmentId kSegment{0xA2F};

std::vector<std::byte> sample() {
  return samples::make_sidecar(kSegment, samples::small_geometry(), 11, 5);
}

// Parses a whole file as a reader would.
Code read_code(ByteSpan file) {
  const Result<SidecarHeader> header = parse_sidecar_header(file);
  if (!header) return header.error().code;
  if (file.size() < kSidecarHeaderBytes) return Code::kInternal;
  const Result<void> payload = check_sidecar_payload(*header, file.subspan(kSidecarHeaderBytes));
  return payload ? Code::kOk : payload.error().code;
}

TEST(SidecarFormat, RoundTrips) {
  const std::vector<std::byte> file = sample();
  EXPECT_EQ(file.size() % kDiskAlign, 0u);
  const Result<SidecarHeader> header = parse_sidecar_header(file);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->segment, kSegment);
  EXPECT_EQ(header->fingerprint, samples::kFingerprint);
  const AbstractSpec spec = *parse_abstract_spec("box/pages:4");
  EXPECT_EQ(header->kind, spec.packed());
  EXPECT_EQ(header->version, 1u);
  EXPECT_EQ(header->units, 3u);
  EXPECT_EQ(header->tokens, 11u);
  const AbstractLayout layout(samples::small_geometry(), spec, 11, 3);
  EXPECT_EQ(header->payload_bytes, layout.size_bytes());
  const ByteSpan payload = ByteSpan(file).subspan(kSidecarHeaderBytes);
  EXPECT_TRUE(check_sidecar_payload(*header, payload).has_value());
  EXPECT_TRUE(check_sidecar_payload(*header, payload.first(header->payload_bytes)).has_value());
  EXPECT_FALSE(
      check_sidecar_payload(*header, payload.first(header->payload_bytes + 1)).has_value());
  EXPECT_EQ(encode_sidecar(*header, payload.first(header->payload_bytes)), file);
}

TEST(SidecarFormat, AnEmptyPayloadRoundTrips) {
  const std::vector<std::byte> file =
      encode_sidecar({.segment = kSegment, .fingerprint = {}, .kind = 1000, .tokens = 1}, {});
  EXPECT_EQ(file.size(), kSidecarHeaderBytes);
  EXPECT_EQ(read_code(file), Code::kOk);
}

TEST(SidecarFormat, EveryFlippedBitIsCorrupt) {
  std::vector<std::byte> file = sample();
  for (std::size_t i = 0; i < file.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      file[i] ^= static_cast<std::byte>(1 << bit);
      ASSERT_EQ(read_code(file), Code::kCorrupt) << "byte " << i << " bit " << bit;
      file[i] ^= static_cast<std::byte>(1 << bit);
    }
  EXPECT_EQ(read_code(file), Code::kOk);
}

TEST(SidecarFormat, CutsAreCorrupt) {
  const std::vector<std::byte> file = sample();
  const std::uint64_t payload_bytes = parse_sidecar_header(file)->payload_bytes;
  for (std::size_t size = 0; size < file.size(); ++size) {
    if (size == kSidecarHeaderBytes + payload_bytes) continue;  // only the padding is gone
    ASSERT_EQ(read_code(ByteSpan(file).first(size)), Code::kCorrupt) << size;
  }
}

TEST(SidecarFormat, SignedNonsenseIsRefused) {
  struct Case {
    std::size_t offset;
    std::uint32_t value;
    Code code;
  };
  const Case cases[] = {
      {8, 2, Code::kVersion},                               // version
      {12, 1, Code::kCorrupt},                              // flags
      {16, 0, Code::kCorrupt},                              // segment
      {40, 0, Code::kCorrupt},                              // kind
      {48, 2049, Code::kCorrupt},                           // units
      {52, 0, Code::kCorrupt},                              // tokens
      {52, 2049, Code::kCorrupt}, {60, 1, Code::kCorrupt},  // payload_bytes, upper half
      {72, 1, Code::kCorrupt},                              // behind the fields
  };
  for (const Case& one : cases) {
    std::vector<std::byte> file = sample();
    std::memcpy(file.data() + one.offset, &one.value, sizeof(one.value));
    const std::uint64_t checksum = hash64(ByteSpan(file).first(kHeadChecksumOffset));
    std::memcpy(file.data() + kHeadChecksumOffset, &checksum, sizeof(checksum));
    EXPECT_EQ(read_code(file), one.code) << one.offset;
  }
}

TEST(SidecarFormat, NamesGoBothWays) {
  EXPECT_EQ(sidecar_path(kSegment, 1), "sidecars/0000000000000a2f-1.kva");
  EXPECT_EQ(sidecar_path(kSegment, 4294967295u), "sidecars/0000000000000a2f-4294967295.kva");
  const Result<SidecarName> name = sidecar_name_of("0000000000000a2f-1000.kva");
  ASSERT_TRUE(name.has_value());
  EXPECT_EQ(name->segment, kSegment);
  EXPECT_EQ(name->kind, 1000u);
  for (const char* bad :
       {"", "0000000000000a2f-.kva", "0000000000000a2f-0.kva", "0000000000000a2f-01.kva",
        "0000000000000a2f-4294967296.kva", "0000000000000a2f--1.kva", "0000000000000a2f-1.kvs",
        "0000000000000000-1.kva", "0000000000000a2f-1x.kva", "0000000000000A2F-1.kva"})
    EXPECT_EQ(sidecar_name_of(bad).error().code, Code::kInvalid) << bad;
}

}  // namespace
}  // namespace kvtier
