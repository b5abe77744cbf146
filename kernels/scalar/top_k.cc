#include <algorithm>

#include "kernels/scalar/scalar.h"
#include "kernels/score_order.h"

namespace kvtier::scalar {

Result<void> top_k(const TopKArgs& args, KernelStream) {
  begin("top_k");
  KVT_TRY_VOID(args.validate());
  const std::uint64_t count = *args.count;
  const std::uint64_t k = std::min(args.k, count);
  *args.out_count = k;
  if (k == 0) return {};
  // The output itself is a heap of the best so far, the worst of them on top.
  const auto better = [&](std::uint32_t a, std::uint32_t b) {
    return scores_better(args.scores, a, b);
  };
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint32_t index = static_cast<std::uint32_t>(i);
    if (i < k) {
      args.out[i] = index;
      std::push_heap(args.out, args.out + i + 1, better);
    } else if (better(index, args.out[0])) {
      std::pop_heap(args.out, args.out + k, better);
      args.out[k - 1] = index;
      std::push_heap(args.out, args.out + k, better);
    }
  }
  if (args.ordered) {
    std::sort(args.out, args.out + k, better);
  } else {
    std::sort(args.out, args.out + k);
  }
  return {};
}

}  // namespace kvtier::scalar
