// Sessions: one per connection. A data session has rings, leases and open sequences. Engine's
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "client/ipc/ring.h"
#include "daemon/engine.h"
#include "daemon/leases.h"
#include "daemon/sequences.h"

namespace kvtier {

struct Session {
  SessionId id;
  std::string name;
  std::uint32_t pid = 0;
  bool data = false;

  Memfd control;
  UniqueFd daemon_bell, client_bell;
  DaemonRings rings;
  bool broken = false;                  // rings closed for good
  std::function<void()> on_broken;      // drops the connection; may be empty
  std::uint32_t in_flight = 0;          // requests that will complete
  std::vector<Completion> completions;  // to be published at the end of the turn

  std::vector<std::unique_ptr<OpenSequence>> open;  // by place of the handle
  std::vector<std::uint16_t> generations;
  std::uint32_t open_count = 0;
  LeaseTable leases;
  std::uint64_t leased_bytes = 0;  // leased, or charged for fills under way

  std::shared_ptr<Memfd> staging;     // opaque keys: values travel here; workers share it
  std::uint32_t object_requests = 0;  // that have not completed

  [[nodiscard]] ControlLayout* layout() const {
    return reinterpret_cast<ControlLayout*>(control.mapping.data());
  }
};

[[nodiscard]] Session* find_session(EngineState& engine, SessionId id);
[[nodiscard]] Result<SessionId> open_engine_session(EngineState& engine, const std::string& name,
                                                    std::uint32_t pid, bool data);
void close_engine_session(EngineState& engine, SessionId id);

// A new open sequence with its directory (and tail where writable). kFull at the session's limit.
[[nodiscard]] Result<OpenSequence*> open_in_session(EngineState& engine, Session& session,
                                                    StoredSequence& sequence, bool writable,
                                                    std::shared_ptr<TailMemory> tail);
[[nodiscard]] OpenSequence* find_open(Session& session, std::uint32_t handle);
void close_open_sequence(EngineState& engine, Session& session, OpenSequence& open);

}  // namespace kvtier
