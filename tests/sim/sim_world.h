// SimWorld: a whole engine in one thread: virtual clock, simulated disk under segments, logs and
// RocksDB alike, workers that run when the seed says so. crash() is a power cut; start() afterwards
// is what a new daemon finds.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/executor.h"
#include "base/mailbox.h"
#include "base/random.h"
#include "daemon/engine.h"
#include "tiers/sim_disk.h"

namespace kvtier::sim {

struct SimWorldOptions {
  std::uint64_t seed = 1;
  std::uint64_t host_bytes = 8ull << 20;
  std::uint64_t abstracts_bytes = 4ull << 20;
  std::uint64_t disk_bytes_max = 1ull << 30;
  std::uint32_t scrub_mb_per_s = 0;
  std::uint64_t io_bytes_in_flight_max = 8ull << 20;
  SimDiskOptions disk;
};

class SimWorld {
 public:
  explicit SimWorld(const SimWorldOptions& options);
  ~SimWorld();

  // Opens the catalogue and recovers an engine.
  [[nodiscard]] Result<void> start();
  // From the next start() on the engine's Io is what this makes of the simulated one.
  void wrap_io(std::function<std::unique_ptr<Io>(std::unique_ptr<Io>)> wrap) {
    wrap_io_ = std::move(wrap);
  }
  [[nodiscard]] bool running() const noexcept { return engine_ != nullptr; }
  // Power cut: everything in flight is lost, and what the disk's seed says of what was not synced.
  void crash();
  // The daemon dies without a power cut (kill -9): the disk keeps what was written.
  void kill();

  // One turn: the engine, or a waiting job, or time passes. False where nothing is left to do.
  bool turn();
  // Turns until `done` says so; false after too many.
  bool run_until(const std::function<bool()>& done);
  void settle();
  // Jobs that wait now are not run before let_jobs_go(); those that come later are.
  void hold_jobs() { held_jobs_ = workers_->waiting(); }
  void let_jobs_go() { held_jobs_ = 0; }

  [[nodiscard]] Engine& engine() { return *engine_; }
  [[nodiscard]] SimDisk& disk() { return disk_; }
  [[nodiscard]] VirtualClock& clock() { return clock_; }
  [[nodiscard]] Random& random() { return random_; }
  // Counts the daemons that were started: handles of an older one are dead.
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }

 private:
  void drop();

  SimWorldOptions options_;
  Random random_, engine_random_;
  VirtualClock clock_;
  SimDisk disk_;
  std::unique_ptr<Mailbox> mailbox_;
  std::function<std::unique_ptr<Io>(std::unique_ptr<Io>)> wrap_io_;
  std::unique_ptr<Io> io_;
  std::unique_ptr<Catalogue> catalogue_;
  std::unique_ptr<InlineExecutor> workers_, catalogue_worker_;
  std::unique_ptr<Engine> engine_;
  std::uint64_t epoch_ = 0;
  std::size_t held_jobs_ = 0;  // the first ones
};

}  // namespace kvtier::sim
