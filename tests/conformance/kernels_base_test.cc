// Operations on base renditions of every back end against the scalar reference: numbers of tokens
// around a chunk, chunks at odd addresses, lists of rows, canaries around everything that is
// written.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/conformance/kernels_backends.h"
#include "tests/unit/kernels_base_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr std::uint32_t kDims[] = {8, 24, 40, 64, 72, 96, 128};

class Base : public KernelConformance {
 protected:
  // Formats with all widths and dims in turn.
  BaseFormat any_format() {
    return {kDims[random.below(7)], kDims[random.below(7)], kBaseBits[random.below(5)],
            kBaseBits[random.below(5)]};
  }
  void attend(const BaseChunks& chunks, const std::vector<std::uint32_t>& list, std::uint64_t first,
              std::uint64_t last, std::uint32_t queries, bool logits) {
    const BaseFormat& format = chunks.format;
    const std::uint64_t range[2] = {first, last};
    const std::uint64_t rows = last > first ? last - first : 0;
    const std::size_t q_stride = format.dim + 1, out_stride = format.v_dim + 3;
    const std::vector<float> q = random_floats(&random, queries * q_stride);
    Guarded<float> out(queries * out_stride), out_wanted(out.size()), lse(queries * 2),
        lse_wanted(queries * 2), scores(queries * (rows + 5)), scores_wanted(scores.size());
    AttendBaseArgs args{chunks.pages(),
                        {list.empty() ? nullptr : list.data(), range},
                        q.data(),
                        q_stride,
                        queries,
                        0.5f,
                        out.data(),
                        out_stride,
                        lse.data(),
                        2,
                        logits ? scores.data() : nullptr,
                        rows + 5};
    AttendBaseArgs reference = args;
    reference.out = out_wanted.data();
    reference.lse = lse_wanted.data();
    reference.logits = logits ? scores_wanted.data() : nullptr;
    ASSERT_TRUE(run(&KernelTable::attend_base, "attend_base", args, reference));
    ASSERT_TRUE(out.intact() && lse.intact() && scores.intact());
    const float tolerance = 4e-6f * static_cast<float>(format.dim);
    for (std::uint32_t i = 0; i < queries; ++i) {
      ASSERT_TRUE(out.untouched((i * out_stride + format.v_dim) * 4, 12));
      ASSERT_TRUE(lse.untouched((i * 2 + 1) * 4, 4));
      ASSERT_TRUE(scores.untouched((i * (rows + 5) + rows) * 4, 20));
      if (rows == 0) {
        ASSERT_EQ(lse[i * 2], lse_wanted[i * 2]);
      } else {
        ASSERT_NEAR(lse[i * 2], lse_wanted[i * 2], tolerance);
      }
      for (std::uint32_t d = 0; d < format.v_dim; ++d)
        ASSERT_NEAR(out[i * out_stride + d], out_wanted[i * out_stride + d], tolerance)
            << "K " << format.k_bits << " bits of " << format.dim << ", V " << format.v_bits
            << " of " << format.v_dim << ", rows " << first << "-" << last;
      for (std::uint64_t n = 0; logits && n < rows; ++n)
        ASSERT_NEAR(scores[i * (rows + 5) + n], scores_wanted[i * (rows + 5) + n], tolerance);
    }
  }
};

TEST_P(Base, Encode) {
  for (const Dtype dtype : kDtypes)
    for (int round = 0; round < 30; ++round)
      for (const std::uint64_t tokens : {0u, 1u, 31u, 32u, 33u, 100u}) {
        const BaseFormat format = any_format();
        const PagedRows raw(&random, dtype, tokens, random.one_in(2) ? 1 : 16, format.dim,
                            format.v_dim, round % 3 == 0 ? awkward_float : random_float);
        const std::size_t size = (tokens + 31) / 32 * format.chunk_bytes();
        Guarded<std::byte> tested(size), wanted(size);
        EncodeBaseArgs args{raw.rows, &tokens, format, tested.data()};
        EncodeBaseArgs reference = args;
        reference.out = wanted.data();
        ASSERT_TRUE(run(&KernelTable::encode_base, "encode_base", args, reference));
        ASSERT_TRUE(tested.intact() && tested.same_bits(wanted))
            << dtype_name(dtype) << " K " << format.k_bits << " bits of " << format.dim << ", V "
            << format.v_bits << " of " << format.v_dim << ", " << tokens << " tokens";
      }
}

