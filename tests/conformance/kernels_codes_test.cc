// Operations on key codes of every back end against the scalar reference: numbers of tokens around
// a block, several pieces at odd addresses, canaries around everything that is written.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/own_code_layout.h"
#include "tests/conformance/kernels_backends.h"
#include "tests/unit/kernels_codes_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const std::vector<std::vector<std::uint64_t>> kPieces = {{},
                                                         {0},
                                                         {1},
                                                         {15},
                                                         {16},
                                                         {17},
                                                         {31},
                                                         {32},
                                                         {33},
                                                         {63},
                                                         {64},
                                                         {65},
                                                         {0, 1, 0, 33, 64, 0},
                                                         {2048, 100, 31}};

class KeyCodes : public KernelConformance {
 protected:
  // A stride whose rows are off a vector's alignment, with room that must stay untouched.
  static constexpr std::size_t kGap = 5;

  void score(const Codes& codes, std::uint32_t queries, int special) {
    const std::size_t entries = codes.subspaces * kCodeEntries;
    std::vector<float> tables = random_floats(&random, queries * (entries + 3) + 1);
    if (special == 1)
      for (float& entry : tables) entry = awkward_float(&random);
    if (special == 2) tables[random.below(tables.size())] = random.one_in(2) ? kNan : -kInfinity;
    if (special == 3) tables.assign(tables.size(), -0.0f);
    const std::size_t tokens = codes.starts.back();
    const std::size_t stride = tokens + kGap;
    Guarded<float> tested(queries * stride), wanted(queries * stride);
    Guarded<float> error(queries), error_wanted(queries);
    ScoreCodesArgs args{codes.pieces(), tables.data() + 1, entries + 3, queries, tested.data(),
                        stride,         error.data()};
    ScoreCodesArgs reference = args;
    reference.out = wanted.data();
    reference.out_error = error_wanted.data();
    ASSERT_TRUE(run(&KernelTable::score_codes, "score_codes", args, reference));
    ASSERT_TRUE(tested.intact() && tested.same_bits(wanted))
        << codes.subspaces << " sub-quantisers, " << queries << " queries, " << tokens
        << " tokens, " << special;
    ASSERT_TRUE(error.intact() && error.same_bits(error_wanted));
    for (std::uint32_t i = 0; i < queries; ++i) {
      ASSERT_TRUE(tested.untouched((i * stride + tokens) * 4, kGap * 4));
      ASSERT_TRUE(tested.untouched(i * stride * 4, codes.starts.front() * 4));
    }
  }
};

TEST_P(KeyCodes, Scores) {
  for (const std::uint32_t subspaces : {2u, 4u, 6u, 16u, 30u, 32u, 64u})
    for (const auto& pieces : kPieces) {
      const Codes codes(&random, pieces, subspaces, random.below(3));
      for (const std::uint32_t queries : {0u, 1u, 2u, 3u, 4u, 5u, 8u, 12u, 17u})
        ASSERT_NO_FATAL_FAILURE(score(codes, queries, 0));
      for (const int special : {1, 2, 3}) ASSERT_NO_FATAL_FAILURE(score(codes, 3, special));
    }
}

// The largest sum that there can be: nothing wraps.
TEST_P(KeyCodes, LargestSum) {
  Codes codes(&random, {64}, kCodeSubspacesMax);
  codes.bytes.assign(codes.bytes.size(), 0xFF);
  std::vector<float> table(kCodeSubspacesMax * kCodeEntries, 0.0f);
  for (std::uint32_t m = 0; m < kCodeSubspacesMax; ++m) table[m * kCodeEntries + 15] = 255.0f;
  std::vector<float> out(64);
  ASSERT_TRUE((GetParam().table->score_codes)(
      {codes.pieces(), table.data(), 0, 1, out.data(), 64, nullptr}, nullptr));
  EXPECT_EQ(out, std::vector<float>(64, 64 * 255.0f));
}

TEST_P(KeyCodes, Rescores) {
  for (const std::uint32_t subspaces : {2u, 6u, 16u, 32u, 64u})
    for (const auto& pieces : kPieces) {
      const Codes codes(&random, pieces, subspaces, 3);
      const std::uint64_t tokens = codes.starts.back() - 3;
      for (const std::uint32_t queries : {0u, 1u, 3u, 8u, 9u})
        for (const std::uint64_t count : {0u, 1u, 7u, 8u, 9u, 31u, 33u, 300u}) {
          if (tokens == 0 && count > 0) continue;
          std::vector<std::uint32_t> list(count);
          for (auto& token : list) token = static_cast<std::uint32_t>(3 + random.below(tokens));
          const std::size_t entries = subspaces * kCodeEntries;
          std::vector<float> tables = random_floats(&random, queries * (entries + 3));
          if (queries == 3) tables[random.below(tables.size())] = kNan;
          const std::size_t stride = count + kGap;
          Guarded<float> tested(queries * stride), wanted(queries * stride);
          RescoreCodesArgs args{codes.pieces(), list.data(), &count,        tables.data(),
                                entries + 3,    queries,     tested.data(), stride};
          RescoreCodesArgs reference = args;
          reference.out = wanted.data();
          ASSERT_TRUE(run(&KernelTable::rescore_codes, "rescore_codes", args, reference));
          ASSERT_TRUE(tested.intact() && tested.same_bits(wanted)) << subspaces << " " << count;
        }
    }
}

