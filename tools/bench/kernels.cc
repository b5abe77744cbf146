// Scoring and attention against the read bandwidth of this machine's memory, measured in the same
// run.
#include <cstring>

#include "base/random.h"
#include "kernels/registry.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

// Sums 64-bit words, four streams: what one core can read.
Result<double> read_bandwidth(const std::vector<std::uint64_t>& words) {
  const double start = seconds_now();
  std::uint64_t a = 0, b = 0, c = 0, d = 0;
  for (std::size_t i = 0; i + 4 <= words.size(); i += 4) {
    a += words[i];
    b += words[i + 1];
    c += words[i + 2];
    d += words[i + 3];
  }
  const double end = seconds_now();
  volatile std::uint64_t keep = a ^ b ^ c ^ d;
  static_cast<void>(keep);
  return static_cast<double>(words.size() * 8) / (end - start);
}

std::vector<std::uint64_t> random_words(std::size_t bytes) {
  std::vector<std::uint64_t> words(bytes / 8);
  Random random(11);
  // Every 16-bit piece is a small finite f16.
  for (auto& word : words) word = 0x2C002C002C002C00ull + (random.next() & 0x83FF83FF83FF83FFull);
  return words;
}

}  // namespace

Result<void> bench_score(const Context& context, std::vector<Figure>* figures) {
  const auto words = random_words(context.smoke() ? 16u << 20 : 256u << 20);
  KVT_TRY(const KernelTable* table, select_kernels("auto"));
  std::vector<float> q(kDim * 3);
  Random random(5);
  for (float& value : q) value = static_cast<float>(random.unit() - 0.5);
  for (const auto& [name, vectors, score] :
       {std::tuple{"scoring, box abstracts", 2u, table->score_box},
        std::tuple{"scoring, mean abstracts", 1u, table->score_mean}}) {
    const std::uint64_t units = words.size() * 8 / (kDim * 2 * vectors);
    std::vector<float> out(units);
    ScoreArgs args;
    args.abstracts = reinterpret_cast<const std::uint16_t*>(words.data());
    args.unit_count = &units;
    args.q = q.data();
    args.q_stride = kDim;
    args.queries = 1;
    args.dim = kDim;
    args.out = out.data();
    args.out_stride = units;
    const auto ours = [&, score = score]() -> Result<double> {
      const double start = seconds_now();
      KVT_TRY_VOID(score(args, nullptr));
      return static_cast<double>(words.size() * 8) / (seconds_now() - start);
    };
    KVT_TRY(const Pairs pairs,
            interleave(context.pairs(), ours, [&] { return read_bandwidth(words); }));
    figures->push_back({name, median(pairs.ours) / 1e9, "GB/s", median(pairs.theirs) / 1e9,
                        "GB/s read, one core", 0.75, Better::kHigher, pairs.ours.size(),
                        table->name});
  }
  return {};
}

Result<void> bench_attend(const Context& context, std::vector<Figure>* figures) {
  const auto words = random_words(context.smoke() ? 16u << 20 : 256u << 20);
  KVT_TRY(const KernelTable* table, select_kernels("auto"));
  std::vector<float> q(kDim * 3, 0.1f), out(kDim * 3), lse(3);
  const std::uint64_t row = kDim * 2, tokens = words.size() * 8 / (2 * row);
  std::vector<std::uint64_t> pages(tokens / 32);
  for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = i * 32 * 2 * row;
  const std::uint64_t range[2] = {0, pages.size() * 32};
  AttendArgs args;
  args.rows = {reinterpret_cast<const std::byte*>(words.data()),
               pages.data(),
               32,
               row,
               32 * row,
               row,
               Dtype::kF16};
  args.token_range = range;
  args.q = q.data();
  args.q_stride = args.out_stride = args.dim = args.v_dim = kDim;
  args.queries = 3;
  args.scale = 0.125f;
  args.out = out.data();
  args.lse = lse.data();
  const auto ours = [&]() -> Result<double> {
    const double start = seconds_now();
    KVT_TRY_VOID(table->attend(args, nullptr));
    return static_cast<double>(words.size() * 8) / (seconds_now() - start);
  };
  KVT_TRY(const Pairs pairs,
          interleave(context.pairs(), ours, [&] { return read_bandwidth(words); }));
  figures->push_back({"attention, 3 queries, f16 rows", median(pairs.ours) / 1e9, "GB/s",
                      median(pairs.theirs) / 1e9, "GB/s read, one core", 0, Better::kHigher,
                      pairs.ours.size(), table->name});
  return {};
}

}  // namespace kvtier::bench
