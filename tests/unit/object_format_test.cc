// Object files: round trips, every flipped bit, every cut, a value of another file, signed
// nonsense, names.
#include "tiers/object_format.h"

#include <gtest/gtest.h>

#include "tests/fuzz/resign.h"
#include "tests/unit/format_samples.h"

namespace kvtier {
namespace {

std::vector<std::byte> sample() { return samples::make_object(5, "a key", 4100, 3); }

// Parses a whole file as a reader would.
Code read_code(ByteSpan file) {
  const Result<ObjectHeader> header = parse_object_header(file);
  if (!header) return header.error().code;
  const Result<void> value = check_object_value(*header, file.subspan(kObjectHeaderBytes));
  return value ? Code::kOk : value.error().code;
}

TEST(ObjectFormat, RoundTrips) {
  const std::vector<std::byte> file = sample();
  EXPECT_EQ(file.size(), object_file_bytes(4100));
  EXPECT_EQ(file.size(), 3u * 4096);
  const Result<ObjectHeader> header = parse_object_header(file);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->file, 5u);
  EXPECT_EQ(header->key, "a key");
  EXPECT_EQ(header->value_bytes, 4100u);
  const ByteSpan value = ByteSpan(file).subspan(kObjectHeaderBytes);
  EXPECT_TRUE(check_object_value(*header, value).has_value());
  EXPECT_TRUE(check_object_value(*header, value.first(4100)).has_value());
  EXPECT_FALSE(check_object_value(*header, value.first(4101)).has_value());
  EXPECT_EQ(object_checksum(5, "a key", value.first(4100)), header->checksum);
}

TEST(ObjectFormat, TheLongestKeyAndAnEmptyValue) {
  const std::string key(kObjectKeyBytesMax, '\xff');
  const std::vector<std::byte> file = samples::make_object(UINT64_MAX, key, 0, 3);
  EXPECT_EQ(file.size(), kObjectHeaderBytes);
  const Result<ObjectHeader> header = parse_object_header(file);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->key, key);
  EXPECT_EQ(read_code(file), Code::kOk);
}

TEST(ObjectFormat, EveryFlippedBitIsCorrupt) {
  std::vector<std::byte> file = sample();
  for (std::size_t i = 0; i < file.size(); ++i) {
    const auto bit = static_cast<std::byte>(1u << i % 8);
    file[i] ^= bit;
    EXPECT_EQ(read_code(file), Code::kCorrupt) << i;
    file[i] ^= bit;
  }
  EXPECT_EQ(read_code(file), Code::kOk);
}

TEST(ObjectFormat, EveryCutIsCorrupt) {
  const std::vector<std::byte> file = sample();
  for (std::size_t size = 0; size < file.size(); size += 61) {
    if (size == kObjectHeaderBytes + 4100) continue;
    EXPECT_EQ(read_code(ByteSpan(file).first(size)), Code::kCorrupt) << size;
  }
}

TEST(ObjectFormat, AValueOfAnotherFileOrKeyDoesNotPass) {
  const std::vector<std::byte> value(100, std::byte{7});
  const std::uint64_t checksum = object_checksum(5, "k", value);
  EXPECT_NE(object_checksum(6, "k", value), checksum);
  EXPECT_NE(object_checksum(5, "l", value), checksum);
}

TEST(ObjectFormat, SignedNonsenseIsRefused) {
  const std::vector<std::byte> good = sample();
  const auto with = [&](std::size_t at, std::uint64_t value, std::size_t bytes) {
    std::vector<std::byte> file = good;
    std::memcpy(file.data() + at, &value, bytes);
    fuzz::sign_head(&file);
    return read_code(file);
  };
  EXPECT_EQ(with(8, 2, 4), Code::kVersion);
  EXPECT_EQ(with(16, 0, 8), Code::kCorrupt);                       // file 0
  EXPECT_EQ(with(24, kObjectBytesMax + 1, 8), Code::kCorrupt);     // length
  EXPECT_EQ(with(24, 4099, 8), Code::kCorrupt);                    // another length
  EXPECT_EQ(with(40, 0, 4), Code::kCorrupt);                       // no key
  EXPECT_EQ(with(40, kObjectKeyBytesMax + 1, 4), Code::kCorrupt);  // too long a key
  EXPECT_EQ(with(40, 4, 4), Code::kCorrupt);                       // a byte behind the key
  EXPECT_EQ(with(44, 1, 4), Code::kCorrupt);                       // reserved
  EXPECT_EQ(with(2000, 1, 1), Code::kCorrupt);                     // behind the key
}

TEST(ObjectFormat, Names) {
  EXPECT_EQ(object_path(0xAB), "objects/00000000000000ab.kvo");
  const Result<std::uint64_t> number = object_number_of("00000000000000ab.kvo");
  ASSERT_TRUE(number.has_value());
  EXPECT_EQ(*number, 0xABu);
  for (const char* name : {"", ".kvo", "00000000000000AB.kvo", "00000000000000ab.kvs",
                           "0000000000000000.kvo", "0000000000000ab.kvo", "00000000000000ab.kvoo"})
    EXPECT_FALSE(object_number_of(name).has_value()) << name;
}

}  // namespace
}  // namespace kvtier
