#include "kernels/simd/simd.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

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

constexpr std::uint64_t kSelectMax = 4096;  // for larger k all scores are counted digit by digit
constexpr std::uint64_t kAllMax = 8192;     // up to here all scores are candidates
constexpr std::uint64_t kFull = 12288;      // candidates after which only the k best are kept
constexpr std::uint64_t kTile = 4096;       // scores between two looks at how many there are
constexpr std::uint64_t kRun = 16;          // a sample is runs of one cache line, evenly spread
constexpr std::uint64_t kSample = 256 * kRun;
constexpr std::int32_t kInfinityKey = 0x7F800000;
constexpr std::int32_t kNoKey = std::numeric_limits<std::int32_t>::min();  // below all keys

using Ints = hn::ScalableTag<std::int32_t>;

// score_key with the top bit flipped: compared as signed numbers, which takes one instruction.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> keys_of(D df, hn::Vec<D> scores) {
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(di, hn::Add(scores, hn::Zero(df)));
  const auto ordered = hn::Xor(bits, hn::And(hn::BroadcastSignBit(bits), hn::Set(di, 0x7FFFFFFF)));
  return hn::IfThenElse(hn::RebindMask(di, hn::IsNaN(scores)), hn::Set(di, kInfinityKey), ordered);
}
float score_of(std::int32_t key) { return std::bit_cast<float>(key < 0 ? key ^ 0x7FFFFFFF : key); }

// Scores that may be among the best, by ascending index.
struct Candidates {
  static constexpr std::uint64_t kRoom = kFull + kTile + 128;  // whole vectors are written
  std::uint64_t count = 0;
  std::int32_t least = kInfinityKey;  // no key is below, none above most
  std::int32_t most = kNoKey;
  alignas(64) std::int32_t keys[kRoom];
  alignas(64) std::int32_t index[kRoom];  // the bits of a u32

  // The count in whole pairs of vectors.
  std::uint64_t padded() const {
    const std::size_t step = 2 * hn::Lanes(Ints());
    return (count + step - 1) / step * step;
  }
};

// How many of the keys (a multiple of two vectors) are not below `least`.
HWY_INLINE std::uint64_t count_reaching(const std::int32_t* keys, std::uint64_t count,
                                        std::int32_t least) {
  const Ints di;
  const std::size_t lanes = hn::Lanes(di);
  const auto bound = hn::Set(di, least);
  auto even = hn::Zero(di);  // they count those below, downwards
  auto odd = hn::Zero(di);
  for (std::uint64_t i = 0; i < count; i += 2 * lanes) {
    even = hn::Add(even, hn::VecFromMask(di, hn::Lt(hn::LoadU(di, keys + i), bound)));
    odd = hn::Add(odd, hn::VecFromMask(di, hn::Lt(hn::LoadU(di, keys + i + lanes), bound)));
  }
  const std::int32_t below = -hn::GetLane(hn::SumOfLanes(di, hn::Add(even, odd)));
  return count - static_cast<std::uint64_t>(below);
}

// The smallest key that is not below `least`, and the largest that is.
struct Neighbours {
  std::int32_t from;
  std::int32_t below;
};
Neighbours neighbours_of(const std::int32_t* keys, std::uint64_t count, std::int32_t least) {
  const Ints di;
  const auto bound = hn::Set(di, least);
  auto from = hn::Set(di, std::numeric_limits<std::int32_t>::max());
  auto below = hn::Set(di, kNoKey);
  for (std::uint64_t i = 0; i < count; i += hn::Lanes(di)) {
    const auto key = hn::LoadU(di, keys + i);
    const auto is_below = hn::Lt(key, bound);
    from = hn::IfThenElse(is_below, from, hn::Min(from, key));
    below = hn::IfThenElse(is_below, hn::Max(below, key), below);
  }
  return {hn::GetLane(hn::MinOfLanes(di, from)), hn::GetLane(hn::MaxOfLanes(di, below))};
}

