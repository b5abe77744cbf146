// codec: round trips, the fall back to raw, and damaged frames, which never write outside their
// target.
#include "tiers/codec.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/random.h"

namespace kvtier {
namespace {

// Values like a model's: small floats, whose exponents repeat and whose mantissas do not.
std::vector<std::byte> floats(std::size_t size_bytes, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size_bytes);
  for (std::size_t i = 0; i + 4 <= size_bytes; i += 4) {
    const float value = static_cast<float>(random.unit()) - 0.5f;
    std::memcpy(bytes.data() + i, &value, 4);
  }
  return bytes;
}

std::vector<std::byte> noise(std::size_t size_bytes, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size_bytes);
  for (std::byte& one : bytes) one = static_cast<std::byte>(random.next() >> 24);
  return bytes;
}

struct Guarded {
  static constexpr std::size_t kGuard = 64;
  explicit Guarded(std::size_t size_bytes) : bytes(size_bytes + 2 * kGuard, std::byte{0xA5}) {}
  [[nodiscard]] MutableByteSpan target() {
    return {bytes.data() + kGuard, bytes.size() - 2 * kGuard};
  }
  [[nodiscard]] bool intact() const {
    for (std::size_t i = 0; i < kGuard; ++i)
      if (bytes[i] != std::byte{0xA5} || bytes[bytes.size() - 1 - i] != std::byte{0xA5})
        return false;
    return true;
  }
  std::vector<std::byte> bytes;
};

TEST(Codec, HasAName) {
  EXPECT_STREQ(codec_name(CodecId::kRaw), "raw");
  EXPECT_STREQ(codec_name(CodecId::kZstd), "zstd");
  EXPECT_STREQ(codec_name(static_cast<CodecId>(7)), "unknown");
}

TEST(Codec, RoundTripsEveryLengthAndElement) {
  for (const std::uint32_t element : {1u, 2u, 4u})
    for (const std::size_t size :
         {0u, 1u, 2u, 3u, 4u, 7u, 63u, 64u, 65u, 4096u, 4099u, 65536u, 262144u})
      for (const CodecId codec : {CodecId::kRaw, CodecId::kZstd}) {
        const std::vector<std::byte> raw = floats(size, size + element);
        CodecId used{};
        const std::vector<std::byte> stored = encode_chunk(codec, raw, element, &used);
        EXPECT_LE(stored.size(), raw.size());
        Guarded decoded(size);
        ASSERT_TRUE(decode_chunk(used, stored, element, decoded.target()).has_value())
            << size << " " << element;
        EXPECT_TRUE(std::equal(raw.begin(), raw.end(), decoded.target().begin()));
        EXPECT_TRUE(decoded.intact());
      }
}

TEST(Codec, ZstdOverPlanesSavesOnFloats) {
  const std::vector<std::byte> raw = floats(65536, 1);
  CodecId used{};
  const std::vector<std::byte> stored = encode_chunk(CodecId::kZstd, raw, 4, &used);
  EXPECT_EQ(used, CodecId::kZstd);
  EXPECT_LT(stored.size(), raw.size() * 95 / 100);
}

TEST(Codec, FallsBackToRawWhereNothingIsSaved) {
  const std::vector<std::byte> raw = noise(8192, 2);
  CodecId used{};
  EXPECT_EQ(encode_chunk(CodecId::kZstd, raw, 2, &used), raw);
  EXPECT_EQ(used, CodecId::kRaw);
}

TEST(Codec, WrongLengthsAreCorrupt) {
  const std::vector<std::byte> raw = floats(4096, 3);
  for (const CodecId codec : {CodecId::kRaw, CodecId::kZstd}) {
    CodecId used{};
    std::vector<std::byte> stored = encode_chunk(codec, raw, 4, &used);
    ASSERT_EQ(used, codec);
    for (const std::size_t size : {0u, 1u, 4095u, 4097u, 8192u}) {
      Guarded decoded(size);
      EXPECT_EQ(decode_chunk(used, stored, 4, decoded.target()).error().code, Code::kCorrupt)
          << size;
      EXPECT_TRUE(decoded.intact());
    }
    stored.push_back(std::byte{0});  // a byte behind the frame
    Guarded decoded(4096);
    EXPECT_EQ(decode_chunk(used, stored, 4, decoded.target()).error().code, Code::kCorrupt);
  }
  Guarded decoded(4096);
  EXPECT_EQ(decode_chunk(static_cast<CodecId>(9), raw, 4, decoded.target()).error().code,
            Code::kCorrupt);
  EXPECT_EQ(decode_chunk(CodecId::kRaw, raw, 3, decoded.target()).error().code, Code::kInvalid);
}

TEST(Codec, DamagedFramesNeverWriteOutsideTheTarget) {
  const std::vector<std::byte> raw = floats(2048, 4);
  CodecId used{};
  const std::vector<std::byte> good = encode_chunk(CodecId::kZstd, raw, 2, &used);
  ASSERT_EQ(used, CodecId::kZstd);
  std::size_t refused = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bad = good;
      bad[i] ^= static_cast<std::byte>(1 << bit);
      Guarded decoded(raw.size());
      if (!decode_chunk(used, bad, 2, decoded.target())) ++refused;
      ASSERT_TRUE(decoded.intact());
    }
  EXPECT_GT(
      refused,
      100u);  // broken structure; a flipped literal is for the checksum over the chunk to find
  for (std::size_t size = 0; size < good.size(); ++size) {
    Guarded decoded(raw.size());
    EXPECT_EQ(decode_chunk(used, ByteSpan(good).first(size), 2, decoded.target()).error().code,
              Code::kCorrupt);
    ASSERT_TRUE(decoded.intact());
  }
}

}  // namespace
}  // namespace kvtier
