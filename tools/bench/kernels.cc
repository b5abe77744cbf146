// Scoring, selection and attention against the read bandwidth of this machine's memory, measured in
// the same run.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/random.h"
#include "kernels/registry.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

using Words = std::uint64_t __attribute__((vector_size(32)));

// Sums the memory by wide loads from kStreams places in turn, eight sums at a time, and asks for
// what lies `ahead` bytes further on; bytes per second.
template <std::size_t kStreams>
double read_once(const std::vector<std::uint64_t>& words, std::size_t ahead) {
  const std::size_t part = words.size() / kStreams / 32 * 32;
  const double start = thread_seconds_now();
  Words sums[8] = {};
  for (std::size_t i = 0; i < part; i += 32)
    for (std::size_t stream = 0; stream < kStreams; ++stream) {
      const std::uint64_t* at = words.data() + stream * part + i;
      for (std::size_t line = 0; ahead != 0 && line < 32; line += 8)
        __builtin_prefetch(at + ahead / 8 + line, 0, 2);
      for (std::size_t j = 0; j < 8; ++j) {
        Words value;
        std::memcpy(&value, at + 4 * j, sizeof value);
        sums[j] += value;
      }
    }
  const double end = thread_seconds_now();
  Words sum = {};
  for (const Words& one : sums) sum ^= one;
  volatile std::uint64_t keep = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  static_cast<void>(keep);
  return static_cast<double>(part * kStreams * 8) / (end - start);
}

// What one core can read: the fastest of some numbers of streams and distances, which differ from
// one machine to the next. Which that is, is found once.
double read_bandwidth(const std::vector<std::uint64_t>& words) {
  struct Way {
    double (*read)(const std::vector<std::uint64_t>& words, std::size_t ahead);
    std::size_t ahead;
  };
  static const Way best = [&] {
    Way found{};
    double most = 0;
    for (int round = 0; round < 3; ++round)
      for (const auto read : {read_once<1>, read_once<2>, read_once<4>, read_once<8>})
        for (const std::size_t ahead : {0, 1024, 2048, 4096})
          if (const double rate = read(words, ahead); rate > most) {
            most = rate;
            found = {read, ahead};
          }
    return found;
  }();
  return best.read(words, best.ahead);
}

std::vector<std::uint64_t> random_words(std::size_t bytes) {
  std::vector<std::uint64_t> words(bytes / 8);
  Random random(11);
  // Every 16-bit piece is a small finite f16.
  for (auto& word : words) word = 0x2C002C002C002C00ull + (random.next() & 0x83FF83FF83FF83FFull);
  return words;
}

Result<Figure> against_reading(const Context& context, const char* metric,
                               const std::vector<std::uint64_t>& words, const Measure& ours,
                               const std::string& note, double queries = 1) {
  KVT_TRY(const auto columns, interleave(context.rounds(9, 15), {ours, [&]() -> Result<double> {
                                                                   return read_bandwidth(words);
                                                                 }}));
  Figure figure = compare(metric, columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s read, one core";
  figure.better = Better::kHigher;
  figure.note = note;
  // `queries`: how often a byte counts that is read once.
  if (figure.ratio_min > queries) figure.note += "; above the reader in every round";
  return figure;
}

// Selection of one layer of an 8B geometry: 4-bit codes of 128k tokens, 8 KV heads of 128 dims. All
// the words are such layers, so that codes come from memory and not from a cache.
constexpr std::uint32_t kSubspaces = 32, kCodeHeads = 8;
constexpr std::uint64_t kCodeTokens = 128 << 10, kChosen = 1024;

struct SelectionTimes {
  double score_s = 0;
  double group_s = 0;
  double top_k_s = 0;
};

// Scores all heads with `queries` queries each, makes one score of those, and chooses by it.
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
  GroupScoresArgs group;
  group.scores = out.data();
  group.stride = kCodeTokens;
  group.unit_count = &kCodeTokens;
  group.queries = queries;
  const TopKArgs top_k{out.data(), &kCodeTokens, kChosen, false, chosen.data(), &found};
  KVT_TRY_VOID(table.score_codes(score, nullptr));  // touches the output for the first time
  SelectionTimes times;
  for (; piece + head_bytes <= words.size() * 8; piece += head_bytes) {
    const double start = thread_seconds_now();
    KVT_TRY_VOID(table.score_codes(score, nullptr));
    const double scored = thread_seconds_now();
    KVT_TRY_VOID(table.group_scores(group, nullptr));
    const double grouped = thread_seconds_now();
    KVT_TRY_VOID(table.top_k(top_k, nullptr));
    times.top_k_s += thread_seconds_now() - grouped;
    times.group_s += grouped - scored;
    times.score_s += scored - start;
  }
  return times;
}