TEST_P(Base, Decode) {
  for (const Dtype dtype : kDtypes)
    for (int round = 0; round < 40; ++round) {
      const BaseFormat format = any_format();
      const std::uint64_t tokens = 70;
      const PagedRows raw(&random, Dtype::kF32, tokens, 1, format.dim, format.v_dim, awkward_float);
      const BaseChunks chunks(raw.rows, tokens, format);
      const std::vector<std::uint32_t> list = {3, 69, 31, 32, 32, 0, 40};
      const bool listed = round % 2 == 0;
      const std::uint64_t range[2] = {listed ? 1u : 20u, listed ? 7u : 67u};
      const std::size_t rows = range[1] - range[0];
      const std::size_t element = dtype_bytes(dtype);
      const std::size_t k_stride = (format.dim + 1) * element,
                        v_stride = (format.v_dim + 5) * element;
      Guarded<std::byte> k(rows * k_stride), k_wanted(k.size()), v(rows * v_stride),
          v_wanted(v.size());
      DecodeBaseArgs args{chunks.pages(), {listed ? list.data() : nullptr, range},
                          dtype,          round % 5 == 1 ? nullptr : k.data(),
                          v.data(),       k_stride,
                          v_stride};
      DecodeBaseArgs reference = args;
      reference.out_k = round % 5 == 1 ? nullptr : k_wanted.data();
      reference.out_v = v_wanted.data();
      ASSERT_TRUE(run(&KernelTable::decode_base, "decode_base", args, reference));
      ASSERT_TRUE(k.intact() && k.same_bits(k_wanted)) << format.k_bits << " " << format.dim;
      ASSERT_TRUE(v.intact() && v.same_bits(v_wanted)) << format.v_bits << " " << format.v_dim;
    }
}

TEST_P(Base, Attend) {
  for (int round = 0; round < 60; ++round) {
    const BaseFormat format = any_format();
    const std::uint64_t tokens = 170;
    const PagedRows raw(&random, Dtype::kF16, tokens, 32, format.dim, format.v_dim);
    const BaseChunks chunks(raw.rows, tokens, format);
    const auto queries = static_cast<std::uint32_t>(random.below(10));
    for (const auto& [first, last] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
             {0, 0}, {9, 9}, {0, 1}, {0, 31}, {0, 32}, {1, 33}, {31, 66}, {0, 170}, {30, 161}})
      ASSERT_NO_FATAL_FAILURE(attend(chunks, {}, first, last, queries, round % 2 == 0));
    std::vector<std::uint32_t> list(99);
    for (auto& token : list) token = static_cast<std::uint32_t>(random.below(tokens));
    if (round % 3 == 0) std::sort(list.begin(), list.end());
    for (const std::uint64_t last : {0u, 1u, 7u, 32u, 33u, 99u})
      ASSERT_NO_FATAL_FAILURE(
          attend(chunks, list, std::min<std::uint64_t>(last, 3), last, queries, true));
  }
  const PagedRows raw(&random, Dtype::kF16, 70, 32, 64, 64);
  const BaseChunks chunks(raw.rows, 70, {64, 64, 4, 4});
  for (const std::uint32_t queries : {63u, 64u, 65u, 130u})
    ASSERT_NO_FATAL_FAILURE(attend(chunks, {}, 0, 70, queries, true));
  const PagedRows wide(&random, Dtype::kF32, 40, 32, 1024, 1024);
  for (const std::uint32_t bits : kBaseBits)
    ASSERT_NO_FATAL_FAILURE(
        attend(BaseChunks(wide.rows, 40, {1024, 1024, bits, bits}), {}, 0, 40, 5, true));
}

INSTANTIATE_TEST_SUITE_P(Kernels, Base, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
