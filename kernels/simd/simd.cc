#include "kernels/simd/simd.h"

#include <array>
#include <cstring>
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/simd.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
const char* current_target() { return hwy::TargetName(HWY_TARGET); }
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier {
namespace simd {
namespace {

HWY_EXPORT(current_target);
const char* target() { return HWY_DYNAMIC_DISPATCH(current_target)(); }

struct Targets {
  std::array<const char*, 16> names{};
  std::array<std::int64_t, 16> bits{};
  std::size_t count = 0;
};

const Targets& targets() noexcept {
  static const Targets found = [] {
    Targets result;
    for (const std::int64_t bit : hwy::SupportedAndGeneratedTargets()) {
      if (result.count == result.names.size()) break;
      result.names[result.count] = hwy::TargetName(bit);
      result.bits[result.count++] = bit;
    }
    return result;
  }();
  return found;
}

// Emulated vectors gain nothing over the scalar back end.
bool available() {
  const char* best = targets().count > 0 ? targets().names[0] : "SCALAR";
  return std::strcmp(best, "EMU128") != 0 && std::strcmp(best, "SCALAR") != 0;
}

}  // namespace

std::span<const char* const> simd_targets() noexcept {
  return {targets().names.data(), targets().count};
}

void force_simd_target(const char* name) noexcept {
  std::int64_t bits = 0;
  for (std::size_t i = 0; i < targets().count; ++i)
    if (name != nullptr && std::strcmp(name, targets().names[i]) == 0) bits = targets().bits[i];
  hwy::SetSupportedTargetsForTest(bits);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace simd

const KernelTable simd_kernels = {
    "simd",
    simd::target,
    simd::available,
    simd::build_abstract,
    simd::score_box,
    simd::score_mean,
    simd::score_ball,
    simd::score_representatives,
    simd::group_scores,
    simd::top_k,
    simd::gather_rows,
    simd::attend,
    simd::merge_attention,
    simd::all_finite,
    simd::convert,
    simd::code_tables,
    simd::score_codes,
    simd::rescore_codes,
    simd::encode_codes,
    simd::score_own_codes,
    simd::nearest,
    simd::encode_base,
    simd::decode_base,
    simd::attend_base,
    simd::rebuild_keys,
};

}  // namespace kvtier
#endif  // HWY_ONCE