Result<void> bench_codes(const Context& context, const KernelTable& table,
                         const std::vector<std::uint64_t>& words, std::vector<Figure>* figures) {
  const double layers = static_cast<double>(words.size() * 8) /
                        static_cast<double>(kCodeHeads * code_bytes(kCodeTokens, kSubspaces));
  for (const std::uint32_t queries : {1u, 3u, 4u, 8u}) {
    std::vector<double> score_ms, group_ms, top_k_ms;
    const auto ours = [&, queries]() -> Result<double> {
      KVT_TRY(const SelectionTimes times, select_by_codes(table, words, queries));
      score_ms.push_back(times.score_s / layers * 1e3);
      group_ms.push_back(times.group_s / layers * 1e3);
      top_k_ms.push_back(times.top_k_s / layers * 1e3);
      return static_cast<double>(words.size() * 8) * queries / times.score_s;
    };
    const std::string who = std::to_string(queries) + (queries == 1 ? " query" : " queries");
    const std::string metric = "score, key codes, 128k tokens, " + who + " per KV head";
    const std::string note =
        std::string(table.name) +
        ", 8 KV heads of 128 dims, 4 bits per 4 dims; bytes of codes x queries";
    KVT_TRY(Figure figure, against_reading(context, metric.c_str(), words, ours, note, queries));
    figure.goal = 0.7;
    char text[64];
    std::snprintf(text, sizeof text, "; %.3g GB/s are read", figure.value / queries);
    figure.note += text;
    figures->push_back(figure);
    const auto add = [&](const char* what, const std::vector<double>& ms, double goal) {
      figure = compare(what, ms, score_ms);
      figure.unit = "ms";
      figure.ceiling_name = "ms scoring, " + who;
      figure.goal = goal;
      figure.note = "once per KV head, in the same passes";
      figures->push_back(figure);
    };
    add("one score of a group, 128k tokens, 8 KV heads", group_ms, 0);
    add("top-k 1,024 of 128k tokens, 8 KV heads", top_k_ms, 0.15);
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
    KVT_TRY(Figure figure, against_reading(context, name, words, ours,
                                           std::string(table->name) + ", one query, f16"));
    figure.goal = 0.75;
    figures->push_back(figure);
  }
  return {};
}

namespace {

// Rows of f16 in chunks of 32 tokens, K before V, dims of 64.
struct RawRows {
  explicit RawRows(const std::vector<std::uint64_t>& words)
      : tokens(words.size() * 8 / (32 * 2 * row_bytes) * 32), pages(tokens / 32) {
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = i * 32 * 2 * row_bytes;
    rows = {reinterpret_cast<const std::byte*>(words.data()),
            pages.data(),
            32,
            row_bytes,
            32 * row_bytes,
            row_bytes,
            Dtype::kF16};
  }
  static constexpr std::uint64_t row_bytes = kDim * 2;
  std::uint64_t tokens;
  std::vector<std::uint64_t> pages;
  RowPages rows;
};

// Nanoseconds per row of attention from raw rows and from their base rendition: all rows, or every
// so many-th, as a selection leaves them.
Result<void> bench_base(const Context& context, const KernelTable& table, const RawRows& raw,
                        std::vector<Figure>* figures) {
  constexpr std::uint32_t kQueries = 3;
  const BaseFormat format{kDim, kDim, 4, 4};
  std::vector<std::byte> bytes(raw.tokens / 32 * format.chunk_bytes());
  std::vector<std::uint64_t> chunks(raw.tokens / 32);
  for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i] = i * format.chunk_bytes();
  KVT_TRY_VOID(table.encode_base({raw.rows, &raw.tokens, format, bytes.data()}, nullptr));

