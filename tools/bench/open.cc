// A store of 5,000 segments and 160,000 blocks: time from start to the first answer, and the
// daemon's memory beside its arenas. The catalogue is real; the segment files are sparse, for
// opening must not read them.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "base/random.h"
#include "base/unique_fd.h"
#include "kernels/geometry.h"
#include "tiers/catalogue.h"
#include "tiers/segment_format.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

SpaceRow make_space() {
  SpaceRow space;
  Fingerprint fingerprint{"synthetic", "kvtier-bench", "", {}};
  LayerGeometry layer;
  layer.dtype = Dtype::kF16;
  layer.kv_heads = 3;
  layer.query_heads = 9;
  layer.k_row_bytes = layer.v_row_bytes = 128;
  fingerprint.geometry.layers.assign(30, layer);
  space.digest = fingerprint_digest(fingerprint);
  space.id = SpaceId{space.digest.low};
  space.model = fingerprint.model;
  space.runtime = fingerprint.runtime;
  space.geometry = fingerprint.geometry;
  return space;
}

Result<void> make_sparse(const std::string& path, std::uint64_t bytes) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return error(Code::kIo, "cannot make the benchmark's files", errno);
  return {};
}

constexpr std::uint32_t kChainSegments = 25;

// `chains` sequences of so many segments each.
Result<void> make_store(const std::string& store, std::uint32_t chains) {
  for (const char* folder : {"", "/segments", "/sidecars", "/logs", "/objects"})
    ::mkdir((store + folder).c_str(), 0700);
  CatalogueOptions options;
  options.path = store + "/catalogue";
  KVT_TRY(auto catalogue, Catalogue::open(options));
  Random random(1);
  const SpaceRow space = make_space();
  const std::uint64_t file_bytes = 48ull << 20;
  std::uint64_t next = 1;
  for (std::uint32_t chain = 0; chain < chains; ++chain) {
    CatalogueBatch batch;
    batch.put_space(space);
    batch.put_number("chain_key", 1);  // a catalogue without one counts as lost
    SequenceRow sequence;
    sequence.id = SequenceId{chain + 1};
    sequence.space = space.id;
    sequence.name = "document " + std::to_string(chain);
    SegmentId parent;
    for (std::uint32_t i = 0; i < kChainSegments; ++i) {
      SegmentRow row;
      row.id = SegmentId{next++};
      row.space = space.id;
      row.parent = parent;
      row.parent_visible = i == 0 ? 0 : 2048;
      row.start_token = 2048ull * i;
      row.tokens = 2048;
      row.file_bytes = file_bytes;
      for (int b = 0; b < 32; ++b) row.blocks.push_back({random.next(), random.next()});
      KVT_TRY_VOID(make_sparse(store + "/" + segment_path(row.id), file_bytes));
      sequence.parts.push_back({row.id, 2048});
      parent = row.id;
      batch.put_segment(row);
    }
    batch.put_sequence(sequence);
    KVT_TRY_VOID(catalogue->write(std::move(batch), chain + 1 == chains));
  }
  return {};
}

// Resident memory of a process that is not shared memory (arenas are).
std::uint64_t private_bytes(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::string word;
  std::uint64_t anonymous = 0, mapped = 0, value = 0;
  while (file >> word) {
    if (word == "RssAnon:" && file >> value) anonymous = value;
    if (word == "RssFile:" && file >> value) mapped = value;
  }
  return (anonymous + mapped) * 1024;
}

// The first answer of a daemon: how many segments it has. (Its socket takes connections before.)
Result<std::uint64_t> segments_served(const OwnDaemon& daemon) {
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const Json stats, daemon_stats(client.get()));
  return stats["damage"]["recovered_segments"].get<std::uint64_t>();
}

}  // namespace

Result<void> bench_open(const Context& context, std::vector<Figure>* figures) {
  const std::string store = context.directory + "/open";
  const std::uint32_t chains = context.smoke() ? 20 : 200;
  KVT_TRY_VOID(make_store(store, chains));
  std::vector<double> seconds, bytes;
  bool cold = true;
  for (std::size_t i = 0; i < context.rounds(5, 9); ++i) {
    drop_page_cache(&cold);
    const double start = seconds_now();
    KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store, {}));
    KVT_TRY(const std::uint64_t served, segments_served(daemon));
    seconds.push_back(seconds_now() - start);
    if (served != chains * kChainSegments)
      return error(Code::kInternal, "the daemon serves fewer segments than are stored");
    bytes.push_back(static_cast<double>(private_bytes(daemon.pid())) / 1e6);
  }
  const std::string what =
      context.smoke() ? "500 segments, 16,000 blocks" : "5,000 segments, 160,000 blocks";
  Figure open = bounded("open to serving, cold", seconds, 1);
  open.unit = "s";
  open.ceiling_name = "s";
  open.goal = 1;
  open.note = what + ", settings by default";
  judge_cold(&open, cold);
  figures->push_back(open);
  Figure memory = bounded("daemon's memory beside its arenas", bytes, 200);
  memory.unit = "MB";
  memory.ceiling_name = "MB";
  memory.goal = 1;
  memory.note = what;
  figures->push_back(memory);
  return {};
}

}  // namespace kvtier::bench
