#include "kernels/simd/simd.h"

#include <algorithm>

#include "kernels/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/all_finite.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// Elements that are judged at once; where one is bad the block is searched.
constexpr std::uint64_t kBlock = 512;

// Whether any of count (a multiple of two vectors) words has all exponent bits set.
template <class D, class T>
HWY_INLINE bool any_special(D d, const T* words, std::uint64_t count, T exponent_bits) {
  const auto exponent = hn::Set(d, exponent_bits);
  const std::size_t lanes = hn::Lanes(d);
  auto worst_a = hn::Zero(d);
  auto worst_b = hn::Zero(d);
  for (std::uint64_t i = 0; i < count; i += 2 * lanes) {
    worst_a = hn::Max(worst_a, hn::And(hn::LoadU(d, words + i), exponent));
    worst_b = hn::Max(worst_b, hn::And(hn::LoadU(d, words + i + lanes), exponent));
  }
  return !hn::AllFalse(d, hn::Eq(hn::Max(worst_a, worst_b), exponent));
}

template <class T>
std::uint64_t first_special(const T* words, std::uint64_t count, T exponent_bits) {
  const hn::ScalableTag<T> d;
  std::uint64_t i = 0;
  for (; i + kBlock <= count; i += kBlock)
    if (any_special(d, words + i, kBlock, exponent_bits)) break;
  const auto exponent = hn::Set(d, exponent_bits);
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d))
    if (!hn::AllFalse(d, hn::Eq(hn::And(hn::LoadU(d, words + i), exponent), exponent))) break;
  while (i < count && (words[i] & exponent_bits) != exponent_bits) ++i;
  return i;
}

void run_all_finite(const AllFiniteArgs& args) {
  begin("all_finite");
  const std::uint64_t count = *args.count;
  if (args.dtype == Dtype::kF32) {
    *args.out_index = first_special<std::uint32_t>(
        reinterpret_cast<const std::uint32_t*>(args.data), count, 0x7F800000u);
  } else {
    const std::uint16_t exponent = args.dtype == Dtype::kF16 ? 0x7C00 : 0x7F80;
    *args.out_index = first_special<std::uint16_t>(
        reinterpret_cast<const std::uint16_t*>(args.data), count, exponent);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_all_finite);

Result<void> all_finite(const AllFiniteArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_all_finite)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