  const std::uint64_t segment = std::min<std::uint64_t>(raw.tokens, kSegmentTokensMax);
  const auto encode = [&]() -> Result<double> {
    const double start = thread_seconds_now();
    KVT_TRY_VOID(table.encode_base({raw.rows, &segment, format, bytes.data()}, nullptr));
    return static_cast<double>(segment * 2 * raw.row_bytes) / (thread_seconds_now() - start);
  };
  KVT_TRY(const auto encoded, interleave(context.rounds(9, 15), {encode}));
  Figure figure = bounded("base rendition of one head, the kernel alone", encoded[0], 1e9);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s of raw bytes, the least that is wanted";
  figure.better = Better::kHigher;
  figure.goal = 1.0;
  figure.note = "K and V at 4 bits, 2,048 tokens, one thread";
  figures->push_back(figure);

  std::vector<float> q(kDim * kQueries, 0.1f), out(kDim * kQueries), lse(kQueries);
  for (const std::uint64_t every : {1u, 6u}) {
    Random random(13);
    std::vector<std::uint32_t> tokens;
    std::vector<std::uint64_t> rows;  // raw rows as pages of one
    for (std::uint64_t t = 0; t < raw.tokens; ++t)
      if (every == 1 || random.below(every) == 0) {
        tokens.push_back(static_cast<std::uint32_t>(t));
        rows.push_back(raw.pages[t / 32] + t % 32 * raw.row_bytes);
      }
    const std::uint64_t range[2] = {0, tokens.size()};
    AttendArgs from_raw{raw.rows, range,  nullptr,    q.data(), kDim,       kQueries, kDim,
                        kDim,     0.125f, out.data(), kDim,     lse.data(), 1};
    if (every != 1)
      from_raw.rows = {raw.rows.base, rows.data(), 1, 0, raw.rows.v_offset, 0, Dtype::kF16};
    AttendBaseArgs from_base;
    from_base.pages = {bytes.data(), chunks.data(), format};
    from_base.rows = {every == 1 ? nullptr : tokens.data(), range};
    from_base.q = q.data();
    from_base.q_stride = from_base.out_stride = kDim;
    from_base.queries = kQueries;
    from_base.scale = 0.125f;
    from_base.out = out.data();
    from_base.lse = lse.data();
    const auto per_row = [&](const auto& attend) {
      return [&]() -> Result<double> {
        const double start = thread_seconds_now();
        KVT_TRY_VOID(attend());
        return (thread_seconds_now() - start) / static_cast<double>(tokens.size());
      };
    };
    const auto base_attend = [&] { return table.attend_base(from_base, nullptr); };
    const auto raw_attend = [&] { return table.attend(from_raw, nullptr); };
    KVT_TRY(const auto columns,
            interleave(context.rounds(9, 15), {per_row(base_attend), per_row(raw_attend)}));
    figure = compare(every == 1 ? "attend from the base rendition, all rows"
                                : "attend from the base rendition, one row in six",
                     columns[0], columns[1]);
    scale(&figure, 1e9);
    figure.unit = "ns per row";
    figure.ceiling_name = "ns per row from raw f16";
    figure.goal = 1.0;
    figure.note = "4 bits, 3 queries per KV head";
    figures->push_back(figure);
  }
  return {};
}

}  // namespace

Result<void> bench_attend(const Context& context, std::vector<Figure>* figures) {
  const auto words = random_words(context.smoke() ? 16u << 20 : 512u << 20);
  KVT_TRY(const KernelTable* table, select_kernels("auto"));
  const RawRows raw(words);
  std::vector<float> q(kDim * 3, 0.1f), out(kDim * 3), lse(3);
  const std::uint64_t range[2] = {0, raw.tokens};
  AttendArgs args;
  args.rows = raw.rows;
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
  KVT_TRY(Figure figure,
          against_reading(context, "attend, 512 MiB", words, ours,
                          std::string(table->name) + ", 3 queries per KV head, f16"));
  figure.goal = 0.6;
  figures->push_back(figure);
  return bench_base(context, *table, raw, figures);
}

}  // namespace kvtier::bench
