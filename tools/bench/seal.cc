// The work of a seal (copy out of the tail, box abstracts, checksums) as the daemon's worker does
// it, against memcpy of the same bytes by one thread.
#include <cstring>

#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

struct SealWork {
  double bytes = 0, seconds = 0;
};

Result<SealWork> seal_work(kvt_client* client) {
  KVT_TRY(const Json stats, daemon_stats(client));
  const Json& writing = stats["writing"];
  return SealWork{writing["seal_work_bytes"].get<double>(),
                  writing["seal_work_us"].get<double>() * 1e-6};
}

}  // namespace

Result<void> bench_seal(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/seal", kSmallArena));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  const Shape shape;
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "seal"));
  Writer writer(shape);
  const std::uint64_t bytes = 2048 * shape.token_bytes();
  const auto ours = [&]() -> Result<double> {
    KVT_TRY(const SealWork before, seal_work(client.get()));
    KVT_TRY_VOID(writer.append(sequence.get(), 2048));
    KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));  // waits for the seal
    KVT_TRY(const SealWork after, seal_work(client.get()));
    if (after.bytes - before.bytes < static_cast<double>(bytes))
      return error(Code::kInternal, "the half was not sealed");
    return (after.bytes - before.bytes) / (after.seconds - before.seconds);
  };
  std::vector<std::byte> source(bytes, std::byte{1}), target(bytes, std::byte{2});
  const auto theirs = [&]() -> Result<double> {
    const double start = seconds_now();
    std::memcpy(target.data(), source.data(), bytes);
    const double seconds = seconds_now() - start;
    volatile std::byte keep = target[bytes / 2];
    static_cast<void>(keep);
    return static_cast<double>(bytes) / seconds;
  };
  // Fresh memory is dear, the kernel clears it: shown by itself. Then the arena has been used once.
  std::vector<double> fresh, copied;
  for (std::size_t i = 0; i < kArenaSeals; ++i) {
    KVT_TRY(const double our, ours());
    KVT_TRY(const double their, theirs());
    fresh.push_back(our);
    copied.push_back(their);
  }
  KVT_TRY(const auto columns, interleave(context.rounds(9, 21), {ours, theirs}));
  Figure figure = compare("seal: copy, box abstracts, checksums", columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s memcpy, one thread";
  figure.goal = 0.25;
  figure.better = Better::kHigher;
  figure.note = "2,048 tokens, 45 MiB";
  figures->push_back(figure);
  Figure first = compare("seal into memory not used before", fresh, copied);
  scale(&first, 1e-9);
  first.unit = "GB/s";
  first.ceiling_name = "GB/s memcpy, one thread";
  first.better = Better::kHigher;
  first.note = "a new daemon, until its arena is full for the first time";
  figures->push_back(first);
  return {};
}

}  // namespace kvtier::bench
