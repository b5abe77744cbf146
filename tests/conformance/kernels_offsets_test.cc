// Offsets and strides past 4 GiB, in a sparse mapping: no back end may cut them to 32 bits.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "kernels/own_code_layout.h"
#include "tests/conformance/kernels_backends.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint64_t kGiB = 1ull << 30;

class FarOffsets : public KernelConformance {
 protected:
  static constexpr std::uint64_t kSize = 14 * kGiB;
  void SetUp() override {
    KernelConformance::SetUp();
    memory_ = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(memory_, MAP_FAILED);
    base_ = static_cast<std::byte*>(memory_);
  }
  void TearDown() override {
    if (memory_ != MAP_FAILED) ::munmap(memory_, kSize);
    KernelConformance::TearDown();
  }
  void put_row(std::uint64_t offset, std::uint32_t dim) {
    for (std::uint32_t d = 0; d < dim; ++d)
      store_element(base_ + offset, Dtype::kF32, d, random_float(&random));
  }
  // Two pages of two tokens, everything more than 4 GiB apart.
  RowPages far_rows() {
    rows_.base = base_;
    rows_.pages = pages_;
    rows_.page_tokens = 2;
    rows_.k_stride = 5 * kGiB + 64;
    rows_.v_offset = 4096;
    rows_.v_stride = 5 * kGiB + 128;
    rows_.dtype = Dtype::kF32;
    for (std::uint64_t t = 0; t < 4; ++t) {
      put_row(pages_[t / 2] + t % 2 * rows_.k_stride, 64);
      put_row(pages_[t / 2] + rows_.v_offset + t % 2 * rows_.v_stride, 64);
    }
    return rows_;
  }

  void* memory_ = MAP_FAILED;
  std::byte* base_ = nullptr;
  std::uint64_t pages_[2] = {7 * kGiB, kGiB};
  RowPages rows_;
};

TEST_P(FarOffsets, Attend) {
  const std::uint64_t range[2] = {0, 4};
  const std::vector<float> q = random_floats(&random, 64);
  std::vector<float> out(64), wanted(64);
  float lse = 0.0f;
  float lse_wanted = 1.0f;
  AttendArgs args{far_rows(), range,  nullptr,    q.data(), 64,   1, 64,
                  64,         0.125f, out.data(), 64,       &lse, 1};
  AttendArgs reference = args;
  reference.out = wanted.data();
  reference.lse = &lse_wanted;
  ASSERT_TRUE(run(&KernelTable::attend, "attend", args, reference));
  EXPECT_NEAR(lse, lse_wanted, 1e-5f);
  EXPECT_GT(lse_wanted, 0.0f) << "all keys were read as zero";
  for (std::size_t d = 0; d < 64; ++d) EXPECT_NEAR(out[d], wanted[d], 1e-5f);
}

// Queries and outputs too may lie far apart.
TEST_P(FarOffsets, AttendQueriesAndOutputs) {
  const std::uint64_t range[2] = {0, 4};
  const RowPages rows = far_rows();
  const std::uint64_t stride = 5 * kGiB / 4;  // floats
  auto* q = reinterpret_cast<float*>(base_ + 65536);
  auto* out = reinterpret_cast<float*>(base_ + 131072);
  auto* lse = reinterpret_cast<float*>(base_ + 196608);
  for (std::size_t d = 0; d < 64; ++d) {
    q[d] = random_float(&random);
    q[stride + d] = random_float(&random);
  }
  std::vector<float> wanted(128), lse_wanted(2);
  AttendArgs args{rows, range, nullptr, q, stride, 2, 64, 64, 0.125f, out, stride, lse, stride};
  AttendArgs reference{rows,          range, nullptr,           q, stride, 2, 64, 64, 0.125f,
                       wanted.data(), 64,    lse_wanted.data(), 1};
  ASSERT_TRUE(run(&KernelTable::attend, "attend", args, reference));
  EXPECT_NEAR(lse[stride], lse_wanted[1], 1e-5f);
  for (std::size_t d = 0; d < 64; ++d) EXPECT_NEAR(out[stride + d], wanted[64 + d], 1e-5f);
}

