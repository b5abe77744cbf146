// Every operation of every back end against the scalar reference: lengths 0, 1, a vector and one
// more or less, odd alignments, canaries around everything that is written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/conformance/kernels_backends.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kLengths[] = {0,  1,  2,  3,  4,  5,  7,  8,   9,   15,  16,
                                    17, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1100};

TEST_P(KernelConformance, GatherRows) {
  for (const std::size_t row_bytes :
       {0u, 1u, 7u, 15u, 16u, 17u, 31u, 32u, 33u, 63u, 64u, 65u, 127u, 128u, 200u, 512u, 1000u})
    for (const std::uint64_t count : {0u, 1u, 3u, 40u}) {
      std::vector<std::byte> source(row_bytes + 4096);
      for (auto& byte : source) byte = static_cast<std::byte>(random.next());
      std::vector<std::uint64_t> offsets(count);
      for (auto& offset : offsets) offset = random.below(4097);
      if (count > 0) offsets[0] = 4096;  // up to the last byte
      const std::size_t stride = row_bytes + count % 2 * 3;
      std::vector<std::uint64_t> targets(count);
      for (std::size_t i = 0; i < count; ++i) targets[i] = (count - 1 - i) * stride;
      for (const bool scattered : {false, true}) {
        Guarded<std::byte> tested(count * stride);
        Guarded<std::byte> wanted(count * stride);
        GatherRowsArgs args{source.data(),
                            offsets.data(),
                            &count,
                            row_bytes,
                            tested.data(),
                            stride,
                            scattered ? targets.data() : nullptr};
        GatherRowsArgs reference = args;
        reference.out = wanted.data();
        ASSERT_TRUE(run(&KernelTable::gather_rows, "gather_rows", args, reference));
        ASSERT_TRUE(tested.intact() && tested.same_bits(wanted)) << row_bytes << " x " << count;
      }
    }
}

class Attend : public KernelConformance {
 protected:
  void compare(const PagedRows& keys, AttendArgs args, std::uint64_t first, std::uint64_t last) {
    const std::uint64_t range[2] = {first, last};
    const std::size_t q_stride = args.dim + 1;
    const std::size_t out_stride = args.v_dim + 3;
    const std::vector<float> q = random_floats(&random, args.queries * q_stride);
    Guarded<float> out(args.queries * out_stride);
    Guarded<float> out_wanted(args.queries * out_stride);
    Guarded<float> lse(args.queries * 2);
    Guarded<float> lse_wanted(args.queries * 2);
    args.rows = keys.rows;
    args.token_range = range;
    args.q = q.data();
    args.q_stride = q_stride;
    args.scale = 0.7f;
    args.out = out.data();
    args.out_stride = out_stride;
    args.lse = lse.data();
    args.lse_stride = 2;
    AttendArgs reference = args;
    reference.out = out_wanted.data();
    reference.lse = lse_wanted.data();
    ASSERT_TRUE(run(&KernelTable::attend, "attend", args, reference));
    ASSERT_TRUE(out.intact() && lse.intact());
    for (std::uint32_t i = 0; i < args.queries; ++i) {
      const float wanted = lse_wanted[i * 2];
      if (std::isfinite(wanted)) {
        ASSERT_NEAR(lse[i * 2], wanted, 2e-6f * std::max(10.0f, std::abs(wanted))) << "query " << i;
      } else {
        ASSERT_EQ(lse[i * 2], wanted);
      }
      for (std::uint32_t d = 0; d < args.v_dim; ++d)
        ASSERT_NEAR(out[i * out_stride + d], out_wanted[i * out_stride + d], 5e-5f)
            << dtype_name(keys.rows.dtype) << " dim " << args.dim << " query " << i << " [" << first
            << ", " << last << ")";
      ASSERT_TRUE(out.untouched((i * out_stride + args.v_dim) * sizeof(float), 3 * sizeof(float)));
      ASSERT_TRUE(lse.untouched((i * 2 + 1) * sizeof(float), sizeof(float)));
    }
  }
};

