// One chunk that lies in host memory, asked for through the ring of a real daemon and copied out,
// against a bare ping-pong of two threads; both sides spin.
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {

Result<void> bench_fetch(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/fetch",
                           {"host.arena_bytes=256MiB", "host.leased_bytes_per_client_max=128MiB",
                            "daemon.spin_us=200"}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), KVT_DTYPE_F16));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "fetch"));
  Writer writer(KVT_DTYPE_F16);
  KVT_TRY_VOID(writer.append(sequence.get(), 2048));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  std::vector<std::byte> k(kKvHeads * kDim * 2), v(k.size());
  const std::uint64_t rounds = context.smoke() ? 500 : 20'000;
  const auto ours = [&]() -> Result<double> {
    const double start = seconds_now();
    for (std::uint64_t i = 0; i < rounds; ++i)
      KVT_TRY_VOID(
          check(kvt_sequence_read(sequence.get(), 3, i * 37 % 2048, 1, k.data(), v.data())));
    return (seconds_now() - start) * 1e6 / static_cast<double>(rounds);
  };
  const auto theirs = [&]() -> Result<double> { return bare_ping_pong_us(rounds * 10); };
  KVT_TRY(const Pairs pairs, interleave(context.pairs(), ours, theirs));
  figures->push_back({"fetch from host memory", median(pairs.ours), "us", median(pairs.theirs),
                      "us bare ping-pong", 4, Better::kLower, pairs.ours.size(),
                      "one token, 3 KV heads: 3 chunks, leased, copied, released"});
  return {};
}

}  // namespace kvtier::bench
