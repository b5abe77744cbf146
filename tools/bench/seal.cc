// The work of a seal (copy out of the tail, abstracts, checksums) as the daemon's worker does it,
// with boxes and with the default's key codes, against memcpy of the same bytes by one thread.
#include <cstring>
#include <utility>

#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kTokens = 2048;

// What workers did for seals so far.
struct SealWork {
  double bytes = 0, seconds = 0;
  std::uint64_t abstracts = 0;
};

// A sequence of its own daemon, in a space of this preset.
struct Sealing {
  OwnDaemon daemon;
  ClientPtr client;
  SpacePtr space;
  SequencePtr sequence;
  Writer writer;

  static Result<Sealing> start(const Context& context, const char* preset) {
    KVT_TRY(OwnDaemon daemon,
            OwnDaemon::start(context, context.directory + "/seal-" + preset, kSmallArena));
    KVT_TRY(ClientPtr client, open_client(daemon.socket()));
    KVT_TRY(SpacePtr space, open_space(client.get(), Shape{}, preset));
    KVT_TRY(SequencePtr sequence, create_sequence(space.get(), "seal"));
    return Sealing{std::move(daemon), std::move(client), std::move(space), std::move(sequence),
                   Writer(Shape{})};
  }

  Result<void> seal_one() {
    KVT_TRY_VOID(writer.append(sequence.get(), kTokens));
    return check(kvt_sequence_commit(sequence.get()));  // waits for the seal
  }

  Result<SealWork> work() const {
    KVT_TRY(const Json stats, daemon_stats(client.get()));
    const Json& writing = stats["writing"];
    return SealWork{writing["seal_work_bytes"].get<double>(),
                    writing["seal_work_us"].get<double>() * 1e-6,
                    stats["abstracts"]["built"].get<std::uint64_t>()};
  }

  // Bytes per second of one.
  Result<double> rate() {
    KVT_TRY(const SealWork before, work());
    KVT_TRY_VOID(seal_one());
    KVT_TRY(const SealWork after, work());
    if (after.bytes - before.bytes < static_cast<double>(kTokens * Shape().token_bytes()))
      return error(Code::kInternal, "the half was not sealed");
    if (after.abstracts == before.abstracts)
      return error(Code::kInternal, "the half was sealed without its abstracts");
    return (after.bytes - before.bytes) / (after.seconds - before.seconds);
  }
};

// With a codebook, and until the arena has been used once.
Result<Sealing> start_codes(const Context& context) {
  KVT_TRY(Sealing codes, Sealing::start(context, "codes"));
  KVT_TRY_VOID(codes.seal_one());
  {
    KVT_TRY(const ViewPtr view, open_view(codes.sequence.get(), 1024, "codes"));
    KVT_TRY_VOID(attend_step(view.get(), Shape{}));
  }
  for (std::size_t i = 0; i < kArenaSeals; ++i) KVT_TRY_VOID(codes.seal_one());
  return codes;
}

}  // namespace

Result<void> bench_seal(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(Sealing boxes, Sealing::start(context, "quest"));
  const std::uint64_t bytes = kTokens * Shape().token_bytes();
  const auto ours = [&] { return boxes.rate(); };
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
  KVT_TRY(Sealing codes, start_codes(context));
  const auto with_codes = [&] { return codes.rate(); };
  KVT_TRY(const auto columns, interleave(context.rounds(9, 21), {ours, theirs, with_codes}));
  const auto add = [&](const char* metric, const std::vector<double>& sealed,
                       const std::vector<double>& copy, double goal, const char* note) {
    Figure figure = compare(metric, sealed, copy);
    scale(&figure, 1e-9);
    figure.unit = "GB/s";
    figure.ceiling_name = "GB/s memcpy, one thread";
    figure.goal = goal;
    figure.better = Better::kHigher;
    figure.note = note;
    figures->push_back(figure);
  };
  add("seal: copy, box abstracts, checksums", columns[0], columns[1], 0.25, "2,048 tokens, 45 MiB");
  add("seal, default preset (codes)", columns[2], columns[1], 0, "the same with key codes");
  add("seal into memory not used before", fresh, copied, 0,
      "a new daemon, until its arena is full for the first time");
  return {};
}

}  // namespace kvtier::bench
