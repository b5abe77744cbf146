#include "kernels/simd/simd.h"

#include <cstring>

#include "kernels/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/convert.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

template <Dtype kHalf>
void widen(const std::byte* source, std::uint64_t count, float* target) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const std::size_t lanes = hn::Lanes(df);
  std::uint64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    auto value = load_row<kHalf>(df, source, i);
    if constexpr (kHalf == Dtype::kBf16) {  // the load is a shift: make NaNs quiet
      const auto quiet = hn::Or(hn::BitCast(du, value), hn::Set(du, 0x00400000u));
      value = hn::IfThenElse(hn::IsNaN(value), hn::BitCast(df, quiet), value);
    }
    hn::StoreU(value, df, target + i);
  }
  for (; i < count; ++i) target[i] = load_element(source, kHalf, i);
}

template <Dtype kHalf>
void narrow(const float* source, std::uint64_t count, std::uint16_t* target) {
  const hn::ScalableTag<float> df;
  const std::size_t lanes = hn::Lanes(df);
  std::uint64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto value = hn::LoadU(df, source + i);
    if constexpr (kHalf == Dtype::kF16) {
      store_u16(df, f16_bits(df, value), target + i);
    } else {
      store_u16(df, bf16_bits(df, value), target + i);
    }
  }
  for (; i < count; ++i)
    target[i] = kHalf == Dtype::kF16 ? f32_to_f16(source[i]) : f32_to_bf16(source[i]);
}

void run_convert(const ConvertArgs& args) {
  begin("convert");
  const std::uint64_t count = *args.count;
  if (args.source_dtype == args.target_dtype) {
    if (count > 0) std::memcpy(args.target, args.source, count * dtype_bytes(args.source_dtype));
    return;
  }
  auto* floats = reinterpret_cast<float*>(args.target);
  auto* halves = reinterpret_cast<std::uint16_t*>(args.target);
  const auto* source = reinterpret_cast<const float*>(args.source);
  if (args.source_dtype == Dtype::kF16) widen<Dtype::kF16>(args.source, count, floats);
  if (args.source_dtype == Dtype::kBf16) widen<Dtype::kBf16>(args.source, count, floats);
  if (args.target_dtype == Dtype::kF16) narrow<Dtype::kF16>(source, count, halves);
  if (args.target_dtype == Dtype::kBf16) narrow<Dtype::kBf16>(source, count, halves);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_convert);

Result<void> convert(const ConvertArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_convert)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
