#include "daemon/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <future>
#include <random>
#include <thread>

#include "base/log.h"
#include "client/ipc/unix_socket.h"
#include "client/ipc/wait.h"
#include "daemon/admin.h"
#include "daemon/control_server.h"
#include "daemon/engine.h"
#include "daemon/engine_state.h"
#include "tiers/io.h"
#include "tiers/store_lock.h"
#include "tiers/store_rebuild.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kDrainDeadlineNs = 20'000'000'000;
constexpr std::uint32_t kStoreLockMs = 3000;
// Of a spinning engine, between two looks at everything else.
constexpr int kRingLooks = 16;

// Makes the store's directory (0700) where it is missing; one that is another user's or that others
// may enter is refused, and left as it is: it may be meant for something else.
Result<void> prepare_store(const std::string& path) {
  const std::filesystem::path directory = (std::filesystem::path(path) / "").parent_path();
  std::error_code failed;
  std::filesystem::create_directories(directory.parent_path(), failed);
  struct stat info {};
  if (!failed && ((::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) ||
                  ::stat(directory.c_str(), &info) != 0))
    failed.assign(errno, std::generic_category());
  if (!failed && !S_ISDIR(info.st_mode)) failed.assign(ENOTDIR, std::generic_category());
  if (failed)
    return error(Code::kIo, "cannot make the store's directory: check store.path", failed.value());
  if (info.st_uid != ::geteuid())
    return error(
        Code::kPermission,
        "the store's directory belongs to another user: set store.path to one of your own");
  if ((info.st_mode & 077) != 0)
    return error(Code::kPermission,
                 "others may enter the store's directory: chmod 700 it, or set store.path to an "
                 "empty directory of your own");
  return {};
}

