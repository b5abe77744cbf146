#include <cstring>

#include "kernels/float16.h"
#include "kernels/scalar/scalar.h"

namespace kvtier::scalar {

Result<void> convert(const ConvertArgs& args, KernelStream) {
  begin("convert");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t count = *args.count;
  if (args.source_dtype == args.target_dtype) {
    if (count > 0) std::memcpy(args.target, args.source, count * dtype_bytes(args.source_dtype));
    return {};
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    const float value = load_element(args.source, args.source_dtype, i);
    if (args.target_dtype == Dtype::kF32) {
      std::memcpy(args.target + i * sizeof(value), &value, sizeof(value));
      continue;
    }
    const std::uint16_t half =
        args.target_dtype == Dtype::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(args.target + i * sizeof(half), &half, sizeof(half));
  }
  return {};
}

}  // namespace kvtier::scalar
