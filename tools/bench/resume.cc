// A 64k-token sequence, page cache and host arena cold, from attach to its first decode step at
// budget 1,024, against loading the saved whole cache plus one step over it; and what such a resume
// reads, by what its preset attends to.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/unique_fd.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"
#include "tools/bench/peer.h"

namespace kvtier::bench {
namespace {

// Reads a whole file into memory with ordinary reads: what loading a saved cache is at the least.
Result<double> load_file(const std::string& path, std::vector<std::byte>* memory, bool* cold) {
  drop_page_cache(cold);
  const double start = seconds_now();
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return error(Code::kIo, "cannot open the saved cache", errno);
  std::size_t done = 0;
  while (done < memory->size()) {
    const ssize_t got = ::read(fd.get(), memory->data() + done,
                               std::min<std::size_t>(memory->size() - done, 8u << 20));
    if (got <= 0) return error(Code::kIo, "cannot read the saved cache", errno);
    done += static_cast<std::size_t>(got);
  }
  return seconds_now() - start;
}

// The default preset: what somebody has who names none.
constexpr const char* kPreset = "codes";

// Base renditions of everything fit.
const std::vector<std::string> kSettings = {"host.abstracts_bytes=1GiB"};

// A codebook, and abstracts of everything that is stored, as a view before the restart leaves them.
Result<void> leave_abstracts(const Context& context, const SessionStore& store,
                             const char* preset) {
  const Shape shape;
  KVT_TRY(OwnDaemon daemon, OwnDaemon::start(context, store.path, kSettings));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, open_sequence(space.get(), "session", false));
  KVT_TRY(const ViewPtr view, open_view(sequence.get(), 1024, preset));
  KVT_TRY_VOID(attend_step(view.get(), shape));
  return {};
}

Result<double> resume(const Context& context, const SessionStore& store, bool* cold) {
  const Shape shape;
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store.path, {}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  drop_page_cache(cold);
  const double start = seconds_now();
  KVT_TRY(const SequencePtr sequence, open_sequence(space.get(), "session", false));
  KVT_TRY(const ViewPtr view, open_view(sequence.get(), 1024, kPreset));
  KVT_TRY_VOID(attend_step(view.get(), shape));
  const double seconds = seconds_now() - start;
  KVT_TRY(const Json stats, daemon_stats(client.get()));
  if (stats["abstracts"]["rebuilt"] != 0)
    return error(Code::kMiss, "codes were built again instead of read");
  return seconds;
}

Result<std::uint64_t> disk_bytes(kvt_client* client) {
  KVT_TRY(const Json stats, daemon_stats(client));
  return stats["disk"]["read_bytes"].get<std::uint64_t>();
}

// What the daemon reads from attach to the end of the first step, over K and V at 16 bit.
Result<Figure> read_by_resume(const Context& context, const SessionStore& store,
                              const std::string& length, const char* preset) {
  const Shape shape;
  KVT_TRY_VOID(leave_abstracts(context, store, preset));
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store.path, kSettings));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const std::uint64_t before, disk_bytes(client.get()));
  KVT_TRY(const SequencePtr sequence, open_sequence(space.get(), "session", false));
  KVT_TRY(const ViewPtr view, open_view(sequence.get(), 1024, preset));
  KVT_TRY_VOID(attend_step(view.get(), shape));
  KVT_TRY(const std::uint64_t after, disk_bytes(client.get()));
  KVT_TRY(const Json stats, daemon_stats(client.get()));
  if (stats["abstracts"]["rebuilt"] != 0)
    return error(Code::kMiss, "abstracts were built again instead of read");
  Figure figure;
  figure.metric = "read by a resume of " + length + ", cold, `" + preset + "`";
  figure.unit = "MB";
  figure.value = static_cast<double>(after - before) / 1e6;
  figure.ceiling = static_cast<double>(store.bytes) / 1e6;
  figure.ceiling_name = "MB, keys and values at 16 bit";
  figure.ratio = figure.ratio_min = figure.ratio_max = figure.value / figure.ceiling;
  figure.n = 1;
  char text[96];
  std::snprintf(text, sizeof text, "stored: segments %.4g MB, sidecars %.4g MB",
                stats["disk"]["segment_bytes"].get<double>() / 1e6,
                stats["disk"]["sidecar_bytes"].get<double>() / 1e6);
  figure.note = text;
  return figure;
}

// What a step over the whole cache in memory takes through us: for where torch is not there.
Result<double> full_step(const Context& context, const SessionStore& store) {
  const Shape shape;
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store.path, {}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, open_sequence(space.get(), "session", false));
  KVT_TRY(const ViewPtr view, open_view(sequence.get(), 0));
  KVT_TRY_VOID(attend_step(view.get(), shape));
  return attend_step(view.get(), shape);
}

}  // namespace

Result<void> bench_resume(const Context& context, std::vector<Figure>* figures) {
  const std::uint64_t tokens = context.smoke() ? 4096 : 65536;
  KVT_TRY(const SessionStore store, session_store(context, Shape{}, tokens));
  KVT_TRY_VOID(leave_abstracts(context, store, kPreset));
  bool cold = true;
  const auto ours = [&] { return resume(context, store, &cold); };
  Figure figure;
  // Smoke has no time for torch to load.
  Result<Peer> peer = Peer::start(context.smoke() ? "" : context.python_path);
  const std::string length = std::to_string(tokens / 1024) + "k tokens to first step";
  const std::string metric = "resume of " + length + ", cold";
  if (peer) {
    KVT_TRY_VOID(peer->ask("save " + context.directory + " " + std::to_string(tokens)));
    const auto load = [&](const char* word) {
      return [&, word] {
        drop_page_cache(&cold);
        return peer->ask(std::string(word) + " " + context.directory);
      };
    };
    KVT_TRY(const auto columns,
            interleave(context.rounds(3, 7), {ours, load("torch"), load("safetensors")}));
    const bool torch = median(columns[1]) < median(columns[2]);
    figure = compare(metric, columns[0], columns[torch ? 1 : 2]);
    figure.ceiling_name = torch ? "s torch.load + 1 step" : "s safetensors + 1 step";
    char text[96];
    std::snprintf(text, sizeof text, "torch.load + 1 step %.3g s, safetensors + 1 step %.3g s",
                  median(columns[1]), median(columns[2]));
    figure.note = text;
  } else {
    const std::string saved = context.directory + "/saved";
    KVT_TRY_VOID(make_random_file(saved, store.bytes));
    std::vector<std::byte> memory(store.bytes);
    KVT_TRY(const double step, full_step(context, store));
    const auto theirs = [&]() -> Result<double> {
      KVT_TRY(const double seconds, load_file(saved, &memory, &cold));
      return seconds + step;
    };
    KVT_TRY(const auto columns, interleave(context.rounds(3, 7), {ours, theirs}));
    figure = compare(metric, columns[0], columns[1]);
    figure.ceiling_name = "s read(2) of all + 1 step";
    figure.note = context.smoke() ? "" : peer.error().message();
  }
  figure.unit = "s";
  figure.goal = 0.10;
  judge_cold(&figure, cold);
  figures->push_back(figure);
  for (const char* preset : {kPreset, "progressive", "full"}) {
    KVT_TRY(const Figure read, read_by_resume(context, store, length, preset));
    figures->push_back(read);
  }
  return {};
}

}  // namespace kvtier::bench