TEST_P(Attend, RangesAndMasks) {
  constexpr std::pair<std::uint32_t, std::uint32_t> kDims[] = {
      {8, 8}, {64, 64}, {128, 64}, {72, 88}, {256, 256}};
  for (const Dtype dtype : kDtypes)
    for (const auto& [dim, v_dim] : kDims)
      for (const std::size_t page_tokens : {1u, 32u, 64u}) {
        const PagedRows keys(&random, dtype, 200, page_tokens, dim, v_dim);
        std::vector<std::uint64_t> masks(200);
        for (auto& mask : masks) mask = random.one_in(3) ? 0 : random.next() & random.next();
        AttendArgs args;
        args.dim = dim;
        args.v_dim = v_dim;
        for (const std::uint32_t queries : {1u, 3u}) {
          args.queries = queries;
          for (const bool masked : {false, true}) {
            args.row_masks = masked ? masks.data() : nullptr;
            for (const auto& [first, last] : {std::pair<std::uint64_t, std::uint64_t>{0, 0},
                                              {0, 1},
                                              {7, 7},
                                              {31, 33},
                                              {0, 63},
                                              {1, 65},
                                              {0, 66},
                                              {30, 161},
                                              {0, 200}})
              ASSERT_NO_FATAL_FAILURE(compare(keys, args, first, last));
          }
        }
      }
}

TEST_P(Attend, AnyNumberOfQueries) {
  const PagedRows keys(&random, Dtype::kF16, 130, 32, 64, 64);
  AttendArgs args;
  args.dim = args.v_dim = 64;
  for (const std::uint32_t queries :
       {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 12u, 63u, 64u, 65u, 130u}) {
    args.queries = queries;
    ASSERT_NO_FATAL_FAILURE(compare(keys, args, 0, 130));
  }
}

TEST_P(Attend, NothingSelectedIsNothing) {
  const PagedRows keys(&random, Dtype::kF32, 64, 32, 8, 8);
  const std::uint64_t masks[2] = {0, 0};
  AttendArgs args;
  args.dim = args.v_dim = 8;
  args.queries = 2;
  args.row_masks = masks;
  ASSERT_NO_FATAL_FAILURE(compare(keys, args, 0, 64));
}

// Large scores must not overflow, whatever comes first.
TEST_P(Attend, ScoresFarApart) {
  PagedRows keys(&random, Dtype::kF32, 150, 1, 16, 16);
  for (std::size_t i = 0; i < 150; ++i)
    for (std::size_t d = 0; d < 16; ++d)
      store_element(keys.memory.data() + 4 + keys.pages[i], Dtype::kF32, d,
                    (i % 3 == 0 ? 30.0f : -40.0f));
  AttendArgs args;
  args.dim = args.v_dim = 16;
  args.queries = 5;
  ASSERT_NO_FATAL_FAILURE(compare(keys, args, 0, 150));
}

TEST_P(KernelConformance, MergeAttention) {
  for (const std::uint32_t v_dim : {0u, 1u, 7u, 8u, 9u, 64u, 65u})
    for (const std::uint32_t queries : {0u, 1u, 8u}) {
      const std::size_t stride = v_dim + 2;
      const std::vector<float> a = random_floats(&random, queries * stride);
      const std::vector<float> b = random_floats(&random, queries * stride);
      std::vector<float> lse_a = random_floats(&random, queries);
      std::vector<float> lse_b = random_floats(&random, queries);
      if (queries == 8) {
        lse_a[1] = lse_b[2] = lse_a[3] = lse_b[3] = -kInfinity;
        lse_a[4] = 500.0f;
        lse_b[5] = 500.0f;
      }
      Guarded<float> out(a.size()), wanted(a.size()), lse(queries), lse_wanted(queries);
      out.fill(a);
      wanted.fill(a);
      lse.fill(lse_a);
      lse_wanted.fill(lse_a);
      MergeAttentionArgs args{out.data(), lse.data(), b.data(), lse_b.data(), stride,
                              stride,     1,          1,        queries,      v_dim};
      MergeAttentionArgs reference = args;
      reference.out_a = wanted.data();
      reference.lse_a = lse_wanted.data();
      ASSERT_TRUE(run(&KernelTable::merge_attention, "merge_attention", args, reference));
      ASSERT_TRUE(out.intact() && lse.intact());
      for (std::uint32_t i = 0; i < queries; ++i) {
        const bool exact = !std::isfinite(lse_a[i]) || !std::isfinite(lse_b[i]);
        for (std::size_t d = 0; d < stride; ++d)
          ASSERT_NEAR(out[i * stride + d], wanted[i * stride + d],
                      exact || d >= v_dim ? 0.0f : 1e-6f);
        if (exact) {
          ASSERT_EQ(lse[i], lse_wanted[i]);
        } else {
          ASSERT_NEAR(lse[i], lse_wanted[i], 1e-5f);
        }
      }
    }
}