TEST_P(FarOffsets, BuildAbstract) {
  const std::uint64_t tokens = 4;
  std::vector<std::uint16_t> tested(2 * 64), wanted(2 * 64);
  BuildAbstractArgs args{far_rows(), &tokens, 4, 64, AbstractKind::kBox, tested.data()};
  BuildAbstractArgs reference = args;
  reference.out = wanted.data();
  ASSERT_TRUE(run(&KernelTable::build_abstract, "build_abstract", args, reference));
  EXPECT_EQ(tested, wanted);
  EXPECT_NE(wanted, std::vector<std::uint16_t>(2 * 64, 0));
}

TEST_P(FarOffsets, GatherRows) {
  const std::uint64_t offsets[3] = {9 * kGiB + 3, 5, 4 * kGiB + 5};
  const std::uint64_t targets[3] = {2 * kGiB + 1, 11 * kGiB + 1, 13 * kGiB};
  const std::uint64_t count = 3;
  for (std::uint64_t i = 0; i < 3; ++i)
    for (std::uint64_t j = 0; j < 100; ++j)
      base_[offsets[i] + j] = static_cast<std::byte>(random.next() | 1);
  std::vector<std::byte> wanted(300);
  GatherRowsArgs args{base_, offsets, &count, 100, base_, 100, targets};
  GatherRowsArgs reference{base_, offsets, &count, 100, wanted.data(), 100, nullptr};
  ASSERT_TRUE(run(&KernelTable::gather_rows, "gather_rows", args, reference));
  for (std::uint64_t i = 0; i < 3; ++i)
    EXPECT_EQ(std::memcmp(base_ + targets[i], wanted.data() + i * 100, 100), 0) << "row " << i;
}

// A table of addresses over a null base names rows of several mappings.
TEST_P(FarOffsets, NullBaseMeansAddresses) {
  std::vector<float> near_row(16, 2.0f);
  auto* far_row = reinterpret_cast<float*>(base_ + 12 * kGiB);
  for (std::size_t d = 0; d < 16; ++d) far_row[d] = 3.0f;
  const std::uint64_t pages[2] = {reinterpret_cast<std::uintptr_t>(near_row.data()),
                                  reinterpret_cast<std::uintptr_t>(far_row)};
  const RowPages rows{nullptr, pages, 1, 64, 32, 64, Dtype::kF32};
  const std::uint64_t range[2] = {0, 2};
  const std::vector<float> q(8, 0.0f);
  std::vector<float> out(8), wanted(8);
  float lse = 0.0f;
  float lse_wanted = 0.0f;
  AttendArgs args{rows, range, nullptr, q.data(), 8, 1, 8, 8, 1.0f, out.data(), 8, &lse, 1};
  AttendArgs reference = args;
  reference.out = wanted.data();
  reference.lse = &lse_wanted;
  ASSERT_TRUE(run(&KernelTable::attend, "attend", args, reference));
  EXPECT_NEAR(out[7], 2.5f, 1e-6f);
  EXPECT_NEAR(wanted[7], 2.5f, 1e-6f);
}

