// What a base rendition means: its layout, how near decoded rows are, attention over them, by the
// scalar reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/unit/kernels_base_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

const KernelTable& scalar() { return *all_kernels().back(); }

double half_at(const std::byte* at) {
  return static_cast<double>(load_element(at, Dtype::kF16, 0));
}

TEST(BaseLayout, CodesComeBackAndStayInTheirRow) {
  Random random(3);
  for (const std::uint32_t bits : kBaseBits)
    for (const std::uint32_t dims : {8u, 32u, 40u, 64u, 80u, 96u, 128u, 1024u}) {
      const std::uint32_t size = BaseFormat::code_bytes(dims, bits);
      Guarded<std::byte> codes(size);
      std::fill_n(codes.data(), size, std::byte{0});
      std::vector<std::uint32_t> wanted(BaseFormat::units(dims) * kBaseUnit);
      for (auto& code : wanted) code = static_cast<std::uint32_t>(random.below(1u << bits));
      for (std::uint32_t unit = 0; unit < BaseFormat::units(dims); ++unit)
        for (std::uint32_t lane = 0; lane < kBaseLanes; ++lane) {
          std::uint32_t word = 0;
          for (std::uint32_t field = 0; field < kBaseFields; ++field)
            word |= wanted[unit * kBaseUnit + field * kBaseLanes + lane] << (field * bits);
          set_base_word(codes.data(), dims, bits, unit, lane, word);
          EXPECT_EQ(base_word(codes.data(), dims, bits, unit, lane), word);
        }
      EXPECT_TRUE(codes.intact());
      for (std::uint32_t d = 0; d < wanted.size(); ++d)
        ASSERT_EQ(base_code(codes.data(), dims, bits, d), wanted[d]) << bits << " " << dims;
    }
}

// Written down once more, as files hold it.
TEST(BaseLayout, Bytes) {
  EXPECT_EQ(BaseFormat::code_bytes(64, 8), 64u);
  EXPECT_EQ(BaseFormat::code_bytes(64, 6), 48u);
  EXPECT_EQ(BaseFormat::code_bytes(64, 5), 40u);
  EXPECT_EQ(BaseFormat::code_bytes(64, 4), 32u);
  EXPECT_EQ(BaseFormat::code_bytes(64, 3), 24u);
  EXPECT_EQ(BaseFormat::code_bytes(96, 5), 64u);
  const BaseFormat format{64, 64, 4, 4};
  EXPECT_EQ(format.chunk_bytes(), 256u + 32 * 32 + 32 * 40);
  EXPECT_LT(format.chunk_bytes(), 0.3126 * 32 * 2 * 64 * 2) << "of 16 bits";
  EXPECT_EQ(format.v_groups_offset(1), 256u + 32 * 32 + 40 + 32);
  const auto only = [](std::uint32_t bits, std::uint32_t d) {
    std::vector<std::byte> codes(BaseFormat::code_bytes(64, bits));
    const std::uint32_t in_unit = d % kBaseUnit;
    set_base_word(codes.data(), 64, bits, d / kBaseUnit, in_unit % kBaseLanes,
                  ((1u << bits) - 1) << (in_unit / kBaseLanes * bits));
    std::vector<std::pair<std::size_t, int>> set;
    for (std::size_t i = 0; i < codes.size(); ++i)
      if (codes[i] != std::byte{0}) set.emplace_back(i, std::to_integer<int>(codes[i]));
    return set;
  };
  using Set = std::vector<std::pair<std::size_t, int>>;
  // Dim 32 + 8 * 2 + 5: unit 1, field 2, lane 5.
  EXPECT_EQ(only(8, 53), (Set{{32 + 5 * 4 + 2, 0xFF}}));
  EXPECT_EQ(only(6, 53), (Set{{24 + 5 * 2 + 1, 0xF0}, {24 + 16 + 5, 0x03}}));
  EXPECT_EQ(only(5, 53), (Set{{16 + 5 * 2 + 1, 0x7C}}));
  EXPECT_EQ(only(5, 61), (Set{{16 + 5 * 2 + 1, 0x80}, {32 + 5, 0xF0}}));
  EXPECT_EQ(only(4, 53), (Set{{16 + 5 * 2 + 1, 0x0F}}));
  EXPECT_EQ(only(3, 21), (Set{{5, 0xC0}, {16 + 5, 0x01}}));
}

