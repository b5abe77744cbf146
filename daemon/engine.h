// Engine: the core of the daemon. Owns sessions, spaces, sequences, segments, leases, arenas, and
// every decision.
//
// One thread calls everything here. Clock, disk, catalogue, executor and randomness come from
// outside: kvtierd gives the real ones, the simulation virtual ones. Nothing blocks but recover()
// and the making and unlinking of names: work that takes long goes to the executor and answers
// through the mailbox, disk work through the Io; step() runs what has arrived. Everything that a
// client sends was copied before it comes here, and is checked here before it is used.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/json.h"
#include "base/mailbox.h"
#include "base/random.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "client/ipc/shm_layout.h"
#include "daemon/options.h"
#include "tiers/catalogue.h"
#include "tiers/io.h"

namespace kvtier {

using SessionId = Id<struct SessionTag>;

// What runs under the engine. All must outlive it.
struct EngineWorld {
  Clock* clock = nullptr;
  Io* io = nullptr;
  IoFactory worker_io;  // for workers, which block on the disk beside the engine: called by them
  Catalogue* catalogue = nullptr;
  Executor* workers = nullptr;           // copy, checksum, abstracts
  Executor* catalogue_worker = nullptr;  // catalogue batches, one after the other
  Mailbox* mailbox = nullptr;            // messages to the engine's thread
  Random* random = nullptr;
  std::uint64_t epoch = 0;       // of this run of the daemon, for `status`
  std::uint64_t started_ns = 0;  // on the clock
};

// One control request (docs/protocol.md), already parsed and bounded; the reply's callback is
// called exactly once, at once or from a later step().
struct ControlRequest {
  Json body;
  std::vector<std::byte> payload;
};
struct ControlReply {
  Json body;  // without "id" and "ok", which the control server adds
  std::vector<std::byte> payload;
  std::vector<int> fds;  // borrowed from the engine, valid inside the callback
};
using ControlDone = std::function<void(Result<ControlReply>)>;

struct SessionFds {
  int control = -1, arena = -1, abstracts = -1;
  int daemon_bell = -1;  // the client rings it; the engine's thread polls it
  int client_bell = -1;
};

struct EngineState;

class Engine {
 public:
  // Makes arenas. Does not touch the disk yet.
  [[nodiscard]] static Result<std::unique_ptr<Engine>> make(const DaemonOptions& options,
                                                            EngineWorld world);
  ~Engine();

  // Loads the catalogue, drops what was never published (files without rows, rows without files),
  // counts what is damaged. Blocks. Once, before anything else.
  [[nodiscard]] Result<void> recover();

  // A data session gets rings; an admin session does not. kTooLarge above kClientsMax.
  // `broken` is called, from step(), when the client's ring is beyond use: the connection must end.
  [[nodiscard]] Result<SessionId> open_session(const std::string& name, std::uint32_t pid,
                                               bool data, std::function<void()> broken = {});
  [[nodiscard]] SessionFds session_fds(SessionId session) const;
  // The socket closed: leases, sequences and waiting requests of the session are given up at once.
  // Memory that the disk still writes into is reused only when it has finished.
  void close_session(SessionId session);
  void control(SessionId session, ControlRequest request, ControlDone done);

  // One turn: rings of all data sessions, mailbox, disk completions, timers. The amount of work
  // done; 0 means: sleep until a descriptor of wait_fds() is readable or next_timer_ns() has come.
  std::size_t step();
  // True where the next entry of some ring is there. Cheap: for spinning between two turns.
  [[nodiscard]] bool rings_stamped() const;
  // Call before sleeping (sets the rings' sleep flags; false: something arrived, do not sleep) and
  // after waking.
  [[nodiscard]] bool prepare_sleep();
  void woke();
  [[nodiscard]] std::vector<int> wait_fds() const;    // mailbox, disk, doorbells
  [[nodiscard]] std::uint64_t next_timer_ns() const;  // UINT64_MAX: none

  // Seals what must be, finishes writes in flight, then calls `done` from a later step(). New work
  // is refused.
  void drain(std::function<void()> done);
  [[nodiscard]] bool stop_requested() const;  // an admin sent `stop`
  // The tables (daemon/engine_state.h), for tests that look inside. Engine's thread.
  [[nodiscard]] EngineState& state();

 private:
  Engine();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvtier
