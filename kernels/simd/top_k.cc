#include "kernels/simd/simd.h"

#include <algorithm>
#include <array>

#include "kernels/score_order.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/top_k.cc"
#include "hwy/foreach_target.h"

#include "hwy/highway.h"
#include "kernels/simd/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvtier::simd {
namespace HWY_NAMESPACE {
namespace {

constexpr std::uint64_t kHeapMax = 128;  // for more, counting is faster than a heap

// score_key for a vector.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> keys_of(D df, hn::Vec<D> scores) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, hn::Add(scores, hn::Zero(df)));
  const auto negative =
      hn::BitCast(du, hn::BroadcastSignBit(hn::BitCast(hn::RebindToSigned<D>(), bits)));
  const auto ordered = hn::Xor(bits, hn::Or(negative, hn::Set(du, 0x80000000u)));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(scores)), hn::Set(du, 0xFF800000u), ordered);
}

// A heap of the k best in the output, the worst on top; whole vectors that hold nothing better are
// passed over.
void heap_select(const float* scores, std::uint64_t count, std::uint64_t k, std::uint32_t* out) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const std::size_t lanes = hn::Lanes(df);
  const auto better = [scores](std::uint32_t a, std::uint32_t b) {
    return scores_better(scores, a, b);
  };
  for (std::uint64_t i = 0; i < k; ++i) out[i] = static_cast<std::uint32_t>(i);
  std::make_heap(out, out + k, better);
  std::uint64_t i = k;
  const auto offer = [&](std::uint64_t index) {
    if (!better(static_cast<std::uint32_t>(index), out[0])) return;
    std::pop_heap(out, out + k, better);
    out[k - 1] = static_cast<std::uint32_t>(index);
    std::push_heap(out, out + k, better);
  };
  for (; i + lanes <= count; i += lanes) {
    const auto worst = hn::Set(du, score_key(scores[out[0]]));
    // A tie loses against what is there: its index is higher.
    if (hn::AllFalse(du, hn::Gt(keys_of(df, hn::LoadU(df, scores + i)), worst))) continue;
    for (std::size_t lane = 0; lane < lanes; ++lane) offer(i + lane);
  }
  for (; i < count; ++i) offer(i);
}

// The k-th largest key, found digit by digit (11, 11, 10 bits), and how many of those equal to it
// belong to the best k.
struct Threshold {
  std::uint32_t key = 0;
  std::uint64_t ties = 0;
};
Threshold find_threshold(const float* scores, std::uint64_t count, std::uint64_t k) {
  Threshold result;
  std::uint64_t wanted = k;
  std::uint32_t known_mask = 0;
  for (const unsigned shift : {21u, 10u, 0u}) {
    const std::uint32_t digit_mask = shift == 0 ? 0x3FFu : 0x7FFu;
    std::array<std::uint32_t, 2048> histogram{};
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint32_t key = score_key(scores[i]);
      if ((key & known_mask) == result.key) ++histogram[(key >> shift) & digit_mask];
    }
    std::uint32_t digit = digit_mask;
    while (histogram[digit] < wanted) wanted -= histogram[digit--];
    result.key |= digit << shift;
    known_mask |= digit_mask << shift;
  }
  result.ties = wanted;
  return result;
}

void count_select(const float* scores, std::uint64_t count, std::uint64_t k, std::uint32_t* out) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const std::size_t lanes = hn::Lanes(df);
  Threshold threshold = find_threshold(scores, count, k);
  const auto below = hn::Set(du, threshold.key - 1);  // keys are above 0
  std::uint64_t written = 0;
  const auto offer = [&](std::uint64_t index) {
    const std::uint32_t key = score_key(scores[index]);
    if (key < threshold.key || (key == threshold.key && threshold.ties == 0)) return;
    if (key == threshold.key) --threshold.ties;
    out[written++] = static_cast<std::uint32_t>(index);
  };
  std::uint64_t i = 0;
  for (; i + lanes <= count && written < k; i += lanes) {
    if (hn::AllFalse(du, hn::Gt(keys_of(df, hn::LoadU(df, scores + i)), below))) continue;
    for (std::size_t lane = 0; lane < lanes; ++lane) offer(i + lane);
  }
  for (; i < count && written < k; ++i) offer(i);
}

void run_top_k(const TopKArgs& args) {
  begin("top_k");
  const std::uint64_t count = *args.count;
  const std::uint64_t k = std::min(args.k, count);
  *args.out_count = k;
  if (k == 0) return;
  const bool heap = k <= kHeapMax;
  if (heap) {
    heap_select(args.scores, count, k, args.out);
  } else {
    count_select(args.scores, count, k, args.out);
  }
  if (args.ordered) {
    const float* scores = args.scores;
    std::sort(args.out, args.out + k,
              [scores](std::uint32_t a, std::uint32_t b) { return scores_better(scores, a, b); });
  } else if (heap) {
    std::sort(args.out, args.out + k);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvtier::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvtier::simd {

HWY_EXPORT(run_top_k);

Result<void> top_k(const TopKArgs& args, KernelStream) {
  KVT_TRY_VOID(args.validate());
  HWY_DYNAMIC_DISPATCH(run_top_k)(args);
  return {};
}

}  // namespace kvtier::simd
#endif  // HWY_ONCE