TEST(BaseFormat, WhatIsWrongIsRefused) {
  EXPECT_TRUE((BaseFormat{64, 128, 3, 8}.validate()));
  EXPECT_EQ((BaseFormat{64, 128, 7, 4}.validate().error().code), Code::kUnsupported);
  EXPECT_EQ((BaseFormat{64, 128, 4, 2}.validate().error().code), Code::kUnsupported);
  EXPECT_EQ((BaseFormat{60, 64, 4, 4}.validate().error().code), Code::kUnsupported);
  EXPECT_EQ((BaseFormat{64, 1032, 4, 4}.validate().error().code), Code::kUnsupported);
}

// Each value comes back within half a step of its group, and steps are as small as f16 allows.
TEST(Base, ValuesComeBackWithinHalfAStep) {
  Random random(4);
  for (const std::uint32_t k_bits : kBaseBits)
    for (const std::uint32_t v_bits : kBaseBits)
      for (const std::uint64_t tokens : {1u, 31u, 32u, 70u}) {
        const BaseFormat format{40, 72, k_bits, v_bits};
        const PagedRows raw(&random, Dtype::kF32, tokens, 16, 40, 72);
        const BaseChunks chunks(raw.rows, tokens, format);
        const std::uint64_t range[2] = {0, tokens};
        std::vector<float> k(tokens * 40), v(tokens * 72);
        ASSERT_TRUE(scalar().decode_base({chunks.pages(),
                                          {nullptr, range},
                                          Dtype::kF32,
                                          reinterpret_cast<std::byte*>(k.data()),
                                          reinterpret_cast<std::byte*>(v.data()),
                                          40 * 4,
                                          72 * 4},
                                         nullptr));
        for (std::uint64_t t = 0; t < tokens; ++t) {
          const std::byte* chunk = &chunks.bytes[chunks.offsets[t / 32]];
          const std::uint64_t first = t / 32 * 32;
          for (std::uint32_t d = 0; d < 40; ++d) {
            const double step = half_at(chunk + 2 * d);
            ASSERT_NEAR(k[t * 40 + d], raw.k(t, d), step * 0.5001 + 1e-6);
            double least = HUGE_VAL, greatest = -HUGE_VAL;
            for (std::uint64_t u = first; u < std::min(tokens, first + 32); ++u) {
              least = std::min(least, raw.k(u, d));
              greatest = std::max(greatest, raw.k(u, d));
            }
            ASSERT_LE(step, (greatest - least) / ((1u << k_bits) - 1) * 1.001 + 2e-3);
          }
          for (std::uint32_t d = 0; d < 72; ++d) {
            const std::byte* group = chunk + format.v_groups_offset(t % 32) + d / 32 * 4;
            ASSERT_NEAR(v[t * 72 + d], raw.v(t, d), half_at(group) * 0.5001 + 1e-6);
          }
        }
        // Rows that are not there are zeros.
        const std::byte* last = &chunks.bytes[chunks.offsets.back()];
        for (std::uint32_t t = static_cast<std::uint32_t>((tokens - 1) % 32 + 1); t < 32; ++t) {
          for (std::uint32_t i = 0; i < format.k_row_bytes(); ++i)
            ASSERT_EQ(last[format.k_row_offset(t) + i], std::byte{0});
          for (std::uint32_t i = 0; i < format.v_row_bytes(); ++i)
            ASSERT_EQ(last[format.v_row_offset(t) + i], std::byte{0});
        }
      }
}

