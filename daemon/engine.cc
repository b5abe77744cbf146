#include "daemon/engine.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/expiry.h"
#include "daemon/recovery.h"
#include "daemon/ring_server.h"
#include "kernels/registry.h"

namespace kvtier {

struct Engine::State : EngineState {};

Engine::Engine() = default;

Engine::~Engine() {
  // Sessions name sequences, and sequences segments: closed in that order.
  if (state_ == nullptr) return;
  state_->draining = true;
  while (!state_->sessions.empty()) close_engine_session(*state_, state_->sessions.begin()->first);
}

Result<std::unique_ptr<Engine>> Engine::make(const DaemonOptions& options, EngineWorld world) {
  KVT_CHECK(world.clock != nullptr && world.io != nullptr && world.worker_io != nullptr &&
            world.catalogue != nullptr && world.workers != nullptr &&
            world.catalogue_worker != nullptr && world.mailbox != nullptr &&
            world.random != nullptr);
  std::unique_ptr<Engine> engine(new Engine);
  engine->state_ = std::make_unique<State>();
  EngineState& state = *engine->state_;
  state.options = options;
  state.world = world;
  KVT_TRY(state.kernels, select_kernels(options.kernels));
  KVT_TRY(std::unique_ptr<HostArena> arena,
          HostArena::make(
              {.size_bytes = options.host_bytes,
               .huge_pages = options.huge_pages,
               .probation_percent = options.probation_percent},
              [&state](SlotOwner owner, SlotId slot) { chunk_evicted(state, owner, slot); }));
  state.arena = std::move(arena);
  KVT_TRY(state.abstracts, AbstractArena::make(options.abstracts_bytes));
  IoSchedulerOptions scheduler;
  scheduler.bytes_in_flight_max = options.io_bytes_in_flight_max;
  scheduler.bulk_bytes_in_flight_max = std::max(options.io_bytes_in_flight_max / 2, kReadBytesMax);
  state.io = std::make_unique<IoScheduler>(*world.io, scheduler);
  world.io->register_memory(state.arena->base(), state.arena->size_bytes());
  return engine;
}

Result<void> Engine::recover() { return recover_engine(*state_); }

Result<SessionId> Engine::open_session(const std::string& name, std::uint32_t pid, bool data,
                                       std::function<void()> broken) {
  const Result<SessionId> opened = open_engine_session(*state_, name, pid, data);
  if (opened) find_session(*state_, *opened)->on_broken = std::move(broken);
  return opened;
}

SessionFds Engine::session_fds(SessionId id) const {
  SessionFds fds;
  const Session* session = find_session(*state_, id);
  if (session == nullptr || !session->data) return fds;
  fds.control = session->control.fd.get();
  fds.arena = state_->arena->fd();
  fds.abstracts = state_->abstracts->fd();
  fds.daemon_bell = session->daemon_bell.get();
  fds.client_bell = session->client_bell.get();
  return fds;
}

void Engine::close_session(SessionId session) { close_engine_session(*state_, session); }

namespace {

void remove_nulls(Json* body) {
  Json kept = Json::object();
  for (auto& [key, value] : body->items()) {
    if (!value.is_null()) kept[key] = std::move(value);
  }
  *body = std::move(kept);
}

}  // namespace

void Engine::control(SessionId id, ControlRequest request, ControlDone done) {
  EngineState& state = *state_;
  Session* session = find_session(state, id);
  if (session == nullptr) return done(error(Code::kStale, "no such session"));
  if (!request.body.is_object()) return done(error(Code::kProtocol, "a request is a JSON object"));
  remove_nulls(&request.body);
  const Result<std::string> name = json_string(request.body, "op", "", 64);
  if (!name) return done(error(name.error()));
  const ControlOp* op = find_control_op(*name);
  if (op == nullptr)
    return done(
        error(Code::kUnsupported, "no such operation: is the daemon older than the client?"));
  if (op->data_only && !session->data)
    return done(error(Code::kInvalid, "this operation needs a connection with data: true"));
  op->run(state, *session, std::move(request), std::move(done));
}

namespace {

bool idle(const EngineState& state) {
  if (state.batches_outstanding != 0 || state.jobs_outstanding != 0 || state.io->outstanding() != 0)
    return false;
  return std::none_of(state.sequences.all.begin(), state.sequences.all.end(),
                      [](const auto& entry) { return entry.second->working; });
}

}  // namespace

std::size_t Engine::step() {
  EngineState& state = *state_;
  std::size_t work = serve_rings(state);
  flush_completions(state);  // what was in memory is answered before anything else is looked at
  work += state.world.mailbox->drain();
  work += state.io->poll();
  work += run_timers(state);
  if (!state.segments.condemned.empty()) sweep_condemned(state);
  flush_completions(state);
  if (state.draining && state.drained && work == 0 && idle(state)) {
    const std::function<void()> drained = std::move(state.drained);
    state.drained = nullptr;
    drained();
  }
  return work;
}

bool Engine::rings_stamped() const { return any_ring_stamped(*state_); }
bool Engine::prepare_sleep() { return prepare_ring_sleep(*state_); }
void Engine::woke() { end_ring_sleep(*state_); }

std::vector<int> Engine::wait_fds() const {
  std::vector<int> fds;
  const auto add = [&fds](int fd) {
    if (fd >= 0) fds.push_back(fd);
  };
  add(state_->world.mailbox->event_fd());
  add(state_->world.io->event_fd());
  for (const auto& [id, session] : state_->sessions) {
    if (session->data && !session->broken) add(session->daemon_bell.get());
  }
  return fds;
}

std::uint64_t Engine::next_timer_ns() const { return next_timer(*state_); }

void Engine::drain(std::function<void()> done) {
  update_write_budget(*state_);
  store_write_budget(*state_);
  state_->draining = true;
  state_->drained = std::move(done);
}

bool Engine::stop_requested() const { return state_->stop_requested; }
EngineState& Engine::state() { return *state_; }

void run_on_worker(EngineState& engine, std::function<void()> job, std::function<void()> done) {
  ++engine.jobs_outstanding;
  Mailbox* mailbox = engine.world.mailbox;
  engine.world.workers->post(
      [&engine, mailbox, job = std::move(job), done = std::move(done)]() mutable {
        job();
        job = nullptr;
        mailbox->post([&engine, done = std::move(done)] {
          --engine.jobs_outstanding;
          done();
        });
      });
}

void sync_directory(EngineState& engine, const char* directory, IoPriority priority,
                    std::function<void(Result<void>)> done) {
  IoRequest sync;
  sync.op = IoOp::kSyncDirectory;
  sync.priority = priority;
  sync.directory = directory;
  sync.done = std::move(done);
  engine.io->submit(std::move(sync));
}

void post_batch(EngineState& engine, CatalogueBatch batch, bool sync,
                std::function<void(Result<void>)> done) {
  if (sync) add_write_budget(engine, &batch);
  ++engine.batches_outstanding;
  ++engine.metrics.catalogue_batches;
  Mailbox* mailbox = engine.world.mailbox;
  Catalogue* catalogue = engine.world.catalogue;
  auto shared = std::make_shared<CatalogueBatch>(std::move(batch));
  engine.world.catalogue_worker->post(
      [&engine, mailbox, catalogue, shared, sync, done = std::move(done)]() mutable {
        const Result<void> result = catalogue->write(std::move(*shared), sync);
        mailbox->post([&engine, result, done = std::move(done)] {
          --engine.batches_outstanding;
          if (!result) {
            ++engine.metrics.catalogue_failures;
            engine.read_only = true;  // until expiry.cc has opened it again
            KVT_LOG(kError, "catalogue: a batch failed: %s", result.error().message());
          }
          done(result);
        });
      });
}

}  // namespace kvtier