// A key that `rank` to `rank_max` of the candidates reach; where ties make that impossible, the
// largest that more of them reach. Keys behind the last one, up to two vectors, are overwritten.
std::int32_t key_of_rank(Candidates* candidates, std::uint64_t rank, std::uint64_t rank_max) {
  const std::uint64_t padded = candidates->padded();
  std::int32_t* keys = candidates->keys;
  std::fill(keys + candidates->count, keys + padded, kNoKey);
  // `rank` keys or more reach `low`, fewer reach `high`. The ends of the best are thin, about
  // exponentially so: every other guess goes by that, every other halves what is left. Guesses
  // among many equal keys bring nothing: then the bounds move to the nearest keys.
  std::int64_t low = candidates->least;
  std::int64_t high = std::int64_t{candidates->most} + 1;
  std::uint64_t at_low = candidates->count;
  std::uint64_t at_high = 0;
  for (bool halve = false; at_low > rank_max && high - low > 1; halve = !halve) {
    double share = 0.5;
    if (!halve) {
      const auto all = static_cast<double>(at_low);
      const double few = std::max(static_cast<double>(at_high), 0.5);
      share = std::log(all / static_cast<double>(rank)) / std::log(all / few);
    }
    const auto way = static_cast<std::int64_t>(share * static_cast<double>(high - low));
    const std::int64_t middle = low + std::clamp<std::int64_t>(way, 1, high - low - 1);
    const auto least = static_cast<std::int32_t>(middle);
    const std::uint64_t reached = count_reaching(keys, padded, least);
    if (reached >= rank) {
      low = reached == at_low ? neighbours_of(keys, padded, least).from : middle;
      at_low = reached;
    } else {
      high =
          reached == at_high ? std::int64_t{neighbours_of(keys, padded, least).below} + 1 : middle;
      at_high = reached;
    }
  }
  return static_cast<std::int32_t>(low);
}

// The place of the `rank`-th key that equals `key`.
std::uint64_t place_of_rank(const std::int32_t* keys, std::int32_t key, std::uint64_t rank) {
  const Ints di;
  for (std::uint64_t i = 0;; i += hn::Lanes(di)) {
    const std::size_t found = hn::CountTrue(di, hn::Eq(hn::LoadU(di, keys + i), hn::Set(di, key)));
    if (found < rank) {
      rank -= found;
      continue;
    }
    while (keys[i] != key || --rank > 0) ++i;
    return i;
  }
}

// Leaves the k best of k or more. Gives a key that none of those left out is above.
std::int32_t keep_best(std::uint64_t k, Candidates* candidates) {
  std::int32_t* keys = candidates->keys;
  std::int32_t* index = candidates->index;
  const std::int32_t least = key_of_rank(candidates, k, k);
  const std::uint64_t count = candidates->count;
  const std::uint64_t padded = candidates->padded();
  // Of those that equal the least key the first stay, as many as there is room for.
  std::uint64_t with_ties = count;
  if (count_reaching(keys, padded, least) > k) {
    const std::uint64_t room = k - count_reaching(keys, padded, least + 1);
    with_ties = room == 0 ? 0 : place_of_rank(keys, least, room) + 1;
  }
  std::uint64_t kept = 0;
  const auto keep_reaching = [&](std::uint64_t first, std::uint64_t last, std::int32_t bound) {
    for (std::uint64_t i = first; i < last; ++i) {  // no branch: they are mixed
      const std::int32_t key = keys[i];
      keys[kept] = key;
      index[kept] = index[i];
      kept += key >= bound;
    }
  };
  keep_reaching(0, with_ties, least);
  keep_reaching(with_ties, count, least + 1);
  candidates->count = k;
  return least;
}

// Bit i: score i of 64 is not below the threshold. NaN never is.
template <class D>
HWY_INLINE std::uint64_t reaching(D df, const float* scores, hn::Vec<D> threshold) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < 64; i += hn::Lanes(df)) {
    std::uint8_t bytes[8] = {};
    hn::StoreMaskBits(df, hn::Not(hn::Lt(hn::LoadU(df, scores + i), threshold)), bytes);
    std::uint64_t bits;
    std::memcpy(&bits, bytes, sizeof bits);
    word |= bits << i;
  }
  return word;
}

// Adds `count` (at most kTile) scores from number `first` that are not below the threshold.
void add_tile(const float* scores, std::uint64_t first, std::uint64_t count, float threshold,
              Candidates* candidates) {
  const hn::ScalableTag<float> df;
  const Ints di;
  std::uint64_t words[kTile / 64 + 1];
  std::size_t n = 0;
  for (; (n + 1) * 64 <= count; ++n)
    words[n] = reaching(df, scores + n * 64, hn::Set(df, threshold));
  if (n * 64 < count) {
    words[n] = 0;
    for (std::uint64_t i = n * 64; i < count; ++i)
      words[n] |= static_cast<std::uint64_t>(!(scores[i] < threshold)) << i % 64;
    ++n;
  }
  // Places in the tile. As a rule a word has two bits or fewer: these without a branch.
  std::uint64_t end = candidates->count;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t word = words[i];
    const auto bits = static_cast<std::uint64_t>(std::popcount(word));
    std::int32_t* out = candidates->index + end;
    for (std::uint64_t j = 0; j < 2 || j < bits; ++j, word &= word - 1)
      out[j] = static_cast<std::int32_t>(i * 64) + std::countr_zero(word);
    end += bits;
  }
  std::fill_n(candidates->index + end, hn::Lanes(di), 0);
  const auto offset = hn::Set(di, static_cast<std::int32_t>(static_cast<std::uint32_t>(first)));
  auto least = hn::Set(di, candidates->least);
  auto most = hn::Set(di, candidates->most);
  for (std::uint64_t i = candidates->count; i < end; i += hn::Lanes(di)) {
    const auto place = hn::LoadU(di, candidates->index + i);
    const auto key = keys_of(df, hn::GatherIndex(df, scores, place));
    least = hn::Min(least, key);
    most = hn::Max(most, key);
    hn::StoreU(key, di, candidates->keys + i);
    hn::StoreU(hn::Add(place, offset), di, candidates->index + i);
  }
  candidates->least = hn::GetLane(hn::MinOfLanes(di, least));
  candidates->most = hn::GetLane(hn::MaxOfLanes(di, most));
  candidates->count = end;
}

