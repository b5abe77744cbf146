// Rebuilding keys from low-rank factors, every back end against the scalar reference: numbers of
// rows around four, ranks and dimensions around a vector, rows anywhere, canaries around the
// outputs.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/low_rank_layout.h"
#include "tests/conformance/kernels_backends.h"

namespace kvtier {
namespace {

using namespace testing;

class LowRankKeys : public KernelConformance {
 protected:
  // Coefficients of `count` rows, in no order, at odd addresses.
  void draw(std::uint64_t count, std::uint32_t rank, std::uint32_t dim) {
    const auto halves = [this](std::vector<std::byte>* bytes, std::size_t values) {
      bytes->assign(2 * values + 2, std::byte{});
      for (std::size_t i = 0; i < values; ++i)
        store_element(bytes->data() + 2, Dtype::kF16, i, random_float(&random));
    };
    halves(&coefficients_, count * rank);
    halves(&basis_, std::size_t{rank} * dim);
    offsets_.clear();
    for (std::uint64_t i = 0; i < count; ++i)
      offsets_.push_back(2 + random.below(count) * rank * 2);
  }

  std::vector<std::byte> coefficients_, basis_;
  std::vector<std::uint64_t> offsets_, targets_;
};

TEST_P(LowRankKeys, Rebuild) {
  constexpr Rotation::Pairing kPairings[] = {Rotation::Pairing::kNone, Rotation::Pairing::kHalves,
                                             Rotation::Pairing::kNeighbours};
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16})
    for (const std::uint32_t dim : {8u, 24u, 40u, 64u, 128u, 256u, 1024u})
      for (const std::uint32_t rank : {1u, 7u, 30u, 160u})
        for (const std::uint64_t count : {0u, 1u, 3u, 4u, 5u, 9u}) {
          const Rotation::Pairing pairing = kPairings[random.below(3)];
          const auto pairs = static_cast<std::uint32_t>(random.below(dim / 2 + 1));
          draw(count, rank, dim);
          std::vector<float> turns = random_floats(&random, count * 2 * pairs + 1);
          const std::uint64_t stride = dim * dtype_bytes(dtype) + 8;
          targets_.clear();
          for (std::uint64_t i = 0; i < count; ++i) targets_.push_back((count - 1 - i) * stride);
          Guarded<std::uint8_t> tested(count * stride), wanted(count * stride);
          RebuildKeysArgs args;
          args.base = coefficients_.data();
          args.offsets = offsets_.data();
          args.count = &count;
          args.basis = reinterpret_cast<const std::uint16_t*>(basis_.data() + 2);
          args.rank = rank;
          args.dim = dim;
          args.pairing = pairing;
          args.pairs = pairs;
          args.turns = turns.data();
          args.dtype = dtype;
          args.out = reinterpret_cast<std::byte*>(tested.data());
          args.out_offsets = targets_.data();
          RebuildKeysArgs reference = args;
          reference.out = reinterpret_cast<std::byte*>(wanted.data());
          ASSERT_TRUE(run(&KernelTable::rebuild_keys, "rebuild_keys", args, reference));
          ASSERT_TRUE(tested.intact());
          const float tolerance =
              4e-6f * static_cast<float>(rank) + (dtype == Dtype::kF32   ? 0.0f
                                                  : dtype == Dtype::kF16 ? 2e-3f
                                                                         : 1.6e-2f);
          for (std::uint64_t i = 0; i < count; ++i) {
            ASSERT_TRUE(tested.untouched(i * stride + stride - 8, 8));
            for (std::uint32_t d = 0; d < dim; ++d) {
              const float value = load_element(args.out + i * stride, dtype, d);
              const float other = load_element(reference.out + i * stride, dtype, d);
              ASSERT_NEAR(value, other, tolerance * (1.0f + std::abs(other)))
                  << dtype_name(dtype) << " dim " << dim << " rank " << rank << " pairs " << pairs
                  << " rows " << count;
            }
          }
        }
}

TEST_P(LowRankKeys, AddressesAndTheLargestRank) {
  const std::uint64_t count = 6;
  draw(count, kLowRankMax, 8);
  targets_.clear();
  for (std::uint64_t i = 0; i < count; ++i) {
    offsets_[i] += reinterpret_cast<std::uintptr_t>(coefficients_.data());
    targets_.push_back(i * 32);
  }
  Guarded<float> tested(count * 8), wanted(count * 8);
  RebuildKeysArgs args;
  args.offsets = offsets_.data();
  args.count = &count;
  args.basis = reinterpret_cast<const std::uint16_t*>(basis_.data() + 2);
  args.rank = kLowRankMax;
  args.dim = 8;
  args.out = reinterpret_cast<std::byte*>(tested.data());
  args.out_offsets = targets_.data();
  RebuildKeysArgs reference = args;
  reference.out = reinterpret_cast<std::byte*>(wanted.data());
  ASSERT_TRUE(run(&KernelTable::rebuild_keys, "rebuild_keys", args, reference));
  ASSERT_TRUE(tested.intact());
  for (std::size_t i = 0; i < tested.size(); ++i) ASSERT_NEAR(tested[i], wanted[i], 4e-3f);
}

INSTANTIATE_TEST_SUITE_P(Kernels, LowRankKeys, ::testing::ValuesIn(all_backends()), backend_name);

}  // namespace
}  // namespace kvtier
