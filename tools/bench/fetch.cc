// One chunk that lies in host memory, asked for through the ring of a real daemon and copied out,
// against a bare ping-pong of two threads. Both sides spin.
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {

Result<void> bench_fetch(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/fetch",
                           {"host.arena_bytes=256MiB", "host.leased_bytes_per_client_max=128MiB",
                            "daemon.spin_us=1000"}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket(), 1000));
  Shape shape;
  shape.kv_heads = shape.query_heads = 1;  // so that one token of a layer is one chunk
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "fetch"));
  Writer writer(shape);
  KVT_TRY_VOID(writer.append(sequence.get(), 2048));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  std::vector<std::byte> k(shape.row_bytes()), v(k.size());
  const std::uint64_t rounds = context.smoke() ? 500 : 50'000;
  const auto ours = [&]() -> Result<double> {
    const double start = seconds_now();
    for (std::uint64_t i = 0; i < rounds; ++i)
      KVT_TRY_VOID(
          check(kvt_sequence_read(sequence.get(), 3, i * 37 % 2048, 1, k.data(), v.data())));
    return (seconds_now() - start) * 1e6 / static_cast<double>(rounds);
  };
  const auto theirs = [&]() -> Result<double> { return bare_ping_pong_us(rounds * 4); };
  KVT_TRY(const auto columns, interleave(context.rounds(7, 15), {ours, theirs}));
  Figure figure = compare("fetch of one chunk from host memory", columns[0], columns[1]);
  figure.unit = "us";
  figure.ceiling_name = "us bare two-thread ping-pong";
  figure.goal = 4;
  figure.note = "asked for, leased, one row copied, released";
  figures->push_back(figure);
  return {};
}

}  // namespace kvtier::bench