class Nearest : public KernelConformance {
 protected:
  // Where rounding decides between two centroids either is right.
  void compare(std::uint32_t dim, std::uint64_t rows, std::uint64_t centroids, bool biased) {
    const std::vector<float> row = random_floats(&random, rows * (dim + 1));
    std::vector<float> centroid = random_floats(&random, centroids * (dim + 3));
    std::vector<float> bias = random_floats(&random, centroids);
    // Two that often win and are equal; the lower index lies in the higher lane.
    if (centroids > 17) {
      float* often = &centroid[15 * (dim + 3)];
      for (std::uint32_t d = 0; d < dim; ++d) often[d] *= 4.0f;
      std::copy_n(often, dim, &centroid[17 * (dim + 3)]);
      bias[17] = bias[15];
    }
    if (centroids > 2) bias[2] = random.one_in(2) ? kNan : -kInfinity;
    Guarded<std::uint32_t> index(rows), index_wanted(rows);
    Guarded<float> value(rows), value_wanted(rows);
    NearestArgs args{row.data(),
                     dim + 1,
                     &rows,
                     centroid.data(),
                     dim + 3,
                     &centroids,
                     biased ? bias.data() : nullptr,
                     dim,
                     index.data(),
                     value.data()};
    NearestArgs reference = args;
    reference.out_index = index_wanted.data();
    reference.out_value = value_wanted.data();
    ASSERT_TRUE(run(&KernelTable::nearest, "nearest", args, reference));
    ASSERT_TRUE(index.intact() && value.intact());
    for (std::uint64_t i = 0; i < rows; ++i) {
      if (value_wanted[i] == -kInfinity) {
        ASSERT_EQ(value[i], -kInfinity);
        ASSERT_EQ(index[i], index_wanted[i]);
        continue;
      }
      const float tolerance = 2e-6f * static_cast<float>(dim);
      ASSERT_NEAR(value[i], value_wanted[i], tolerance) << rows << " x " << centroids;
      ASSERT_LT(index[i], centroids);
      ASSERT_NE(index[i], 17u) << "equal centroids: the lower index";
      if (index[i] == index_wanted[i]) continue;
      double sum = biased ? static_cast<double>(bias[index[i]]) : 0.0;
      for (std::uint32_t d = 0; d < dim; ++d)
        sum += static_cast<double>(row[i * (dim + 1) + d]) *
               static_cast<double>(centroid[index[i] * (dim + 3) + d]);
      ASSERT_NEAR(sum, value_wanted[i], tolerance) << "not a tie";
    }
  }
};
TEST_P(Nearest, AllShapes) {
  for (const std::uint32_t dim : {8u, 24u, 64u, 128u})
    for (const std::uint64_t rows : {0u, 1u, 5u, 6u, 7u, 241u})
      for (const std::uint64_t centroids : {0u, 1u, 2u, 15u, 16u, 17u, 31u, 32u, 33u, 100u})
        for (const bool biased : {false, true})
          ASSERT_NO_FATAL_FAILURE(compare(dim, rows, centroids, biased));
  ASSERT_NO_FATAL_FAILURE(compare(1024, 13, 40, true));
}

