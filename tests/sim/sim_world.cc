#include "tests/sim/sim_world.h"

#include "tiers/catalogue_env_sim.h"

namespace kvtier::sim {

namespace {
constexpr std::uint64_t kTurnsMax = 2'000'000;
constexpr std::uint64_t kTickNs = 20'000;
}  // namespace

SimWorld::SimWorld(const SimWorldOptions& options)
    : options_(options),
      random_(options.seed),
      engine_random_(options.seed ^ 0x5DEECE66Dull),
      disk_([&] {
        SimDiskOptions disk = options.disk;
        disk.seed = options.seed;
        return disk;
      }()) {
  static_cast<void>(disk_.make_directory("."));
}

SimWorld::~SimWorld() { drop(); }

Result<void> SimWorld::start() {
  drop();
  ++epoch_;
  mailbox_ = std::make_unique<Mailbox>(false);
  io_ = make_sim_io(disk_, clock_);
  if (wrap_io_) io_ = wrap_io_(std::move(io_));
  workers_ = std::make_unique<InlineExecutor>();
  catalogue_worker_ = std::make_unique<InlineExecutor>();
  CatalogueOptions catalogue;
  catalogue.path = "catalogue";
  catalogue.env = make_sim_catalogue_env(disk_, clock_);
  KVT_TRY(catalogue_, Catalogue::open(catalogue));
  EngineWorld world;
  world.clock = &clock_;
  world.io = io_.get();
  world.worker_io = [this]() -> Result<std::unique_ptr<Io>> { return make_sim_io(disk_, clock_); };
  world.catalogue = catalogue_.get();
  world.workers = workers_.get();
  world.catalogue_worker = catalogue_worker_.get();
  world.mailbox = mailbox_.get();
  world.random = &engine_random_;
  DaemonOptions options;
  options.store_path = ".";
  options.host_bytes = options_.host_bytes;
  options.abstracts_bytes = options_.abstracts_bytes;
  options.disk_bytes_max = options_.disk_bytes_max;
  options.scrub_mb_per_s = options_.scrub_mb_per_s;
  options.io_bytes_in_flight_max = options_.io_bytes_in_flight_max;
  options.huge_pages = false;
  options.kernels = "scalar";
  KVT_TRY(engine_, Engine::make(options, world));
  return engine_->recover();
}

void SimWorld::drop() {
  held_jobs_ = 0;
  engine_.reset();
  if (workers_ != nullptr) workers_->drop_all();
  if (catalogue_worker_ != nullptr) catalogue_worker_->drop_all();
  if (mailbox_ != nullptr) mailbox_->drop_all();
  catalogue_.reset();
  io_.reset();
}

void SimWorld::crash() {
  // The cut comes first: what is torn down afterwards must not reach the disk any more.
  disk_.crash();
  drop();
}

void SimWorld::kill() { drop(); }

bool SimWorld::turn() {
  const std::size_t jobs = workers_->waiting() - held_jobs_, batches = catalogue_worker_->waiting();
  const std::uint64_t choice = random_.below(4);
  bool did = false;
  if (choice == 0 && jobs > 0)
    did = workers_->run_one(held_jobs_ + static_cast<std::size_t>(random_.below(jobs)));
  if (choice == 1 && batches > 0) did = catalogue_worker_->run_one();
  if (choice == 2 && io_->in_flight() > 0) {
    clock_.advance_ns(random_.below(kTickNs));
    did = true;
  }
  const bool worked = engine_->step() > 0;
  return worked || did || jobs > 0 || batches > 0 || io_->in_flight() > 0;
}

bool SimWorld::run_until(const std::function<bool()>& done) {
  for (std::uint64_t turns = 0; turns < kTurnsMax; ++turns) {
    if (done()) return true;
    if (!turn() && done()) return true;
  }
  return false;
}

void SimWorld::settle() {
  for (int idle = 0; idle < 3;) idle = turn() ? 0 : idle + 1;
}

}  // namespace kvtier::sim
