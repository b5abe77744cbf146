// A whole session read from disk into host memory, checksums on, against fio's sequential rate.
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {

Result<void> bench_restore(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const SessionStore store,
          session_store(context, Shape{}, context.smoke() ? 4096 : 65536));
  const std::string file = context.directory + "/sequential";
  KVT_TRY_VOID(make_random_file(file, store.bytes));
  FioJob job;
  job.path = file;
  job.sequential = true;
  job.block_bytes = 1 << 20;
  job.bytes = store.bytes;
  bool cold = true;
  const auto ours = [&]() -> Result<double> {
    KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store.path, {}));
    KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
    drop_page_cache(&cold);
    char* reply = nullptr;
    const double start = seconds_now();
    KVT_TRY_VOID(check(kvt_client_request(
        client.get(), R"({"op":"warm","target":"session","priority":"prefetch"})", &reply)));
    const double seconds = seconds_now() - start;
    const Result<Json> warmed = parse_json(reply);
    kvt_free(reply);
    if (!warmed) return error(warmed.error());
    KVT_TRY(const std::uint64_t unreadable, json_uint(*warmed, "chunks_unreadable", 1));
    KVT_TRY(const std::uint64_t read, json_uint(*warmed, "bytes_read", 0));
    if (unreadable != 0 || read < store.bytes)
      return error(Code::kInternal, "not all of the session was read from disk");
    return static_cast<double>(store.bytes) / seconds;
  };
  const Measure fio = [&] { return run_fio(job); };
  KVT_TRY(const auto columns, interleave(context.rounds(5, 9), {ours, fio, fio}));
  Figure figure = compare("full restore of a session", columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s fio sequential";
  figure.goal = 0.9;
  figure.better = Better::kHigher;
  figure.note = "checksums on; fio against itself: " + spread(columns[2], columns[1]);
  judge_cold(&figure, cold);
  figures->push_back(figure);
  figures->push_back(noise_floor("sequential", columns[2], columns[1]));
  return {};
}

}  // namespace kvtier::bench
