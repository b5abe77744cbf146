#include "kernels/simd/simd.h"

#include <cstring>

#include "kernels/row_cursor.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/gather_rows.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

// Copies whole vectors; the last one overlaps the one before, so that no row needs a loop over
// bytes.
template <class D>
HWY_INLINE void copy_row(D d8, const std::uint8_t* source, std::uint8_t* target,
                         std::size_t bytes) {
  const std::size_t lanes = hn::Lanes(d8);
  std::size_t i = 0;
  for (; i + 2 * lanes <= bytes; i += 2 * lanes) {
    const auto a = hn::LoadU(d8, source + i);
    const auto b = hn::LoadU(d8, source + i + lanes);
    hn::StoreU(a, d8, target + i);
    hn::StoreU(b, d8, target + i + lanes);
  }
  for (; i + lanes <= bytes; i += lanes) hn::StoreU(hn::LoadU(d8, source + i), d8, target + i);
  if (i < bytes) hn::StoreU(hn::LoadU(d8, source + bytes - lanes), d8, target + bytes - lanes);
}

void run_gather_rows(const GatherRowsArgs& args) {
  begin("gather_rows");
  constexpr std::uint64_t kAhead = 4;  // rows lie anywhere: ask for them early
  const hn::ScalableTag<std::uint8_t> d8;
  const std::uint64_t count = *args.count;
  const std::size_t bytes = args.row_bytes;
  if (bytes == 0) return;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const std::byte* ahead = address_of(args.base, args.offsets[i + kAhead]);
      for (std::size_t line = 0; line < bytes && line < 512; line += 64)
        __builtin_prefetch(ahead + line);
    }
    const std::byte* source = address_of(args.base, args.offsets[i]);
    std::byte* target =
        args.out + (args.out_offsets != nullptr ? args.out_offsets[i] : i * args.out_stride);
    if (bytes < hn::Lanes(d8)) {
      std::memcpy(target, source, bytes);
    } else {
      copy_row(d8, reinterpret_cast<const std::uint8_t*>(source),
               reinterpret_cast<std::uint8_t*>(target), bytes);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_gather_rows);

Result<void> gather_rows(const GatherRowsArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_gather_rows)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
