// Scoring, selection and attention against the read bandwidth of this machine's memory, measured in
// the same run.
#include <cstring>
#include <string>

#include "base/random.h"
#include "kernels/registry.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

using Words = std::uint64_t __attribute__((vector_size(32)));

// Sums the memory by wide loads, eight sums at a time: what one core can read.
Result<double> read_bandwidth(const std::vector<std::uint64_t>& words) {
  const double start = thread_seconds_now();
  Words sums[8] = {};
  for (std::size_t i = 0; i + 32 <= words.size(); i += 32) {
    for (std::size_t j = 0; j < 8; ++j) {
      Words value;
      std::memcpy(&value, &words[i + 4 * j], sizeof value);
      sums[j] += value;
    }
  }
  const double end = thread_seconds_now();
  Words sum = {};
  for (const Words& one : sums) sum ^= one;
  volatile std::uint64_t keep = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
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

Result<Figure> against_reading(const Context& context, const char* metric,
                               const std::vector<std::uint64_t>& words, const Measure& ours) {
  KVT_TRY(const auto columns,
          interleave(context.rounds(9, 15), {ours, [&] { return read_bandwidth(words); }}));
  Figure figure = compare(metric, columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s read, one core";
  figure.better = Better::kHigher;
  return figure;
}

// Selection of one layer of an 8B geometry: 4-bit codes of 128k tokens, 8 KV heads of 128 dims. All
// the words are such layers, so that codes come from memory and not from a cache.
constexpr std::uint32_t kSubspaces = 32, kCodeHeads = 8;
constexpr std::uint64_t kCodeTokens = 128 << 10, kChosen = 1024;

struct SelectionTimes {
  double score_s = 0;
  double top_k_s = 0;
};

// Scores all heads with `queries` queries each, and chooses by the first query's scores.
Result<SelectionTimes> select_by_codes(const KernelTable& table,
                                       const std::vector<std::uint64_t>& words,
                                       std::uint32_t queries) {
  const std::uint64_t head_bytes = code_bytes(kCodeTokens, kSubspaces);
  std::vector<float> tables(queries * kSubspaces * kCodeEntries), out(queries * kCodeTokens);
  Random random(7);
  for (float& entry : tables) entry = static_cast<float>(random.unit() - 0.5);
  std::vector<std::uint32_t> chosen(kChosen);
  const std::uint64_t starts[2] = {0, kCodeTokens}, one = 1;
  std::uint64_t piece = 0, found = 0;
  ScoreCodesArgs score;
  score.codes = {reinterpret_cast<const std::byte*>(words.data()), &piece, starts, &one,
                 kSubspaces};
  score.tables = tables.data();
  score.table_stride = kSubspaces * kCodeEntries;
  score.queries = queries;
  score.out = out.data();
  score.out_stride = kCodeTokens;
  const TopKArgs top_k{out.data(), &kCodeTokens, kChosen, false, chosen.data(), &found};
  KVT_TRY_VOID(table.score_codes(score, nullptr));  // touches the output for the first time
  SelectionTimes times;
  for (; piece + head_bytes <= words.size() * 8; piece += head_bytes) {
    const double start = thread_seconds_now();
    KVT_TRY_VOID(table.score_codes(score, nullptr));
    const double scored = thread_seconds_now();
    KVT_TRY_VOID(table.top_k(top_k, nullptr));
    times.top_k_s += thread_seconds_now() - scored;
    times.score_s += scored - start;
  }
  return times;
}

Result<void> bench_codes(const Context& context, const KernelTable& table,
                         const std::vector<std::uint64_t>& words, std::vector<Figure>* figures) {
  const double layers = static_cast<double>(words.size() * 8) /
                        static_cast<double>(kCodeHeads * code_bytes(kCodeTokens, kSubspaces));
  for (const std::uint32_t queries : {1u, 3u, 4u, 8u}) {
    std::vector<double> score_ms, top_k_ms;
    const auto ours = [&, queries]() -> Result<double> {
      KVT_TRY(const SelectionTimes times, select_by_codes(table, words, queries));
      score_ms.push_back(times.score_s / layers * 1e3);
      top_k_ms.push_back(times.top_k_s / layers * 1e3);
      return static_cast<double>(words.size() * 8) * queries / times.score_s;
    };
    const std::string who = std::to_string(queries) + (queries == 1 ? " query" : " queries");
    const std::string metric = "score, key codes, 128k tokens, " + who + " per KV head";
    KVT_TRY(Figure figure, against_reading(context, metric.c_str(), words, ours));
    figure.goal = 0.7;
    figure.note = std::string(table.name) +
                  ", 8 KV heads of 128 dims, 4 bits per 4 dims; bytes of codes x queries";
    figures->push_back(figure);
    figure = compare("top-k 1,024 of 128k tokens, 8 KV heads", top_k_ms, score_ms);
    figure.unit = "ms";
    figure.ceiling_name = "ms scoring, " + who;
    figure.goal = 0.15;
    figure.note = "once per KV head, in the same passes";
    figures->push_back(figure);
  }
  return {};
}

}  // namespace

Result<void> bench_score(const Context& context, std::vector<Figure>* figures) {
  const auto words = random_words(context.smoke() ? 16u << 20 : 512u << 20);
  KVT_TRY(const KernelTable* table, select_kernels("auto"));
  KVT_TRY_VOID(bench_codes(context, *table, words, figures));
  std::vector<float> q(kDim * 3);
  Random random(5);
  for (float& value : q) value = static_cast<float>(random.unit() - 0.5);
  for (const auto& [name, vectors, score] :
       {std::tuple{"score, box abstracts, 512 MiB", 2u, table->score_box},
        std::tuple{"score, mean abstracts, 512 MiB", 1u, table->score_mean}}) {
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
      const double start = thread_seconds_now();
      KVT_TRY_VOID(score(args, nullptr));
      return static_cast<double>(words.size() * 8) / (thread_seconds_now() - start);
    };
    KVT_TRY(Figure figure, against_reading(context, name, words, ours));
    figure.goal = 0.75;
    figure.note = std::string(table->name) + ", one query, f16";
    figures->push_back(figure);
  }
  return {};
}

Result<void> bench_attend(const Context& context, std::vector<Figure>* figures) {
  const auto words = random_words(context.smoke() ? 16u << 20 : 512u << 20);
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
    const double start = thread_seconds_now();
    KVT_TRY_VOID(table->attend(args, nullptr));
    return static_cast<double>(words.size() * 8) / (thread_seconds_now() - start);
  };
  KVT_TRY(Figure figure, against_reading(context, "attend, 512 MiB", words, ours));
  figure.goal = 0.6;
  figure.note = std::string(table->name) + ", 3 queries per KV head, f16";
  figures->push_back(figure);
  return {};
}

}  // namespace kvtier::bench
