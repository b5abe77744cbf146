#include "daemon/ring_server.h"

#include <array>

#include "base/log.h"
#include "client/ipc/shared_copy.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

constexpr std::uint32_t kRequestsPerTurn = 128;  // of one session, so that none starves the others

void fail(EngineState& engine, Session& session, const Submission& request, const Status& status) {
  if (status.code == Code::kInvalid || status.code == Code::kTooLarge)
    ++engine.metrics.requests_malformed;
  Completion completion{};
  completion.user_data = request.user_data;
  completion.status = static_cast<std::int32_t>(status.code);
  complete(engine, session.id, completion);
}

bool argument_fits(const Submission& request, std::uint64_t bytes) {
  return request.argument_offset % 8 == 0 && request.argument_offset <= kArgumentBytes &&
         bytes <= kArgumentBytes - request.argument_offset;
}

Result<OpenSequence*> handle_of(Session& session, const Submission& request) {
  OpenSequence* open = find_open(session, request.sequence);
  if (open == nullptr) return error(Code::kInvalid, "no such handle");
  return open;
}

// Copies the entries of a fetch, prefetch or touch once.
Result<void> copy_entries(Session& session, const Submission& request,
                          std::vector<FetchEntry>* entries) {
  if (request.count == 0) return error(Code::kInvalid, "no entries");
  if (request.count > kFetchEntriesMax) return error(Code::kTooLarge, "too many entries");
  const std::uint64_t bytes = std::uint64_t{request.count} * sizeof(FetchEntry);
  if (!argument_fits(request, bytes))
    return error(Code::kInvalid, "entries outside the argument area");
  entries->resize(request.count);
  copy_from_shared(entries->data(), session.layout()->arguments + request.argument_offset,
                   static_cast<std::size_t>(bytes));
  return {};
}

void serve_fetch(EngineState& engine, Session& session, const Submission& request, bool leases) {
  const Result<OpenSequence*> open = handle_of(session, request);
  if (!open) return fail(engine, session, request, open.error());
  std::unique_ptr<FetchJob> job = take_job(engine);
  if (const Result<void> copied = copy_entries(session, request, &job->entries); !copied) {
    engine.fetch.spare.push_back(std::move(job));
    return fail(engine, session, request, copied.error());
  }
  job->user_data = request.user_data;
  job->argument_offset = request.argument_offset;
  job->leases = leases;
  const bool prefetch =
      !leases || request.priority == static_cast<std::uint8_t>(Priority::kPrefetch);
  job->priority = prefetch ? IoPriority::kPrefetch : IoPriority::kDemand;
  start_fetch(engine, session, **open, std::move(job));
}

void serve_release(EngineState& engine, Session& session, const Submission& request) {
  std::uint64_t bytes = 0;
  if (!session.leases.end_given(request.value0, *engine.arena, &bytes))
    return fail(engine, session, request, {Code::kStale, 0, nullptr});
  session.leased_bytes -= bytes;
  engine.metrics.leased_bytes -= bytes;
  --session.in_flight;
  ++engine.metrics.leases_ended;
}

void serve_touch(EngineState& engine, Session& session, const Submission& request) {
  static thread_local std::vector<FetchEntry> entries;
  const Result<OpenSequence*> open = handle_of(session, request);
  if (!open) return fail(engine, session, request, open.error());
  if (const Result<void> copied = copy_entries(session, request, &entries); !copied)
    return fail(engine, session, request, copied.error());
  StoredSequence& sequence = *(*open)->sequence;
  if (request.value0 == 1 && sequence.reads != nullptr) sequence.reads->restart();
  touch_entries(engine, **open, entries.data(), request.count);
  fail(engine, session, request, {});  // the argument area is free again
}

void serve_tail(EngineState& engine, Session& session, const Submission& request,
                TailWork::Kind kind) {
  const Result<OpenSequence*> open = handle_of(session, request);
  if (!open) return fail(engine, session, request, open.error());
  if (!(*open)->writable) return fail(engine, session, request, {Code::kPermission, 0, nullptr});
  StoredSequence& sequence = *(*open)->sequence;
  if (request.half > 1 || (kind == TailWork::Kind::kSeal && request.count == 0))
    return fail(engine, session, request, {Code::kInvalid, 0, nullptr});
  if (request.count > kSegmentTokensMax)
    return fail(engine, session, request, {Code::kTooLarge, 0, nullptr});
  if (kind == TailWork::Kind::kCommit && sequence.is_private)
    return fail(engine, session, request, {Code::kUnsupported, 0, nullptr});
  if (engine.draining) return fail(engine, session, request, {Code::kCancelled, 0, nullptr});
  TailWork work;
  work.kind = kind;
  work.tail = (*open)->tail;
  work.half = request.half;
  work.count = request.count;
  work.first_token = request.value1;
  work.closing = kind == TailWork::Kind::kSeal && request.value0 == 1;
  work.handle_serial = (*open)->serial;
  const SessionId id = session.id;
  const std::uint64_t user_data = request.user_data;
  work.done = [&engine, id, user_data](Result<TailResult> result) {
    Completion completion{};
    completion.user_data = user_data;
    completion.status = static_cast<std::int32_t>(result ? Code::kOk : result.error().code);
    if (result) {
      completion.value0 = result->segment;
      completion.value1 = result->tokens_durable;
    }
    complete(engine, id, completion);
  };
  add_work(engine, sequence, std::move(work));
}

