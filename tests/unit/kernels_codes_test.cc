// What key codes mean: tables, scores and encoding of the scalar reference against sums in double
// over the codebook, and what a codebook must be.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/own_code_layout.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_codes_fixtures.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const KernelTable& scalar() { return *all_kernels().back(); }

TEST(CodeLayout, EveryNibbleOnce) {
  for (const std::uint32_t subspaces : {2u, 6u, 64u}) {
    const std::uint64_t tokens = 3 * kCodeBlockTokens;
    std::vector<std::uint8_t> seen(code_bytes(tokens, subspaces));
    for (std::uint64_t t = 0; t < tokens; ++t)
      for (std::uint32_t m = 0; m < subspaces; ++m) {
        const CodePlace place = code_place(t, subspaces, m);
        ASSERT_LT(place.byte, seen.size());
        const auto bits = static_cast<std::uint8_t>(15u << place.shift);
        ASSERT_EQ(seen[place.byte] & bits, 0);
        seen[place.byte] = static_cast<std::uint8_t>(seen[place.byte] | bits);
      }
    EXPECT_EQ(seen, std::vector<std::uint8_t>(seen.size(), 0xFF));
  }
  EXPECT_EQ(code_bytes(0, 16), 0u);
  EXPECT_EQ(code_bytes(1, 16), 256u);
  EXPECT_EQ(code_bytes(33, 16), 512u);
  // Written down once more, as files hold it: block 1, sub-quantiser 5, token 3 of the upper half.
  EXPECT_EQ(code_place(32 + 19, 16, 5).byte, 256u + 5 * 16 + 3);
  EXPECT_EQ(code_place(32 + 19, 16, 5).shift, 4u);
}

TEST(OwnCodeLayout, EveryBitOnce) {
  for (const std::uint32_t subspaces : {1u, 2u, 16u}) {
    const std::uint64_t tokens = 3 * kCodeBlockTokens;
    std::vector<std::uint8_t> codes(own_code_bytes(tokens, subspaces)), none(codes.size());
    for (std::uint64_t t = 0; t < tokens; ++t)
      for (std::uint32_t m = 0; m < subspaces; ++m) {
        ASSERT_EQ(own_code_at(codes.data(), t, subspaces, m), 0u);
        put_own_code(codes.data(), t, subspaces, m, 63);
        ASSERT_EQ(own_code_at(codes.data(), t, subspaces, m), 63u);
      }
    EXPECT_EQ(codes, std::vector<std::uint8_t>(codes.size(), 0xFF));
    for (std::uint32_t code = 0; code < kOwnCodeEntries; ++code) {
      std::fill(codes.begin(), codes.end(), std::uint8_t{0});
      put_own_code(codes.data(), 50, subspaces, subspaces - 1, code);
      EXPECT_EQ(own_code_at(codes.data(), 50, subspaces, subspaces - 1), code);
    }
  }
  EXPECT_EQ(own_code_bytes(0, 2), 0u);
  EXPECT_EQ(own_code_bytes(33, 2), 96u);
  // Written down once more, as files hold it: block 1, sub-space 1 of 2, token 19 of the block.
  const OwnCodePlace place = own_code_place(32 + 19, 2, 1);
  EXPECT_EQ(place.low_byte, 72u + 3);
  EXPECT_EQ(place.low_shift, 4u);
  EXPECT_EQ(place.high_byte, 72u + 16 + 3);
  EXPECT_EQ(place.high_shift, 4u);
}

TEST(OwnCodeLayout, SubSpacesTileTheDimensions) {
  for (const std::uint32_t dim : {8u, 24u, 64u, 128u, 1024u})
    for (const std::uint32_t wanted : {1u, 2u, 3u, 5u, 16u}) {
      const OwnCodeLayout layout = OwnCodeLayout::of(wanted, dim);
      EXPECT_EQ(layout.subspaces, std::min(wanted, dim / 8));
      EXPECT_EQ(layout.first(0), 0u);
      EXPECT_EQ(layout.first(layout.subspaces), dim);
      for (std::uint32_t m = 0; m < layout.subspaces; ++m) {
        EXPECT_GE(layout.width(m), 8u);
        EXPECT_EQ(layout.width(m) % 8, 0u);
        EXPECT_LE(layout.width(m), dim / layout.subspaces + 8);
      }
      EXPECT_EQ(layout.codes_offset(), dim * 64u * 2);
    }
  const OwnCodeLayout two = OwnCodeLayout::of(2, 64);
  EXPECT_EQ(two.width(0), 32u);
  EXPECT_EQ(two.entries_offset(1), 64u * 32 * 2);
  EXPECT_EQ(two.size_bytes(2048), 8192u + 3072);
}

