// The registry of back ends, and what their operations refuse.
#include <gtest/gtest.h>

#include <set>

#include "kernels/registry.h"
#include "kernels/simd/simd.h"

namespace kvtier {
namespace {

TEST(Registry, ScalarIsAlwaysThereAndLast) {
  ASSERT_FALSE(all_kernels().empty());
  EXPECT_STREQ(all_kernels().back()->name, "scalar");
  std::set<std::string_view> names;
  for (const KernelTable* table : all_kernels()) {
    EXPECT_TRUE(names.insert(table->name).second) << table->name;
    EXPECT_NE(table->target(), nullptr);
    EXPECT_TRUE(table->available());
  }
}

TEST(Registry, AutoIsTheFirst) {
  EXPECT_EQ(*select_kernels("auto"), all_kernels().front());
  EXPECT_EQ(*select_kernels(""), all_kernels().front());
}

TEST(Registry, NamesForceATable) {
  for (const KernelTable* table : all_kernels()) {
    const auto selected = select_kernels(table->name);
    ASSERT_TRUE(selected);
    EXPECT_EQ(*selected, table);
  }
  EXPECT_EQ(select_kernels("cuda").error().code, Code::kNotFound);
  EXPECT_EQ(select_kernels("Scalar").error().code, Code::kNotFound);
}

TEST(Registry, SimdIsOfferedWhereTheMachineHasVectors) {
  const bool emulated = simd::simd_targets().empty() ||
                        std::string_view(simd::simd_targets()[0]) == "EMU128" ||
                        std::string_view(simd::simd_targets()[0]) == "SCALAR";
  const auto simd = select_kernels("simd");
  EXPECT_EQ(simd.has_value(), !emulated);
  if (!simd) {
    EXPECT_EQ(simd.error().code, Code::kUnsupported);
  }
}

class Refusals : public ::testing::TestWithParam<const KernelTable*> {};

TEST_P(Refusals, WhatCannotBeIsRefused) {
  const KernelTable& kernels = *GetParam();
  const std::uint64_t zero[2] = {0, 0};
  std::uint64_t found = 0;

  BuildAbstractArgs build{{}, zero, 16, 64, AbstractKind::kBox, nullptr};
  EXPECT_TRUE(kernels.build_abstract(build, nullptr)) << "no tokens need no memory";
  build.dim = 60;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kUnsupported);
  build.dim = 1032;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kUnsupported);
  build.dim = 64;
  build.unit_tokens = 0;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kInvalid);
  build.unit_tokens = 16;
  build.kind = AbstractKind::kNone;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kInvalid);
  build.kind = AbstractKind::kBall;
  const std::uint32_t starts[1] = {0};
  build.starts = starts;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kInvalid) << "no count";
  build.unit_count = zero;
  build.unit_tokens = 0;
  build.token_count = nullptr;
  EXPECT_TRUE(kernels.build_abstract(build, nullptr)) << "starts say it all";
  build.rows.dtype = Dtype::kOpaque;
  EXPECT_EQ(kernels.build_abstract(build, nullptr).error().code, Code::kUnsupported);

  EXPECT_EQ(kernels.score_box({nullptr, zero, nullptr, 0, 1, 0, nullptr, 0}, nullptr).error().code,
            Code::kUnsupported);
  EXPECT_EQ(
      kernels.score_mean({nullptr, nullptr, nullptr, 0, 1, 8, nullptr, 0}, nullptr).error().code,
      Code::kInvalid);
  EXPECT_EQ(kernels.score_ball({nullptr, zero, nullptr, 0, 1, 9, nullptr, 0}, nullptr).error().code,
            Code::kUnsupported);
  EXPECT_EQ(
      kernels.group_scores({nullptr, 0, zero, 0, GroupMode::kMax, 1.0f}, nullptr).error().code,
      Code::kInvalid);
  EXPECT_EQ(
      kernels.group_scores({nullptr, 0, zero, 1, GroupMode::kMax, 0.0f}, nullptr).error().code,
      Code::kInvalid);
  EXPECT_EQ(
      kernels.group_scores({nullptr, 0, zero, 1, GroupMode::kEach, 1.0f}, nullptr).error().code,
      Code::kInvalid)
      << "no room for the orders";
  EXPECT_EQ(kernels.top_k({nullptr, zero, 1, true, nullptr, nullptr}, nullptr).error().code,
            Code::kInvalid);
  EXPECT_TRUE(kernels.top_k({nullptr, zero, 1, true, nullptr, &found}, nullptr));
  EXPECT_EQ(
      kernels.gather_rows({nullptr, nullptr, zero, 8, nullptr, 7, nullptr}, nullptr).error().code,
      Code::kInvalid);

  ScoreOwnCodesArgs own{nullptr, zero, 0, nullptr, 0, 1, nullptr, 0};
  EXPECT_EQ(kernels.score_own_codes(own, nullptr).error().code, Code::kUnsupported);
  own.subspaces = 17;
  EXPECT_EQ(kernels.score_own_codes(own, nullptr).error().code, Code::kUnsupported);
  own.subspaces = 16;
  EXPECT_TRUE(kernels.score_own_codes(own, nullptr));
  own.token_count = nullptr;
  EXPECT_EQ(kernels.score_own_codes(own, nullptr).error().code, Code::kInvalid);

  AttendArgs attend;
  attend.token_range = zero;
  attend.queries = 2;
  attend.dim = attend.v_dim = 16;
  attend.out_stride = 15;
  EXPECT_EQ(kernels.attend(attend, nullptr).error().code, Code::kInvalid);
  attend.out_stride = 16;
  attend.row_masks = zero;
  attend.rows.page_tokens = 65;
  EXPECT_EQ(kernels.attend(attend, nullptr).error().code, Code::kInvalid);
  attend.v_dim = 12;
  EXPECT_EQ(kernels.attend(attend, nullptr).error().code, Code::kUnsupported);

  EXPECT_EQ(kernels.all_finite({nullptr, zero, Dtype::kOpaque, &found}, nullptr).error().code,
            Code::kUnsupported);
  EXPECT_EQ(
      kernels.convert({nullptr, Dtype::kF16, zero, nullptr, Dtype::kBf16}, nullptr).error().code,
      Code::kUnsupported);
}