// Copies the key once; what of the staging memory is named must lie inside it.
void serve_object(EngineState& engine, Session& session, const Submission& request) {
  const Op op = static_cast<Op>(request.op);
  if (request.count == 0) return fail(engine, session, request, {Code::kInvalid, 0, nullptr});
  if (request.count > kObjectKeyBytesMax ||
      (op == Op::kObjectSet && request.value1 > kObjectBytesMax))
    return fail(engine, session, request, {Code::kTooLarge, 0, nullptr});
  if (!argument_fits(request, request.count))
    return fail(engine, session, request, {Code::kInvalid, 0, nullptr});
  auto job = std::make_shared<ObjectJob>();
  job->op = op;
  job->session = session.id;
  job->user_data = request.user_data;
  if (request.priority == static_cast<std::uint8_t>(Priority::kPrefetch))
    job->priority = IoPriority::kPrefetch;
  if (op == Op::kObjectSet || op == Op::kObjectGet) {
    const std::uint64_t size =
        session.staging != nullptr ? session.staging->mapping.size_bytes() : 0;
    if (request.value0 > size || request.value1 > size - request.value0)
      return fail(engine, session, request, {Code::kInvalid, 0, nullptr});
    job->staging = session.staging;
    job->offset = request.value0;
    job->bytes = request.value1;
  }
  job->key.resize(request.count);
  copy_from_shared(job->key.data(), session.layout()->arguments + request.argument_offset,
                   request.count);
  ++session.object_requests;
  start_object_request(engine, std::move(job));
}

void serve(EngineState& engine, Session& session, const Submission& request) {
  ++session.in_flight;
  if (request.flags != 0 || request.reserved0 != 0)
    return fail(engine, session, request, {Code::kInvalid, 0, nullptr});
  switch (static_cast<Op>(request.op)) {
    case Op::kNop:
      return fail(engine, session, request, {});
    case Op::kFetch:
      return serve_fetch(engine, session, request, true);
    case Op::kPrefetch:
      return serve_fetch(engine, session, request, false);
    case Op::kRelease:
      return serve_release(engine, session, request);
    case Op::kTouch:
      return serve_touch(engine, session, request);
    case Op::kCancel:
      static_cast<void>(cancel_fetch(engine, session, request.value0));
      --session.in_flight;
      return;
    case Op::kSeal:
      return serve_tail(engine, session, request, TailWork::Kind::kSeal);
    case Op::kCommit:
      return serve_tail(engine, session, request, TailWork::Kind::kCommit);
    case Op::kObjectSet:
    case Op::kObjectGet:
    case Op::kObjectExists:
    case Op::kObjectDelete:
      return serve_object(engine, session, request);
  }
  fail(engine, session, request, {Code::kInvalid, 0, nullptr});
}

void break_rings(EngineState& engine, Session& session) {
  if (session.broken) return;
  session.broken = true;
  ++engine.metrics.rings_broken;
  KVT_LOG(kWarn, "client %s (pid %u): its ring is broken; it must reconnect", session.name.c_str(),
          session.pid);
  if (session.on_broken) session.on_broken();
}

}  // namespace

void complete(EngineState& engine, SessionId id, const Completion& completion) {
  Session* session = find_session(engine, id);
  if (session == nullptr) return;
  --session->in_flight;
  session->completions.push_back(completion);
}

std::size_t serve_rings(EngineState& engine) {
  std::array<Submission, 32> requests;
  std::size_t served = 0;
  for (auto& [id, session] : engine.sessions) {
    if (!session->data || session->broken) continue;
    for (std::uint32_t taken = 0; taken < kRequestsPerTurn;) {
      // A client that has more than its share outstanding waits: its completions must always fit.
      const std::size_t outstanding = session->in_flight + session->completions.size();
      if (outstanding >= kSubmissionEntries) break;
      const std::size_t room =
          std::min<std::size_t>(requests.size(), kSubmissionEntries - outstanding);
      const Result<std::uint32_t> count =
          session->rings.submissions.pop(std::span(requests).first(room));
      if (!count) {
        break_rings(engine, *session);
        break;
      }
      if (*count == 0) break;
      for (std::uint32_t i = 0; i < *count; ++i) serve(engine, *session, requests[i]);
      taken += *count;
      served += *count;
    }
  }
  return served;
}

void flush_completions(EngineState& engine) {
  for (auto& [id, session] : engine.sessions) {
    if (session->completions.empty()) continue;
    if (session->broken) {
      session->completions.clear();
      continue;
    }
    const Result<std::uint32_t> pushed = session->rings.completions.push(session->completions);
    if (!pushed) {
      break_rings(engine, *session);
      session->completions.clear();
      continue;
    }
    session->completions.erase(session->completions.begin(),
                               session->completions.begin() + *pushed);
  }
}

bool any_ring_stamped(const EngineState& engine) {
  for (const auto& [id, session] : engine.sessions) {
    if (session->data && !session->broken && session->rings.submissions.stamped()) return true;
  }
  return false;
}

bool prepare_ring_sleep(EngineState& engine) {
  bool sleep = true;
  for (auto& [id, session] : engine.sessions) {
    if (session->data && !session->broken)
      sleep = session->rings.submissions.begin_sleep() && sleep;
  }
  return sleep;
}

void end_ring_sleep(EngineState& engine) {
  for (auto& [id, session] : engine.sessions) {
    if (!session->data || session->broken) continue;
    session->rings.submissions.end_sleep();
    drain_doorbell(session->daemon_bell.get());
  }
}

}  // namespace kvtier