// Rows of scores more than 4 GiB apart.
TEST_P(FarOffsets, Scores) {
  const std::uint64_t units = 3;
  const std::uint64_t stride = 5 * kGiB / 4;
  std::vector<std::uint16_t> boxes(units * 2 * 8);
  for (auto& half : boxes) half = f32_to_f16(random_float(&random));
  const std::vector<float> q = random_floats(&random, 16);
  auto* out = reinterpret_cast<float*>(base_);
  std::vector<float> wanted(2 * units);
  ScoreArgs args{boxes.data(), &units, q.data(), 8, 2, 8, out, stride};
  ScoreArgs reference{boxes.data(), &units, q.data(), 8, 2, 8, wanted.data(), units};
  ASSERT_TRUE(run(&KernelTable::score_box, "score_box", args, reference));
  for (std::uint64_t u = 0; u < units; ++u) EXPECT_NEAR(out[stride + u], wanted[units + u], 1e-5f);
  ASSERT_TRUE(run(&KernelTable::score_mean, "score_mean", args, reference));
  for (std::uint64_t u = 0; u < units; ++u) EXPECT_NEAR(out[stride + u], wanted[units + u], 1e-5f);
  const ScoreRepresentativesArgs keys{args, 2, true}, same{reference, 2, true};
  ASSERT_TRUE(run(&KernelTable::score_representatives, "score_representatives", keys, same));
  for (std::uint64_t u = 0; u < units; ++u) EXPECT_NEAR(out[stride + u], wanted[units + u], 1e-5f);
}

// Pieces of codes, tables and scores that lie far apart.
TEST_P(FarOffsets, KeyCodes) {
  const std::uint64_t pieces[2] = {9 * kGiB + 1, kGiB + 3}, starts[3] = {0, 33, 70}, count = 2;
  const std::uint64_t stride = 5 * kGiB / 4;  // floats
  for (const std::uint64_t piece : pieces)
    for (std::uint64_t i = 0; i < code_bytes(37, 4); ++i)
      base_[piece + i] = static_cast<std::byte>(random.next());
  auto* tables = reinterpret_cast<float*>(base_ + 65536);
  for (std::size_t i = 0; i < 64; ++i) {
    tables[i] = random_float(&random);
    tables[stride + i] = random_float(&random);
  }
  auto* out = reinterpret_cast<float*>(base_ + 131072);
  std::vector<float> wanted(2 * 70);
  const CodePieces codes{base_, pieces, starts, &count, 4};
  ScoreCodesArgs args{codes, tables, stride, 2, out, stride, nullptr};
  ScoreCodesArgs reference{codes, tables, stride, 2, wanted.data(), 70, nullptr};
  ASSERT_TRUE(run(&KernelTable::score_codes, "score_codes", args, reference));
  EXPECT_EQ(std::memcmp(out + stride, &wanted[70], 70 * 4), 0);
  EXPECT_NE(wanted[70], wanted[71]);
  const std::uint32_t tokens[3] = {69, 0, 33};
  const std::uint64_t chosen = 3;
  RescoreCodesArgs rescore{codes, tokens, &chosen, tables, stride, 2, out, stride};
  RescoreCodesArgs rescore_reference = rescore;
  rescore_reference.out = wanted.data();
  rescore_reference.out_stride = 3;
  ASSERT_TRUE(run(&KernelTable::rescore_codes, "rescore_codes", rescore, rescore_reference));
  EXPECT_EQ(std::memcmp(out + stride, &wanted[3], 3 * 4), 0);
}

TEST_P(FarOffsets, OwnCodes) {
  const std::uint64_t tokens = 70, stride = 5 * kGiB / 4;  // floats
  for (std::uint64_t i = 0; i < own_code_bytes(tokens, 2); ++i)
    base_[kGiB + i] = static_cast<std::byte>(random.next());
  auto* tables = reinterpret_cast<float*>(base_ + 65536);
  for (std::size_t i = 0; i < 2u * kOwnCodeEntries; ++i) tables[stride + i] = random_float(&random);
  auto* out = reinterpret_cast<float*>(base_ + 131072);
  std::vector<float> wanted(2 * tokens);
  const auto* codes = reinterpret_cast<const std::uint8_t*>(base_ + kGiB);
  ScoreOwnCodesArgs args{codes, &tokens, 2, tables, stride, 2, out, stride};
  ScoreOwnCodesArgs reference = args;
  reference.out = wanted.data();
  reference.out_stride = tokens;
  ASSERT_TRUE(run(&KernelTable::score_own_codes, "score_own_codes", args, reference));
  EXPECT_EQ(std::memcmp(out + stride, &wanted[tokens], tokens * 4), 0);
  EXPECT_NE(wanted[tokens], wanted[tokens + 1]);
}