// A score that about twice k of the scores reach, if the sample does not deceive. The sample takes
// the room of the candidates for a while.
float guess_threshold(const float* scores, std::uint64_t count, std::uint64_t k,
                      Candidates* sample) {
  const hn::CappedTag<float, kRun> df;
  const hn::RebindToSigned<decltype(df)> di;
  auto least = hn::Set(di, kInfinityKey);
  auto most = hn::Set(di, kNoKey);
  for (std::uint64_t run = 0; run < kSample / kRun; ++run) {
    const float* from = scores + (count - kRun) * run / (kSample / kRun - 1);
    for (std::size_t i = 0; i < kRun; i += hn::Lanes(df)) {
      const auto key = keys_of(df, hn::LoadU(df, from + i));
      least = hn::Min(least, key);
      most = hn::Max(most, key);
      hn::StoreU(key, di, sample->keys + run * kRun + i);
    }
  }
  sample->least = hn::GetLane(hn::MinOfLanes(di, least));
  sample->most = hn::GetLane(hn::MaxOfLanes(di, most));
  sample->count = kSample;
  // Five times the deviation of independent draws: good scores lie in clusters.
  const double expected =
      static_cast<double>(k) * static_cast<double>(kSample) / static_cast<double>(count);
  const auto rank = static_cast<std::uint64_t>(expected + 5.0 * std::sqrt(expected) + 6.0);
  const std::int32_t key = key_of_rank(sample, std::min(rank, kSample), rank + rank / 8);
  sample->least = kInfinityKey;
  sample->most = kNoKey;
  sample->count = 0;
  return score_of(key);
}

// One pass that collects what reaches the threshold; when there is much of it, the k best stay and
// the threshold rises. False where fewer than k were found.
bool select(const float* scores, std::uint64_t count, std::uint64_t k, std::uint32_t* out) {
  Candidates candidates;
  float threshold = -std::numeric_limits<float>::infinity();
  if (count > kAllMax) threshold = guess_threshold(scores, count, k, &candidates);
  for (std::uint64_t first = 0; first < count; first += kTile) {
    add_tile(scores + first, first, std::min(count - first, kTile), threshold, &candidates);
    if (candidates.count <= kFull) continue;
    const std::int32_t least = keep_best(k, &candidates);
    if (least >= kInfinityKey) break;  // nothing can be better
    threshold = score_of(least + 1);
  }
  if (candidates.count < k) return false;
  keep_best(k, &candidates);
  std::memcpy(out, candidates.index, k * sizeof *out);
  return true;
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
  const Ints di;
  const std::size_t lanes = hn::Lanes(df);
  Threshold threshold = find_threshold(scores, count, k);
  const auto below = hn::Set(di, static_cast<std::int32_t>(threshold.key ^ 0x80000000u) - 1);
  std::uint64_t written = 0;
  const auto offer = [&](std::uint64_t index) {
    const std::uint32_t key = score_key(scores[index]);
    if (key < threshold.key || (key == threshold.key && threshold.ties == 0)) return;
    if (key == threshold.key) --threshold.ties;
    out[written++] = static_cast<std::uint32_t>(index);
  };
  std::uint64_t i = 0;
  for (; i + lanes <= count && written < k; i += lanes) {
    if (hn::AllFalse(di, hn::Gt(keys_of(df, hn::LoadU(df, scores + i)), below))) continue;
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
  const bool few = k <= kSelectMax && (count <= kAllMax || k <= count / 4);
  if (!few || !select(args.scores, count, k, args.out))
    count_select(args.scores, count, k, args.out);
  if (!args.ordered) return;
  const float* scores = args.scores;
  std::sort(args.out, args.out + k,
            [scores](std::uint32_t a, std::uint32_t b) { return scores_better(scores, a, b); });
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