TEST_P(KeyCodes, Tables) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16})
    for (const std::uint32_t dim : {8u, 24u, 64u, 128u, 1024u})
      for (const std::uint32_t subspaces : {2u, 6u, 16u, 64u})
        for (const std::uint32_t stages : {1u, 2u})
          for (const std::uint32_t queries : {0u, 1u, 3u, 8u, 9u}) {
            const BookParts parts(&random, dim, subspaces, dtype, stages);
            const std::size_t entries = subspaces * kCodeEntries;
            const std::vector<float> q = random_floats(&random, queries * (dim + 1));
            Guarded<float> tested(queries * (entries + kGap)), wanted(tested.size());
            CodeTablesArgs args{parts.book(), q.data(),      dim + 1,
                                queries,      tested.data(), entries + kGap};
            CodeTablesArgs reference = args;
            reference.out = wanted.data();
            ASSERT_TRUE(run(&KernelTable::code_tables, "code_tables", args, reference));
            ASSERT_TRUE(tested.intact());
            for (std::uint32_t i = 0; i < queries; ++i) {
              const std::size_t row = i * (entries + kGap);
              ASSERT_TRUE(tested.untouched((row + entries) * 4, kGap * 4));
              for (std::size_t e = 0; e < entries; ++e)
                ASSERT_NEAR(tested[row + e], wanted[row + e], 2e-6f * static_cast<float>(dim))
                    << "dim " << dim << " entry " << e;
            }
          }
}

TEST_P(KeyCodes, Encoding) {
  for (const Dtype dtype : kDtypes)
    for (const std::uint32_t dim : {8u, 24u, 64u, 128u})
      for (const std::uint32_t subspaces : {2u, 6u, 32u})
        for (const std::uint32_t stages : {1u, 2u})
          for (const std::uint64_t tokens : {0u, 1u, 15u, 17u, 31u, 32u, 33u, 130u}) {
            const Dtype entries = random.one_in(2) ? Dtype::kF16 : Dtype::kF32;
            BookParts parts(&random, dim, subspaces, entries, stages);
            // Entries that are equal: ties go to the lower one.
            for (std::size_t e = 0; e < 16 * parts.dims.size(); e += 2)
              store_element(parts.entry_bytes(), entries, e, 0.5f);
            const PagedRows keys(&random, dtype, tokens, 32, dim, 8);
            std::vector<float> weights = random_floats(&random, dim);
            for (float& weight : weights) weight = weight < -1.0f ? 0.0f : weight + 1.0f;
            Guarded<std::uint8_t> tested(code_bytes(tokens, subspaces)), wanted(tested.size());
            EncodeCodesArgs args{parts.book(), keys.rows, &tokens,
                                 random.one_in(3) ? nullptr : weights.data(), tested.data()};
            EncodeCodesArgs reference = args;
            reference.out = wanted.data();
            ASSERT_TRUE(run(&KernelTable::encode_codes, "encode_codes", args, reference));
            ASSERT_TRUE(tested.intact() && tested.same_bits(wanted))
                << dtype_name(dtype) << " dim " << dim << " sub-quantisers " << subspaces
                << " tokens " << tokens;
          }
}

TEST_P(KeyCodes, EncodingAnyKeyWritesOnlyItsOwnPlace) {
  const std::uint64_t tokens = 40;
  const BookParts parts(&random, 16, 4, Dtype::kF32);
  const PagedRows keys(&random, Dtype::kF32, tokens, 1, 16, 8, [](Random* source) {
    const float draws[] = {kNan, kInfinity, -kInfinity, 3e38f, 1e-40f, 1.0f};
    return draws[source->below(6)];
  });
  Guarded<std::uint8_t> tested(code_bytes(tokens, 4));
  EncodeCodesArgs args{parts.book(), keys.rows, &tokens, nullptr, tested.data()};
  ASSERT_TRUE((GetParam().table->encode_codes)(args, nullptr));
  ASSERT_TRUE(tested.intact());
  for (std::uint64_t t = tokens; t < 64; ++t)
    for (std::uint32_t m = 0; m < 4; ++m) ASSERT_EQ(code_at(tested.data(), t, 4, m), 0);
}

TEST_P(KeyCodes, OwnCodes) {
  for (const std::uint32_t subspaces : {1u, 2u, 3u, 8u, 16u})
    for (const std::uint64_t tokens : {0u, 1u, 7u, 8u, 9u, 15u, 17u, 31u, 32u, 33u, 65u, 2048u})
      for (const std::uint32_t queries : {0u, 1u, 2u, 3u, 9u}) {
        const std::size_t entries = subspaces * kOwnCodeEntries, stride = tokens + kGap;
        std::vector<std::uint8_t> codes(own_code_bytes(tokens, subspaces) + 1);
        for (auto& byte : codes) byte = static_cast<std::uint8_t>(random.next());
        std::vector<float> tables = random_floats(&random, queries * (entries + 3) + 1);
        if (queries == 2)
          for (float& entry : tables) entry = awkward_float(&random);
        if (queries == 3) tables[random.below(tables.size())] = random.one_in(2) ? kNan : -0.0f;
        Guarded<float> tested(queries * stride), wanted(queries * stride);
        ScoreOwnCodesArgs args{codes.data() + 1, &tokens, subspaces,     tables.data() + 1,
                               entries + 3,      queries, tested.data(), stride};
        ScoreOwnCodesArgs reference = args;
        reference.out = wanted.data();
        ASSERT_TRUE(run(&KernelTable::score_own_codes, "score_own_codes", args, reference));
        ASSERT_TRUE(tested.intact() && tested.same_bits(wanted))
            << subspaces << " sub-spaces, " << queries << " queries, " << tokens << " tokens";
        for (std::uint32_t i = 0; i < queries; ++i)
          ASSERT_TRUE(tested.untouched((i * stride + tokens) * 4, kGap * 4));
      }
}

INSTANTIATE_TEST_SUITE_P(Kernels, KeyCodes, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