TEST_P(Refusals, KeyCodes) {
  const KernelTable& kernels = *GetParam();
  const std::uint64_t zero = 0;
  const std::uint16_t first[5] = {};
  const CodeBook book{nullptr, Dtype::kF16, nullptr, first, 4, 64};
  const CodePieces codes{nullptr, nullptr, nullptr, &zero, 4};

  CodeTablesArgs tables{book, nullptr, 0, 0, nullptr, 64};
  EXPECT_TRUE(kernels.code_tables(tables, nullptr));
  tables.queries = 2;
  tables.out_stride = 63;
  EXPECT_EQ(kernels.code_tables(tables, nullptr).error().code, Code::kInvalid);
  tables.book.dtype = Dtype::kBf16;
  EXPECT_EQ(kernels.code_tables(tables, nullptr).error().code, Code::kUnsupported);

  ScoreCodesArgs score{codes, nullptr, 0, 0, nullptr, 0, nullptr};
  EXPECT_TRUE(kernels.score_codes(score, nullptr));
  score.codes.subspaces = 5;
  EXPECT_EQ(kernels.score_codes(score, nullptr).error().code, Code::kUnsupported);
  score.codes.count = nullptr;
  EXPECT_EQ(kernels.score_codes(score, nullptr).error().code, Code::kInvalid);

  RescoreCodesArgs rescore{codes, nullptr, &zero, nullptr, 0, 1, nullptr, 0};
  EXPECT_TRUE(kernels.rescore_codes(rescore, nullptr));
  rescore.codes.subspaces = 66;
  EXPECT_EQ(kernels.rescore_codes(rescore, nullptr).error().code, Code::kUnsupported);
  rescore.token_count = nullptr;
  EXPECT_EQ(kernels.rescore_codes(rescore, nullptr).error().code, Code::kInvalid);

  EncodeCodesArgs encode{book, {}, &zero, nullptr, nullptr};
  EXPECT_TRUE(kernels.encode_codes(encode, nullptr));
  encode.book.dim = 60;
  EXPECT_EQ(kernels.encode_codes(encode, nullptr).error().code, Code::kUnsupported);
  encode.book.dim = 64;
  encode.rows.page_tokens = 0;
  EXPECT_EQ(kernels.encode_codes(encode, nullptr).error().code, Code::kInvalid);
  encode.rows.dtype = Dtype::kOpaque;
  EXPECT_EQ(kernels.encode_codes(encode, nullptr).error().code, Code::kUnsupported);

  NearestArgs nearest{nullptr, 0, &zero, nullptr, 0, &zero, nullptr, 64, nullptr, nullptr};
  EXPECT_TRUE(kernels.nearest(nearest, nullptr));
  nearest.dim = 4;
  EXPECT_EQ(kernels.nearest(nearest, nullptr).error().code, Code::kUnsupported);
  nearest.dim = 8;
  nearest.centroid_count = nullptr;
  EXPECT_EQ(kernels.nearest(nearest, nullptr).error().code, Code::kInvalid);
}