TEST_P(KernelConformance, AllFinite) {
  for (const Dtype dtype : kDtypes)
    for (const std::uint64_t count : kLengths)
      for (int round = 0; round < 6; ++round) {
        const std::size_t element = dtype_bytes(dtype);
        std::vector<std::byte> memory((count + 1) * element);
        std::byte* data = memory.data() + element;
        for (std::size_t i = 0; i < count; ++i)
          store_element(data, dtype, i, awkward_float(&random));
        if (round > 0 && count > 0)
          store_element(data, dtype, round == 1 ? count - 1 : random.below(count), kNan);
        if (round > 3 && count > 0)
          store_element(data, dtype, random.below(count), round == 4 ? kInfinity : -kInfinity);
        std::uint64_t found = 99;
        std::uint64_t wanted = 98;
        ASSERT_TRUE(run(&KernelTable::all_finite, "all_finite",
                        AllFiniteArgs{data, &count, dtype, &found},
                        AllFiniteArgs{data, &count, dtype, &wanted}));
        ASSERT_EQ(found, wanted) << dtype_name(dtype) << " " << count;
      }
}

class Convert : public KernelConformance {
 protected:
  void compare(const void* source, Dtype from, Dtype to, std::uint64_t count) {
    Guarded<std::byte> tested(count * dtype_bytes(to));
    Guarded<std::byte> wanted(count * dtype_bytes(to));
    ConvertArgs args{static_cast<const std::byte*>(source), from, &count, tested.data(), to};
    ConvertArgs reference = args;
    reference.target = wanted.data();
    ASSERT_TRUE(run(&KernelTable::convert, "convert", args, reference));
    ASSERT_TRUE(tested.intact() && tested.same_bits(wanted))
        << dtype_name(from) << " to " << dtype_name(to) << " " << count;
  }
};

TEST_P(Convert, EveryHalfAndItsNeighbours) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  for (const Dtype half : {Dtype::kF16, Dtype::kBf16}) {
    ASSERT_NO_FATAL_FAILURE(compare(halves.data(), half, Dtype::kF32, halves.size()));
    std::vector<float> floats;
    for (const std::uint16_t bits : halves) {
      const float value = half == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
      const std::uint32_t word = std::bit_cast<std::uint32_t>(value);
      for (const std::uint32_t delta :
           {0u, 1u, 0xFFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFFFFFu})
        floats.push_back(std::bit_cast<float>(word + delta));
    }
    ASSERT_NO_FATAL_FAILURE(compare(floats.data(), Dtype::kF32, half, floats.size()));
  }
}

TEST_P(Convert, Lengths) {
  std::vector<float> floats(1200);
  for (float& value : floats) value = awkward_float(&random);
  for (const std::uint64_t count : kLengths)
    for (const Dtype from : kDtypes)
      for (const Dtype to : kDtypes)
        if (from == to || from == Dtype::kF32 || to == Dtype::kF32) {
          ASSERT_NO_FATAL_FAILURE(compare(floats.data() + 1, from, to, count));
        }
}

// The canaries themselves: a back end that writes one element too many is seen.
TEST(KernelConformanceOfTheTest, GuardsSeeAnOverrun) {
  Guarded<float> guarded(3);
  EXPECT_TRUE(guarded.intact());
  guarded.data()[3] = 1.0f;
  EXPECT_FALSE(guarded.intact());
  Guarded<float> before(3);
  before.data()[-1] = 1.0f;
  EXPECT_FALSE(before.intact());
}

INSTANTIATE_TEST_SUITE_P(Kernels, KernelConformance, ::testing::ValuesIn(all_backends()),
                         backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, Attend, ::testing::ValuesIn(all_backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, Nearest, ::testing::ValuesIn(all_backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Kernels, Convert, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
