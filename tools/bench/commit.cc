// Until tokens are durable: one, 1 MiB, 8 MiB, and a whole segment, each against appending to a
// plain file and fdatasync.
#include "tools/bench/bench.h"
#include "tools/bench/model.h"
#include "tools/bench/plain_file.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kHalfTokens = 2048;

// Commits of `tokens` tokens each into tail logs; a new sequence where a half would get full.
class Committer {
 public:
  Committer(kvt_space* space, Writer* writer, std::uint32_t tokens)
      : space_(space), writer_(writer), tokens_(tokens) {}

  // Seconds of one commit; the tokens are in the tail before.
  Result<double> commit() {
    const bool whole = tokens_ == kHalfTokens;
    if (sequence_ == nullptr || (!whole && used_ + tokens_ >= kHalfTokens)) KVT_TRY_VOID(begin());
    // The last token of a whole half starts its seal: that belongs to the time.
    const std::uint32_t timed = whole ? 1 : 0;
    KVT_TRY_VOID(writer_->append(sequence_.get(), tokens_ - timed));
    const double start = seconds_now();
    if (timed != 0) KVT_TRY_VOID(writer_->append(sequence_.get(), timed));
    KVT_TRY_VOID(check(kvt_sequence_commit(sequence_.get())));
    used_ += tokens_;
    return seconds_now() - start;
  }

 private:
  Result<void> begin() {
    sequence_.reset();
    KVT_TRY(sequence_, create_sequence(space_, "commit " + std::to_string(tokens_) + " " +
                                                   std::to_string(count_++)));
    used_ = 0;
    if (tokens_ == kHalfTokens) return {};
    used_ = 1;  // the log's file is there before the first measured commit
    KVT_TRY_VOID(writer_->append(sequence_.get(), 1));
    return check(kvt_sequence_commit(sequence_.get()));
  }

  kvt_space* const space_;
  Writer* const writer_;
  const std::uint32_t tokens_;
  SequencePtr sequence_;
  std::uint32_t used_ = 0, count_ = 0;
};

struct Case {
  const char* metric;
  std::uint32_t tokens;
  std::uint64_t plain_bytes;  // 0: as many as the tokens have
  std::size_t repeats;        // of one round
};

Result<Figure> measure(const Context& context, kvt_space* space, const Case& it) {
  const Shape shape;
  Writer writer(shape);
  Committer committer(space, &writer, it.tokens);
  KVT_TRY(PlainFile file, PlainFile::make(context.directory + "/plain"));
  const std::uint64_t bytes =
      it.plain_bytes != 0 ? it.plain_bytes : (it.tokens * shape.token_bytes() + 4095) / 4096 * 4096;
  const std::size_t repeats = context.smoke() ? 1 : it.repeats;
  const auto mean = [repeats](const Measure& one) -> Result<double> {
    double seconds = 0;
    for (std::size_t i = 0; i < repeats; ++i) {
      KVT_TRY(const double value, one());
      seconds += value;
    }
    return seconds / static_cast<double>(repeats);
  };
  const auto ours = [&] { return mean([&] { return committer.commit(); }); };
  const auto theirs = [&] { return mean([&] { return file.append(bytes); }); };
  const std::size_t warm_up = it.tokens == kHalfTokens ? kArenaSeals : 1;
  for (std::size_t i = 0; i < warm_up; ++i) KVT_TRY_VOID(ours());
  KVT_TRY_VOID(theirs());
  KVT_TRY(const auto columns, interleave(context.rounds(11, 21), {ours, theirs, theirs}));
  Figure figure;
  if (it.tokens == 1) {
    figure = compare(it.metric, columns[0], columns[1]);
    scale(&figure, 1e6);
    figure.unit = "us";
    figure.ceiling_name = "us 4 KiB append + fdatasync";
    figure.goal = 2;
  } else {  // rates
    std::vector<double> rate, plain;
    for (const double seconds : columns[0]) rate.push_back(static_cast<double>(bytes) / seconds);
    for (const double seconds : columns[1]) plain.push_back(static_cast<double>(bytes) / seconds);
    figure = compare(it.metric, rate, plain);
    scale(&figure, 1e-6);
    figure.unit = "MB/s";
    figure.ceiling_name = "MB/s append + fdatasync";
    figure.goal = 0.6;
    figure.better = Better::kHigher;
  }
  figure.note = "plain writes against themselves: " + spread(columns[2], columns[1]);
  return figure;
}

}  // namespace

Result<void> bench_commit(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/commit", kSmallArena));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), Shape{}));
  constexpr Case kCases[] = {
      {"durable commit of one token", 1, 4096, 20},
      {"durable commit of 1 MiB", 46, 0, 4},
      {"durable commit of 8 MiB", 364, 0, 1},
      {"durable commit of 45 MiB, a whole segment", kHalfTokens, 0, 1},
  };
  for (const Case& it : kCases) {
    KVT_TRY(Figure figure, measure(context, space.get(), it));
    figures->push_back(std::move(figure));
  }
  return {};
}

}  // namespace kvtier::bench