TEST(CodeBook, WhatIsWrongIsSaid) {
  Random random(1);
  BookParts parts(&random, 8, 4, Dtype::kF32);
  EXPECT_TRUE(parts.book().check_contents());
  const auto refused = [&](const char* what) {
    const auto checked = parts.book().check_contents();
    EXPECT_FALSE(checked) << what;
  };
  parts.dims[3] = 8;
  refused("a dim that keys do not have");
  parts.dims[3] = 0;
  EXPECT_TRUE(parts.book().check_contents()) << "dims may be shared";
  parts.first[1] = 5;
  refused("descending");
  parts.first[1] = 2;
  parts.first[0] = 1;
  refused("not from 0");
  parts.first[0] = 0;
  store_element(parts.entry_bytes(), Dtype::kF32, 16 * 8 - 1, kNan);
  refused("NaN");
  CodeBook book = parts.book();
  for (const std::uint32_t subspaces : {0u, 1u, 3u, 66u}) {
    book.subspaces = subspaces;
    EXPECT_FALSE(book.validate()) << subspaces;
  }
  book.subspaces = 4;
  book.dtype = Dtype::kBf16;
  EXPECT_FALSE(book.validate());
  book.dtype = Dtype::kF16;
  book.dim = 1025;
  EXPECT_FALSE(book.validate());
  BookParts wide(&random, 8, 10, Dtype::kF32, 5);
  EXPECT_FALSE(wide.book().check_contents()) << "more than 4 times the dims";
}

// Scores are within out_error of the true sums, rescores equal them but for rounding, and both are
// dot products with what the codes stand for.
TEST(CodeScores, WithinTheErrorThatIsGiven) {
  Random random(7);
  for (const std::uint32_t subspaces : {2u, 16u, 64u})
    for (const float spread : {1.0f, 1e-20f, 1e-42f, 1e30f})
      for (const float offset : {0.0f, 1000.0f}) {
        const std::uint64_t tokens = 70;
        const Codes codes(&random, {tokens}, subspaces);
        std::vector<float> table = random_floats(&random, subspaces * kCodeEntries);
        for (float& entry : table) entry = (entry + offset) * spread;
        std::vector<float> out(tokens), exact(tokens);
        float bound = -1.0f;
        ASSERT_TRUE(scalar().score_codes(
            {codes.pieces(), table.data(), 0, 1, out.data(), 0, &bound}, nullptr));
        std::vector<std::uint32_t> list(tokens);
        for (std::uint32_t t = 0; t < tokens; ++t) list[t] = t;
        ASSERT_TRUE(scalar().rescore_codes(
            {codes.pieces(), list.data(), &tokens, table.data(), 0, 1, exact.data(), 0}, nullptr));
        float range = 0.0f;
        for (std::uint32_t m = 0; m < subspaces; ++m) {
          const auto [low, high] = std::minmax_element(&table[m * 16], &table[m * 16] + 16);
          range = std::max(range, *high - *low);
        }
        double worst = 0.0;
        for (std::uint64_t t = 0; t < tokens; ++t) {
          double sum = 0.0;
          double size = 0.0;
          for (std::uint32_t m = 0; m < subspaces; ++m) {
            const float entry = table[m * 16 + codes.at(t, m)];
            sum += static_cast<double>(entry);
            size += std::abs(static_cast<double>(entry));
          }
          ASSERT_LE(std::abs(static_cast<double>(out[t]) - sum), static_cast<double>(bound));
          ASSERT_NEAR(exact[t], sum, size * 1e-5);
          worst = std::max(worst, std::abs(static_cast<double>(out[t]) - sum));
        }
        if (offset == 0.0f && spread > 1e-30f) {
          EXPECT_LE(bound, static_cast<float>(subspaces) * range / 255.0f * 0.502f) << "useful";
          EXPECT_GT(worst, 0.0);
        }
      }
}

TEST(CodeScores, EqualEntriesAndEntriesThatAreNoNumbers) {
  Random random(8);
  const std::uint64_t tokens = 40;
  const Codes codes(&random, {tokens}, 4);
  std::vector<float> table(64, 1.5f), out(tokens);
  float bound = -1.0f;
  ScoreCodesArgs args{codes.pieces(), table.data(), 0, 1, out.data(), 0, &bound};
  ASSERT_TRUE(scalar().score_codes(args, nullptr));
  EXPECT_EQ(out, std::vector<float>(tokens, 6.0f));
  EXPECT_LT(bound, 1e-5f);
  for (const float bad : {kNan, std::numeric_limits<float>::infinity(), 3.0e38f}) {
    table[13] = bad;
    table[14] = -3.0e38f;
    ASSERT_TRUE(scalar().score_codes(args, nullptr));
    EXPECT_TRUE(std::isnan(bound));
    for (const float score : out) EXPECT_TRUE(std::isnan(score));
  }
}

TEST(CodeTables, AreProducts) {
  Random random(9);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16}) {
    const BookParts parts(&random, 24, 6, dtype, 2);
    const std::vector<float> q = random_floats(&random, 2 * 25);
    std::vector<float> out(2 * 96);
    ASSERT_TRUE(scalar().code_tables({parts.book(), q.data(), 25, 2, out.data(), 96}, nullptr));
    for (std::uint32_t i = 0; i < 2; ++i)
      for (std::uint32_t m = 0; m < 6; ++m)
        for (std::uint32_t j = 0; j < 16; ++j) {
          double sum = 0.0;
          for (std::uint32_t d = parts.first[m]; d < parts.first[m + 1]; ++d)
            sum += static_cast<double>(q[i * 25 + parts.dims[d]]) *
                   parts.entry(m, j, d - parts.first[m]);
          ASSERT_NEAR(out[i * 96 + m * 16 + j], sum, 1e-5);
        }
  }
}

