// Byte forms of the catalogue's rows. The corpus of the fuzz target is the golden form of version
// 1: a build that writes other bytes has changed the format, and then the version must move.
// KVT_UPDATE_GOLDEN=1 writes the files anew.
#include "tiers/catalogue_rows.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/hash.h"
#include "base/limits.h"

namespace kvtier {
namespace {

namespace rows = catalogue_rows;

struct Sample {
  const char* name;
  std::string key;
  std::vector<std::byte> value;
};

std::vector<Sample> make_samples() {
  SpaceRow space;
  space.digest = {0x1111, 0x2222};
  space.model = "smollm2-135m";
  space.runtime = "transformers-5/1";
  space.detail = "rope";
  space.geometry.layers.assign(
      2, LayerGeometry{.kv_heads = 3, .query_heads = 9, .k_row_bytes = 256, .v_row_bytes = 256});
  space.created_unix_ns = 1'700'000'000'000'000'000;
  SegmentRow segment{.id = {},
                     .space = {0x1111},
                     .parent = {6},
                     .parent_visible = 2048,
                     .start_token = 2048,
                     .tokens = 130,
                     .file_bytes = 1 << 20,
                     .created_unix_ns = 3,
                     .last_used_unix_ns = 4,
                     .blocks = {{1, 2}, {3, 4}},
                     .bad = true};
  SequenceRow sequence{.id = {},
                       .space = {0x1111},
                       .name = "chat",
                       .parts = {{{6}, 2048}, {{7}, 100}},
                       .log_generation = 9,
                       .pinned = true,
                       .expires_unix_s = 10,
                       .created_unix_ns = 11,
                       .last_used_unix_ns = 12};
  const ObjectRow object{
      .key = "k", .file = 5, .value_bytes = 6, .checksum = 7, .stored_unix_ns = 8};
  std::vector<Sample> samples{{"space", rows::key_of(rows::Kind::kSpace, 0x1111), {}},
                              {"segment", rows::key_of(rows::Kind::kSegment, 7), {}},
                              {"sequence", rows::key_of(rows::Kind::kSequence, 3), {}},
                              {"object", rows::key_of(rows::Kind::kObject, "k"), {}},
                              {"number", rows::key_of(rows::Kind::kNumber, "next_segment"), {}},
                              {"space_turned", rows::key_of(rows::Kind::kSpace, 0x1111), {}}};
  samples[0].value = rows::encode(samples[0].key, space);
  space.rotation = {Rotation::Pairing::kHalves, {1.0f, 0.25f}};
  samples[5].value = rows::encode(samples[5].key, space);
  samples[1].value = rows::encode(samples[1].key, segment);
  samples[2].value = rows::encode(samples[2].key, sequence);
  samples[3].value = rows::encode(samples[3].key, object);
  samples[4].value = rows::encode(samples[4].key, std::uint64_t{8});
  return samples;
}

// The status of a row: kOk where it is delivered.
Code code_of(std::string_view key, ByteSpan value) {
  Code code = Code::kInternal;
  CatalogueVisitor visitor;
  visitor.space = [&](const SpaceRow&) { code = Code::kOk; };
  visitor.segment = [&](const SegmentRow&) { code = Code::kOk; };
  visitor.sequence = [&](const SequenceRow&) { code = Code::kOk; };
  visitor.object = [&](const ObjectRow&) { code = Code::kOk; };
  visitor.number = [&](std::string_view, std::uint64_t) { code = Code::kOk; };
  visitor.damaged = [&](const std::string& named, Status status) {
    EXPECT_EQ(named, key);
    code = status.code;
  };
  rows::visit(key, value, visitor);
  return code;
}

// A value with the right checksum over any version and fields.
std::vector<std::byte> sign(std::string_view key, ByteSpan body) {
  ByteWriter writer;
  writer.write_bytes(body);
  writer.write(hash64(body, hash64(as_bytes(key))));
  return writer.take();
}

ByteSpan body_of(const Sample& sample) {
  return ByteSpan(sample.value).first(sample.value.size() - 8);
}

TEST(CatalogueRows, GoldenBytes) {
  for (const Sample& sample : make_samples()) {
    ByteWriter writer;  // as the fuzz target reads it, with its flag 1
    writer.write(std::uint8_t{1});
    writer.write(static_cast<std::uint8_t>(sample.key.size()));
    writer.write_bytes(as_bytes(sample.key));
    writer.write_bytes(sample.value);
    const std::string path = std::string(KVT_CORPUS_DIR) + "/" + sample.name;
    if (std::getenv("KVT_UPDATE_GOLDEN") != nullptr) {
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(writer.view().data()),
                 static_cast<std::streamsize>(writer.size()));
    }
    std::ifstream file(path, std::ios::binary);
    const std::string golden{std::istreambuf_iterator<char>(file),
                             std::istreambuf_iterator<char>()};
    const std::string written(reinterpret_cast<const char*>(writer.view().data()), writer.size());
    EXPECT_TRUE(golden == written) << path;
  }
}

TEST(CatalogueRows, EveryFlippedBitIsSeen) {
  for (const Sample& sample : make_samples()) {
    ASSERT_EQ(code_of(sample.key, sample.value), Code::kOk) << sample.name;
    for (std::size_t bit = 0; bit < sample.value.size() * 8; ++bit) {
      auto value = sample.value;
      value[bit / 8] ^= std::byte{1} << (bit % 8);
      ASSERT_EQ(code_of(sample.key, value), Code::kCorrupt) << sample.name << " bit " << bit;
    }
    for (std::size_t size = 0; size < sample.value.size(); ++size)
      ASSERT_EQ(code_of(sample.key, ByteSpan(sample.value).first(size)), Code::kCorrupt);
  }
}

TEST(CatalogueRows, AValueUnderAnotherKeyIsDamage) {
  for (const Sample& sample : make_samples()) {
    auto key = sample.key;
    key.back() ^= 1;
    EXPECT_EQ(code_of(key, sample.value), Code::kCorrupt) << sample.name;
  }
  EXPECT_EQ(code_of("", {}), Code::kCorrupt);
  EXPECT_EQ(code_of("Xunknown", {}), Code::kCorrupt);
}

TEST(CatalogueRows, ShortLongAndNewerBodiesWithRightChecksums) {
  const auto samples = make_samples();
  for (const Sample& sample : samples) {
    const ByteSpan body = body_of(sample);
    ASSERT_EQ(code_of(sample.key, sign(sample.key, body)), Code::kOk);
    for (std::size_t size = 0; size < body.size(); ++size) {
      // A space whose rotation is not known ends with its geometry.
      const bool whole = &sample == &samples[5] && size == body_of(samples[0]).size();
      ASSERT_EQ(code_of(sample.key, sign(sample.key, body.first(size))),
                whole ? Code::kOk : Code::kCorrupt)
          << sample.name << " " << size;
    }
    std::vector<std::byte> longer(body.begin(), body.end());
    longer.push_back(std::byte{0});
    EXPECT_EQ(code_of(sample.key, sign(sample.key, longer)), Code::kCorrupt) << sample.name;
    std::vector<std::byte> newer(body.begin(), body.end());
    newer[0] = std::byte{rows::kVersion + 1};
    EXPECT_EQ(code_of(sample.key, sign(sample.key, newer)), Code::kVersion) << sample.name;
    newer[0] = std::byte{0};
    EXPECT_EQ(code_of(sample.key, sign(sample.key, newer)), Code::kCorrupt) << sample.name;
  }
}

TEST(CatalogueRows, IdZeroAndBadKeysAreDamage) {
  const auto samples = make_samples();
  const std::string none = rows::key_of(rows::Kind::kSegment, 0);
  EXPECT_EQ(code_of(none, sign(none, body_of(samples[1]))), Code::kCorrupt);
  const std::string cut = samples[1].key.substr(0, 8);
  EXPECT_EQ(code_of(cut, sign(cut, body_of(samples[1]))), Code::kCorrupt);
  const std::string long_key =
      rows::key_of(rows::Kind::kObject, std::string(kObjectKeyBytesMax + 1, 'k'));
  EXPECT_EQ(code_of(long_key, sign(long_key, body_of(samples[3]))), Code::kCorrupt);
}

TEST(CatalogueRows, CountsAboveTheLimitsAreDamage) {
  const std::string key = rows::key_of(rows::Kind::kSequence, 3);
  const auto sequence_of = [&](std::uint32_t name_bytes, std::uint32_t parts, bool full) {
    ByteWriter writer;
    writer.write(rows::kVersion);
    writer.write_bytes(std::vector<std::byte>(8 + 8 + 1 + 3 * 8));
    writer.write(name_bytes);
    writer.write_bytes(std::vector<std::byte>(name_bytes));
    writer.write(parts);
    if (full) writer.write_bytes(std::vector<std::byte>(parts * std::size_t{12}));
    return code_of(key, sign(key, writer.view()));
  };
  EXPECT_EQ(sequence_of(kNameBytesMax, kSequenceSegmentsMax, true), Code::kOk);
  EXPECT_EQ(sequence_of(kNameBytesMax + 1, 0, true), Code::kCorrupt);
  EXPECT_EQ(sequence_of(0, kSequenceSegmentsMax + 1, true), Code::kCorrupt);
  EXPECT_EQ(sequence_of(0, UINT32_MAX, false), Code::kCorrupt);
}

TEST(CatalogueRows, TheRotationOfASpaceComesBackOrIsDamage) {
  const auto samples = make_samples();
  const ByteSpan body = body_of(samples[5]);
  const auto row = rows::decode_space(samples[5].key, samples[5].value);
  ASSERT_TRUE(row);
  EXPECT_EQ(row->rotation, (Rotation{Rotation::Pairing::kHalves, {1.0f, 0.25f}}));
  EXPECT_FALSE(rows::decode_space(samples[0].key, samples[0].value)->rotation.known());
  const std::size_t at = body_of(samples[0]).size();
  const auto with = [&](std::size_t offset, std::initializer_list<std::uint8_t> bytes) {
    std::vector<std::byte> other(body.begin(), body.end());
    for (const std::uint8_t byte : bytes) other[at + offset++] = std::byte{byte};
    return code_of(samples[5].key, sign(samples[5].key, other));
  };
  EXPECT_EQ(with(0, {2}), Code::kOk);
  EXPECT_EQ(with(0, {0}), Code::kCorrupt) << "no pairing";
  EXPECT_EQ(with(0, {3}), Code::kCorrupt);
  EXPECT_EQ(with(1, {0xFF, 0xFF, 0xFF, 0xFF}), Code::kCorrupt);
  EXPECT_EQ(with(5, {0, 0, 0x80, 0x7F}), Code::kCorrupt) << "infinity";
}

TEST(CatalogueRows, KeysSortByKindAndId) {
  EXPECT_LT(rows::key_of(rows::Kind::kSegment, 255), rows::key_of(rows::Kind::kSegment, 256));
  EXPECT_LT(rows::key_of(rows::Kind::kSegment, UINT64_MAX), rows::key_of(rows::Kind::kSequence, 1));
}

TEST(CatalogueRowsDeathTest, WhatCouldNotBeReadIsNotWritten) {
  const std::string key = rows::key_of(rows::Kind::kSequence, 3);
  SequenceRow row;
  row.name.assign(kNameBytesMax + 1, 'n');
  EXPECT_DEATH((void)rows::encode(key, row), "kNameBytesMax");
}

}  // namespace
}  // namespace kvtier
