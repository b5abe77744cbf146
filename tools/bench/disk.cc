// Random 256 KiB reads at queue depth 16 through our disk layer (scheduler, back end, registered
// memory) against fio on the same file; and fio against fio in the same rounds, which is the noise
// of this disk.
#include "base/random.h"
#include "base/unique_fd.h"
#include "tiers/io_scheduler.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

constexpr std::uint64_t kBlock = 256 * 1024;
constexpr std::uint32_t kDepth = 16;

struct Reader {
  std::unique_ptr<Io> io;
  std::unique_ptr<IoScheduler> scheduler;
  Memfd memory;
  FileId file;
  std::uint64_t blocks = 0;
};

Result<Reader> make_reader(const Context& context, const char* name) {
  Reader reader;
  IoOptions options;
  options.root = context.directory;
  options.depth = 64;
  KVT_TRY(reader.io, make_io(options));
  KVT_TRY(reader.memory,
          make_memfd("bench-disk", kBlock * kDepth, MemfdAccess::kSharedWrite, true));
  reader.io->register_memory(reader.memory.mapping.data(), reader.memory.mapping.size_bytes());
  IoSchedulerOptions scheduler_options;
  scheduler_options.bytes_in_flight_max = kBlock * kDepth;
  reader.scheduler = std::make_unique<IoScheduler>(*reader.io, scheduler_options);
  KVT_TRY(reader.file, reader.io->open(name, {OpenMode::kRead, true}));
  KVT_TRY(const std::uint64_t bytes, reader.io->size_bytes(reader.file));
  reader.blocks = bytes / kBlock;
  return reader;
}

// Bytes per second over `seconds`.
Result<double> read_rate(Reader& reader, double seconds, Random& random) {
  std::uint64_t done_bytes = 0;
  Status failure;
  const double start = seconds_now(), end = start + seconds;
  std::function<void(std::uint32_t)> next = [&](std::uint32_t slot) {
    if (seconds_now() >= end || !failure.ok()) return;
    IoRequest request;
    request.file = reader.file;
    request.offset = random.below(reader.blocks) * kBlock;
    request.pieces = {{reader.memory.mapping.data() + slot * kBlock, kBlock}};
    request.done = [&, slot](Result<void> result) {
      if (!result) {
        failure = result.error();
        return;
      }
      done_bytes += kBlock;
      next(slot);
    };
    reader.scheduler->submit(std::move(request));
  };
  for (std::uint32_t slot = 0; slot < kDepth; ++slot) next(slot);
  while (reader.scheduler->outstanding() > 0) reader.scheduler->poll();
  if (!failure.ok()) return error(failure);
  return static_cast<double>(done_bytes) / (seconds_now() - start);
}

}  // namespace

Result<void> bench_disk(const Context& context, std::vector<Figure>* figures) {
  const std::uint64_t bytes = context.smoke() ? 128ull << 20 : 1ull << 30;
  const double seconds = context.smoke() ? 0.5 : 2;
  const std::string path = context.directory + "/random";
  KVT_TRY_VOID(make_random_file(path, bytes));
  KVT_TRY(Reader reader, make_reader(context, "random"));
  Random random(7);
  FioJob job;
  job.path = path;
  job.seconds = seconds;
  const Measure fio = [&] { return run_fio(job); };
  KVT_TRY(const auto columns,
          interleave(context.rounds(5, 9),
                     {[&] { return read_rate(reader, seconds, random); }, fio, fio}));
  Figure figure = compare("disk fetch of 256 KiB at queue depth 16", columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s fio on the same file";
  figure.goal = 0.95;
  figure.better = Better::kHigher;
  figure.note = std::string("through ") + reader.io->name() +
                "; fio against itself: " + spread(columns[2], columns[1]);
  figures->push_back(figure);
  figures->push_back(noise_floor("random 256 KiB", columns[2], columns[1]));
  reader.io->close(reader.file);
  return {};
}

}  // namespace kvtier::bench