// Equal values come back as they are where f16 holds them; values beyond f16 come back as its
// largest; one that is no number spoils its group only.
TEST(Base, EqualHugeAndNoNumbers) {
  Random random(5);
  const std::uint64_t tokens = 32;
  const BaseFormat format{8, 64, 4, 4};
  PagedRows raw(&random, Dtype::kF32, tokens, 1, 8, 64);
  const auto set = [&](std::uint64_t t, std::uint32_t d, float value) {
    store_element(raw.memory.data() + 4 + raw.pages[t], Dtype::kF32, d, value);
  };
  for (std::uint64_t t = 0; t < tokens; ++t) {
    set(t, 0, 1.5f);
    set(t, 1, 1e9f);
    set(t, 2, -1e9f);
    set(t, 3, t % 2 == 0 ? 1e9f : -1e9f);
    set(t, 4, 1e-9f);
  }
  set(7, 5, std::numeric_limits<float>::quiet_NaN());
  set(9, 5, std::numeric_limits<float>::infinity());
  set(3, 8, std::numeric_limits<float>::quiet_NaN());
  const BaseChunks chunks(raw.rows, tokens, format);
  const std::uint64_t range[2] = {0, tokens};
  std::vector<float> k(tokens * 8), v(tokens * 64);
  ASSERT_TRUE(scalar().decode_base({chunks.pages(),
                                    {nullptr, range},
                                    Dtype::kF32,
                                    reinterpret_cast<std::byte*>(k.data()),
                                    reinterpret_cast<std::byte*>(v.data()),
                                    32,
                                    256},
                                   nullptr));
  for (std::uint64_t t = 0; t < tokens; ++t) {
    EXPECT_EQ(k[t * 8], 1.5f);
    EXPECT_GE(k[t * 8 + 1], 65504.0f);
    EXPECT_EQ(k[t * 8 + 2], -65504.0f);
    EXPECT_EQ(std::signbit(k[t * 8 + 3]), t % 2 == 1);
    EXPECT_NEAR(k[t * 8 + 4], 1e-9f, 1e-7f);
    EXPECT_NEAR(k[t * 8 + 6], raw.k(t, 6), 0.2);
    for (std::uint32_t d = t == 3 ? 32 : 0; d < 64; ++d) {
      EXPECT_NEAR(v[t * 64 + d], raw.v(t, d), 0.2);
    }
  }
}

TEST(Base, AttentionIsThatOverDecodedRows) {
  Random random(6);
  const std::uint64_t tokens = 90;
  const BaseFormat format{24, 40, 5, 3};
  const PagedRows raw(&random, Dtype::kF16, tokens, 32, 24, 40);
  const BaseChunks chunks(raw.rows, tokens, format);
  const std::vector<std::uint32_t> list = {5, 4, 89, 33, 33, 64};
  const std::vector<float> q = random_floats(&random, 2 * 24);
  for (const bool listed : {false, true}) {
    const std::uint64_t range[2] = {listed ? 1u : 3u, listed ? 6u : 80u};
    const std::uint64_t rows = range[1] - range[0];
    const BaseRows which{listed ? list.data() : nullptr, range};
    std::vector<float> k(rows * 24), v(rows * 40);
    ASSERT_TRUE(scalar().decode_base(
        {chunks.pages(), which, Dtype::kF32, reinterpret_cast<std::byte*>(k.data()),
         reinterpret_cast<std::byte*>(v.data()), 24 * 4, 40 * 4},
        nullptr));
    std::vector<std::uint64_t> addresses(rows);
    for (std::uint64_t n = 0; n < rows; ++n)
      addresses[n] = reinterpret_cast<std::uintptr_t>(&k[n * 24]);
    const std::uint64_t apart =
        reinterpret_cast<std::uintptr_t>(v.data()) - reinterpret_cast<std::uintptr_t>(k.data());
    std::vector<float> out(80), wanted(80), lse(2), lse_wanted(2), logits(2 * rows);
    ASSERT_TRUE(scalar().attend_base({chunks.pages(), which, q.data(), 24, 2, 0.3f, out.data(), 40,
                                      lse.data(), 1, logits.data(), rows},
                                     nullptr));
    // One page that holds all rows of K, and all of V behind them.
    const std::uint64_t page = 0, all[2] = {0, rows};
    const RowPages decoded{
        reinterpret_cast<const std::byte*>(k.data()), &page, rows, 96, apart, 160, Dtype::kF32};
    ASSERT_TRUE(scalar().attend({decoded, all, nullptr, q.data(), 24, 2, 24, 40, 0.3f,
                                 wanted.data(), 40, lse_wanted.data(), 1},
                                nullptr));
    for (std::size_t i = 0; i < 80; ++i) EXPECT_NEAR(out[i], wanted[i], 1e-6f);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(lse[i], lse_wanted[i], 1e-6f);
      for (std::uint64_t n = 0; n < rows; ++n) {
        double dot = 0.0;
        for (std::size_t d = 0; d < 24; ++d)
          dot += static_cast<double>(q[i * 24 + d]) * static_cast<double>(k[n * 24 + d]);
        EXPECT_NEAR(logits[i * rows + n], 0.3 * dot, 1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace kvtier
