// The longest stored prefix of 64k tokens through the daemon, against hashing and comparing the
// same ids in memory.
#include "base/hash.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {

Result<void> bench_match(const Context& context, std::vector<Figure>* figures) {
  const std::uint64_t tokens = context.smoke() ? 4096 : 65536;
  KVT_TRY(const OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/match", {"host.arena_bytes=2GiB"}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), Shape{}));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "match"));
  Writer writer(Shape{});
  KVT_TRY_VOID(writer.append(sequence.get(), tokens));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  std::vector<kvt_token> records(tokens);
  KVT_TRY_VOID(check(kvt_sequence_tokens(sequence.get(), 0, tokens, records.data())));
  std::vector<std::uint32_t> ids, copy;
  for (const kvt_token& token : records) ids.push_back(token.id);
  copy = ids;
  const auto ours = [&]() -> Result<double> {
    kvt_match match;
    const double start = seconds_now();
    KVT_TRY_VOID(check(kvt_space_match(space.get(), ids.data(), ids.size(), &match)));
    const double seconds = seconds_now() - start;
    if (match.tokens != tokens)
      return error(Code::kInternal, "the stored prefix was not found whole");
    return seconds * 1e3;
  };
  const auto theirs = [&]() -> Result<double> {
    const double start = seconds_now();
    BlockHash hash;
    for (std::size_t i = 0; i + 64 <= ids.size(); i += 64)
      hash = hash128(as_bytes(std::string_view(reinterpret_cast<const char*>(&ids[i]), 256)),
                     hash.low);
    const bool equal = ids == copy;
    volatile std::uint64_t keep = hash.high + (equal ? 1 : 0);
    static_cast<void>(keep);
    return (seconds_now() - start) * 1e3;
  };
  KVT_TRY(const auto columns, interleave(context.rounds(7, 15), {ours, theirs}));
  Figure figure = compare("match of 64k tokens", columns[0], columns[1]);
  figure.unit = "ms";
  figure.ceiling_name = "ms hash + compare in memory";
  figure.note = "with the socket's round trip";
  figures->push_back(figure);
  return {};
}

}  // namespace kvtier::bench