TEST_P(Refusals, BaseRenditions) {
  const KernelTable& kernels = *GetParam();
  const std::uint64_t zero[2] = {0, 0};
  const BaseFormat format{64, 64, 4, 4};
  EncodeBaseArgs encode{{}, zero, format, nullptr};
  EXPECT_TRUE(kernels.encode_base(encode, nullptr));
  encode.format.k_bits = 7;
  EXPECT_EQ(kernels.encode_base(encode, nullptr).error().code, Code::kUnsupported);
  encode.token_count = nullptr;
  EXPECT_EQ(kernels.encode_base(encode, nullptr).error().code, Code::kInvalid);

  DecodeBaseArgs decode{
      {nullptr, nullptr, format}, {nullptr, zero}, Dtype::kF16, nullptr, nullptr, 0, 0};
  EXPECT_TRUE(kernels.decode_base(decode, nullptr));
  std::byte somewhere{};
  decode.out_v = &somewhere;
  decode.v_stride = 127;
  EXPECT_EQ(kernels.decode_base(decode, nullptr).error().code, Code::kInvalid);
  decode.dtype = Dtype::kOpaque;
  EXPECT_EQ(kernels.decode_base(decode, nullptr).error().code, Code::kUnsupported);

  AttendBaseArgs attend;
  attend.pages.format = format;
  attend.rows.range = zero;
  EXPECT_TRUE(kernels.attend_base(attend, nullptr));
  attend.queries = 2;
  attend.out_stride = 63;
  EXPECT_EQ(kernels.attend_base(attend, nullptr).error().code, Code::kInvalid);
  attend.rows.range = nullptr;
  EXPECT_EQ(kernels.attend_base(attend, nullptr).error().code, Code::kInvalid);
}

TEST_P(Refusals, LowRankKeys) {
  const KernelTable& kernels = *GetParam();
  const std::uint64_t zero = 0;
  RebuildKeysArgs args;
  args.count = &zero;
  args.rank = 1;
  args.dim = 64;
  args.pairing = Rotation::Pairing::kHalves;
  args.pairs = 32;
  EXPECT_TRUE(kernels.rebuild_keys(args, nullptr));
  args.pairs = 33;
  EXPECT_EQ(kernels.rebuild_keys(args, nullptr).error().code, Code::kInvalid);
  for (const std::uint32_t rank : {0u, 1025u}) {
    args.rank = rank;
    EXPECT_EQ(kernels.rebuild_keys(args, nullptr).error().code, Code::kUnsupported);
  }
  args.count = nullptr;
  EXPECT_EQ(kernels.rebuild_keys(args, nullptr).error().code, Code::kInvalid);
  args.dim = 12;
  EXPECT_EQ(kernels.rebuild_keys(args, nullptr).error().code, Code::kUnsupported);
  args.dtype = Dtype::kOpaque;
  EXPECT_EQ(kernels.rebuild_keys(args, nullptr).error().code, Code::kUnsupported);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Refusals,
                         ::testing::ValuesIn(all_kernels().begin(), all_kernels().end()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace kvtier