// Keys that are entries of the codebook get these entries' codes; of two stages over the same dims
// the second takes what the first left.
TEST(EncodeCodes, FindsWhatKeysAreMadeOf) {
  Random random(10);
  const std::uint64_t tokens = 50;
  for (const std::uint32_t stages : {1u, 2u}) {
    BookParts parts(&random, 24, 6 * stages, Dtype::kF32, stages);
    if (stages == 2)  // a second stage that is small beside the first
      for (std::uint32_t e = 16u * 24; e < 16u * 48; ++e)
        store_element(parts.entry_bytes(), Dtype::kF32, e, 1e-3f * random_float(&random));
    const Codes wanted(&random, {tokens}, 6 * stages);
    PagedRows keys(&random, Dtype::kF32, tokens, 1, 24, 8);
    for (std::uint64_t t = 0; t < tokens; ++t) {
      std::vector<double> key(24, 0.0);
      for (std::uint32_t m = 0; m < 6 * stages; ++m)
        for (std::uint32_t d = parts.first[m]; d < parts.first[m + 1]; ++d)
          key[parts.dims[d]] += parts.entry(m, wanted.at(t, m), d - parts.first[m]);
      for (std::uint32_t d = 0; d < 24; ++d)
        store_element(keys.memory.data() + 4 + keys.pages[t], Dtype::kF32, d,
                      static_cast<float>(key[d]));
    }
    std::vector<std::uint8_t> out(code_bytes(tokens, 6 * stages), 0xFF);
    ASSERT_TRUE(
        scalar().encode_codes({parts.book(), keys.rows, &tokens, nullptr, out.data()}, nullptr));
    for (std::uint64_t t = 0; t < tokens; ++t)
      for (std::uint32_t m = 0; m < 6 * stages; ++m)
        ASSERT_EQ(code_at(out.data(), t, 6 * stages, m),
                  parts.first[m] == parts.first[m + 1] ? 0 : wanted.at(t, m))
            << t << " " << m;
    for (std::uint64_t t = tokens; t < 64; ++t)
      for (std::uint32_t m = 0; m < 6 * stages; ++m)
        ASSERT_EQ(code_at(out.data(), t, 6 * stages, m), 0) << "padding";
  }
}

TEST(EncodeCodes, WeightsDecideWhichDimCounts) {
  Random random(11);
  BookParts parts(&random, 8, 2, Dtype::kF32);
  parts.dims = {0, 1};
  parts.first = {0, 2, 2};
  parts.entries.assign(16 * 2 * 4 + BookParts::kOff, std::byte{0});
  store_element(parts.entry_bytes(), Dtype::kF32, 2, 1.0f);  // entry 1: (1, 0)
  store_element(parts.entry_bytes(), Dtype::kF32, 5, 1.0f);  // entry 2: (0, 1)
  PagedRows keys(&random, Dtype::kF32, 1, 1, 8, 8);
  store_element(keys.memory.data() + 4, Dtype::kF32, 0, 0.9f);
  store_element(keys.memory.data() + 4, Dtype::kF32, 1, 0.8f);
  const std::uint64_t tokens = 1;
  std::vector<std::uint8_t> out(32);
  EncodeCodesArgs args{parts.book(), keys.rows, &tokens, nullptr, out.data()};
  ASSERT_TRUE(scalar().encode_codes(args, nullptr));
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[16], 0) << "no dims at all: entry 0";
  const float weights[8] = {0.1f, 4.0f};
  args.weights = weights;
  ASSERT_TRUE(scalar().encode_codes(args, nullptr));
  EXPECT_EQ(out[0], 2);
}

TEST(Nearest, LargestWinsTiesGoLow) {
  const std::uint64_t rows = 2, centroids = 4;
  std::vector<float> row(16, 0.0f), centroid(32, 0.0f);
  row[0] = 1.0f;
  row[8] = -1.0f;
  centroid[8] = centroid[16] = 2.0f;
  centroid[24] = kNan;
  std::uint32_t index[2];
  float value[2];
  NearestArgs args{row.data(), 8, &rows, centroid.data(), 8, &centroids, nullptr, 8, index, value};
  ASSERT_TRUE(scalar().nearest(args, nullptr));
  EXPECT_EQ(index[0], 1u);
  EXPECT_EQ(value[0], 2.0f);
  EXPECT_EQ(index[1], 0u);
  const float bias[4] = {0.0f, 0.0f, 0.5f, 9.0f};
  args.bias = bias;
  ASSERT_TRUE(scalar().nearest(args, nullptr));
  EXPECT_EQ(index[0], 2u);
  EXPECT_EQ(value[0], 2.5f);
  const std::uint64_t none = 0;
  args.centroid_count = &none;
  ASSERT_TRUE(scalar().nearest(args, nullptr));
  EXPECT_EQ(index[0], 0u);
  EXPECT_EQ(value[0], -std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace kvtier