TEST_P(FarOffsets, RebuildKeys) {
  const std::uint64_t count = 2, offsets[2] = {kGiB, 6 * kGiB}, targets[2] = {9 * kGiB, 64};
  std::vector<std::uint16_t> basis(8 * 64);
  for (auto& value : basis) value = f32_to_f16(random_float(&random));
  for (const std::uint64_t offset : offsets)
    for (std::uint32_t r = 0; r < 8; ++r)
      store_element(base_ + offset, Dtype::kF16, r, random_float(&random));
  std::vector<float> wanted(2 * 64);
  const std::uint64_t near[2] = {0, 64 * 4};
  RebuildKeysArgs args;
  args.base = base_;
  args.offsets = offsets;
  args.count = &count;
  args.basis = basis.data();
  args.rank = 8;
  args.dim = 64;
  args.out = base_;
  args.out_offsets = targets;
  RebuildKeysArgs reference = args;
  reference.out = reinterpret_cast<std::byte*>(wanted.data());
  reference.out_offsets = near;
  ASSERT_TRUE(run(&KernelTable::rebuild_keys, "rebuild_keys", args, reference));
  for (std::uint32_t d = 0; d < 64; ++d) {
    EXPECT_NEAR(load_element(base_ + targets[0], Dtype::kF32, d), wanted[d], 1e-4f);
    EXPECT_NEAR(load_element(base_ + targets[1], Dtype::kF32, d), wanted[64 + d], 1e-4f);
  }
  EXPECT_NE(wanted[0], wanted[64]);
}

TEST_P(FarOffsets, EncodeAndNearest) {
  const RowPages rows = far_rows();
  const std::uint64_t four = 4, two = 2;
  std::vector<float> entries(16 * 64);
  for (float& entry : entries) entry = random_float(&random);
  std::vector<std::uint16_t> dims(64), first = {0, 30, 64};
  for (std::size_t d = 0; d < 64; ++d) dims[d] = static_cast<std::uint16_t>(d);
  const CodeBook book{reinterpret_cast<const std::byte*>(entries.data()),
                      Dtype::kF32,
                      dims.data(),
                      first.data(),
                      2,
                      64};
  std::vector<std::uint8_t> tested(32), wanted(32);
  EncodeCodesArgs encode{book, rows, &four, nullptr, tested.data()};
  EncodeCodesArgs encode_reference = encode;
  encode_reference.out = wanted.data();
  ASSERT_TRUE(run(&KernelTable::encode_codes, "encode_codes", encode, encode_reference));
  EXPECT_EQ(tested, wanted);
  EXPECT_NE(wanted, std::vector<std::uint8_t>(32, 0));
  // The keys of a page as rows, and as centroids: each is nearest to itself.
  const auto* keys = reinterpret_cast<const float*>(base_ + pages_[0]);
  const std::uint64_t stride = rows.k_stride / 4;
  std::uint32_t index[2] = {9, 9}, index_wanted[2];
  float value[2], value_wanted[2], bias[2];
  for (std::size_t j = 0; j < 2; ++j) {
    bias[j] = 0.0f;
    for (std::size_t d = 0; d < 64; ++d) bias[j] -= keys[j * stride + d] * keys[j * stride + d] / 2;
  }
  NearestArgs nearest{keys, stride, &two, keys, stride, &two, bias, 64, index, value};
  NearestArgs nearest_reference = nearest;
  nearest_reference.out_index = index_wanted;
  nearest_reference.out_value = value_wanted;
  ASSERT_TRUE(run(&KernelTable::nearest, "nearest", nearest, nearest_reference));
  EXPECT_EQ(index[0], 0u);
  EXPECT_EQ(index[1], 1u);
}

INSTANTIATE_TEST_SUITE_P(Kernels, FarOffsets, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
