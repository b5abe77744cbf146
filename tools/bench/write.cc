// Writing: a segment's seal against writing and syncing the same bytes; a one-token commit against
// the same write + sync.
#include <fcntl.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "tiers/io.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

struct Setup {
  OwnDaemon daemon;
  ClientPtr client;
  SpacePtr space;
};

Result<Setup> set_up(const Context& context, const char* store) {
  KVT_TRY(OwnDaemon daemon,
          OwnDaemon::start(context, context.directory + "/" + store, {"host.arena_bytes=1GiB"}));
  KVT_TRY(ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(SpacePtr space, open_space(client.get(), KVT_DTYPE_F16));
  return Setup{std::move(daemon), std::move(client), std::move(space)};
}

// Seconds to write `bytes` in direct 1 MiB writes to a new file, and sync it.
Result<double> plain_write(const std::string& path, std::uint64_t bytes, bool append) {
  const UniqueFd fd(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT | (append ? 0 : O_TRUNC), 0600));
  if (!fd.valid()) return error(Code::kIo, "cannot make a file for the benchmark", errno);
  const AlignedBuffer block(1 << 20);
  const off_t begin = append ? ::lseek(fd.get(), 0, SEEK_END) : 0;
  const double start = seconds_now();
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint64_t count = std::min<std::uint64_t>(block.size_bytes(), bytes - done);
    if (::pwrite(fd.get(), block.data(), count, begin + static_cast<off_t>(done)) !=
        static_cast<ssize_t>(count))
      return error(Code::kNoSpace, "cannot write the benchmark's file", errno);
    done += count;
  }
  if (::fdatasync(fd.get()) != 0) return error(Code::kIo, "fdatasync failed", errno);
  return seconds_now() - start;
}

}  // namespace

Result<void> bench_seal(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(Setup setup, set_up(context, "seal"));
  KVT_TRY(const SequencePtr sequence, create_sequence(setup.space.get(), "seal"));
  Writer writer(KVT_DTYPE_F16);
  const std::uint64_t bytes = 2048 * writer.token_bytes();
  const auto ours = [&]() -> Result<double> {
    KVT_TRY_VOID(writer.append(sequence.get(), 2047));
    const double start = seconds_now();
    KVT_TRY_VOID(writer.append(sequence.get(), 1));  // the half is full: sealed in the background
    KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));  // waits for it
    return static_cast<double>(bytes) / (seconds_now() - start);
  };
  const auto theirs = [&]() -> Result<double> {
    KVT_TRY(const double seconds, plain_write(context.directory + "/plain", bytes, false));
    return static_cast<double>(bytes) / seconds;
  };
  KVT_TRY(const Pairs pairs, interleave(context.pairs(), ours, theirs));
  figures->push_back({"seal of 2,048 tokens, durable", median(pairs.ours) / 1e9, "GB/s",
                      median(pairs.theirs) / 1e9, "GB/s write + sync", 0, Better::kHigher,
                      pairs.ours.size(), ""});
  return {};
}

Result<void> bench_commit(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(Setup setup, set_up(context, "commit"));
  KVT_TRY(const SequencePtr sequence, create_sequence(setup.space.get(), "commit"));
  Writer writer(KVT_DTYPE_F16);
  KVT_TRY_VOID(writer.append(sequence.get(), 1));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  const std::uint64_t bytes = (writer.token_bytes() + 64 + 16 + 4095) / 4096 * 4096;
  const std::size_t rounds = context.smoke() ? 5 : 50;
  const auto ours = [&]() -> Result<double> {
    double seconds = 0;
    for (std::size_t i = 0; i < rounds; ++i) {
      KVT_TRY_VOID(writer.append(sequence.get(), 1));
      const double start = seconds_now();
      KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
      seconds += seconds_now() - start;
    }
    return seconds * 1e6 / static_cast<double>(rounds);
  };
  const auto theirs = [&]() -> Result<double> {
    double seconds = 0;
    for (std::size_t i = 0; i < rounds; ++i) {
      KVT_TRY(const double one, plain_write(context.directory + "/log", bytes, true));
      seconds += one;
    }
    return seconds * 1e6 / static_cast<double>(rounds);
  };
  KVT_TRY(const Pairs pairs, interleave(context.pairs(), ours, theirs));
  figures->push_back({"commit of one token", median(pairs.ours), "us", median(pairs.theirs),
                      "us append + sync", 0, Better::kLower, pairs.ours.size(), ""});
  return {};
}

}  // namespace kvtier::bench
