// SimDisk: a disk in memory with a file system on it that loses what was not synced. For tests and
// the simulation.
//
// Fault model at a power cut (crash()): of the writes to a file since its last sync, each is kept,
// lost, torn at a 512-byte boundary, or (rarely) lands at another 4096-byte place of the same file
// that was also unsynced; order does not count. Names created, renamed or unlinked since the
// directory's last sync are kept or lost one by one (in order for one name). Synced data survives,
// unless bit rot is asked for. A sync that fails leaves what a power cut would, readers go on
// seeing what they saw, and no later sync brings it to the disk: as Linux does with its page cache,
// which files that are opened for direct I/O go past. All choices come from one seed. One thread.
// SimIo is the Io over it (tiers/io.h); RocksDB runs on the same disk by catalogue_env_sim.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "tiers/io.h"

namespace kvtier {

// What became of the sync that SimDisk::skip_sync() named.
enum class SkippedSync : std::uint8_t {
  kNone,     // it has not come
  kIdle,     // there was nothing to make durable
  kCovered,  // a later one of the same file or directory did its work
  kMissing,  // what it was for is not durable
};

struct SimDiskOptions {
  std::uint64_t seed = 1;
  std::uint64_t capacity_bytes = 4ull << 30;
  std::uint32_t read_error_one_in = 0;  // 0: never
  std::uint32_t write_error_one_in = 0;
  std::uint32_t latency_ns_max =
      200'000;  // of one SimIo operation, uniform from 0, on the virtual clock
};

class SimDisk {
 public:
  explicit SimDisk(SimDiskOptions options);
  ~SimDisk();

  // ---- files by path; directories are prefixes that were made ----
  [[nodiscard]] Result<void> create(std::string_view path, bool must_be_new);
  [[nodiscard]] bool exists(std::string_view path) const;
  [[nodiscard]] Result<std::uint64_t> size_bytes(std::string_view path) const;
  [[nodiscard]] Result<void> read(std::string_view path, std::uint64_t offset,
                                  MutableByteSpan target,
                                  std::uint64_t* got) const;  // short at the end of the file
  [[nodiscard]] Result<void> write(std::string_view path, std::uint64_t offset, ByteSpan source);
  [[nodiscard]] Result<void> resize(std::string_view path, std::uint64_t size_bytes);
  [[nodiscard]] Result<void> sync(std::string_view path);
  [[nodiscard]] Result<void> make_directory(std::string_view path);
  [[nodiscard]] Result<void> sync_directory(std::string_view path);
  [[nodiscard]] Result<std::vector<std::string>> list(std::string_view directory) const;
  [[nodiscard]] Result<void> rename(std::string_view from, std::string_view to);
  [[nodiscard]] Result<void> unlink(std::string_view path);
  [[nodiscard]] std::uint64_t used_bytes() const;
  [[nodiscard]] std::uint64_t free_bytes() const;

  // ---- what tests do to it ----
  // Power cut: afterwards only what survived is there and counts as synced. An Io made before fails
  // from then on.
  void crash();
  // Flips one bit of a synced byte of `path`.
  void rot(std::string_view path, std::uint64_t offset, std::uint32_t bit);
  void set_capacity_bytes(std::uint64_t capacity_bytes);
  void set_error_rates(std::uint32_t read_one_in, std::uint32_t write_one_in);
  // Mutation tests: the n-th sync from now (0: the next; files' and directories' alike) does
  // nothing but say it did. UINT64_MAX: none.
  void skip_sync(std::uint64_t nth);
  [[nodiscard]] SkippedSync skipped_sync() const;
  [[nodiscard]] std::uint64_t syncs() const;
  // Crashes so far: what was open before one must not touch the disk after it.
  [[nodiscard]] std::uint64_t power_cuts() const;

  struct State;  // sim_disk_state.h

 private:
  std::unique_ptr<State> state_;
  friend class SimIo;
};

// Completions come in a seeded order when the virtual clock has passed their time.
[[nodiscard]] std::unique_ptr<Io> make_sim_io(SimDisk& disk, VirtualClock& clock);

}  // namespace kvtier
