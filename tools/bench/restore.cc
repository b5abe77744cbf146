// Coming back: a whole session read into host memory against fio's sequential rate; and a 64k-token
// sequence to its first decode step at budget 1,024 against loading the saved whole cache plus a
// step.
#include <fcntl.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

const std::vector<std::string> kSettings = {"host.arena_bytes=2GiB", "daemon.admission=false"};

// A committed sequence of `tokens` tokens in `store`, and no daemon.
Result<std::uint64_t> make_store(const Context& context, const std::string& store,
                                 std::uint64_t tokens) {
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store, {"host.arena_bytes=512MiB"}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), KVT_DTYPE_F16));
  KVT_TRY(const SequencePtr sequence, create_sequence(space.get(), "session"));
  Writer writer(KVT_DTYPE_F16);
  KVT_TRY_VOID(writer.append(sequence.get(), tokens));
  KVT_TRY_VOID(check(kvt_sequence_commit(sequence.get())));
  return tokens * writer.token_bytes();
}

Result<SequencePtr> open_session(kvt_space* space) {
  kvt_sequence* sequence = nullptr;
  KVT_TRY_VOID(check(kvt_sequence_open(space, "session", 0, 0, &sequence)));
  return SequencePtr(sequence);
}

// Reads a whole file into memory with ordinary reads: what loading a saved cache is at the least.
Result<double> load_file(const std::string& path, std::vector<std::byte>* memory) {
  drop_page_cache();
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

// One decode step of attention over all layers.
Result<double> step(kvt_view* view) {
  std::vector<float> q(kQueryHeads * kDim, 0.05f), out(q.size());
  const double start = seconds_now();
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = 0.01f * static_cast<float>((i * 31 + layer * 17) % 23) - 0.1f;
    KVT_TRY_VOID(check(kvt_view_attend(view, layer, 1, q.data(), 0.125f, out.data(), nullptr)));
  }
  return seconds_now() - start;
}

Result<ViewPtr> open_view(kvt_sequence* sequence, std::uint64_t budget) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = budget;
  kvt_view* view = nullptr;
  KVT_TRY_VOID(check(kvt_view_open(sequence, &options, &view)));
  return ViewPtr(view);
}

}  // namespace

Result<void> bench_restore(const Context& context, std::vector<Figure>* figures) {
  const std::string store = context.directory + "/restore";
  KVT_TRY(const std::uint64_t bytes, make_store(context, store, context.smoke() ? 4096 : 32768));
  const std::string peer = context.directory + "/sequential";
  KVT_TRY_VOID(make_random_file(peer, context.smoke() ? 128ull << 20 : 1ull << 30));
  FioJob job{peer, true, 1 << 20, 16, context.smoke() ? 0.5 : 2.0};
  const auto ours = [&]() -> Result<double> {
    KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store, kSettings));
    KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
    drop_page_cache();
    const double start = seconds_now();
    char* reply = nullptr;
    KVT_TRY_VOID(check(kvt_client_request(
        client.get(), R"({"op":"warm","target":"session","priority":"prefetch"})", &reply)));
    const double seconds = seconds_now() - start;
    kvt_free(reply);
    return static_cast<double>(bytes) / seconds;
  };
  KVT_TRY(const Pairs pairs, interleave(context.pairs(5), ours, [&] { return run_fio(job); }));
  figures->push_back({"full restore of a session", median(pairs.ours) / 1e9, "GB/s",
                      median(pairs.theirs) / 1e9, "GB/s fio sequential", 0.9, Better::kHigher,
                      pairs.ours.size(), "checksums on"});
  return {};
}

Result<void> bench_resume(const Context& context, std::vector<Figure>* figures) {
  const std::string store = context.directory + "/resume";
  const std::uint64_t tokens = context.smoke() ? 6144 : 65536;
  KVT_TRY(const std::uint64_t bytes, make_store(context, store, tokens));
  const std::string saved = context.directory + "/saved";
  KVT_TRY_VOID(make_random_file(saved, bytes));
  std::vector<std::byte> memory(bytes);
  double full_step = 0;
  const auto ours = [&]() -> Result<double> {
    KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store, kSettings));
    KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
    KVT_TRY(const SpacePtr space, open_space(client.get(), KVT_DTYPE_F16));
    drop_page_cache();
    const double start = seconds_now();
    KVT_TRY(const SequencePtr sequence, open_session(space.get()));
    KVT_TRY(const ViewPtr view, open_view(sequence.get(), 1024));
    KVT_TRY_VOID(step(view.get()));
    const double seconds = seconds_now() - start;
    if (full_step == 0) {  // once: what a step over the whole cache in memory takes
      KVT_TRY(const ViewPtr all, open_view(sequence.get(), 0));
      KVT_TRY_VOID(step(all.get()));
      KVT_TRY(full_step, step(all.get()));
    }
    return seconds;
  };
  const auto theirs = [&]() -> Result<double> {
    KVT_TRY(const double seconds, load_file(saved, &memory));
    return seconds + full_step;
  };
  KVT_TRY(const Pairs pairs, interleave(context.pairs(5), ours, theirs));
  figures->push_back({"resume of " + std::to_string(tokens / 1024) + "k tokens to first step, cold",
                      median(pairs.ours), "s", median(pairs.theirs), "s load all + 1 step", 0.10,
                      Better::kLower, pairs.ours.size(), "attention part of a step"});
  return {};
}

Result<void> bench_decode(const Context& context, std::vector<Figure>* figures) {
  const std::string store = context.directory + "/decode";
  KVT_TRY_VOID(make_store(context, store, context.smoke() ? 4096 : 7168));
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store, kSettings));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), KVT_DTYPE_F16));
  KVT_TRY(const SequencePtr sequence, open_session(space.get()));
  KVT_TRY(const ViewPtr budget, open_view(sequence.get(), 1024));
  KVT_TRY(const ViewPtr all, open_view(sequence.get(), 0));
  KVT_TRY_VOID(step(budget.get()));
  KVT_TRY_VOID(step(all.get()));
  const auto ms = [](Result<double> seconds) -> Result<double> {
    KVT_TRY(const double value, std::move(seconds));
    return value * 1e3;
  };
  KVT_TRY(const Pairs pairs, interleave(
                                 context.pairs(9), [&] { return ms(step(budget.get())); },
                                 [&] { return ms(step(all.get())); }));
  figures->push_back({"decode step, budget 1,024", median(pairs.ours), "ms", median(pairs.theirs),
                      "ms budget = all", 0, Better::kLower, pairs.ours.size(),
                      "attention of 30 layers, everything in host memory"});
  return {};
}

}  // namespace kvtier::bench