// One daemon per store. One that ends gives its socket up before its store, so it is waited for;
// not where somebody serves our socket: then we are one too many.
Result<UniqueFd> lock_store(const ServerOptions& options) {
  const std::string& path = options.daemon.store_path;
  KVT_TRY_VOID(prepare_store(path));
  UniqueFd lock(::open((path + "/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid())
    return error(Code::kReadOnly,
                 "cannot write in the store's directory: check its owner and its mount", errno);
  const Deadline deadline = Deadline::after_ms(kStoreLockMs);
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    const bool served = options.listening_socket < 0 &&
                        connect_unix(options.daemon.socket_path, Deadline::after_ms(0));
    if (served || deadline.passed())
      return error(Code::kBusy, "another kvtierd serves this store: stop it, or set store.path");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  write_store_holder(lock.get(), options.listening_socket < 0 ? options.daemon.socket_path : "");
  return lock;
}

// What runs, and what is off and why: a setting that says so is no warning.
void log_modes(const EngineState& engine) {
  KVT_LOG(kInfo, "disk by %s, kernels %s, arena in pages of %s", engine.io->io().name(),
          engine.kernels->name, engine.arena->stats().pages);
  for (const Json& line : switched_off(engine)) {
    const std::string text = line.get<std::string>();
    const bool wanted =
        text.find(" is false") != std::string::npos || text.find(" is 0") != std::string::npos;
    if (wanted)
      KVT_LOG(kInfo, "off: %s", text.c_str());
    else if (text.find("disk: ") != 0)  // said above
      KVT_LOG(kWarn, "off: %s", text.c_str());
  }
}

std::uint64_t random_epoch() {
  std::random_device device;
  const std::uint64_t value =
      (static_cast<std::uint64_t>(device()) << 32 | device()) & ((1ull << 53) - 1);
  return value == 0 ? 1 : value;
}

}  // namespace

struct Server::State {
  ServerOptions options;
  RealClock clock;
  Mailbox mailbox{true};
  std::unique_ptr<Random> random;
  UniqueFd store_lock;
  std::unique_ptr<Io> io;                // engine thread
  std::unique_ptr<Catalogue> catalogue;  // engine thread makes it; the catalogue worker writes
  std::unique_ptr<ThreadPool> workers;
  std::unique_ptr<ThreadPool> catalogue_worker;
  std::unique_ptr<Engine> engine;  // engine thread
  std::unique_ptr<ControlServer> control;
  std::thread engine_thread, control_thread;
  bool drained = false;  // engine thread
  std::atomic<bool> stop_wanted{false}, abandoned{false};

  Result<void> open(UnixListener listener);
  void engine_main(std::promise<Result<void>>* ready, UnixListener listener);
  void loop();
  void sleep();
  void close();
};

Result<void> Server::State::open(UnixListener listener) {
  KVT_TRY(io, make_io({options.daemon.store_path, options.daemon.io_backend,
                       options.daemon.io_depth, 8}));
  if (!io->note().empty()) KVT_LOG(kWarn, "disk: %s: %s", io->name(), io->note().c_str());
  KVT_TRY_VOID(settle_catalogue(*io, options.daemon.store_path));
  CatalogueOptions catalogue_options;
  catalogue_options.path = options.daemon.store_path + "/catalogue";
  KVT_TRY(catalogue, Catalogue::open(catalogue_options));
  workers = std::make_unique<ThreadPool>(options.daemon.workers);
  catalogue_worker = std::make_unique<ThreadPool>(1);
  const std::uint64_t epoch = random_epoch();
  random = std::make_unique<Random>(epoch ^ clock.wall_ns());
  EngineWorld world;
  world.clock = &clock;
  world.io = io.get();
  world.worker_io = [root = options.daemon.store_path] {
    return make_io({.root = root, .backend = "threads", .threads = 1});
  };
  world.catalogue = catalogue.get();
  world.workers = workers.get();
  world.catalogue_worker = catalogue_worker.get();
  world.mailbox = &mailbox;
  world.random = random.get();
  world.epoch = epoch;
  world.started_ns = clock.now_ns();
  add_admin_ops();
  KVT_TRY(engine, Engine::make(options.daemon, world));
  KVT_TRY_VOID(engine->recover());
  log_modes(engine->state());
  ControlServerOptions control_options;
  control_options.epoch = epoch;
  control_options.leased_bytes_per_client_max = options.daemon.leased_bytes_per_client_max;
  if (options.handle_signals)
    control_options.on_terminate = [this] {
      stop_wanted = true;
      mailbox.post([] {});
    };
  control = std::make_unique<ControlServer>(*engine, mailbox, std::move(listener),
                                            std::move(control_options));
  control_thread = std::thread([this] { control->run(); });
  return {};
}

void Server::State::engine_main(std::promise<Result<void>>* ready, UnixListener listener) {
  const Result<void> opened = open(std::move(listener));
  const bool ok = opened.has_value();
  ready->set_value(opened);
  if (ok) loop();
  close();
}

void Server::State::loop() {
  AdaptiveSpin spin({options.daemon.spin_us == 0 ? SpinMode::kAuto : SpinMode::kAlways,
                     options.daemon.spin_us == 0 ? 50 : options.daemon.spin_us});
  bool draining = false;
  std::uint64_t drain_until_ns = UINT64_MAX;
  std::uint64_t last_work_ns = clock.now_ns();
  while (!drained && !abandoned) {
    if (!draining && (stop_wanted || engine->stop_requested())) {
      draining = true;
      drain_until_ns = clock.now_ns() + kDrainDeadlineNs;
      engine->drain([this] { drained = true; });  // perhaps in close()
    }
    const bool worked = engine->step() > 0;
    if (drained) break;
    if (worked) {
      if (spin.allowed()) last_work_ns = clock.now_ns();
      continue;
    }
    if (draining && clock.now_ns() > drain_until_ns) {
      KVT_LOG(kError, "stop: work did not finish in time; what was committed is safe");
      break;
    }
    if (spin.allowed() && clock.now_ns() - last_work_ns < spin.budget_ns()) {
      for (int i = 0; i < kRingLooks && !engine->rings_stamped(); ++i) AdaptiveSpin::relax();
      continue;
    }
    sleep();
  }
}

void Server::State::sleep() {
  if (engine->prepare_sleep()) {
    std::vector<pollfd> fds;
    for (const int fd : engine->wait_fds()) fds.push_back({fd, POLLIN, 0});
    const std::uint64_t now = clock.now_ns(), next = engine->next_timer_ns();
    int timeout_ms = 1000;
    if (next <= now)
      timeout_ms = 0;
    else if (next - now < 1'000'000'000ull)
      timeout_ms = static_cast<int>((next - now) / 1'000'000) + 1;
    ::poll(fds.data(), fds.size(), timeout_ms);
  }
  engine->woke();
}

void Server::State::close() {
  if (control != nullptr) {
    control->stop();
    control_thread.join();
  }
  // Jobs refer to the engine and the disk: they end first. What ends with them may post others: the
  // pools stay as long as the engine, and drop those.
  if (workers != nullptr) workers->stop();
  if (catalogue_worker != nullptr) catalogue_worker->stop();
  if (engine != nullptr && !abandoned)
    while (mailbox.drain() + engine->step() > 0) {
    }
  mailbox.drop_all();
  control.reset();
  engine.reset();
  workers.reset();
  catalogue_worker.reset();
  catalogue.reset();
  io.reset();
}

Server::Server() = default;

Result<std::unique_ptr<Server>> Server::start(const ServerOptions& options) {
  KVT_TRY_VOID(options.daemon.validate());
  std::unique_ptr<Server> server(new Server);
  server->state_ = std::make_unique<State>();
  State* state = server->state_.get();
  state->options = options;
  // First, as a start that fails here leaves the store's place as it was.
  if (options.listening_socket < 0) KVT_TRY_VOID(check_listening_place(options.daemon.socket_path));
  KVT_TRY(state->store_lock, lock_store(options));
  UnixListener listener;
  if (options.listening_socket >= 0)
    listener.socket = UniqueFd(options.listening_socket);
  else {
    KVT_TRY(listener, listen_unix(options.daemon.socket_path));
  }
  std::promise<Result<void>> ready;
  auto opened = ready.get_future();
  state->engine_thread =
      std::thread([state, &ready, moved = std::make_shared<UnixListener>(std::move(listener))] {
        state->engine_main(&ready, std::move(*moved));
      });
  const Result<void> result = opened.get();
  if (!result) return error(result.error());
  return server;
}

Server::~Server() {
  if (state_ == nullptr) return;
  stop();
  wait();
}

void Server::stop() {
  state_->stop_wanted = true;
  state_->mailbox.post([] {});
}

void Server::abandon() {
  state_->abandoned = true;
  state_->mailbox.post([] {});
  wait();
}

void Server::wait() {
  if (state_->engine_thread.joinable()) state_->engine_thread.join();
}

}  // namespace kvtier
