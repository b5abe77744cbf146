#include "daemon/sessions.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "daemon/abstracts.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"

namespace kvtier {

Session* find_session(EngineState& engine, SessionId id) {
  const auto place = engine.sessions.find(id);
  return place == engine.sessions.end() ? nullptr : place->second.get();
}

Result<SessionId> open_engine_session(EngineState& engine, const std::string& name,
                                      std::uint32_t pid, bool data) {
  auto session = std::make_unique<Session>();
  if (data) {
    const auto clients = std::count_if(engine.sessions.begin(), engine.sessions.end(),
                                       [](const auto& entry) { return entry.second->data; });
    if (clients >= static_cast<std::int64_t>(std::min(engine.options.clients_max, kClientsMax)))
      return error(
          Code::kFull,
          "the daemon serves its maximum of clients: close one, or raise daemon.clients_max");
    KVT_TRY(session->control,
            make_memfd("kvtier-control", sizeof(ControlLayout), MemfdAccess::kSharedWrite, false));
    KVT_TRY(session->daemon_bell, make_doorbell());
    KVT_TRY(session->client_bell, make_doorbell());
    session->rings = make_daemon_rings(session->layout(), session->client_bell.get());
    session->completions.reserve(kCompletionEntries);
  }
  session->id = SessionId{engine.next_session++};
  session->name = name;
  session->pid = pid;
  session->data = data;
  ++engine.metrics.sessions_opened;
  const SessionId id = session->id;
  engine.sessions.emplace(id, std::move(session));
  return id;
}

Result<OpenSequence*> open_in_session(EngineState& engine, Session& session,
                                      StoredSequence& sequence, bool writable,
                                      std::shared_ptr<TailMemory> tail) {
  if (session.open_count >= kOpenSequencesMax)
    return error(Code::kFull, "too many open sequences: close one");
  auto open = std::make_unique<OpenSequence>();
  KVT_TRY(open->directory, make_directory_memfd());
  std::size_t place = 0;
  while (place < session.open.size() && session.open[place] != nullptr) ++place;
  if (place == session.open.size()) {
    session.open.emplace_back();
    session.generations.push_back(0);
  }
  session.generations[place] = static_cast<std::uint16_t>(session.generations[place] + 1);
  if (session.generations[place] == 0) session.generations[place] = 1;
  open->handle = static_cast<std::uint32_t>(session.generations[place]) << 16 |
                 static_cast<std::uint32_t>(place);
  open->serial = engine.sequences.next_serial++;
  open->session = session.id;
  open->sequence = &sequence;
  open->writable = writable;
  open->tail = std::move(tail);
  OpenSequence* made = open.get();
  session.open[place] = std::move(open);
  ++session.open_count;
  sequence.open.push_back(made);
  if (writable) {
    KVT_CHECK(sequence.writer == nullptr);
    sequence.writer = made;
  }
  sequence.row.last_used_unix_ns = engine.wall_ns();
  publish_directory(engine, *made);
  return made;
}

OpenSequence* find_open(Session& session, std::uint32_t handle) {
  const std::uint32_t place = handle & 0xFFFF;
  if (place >= session.open.size() || session.open[place] == nullptr) return nullptr;
  return session.open[place]->handle == handle ? session.open[place].get() : nullptr;
}

void close_open_sequence(EngineState& engine, Session& session, OpenSequence& open) {
  StoredSequence& sequence = *open.sequence;
  ++sequence.busy;
  if (open.writable) cancel_work(engine, sequence, open.serial);
  for (auto& [id, held] : open.held) {
    release_abstracts(engine, open, *held.segment);
    --held.segment->handle_refs;
  }
  std::erase(sequence.open, &open);
  if (sequence.writer == &open) {
    sequence.writer = nullptr;
    sequence.chain_known = false;
    sequence.open_ids.clear();
  }
  session.open[open.handle & 0xFFFF].reset();
  --session.open_count;
  --sequence.busy;
  const SequenceId id = sequence.row.id;
  drop_if_ephemeral(engine, sequence);
  if (StoredSequence* left = find_sequence(engine, id)) keep_last_use(engine, *left);
}

void close_engine_session(EngineState& engine, SessionId id) {
  Session* session = find_session(engine, id);
  if (session == nullptr) return;
  forget_session_jobs(engine, *session);
  std::uint64_t bytes = 0;
  const std::uint64_t ended = session->leases.end_all(*engine.arena, &bytes);
  engine.metrics.leased_bytes -= bytes;
  engine.metrics.leases_ended += ended;
  engine.metrics.leases_reclaimed += ended;
  for (std::size_t place = 0; place < session->open.size(); ++place) {
    if (session->open[place] != nullptr)
      close_open_sequence(engine, *session, *session->open[place]);
  }
  ++engine.metrics.sessions_closed;
  engine.sessions.erase(id);
  sweep_condemned(engine);
}

}  // namespace kvtier
