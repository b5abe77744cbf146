// Requests that open a sequence: create, attach, fork.
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/log_reader.h"
#include "daemon/matcher.h"
#include "daemon/stored_tail.h"

namespace kvtier {

namespace {

void add_info(const StoredSequence& sequence, const OpenSequence* open, Json* body) {
  Json& info = *body;
  info["sequence"] = sequence.row.id.value;
  info["handle"] = open != nullptr ? open->handle : 0;
  info["name"] = sequence.row.name;
  info["tokens_sealed"] = sequence.tokens_sealed;
  info["tail_tokens"] = sequence.log.tokens;
  info["private"] = sequence.is_private;
  info["writable"] = open != nullptr && open->writable;
  info["tail_texts"] = open != nullptr && open->writable && !open->tail->texts[0].empty();
}

ControlReply info_reply(const StoredSequence& sequence, const OpenSequence* open,
                        Json body = Json::object()) {
  ControlReply reply;
  add_info(sequence, open, &body);
  reply.body = std::move(body);
  if (open != nullptr) reply.fds.push_back(open->directory.fd.get());
  if (open != nullptr && open->writable) reply.fds.push_back(open->tail->memory.fd.get());
  return reply;
}

// ---- create ----

// What a request says about a sequence to be made.
struct NewSequence {
  std::string name;
  bool is_private = false;
};

constexpr const char* kNewName = "new_name";  // of a fork

Result<NewSequence> parse_new(EngineState& engine, const Json& body, const char* name_key,
                              const StoredSpace& space) {
  if (engine.draining) return error(kStopping);
  NewSequence wanted;
  KVT_TRY(wanted.name, json_string(body, name_key, "", kNameBytesMax));
  KVT_TRY(wanted.is_private, json_bool(body, "private", false));
  wanted.is_private = wanted.is_private || space.row.private_only;
  if (wanted.name.empty()) return wanted;
  KVT_TRY_VOID(check_name(wanted.name));
  if (engine.sequences.names.count(wanted.name) != 0)
    return error(Code::kExists, std::string_view(name_key) == kNewName
                                    ? "the name is taken: choose another"
                                    : "the name is taken: choose another, or open it");
  return wanted;
}

StoredSequence& make_sequence(EngineState& engine, StoredSpace& space, const NewSequence& wanted,
                              const std::vector<PartSpec>& parts) {
  StoredSequence& sequence = new_sequence(engine, space, wanted.is_private);
  sequence.row.name = wanted.name;
  if (!wanted.name.empty()) engine.sequences.names[wanted.name] = sequence.row.id;
  for (const PartSpec& part : parts)
    sequence.row.parts.push_back({part.segment->row.id, part.visible_tokens});
  set_parts(engine, sequence, parts);
  return sequence;
}

using OpenDone = std::function<void(Result<OpenSequence*>)>;

// Opens for writing: chain, tail, directory. `sequence.writer_coming` is set.
void open_writer(EngineState& engine, SessionId session_id, StoredSequence& sequence,
                 std::shared_ptr<TailMemory> tail, OpenDone done) {
  const SequenceId id = sequence.row.id;
  learn_chain(engine, sequence,
              [&engine, session_id, id, tail = std::move(tail),
               done = std::move(done)](Result<void> known) {
                StoredSequence& found = *engine.sequences.all.at(id);
                found.writer_coming = false;
                Session* session = find_session(engine, session_id);
                Result<OpenSequence*> open = error(Code::kCancelled, "the connection was closed");
                if (!known)
                  open = error(known.error());
                else if (session != nullptr)
                  open = open_in_session(engine, *session, found, true, tail);
                if (!open) found.chain_known = false;
                done(open);  // may have ended the sequence
                StoredSequence* left = open ? nullptr : find_sequence(engine, id);
                if (left != nullptr) drop_if_ephemeral(engine, *left);
              });
}

// A sequence that was made for a request that failed: as if it had never been.
void forget_unopened(EngineState& engine, StoredSequence& sequence) {
  const bool free = sequence.open.empty() && !sequence.working && sequence.busy == 0 &&
                    !sequence.writer_coming && !sequence.removed;
  if (free && !sequence.row.name.empty())
    return remove_sequence(engine, sequence, LogFile::kUnlink, [](Result<void>) {});
  drop_if_ephemeral(engine, sequence);
}

struct NewOpen {
  SessionId session;
  SequenceId sequence;
  std::uint32_t handle = 0;
};

// The answer, once the catalogue has the row or has refused it. What has a name is kept or refused;
// what has none is its client's as long as it is open.
void end_new_sequence(EngineState& engine, const NewOpen& made, const Json& body, Result<void> row,
                      const ControlDone& done) {
  Session* session = find_session(engine, made.session);
  OpenSequence* open = session == nullptr ? nullptr : find_open(*session, made.handle);
  StoredSequence* sequence = find_sequence(engine, made.sequence);
  if (!row && sequence != nullptr && !sequence->row.name.empty()) {
    if (open != nullptr) close_open_sequence(engine, *session, *open);  // may end it
    if (StoredSequence* left = find_sequence(engine, made.sequence))
      forget_unwritten(engine, *left);
    return done(error(row.error()));
  }
  if (open == nullptr) return done(error(Code::kCancelled, "the connection was closed"));
  done(info_reply(*open->sequence, open, body));
}

void start_new_sequence(EngineState& engine, SessionId session_id, StoredSequence& sequence,
                        bool write, Json body, ControlDone done) {
  const auto reply = [&engine, session_id, id = sequence.row.id, body = std::move(body),
                      done](Result<OpenSequence*> open) {
    StoredSequence& made = *engine.sequences.all.at(id);
    if (!open) {
      done(error(open.error()));
      return forget_unopened(engine, made);
    }
    // Behind its row: a client that loses the daemon from here on finds the sequence in the next.
    post_new_row(engine, made,
                 [&engine, session_id, id, handle = (*open)->handle, body, done](Result<void> row) {
                   end_new_sequence(engine, {session_id, id, handle}, body, row, done);
                 });
  };
  if (!write) {
    Session* session = find_session(engine, session_id);
    return reply(open_in_session(engine, *session, sequence, false, nullptr));
  }
  Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *sequence.space);
  if (!tail) {
    return reply(error(tail.error()));
  }
  sequence.writer_coming = true;
  open_writer(engine, session_id, sequence, *tail, reply);
}

void create_matched(EngineState& engine, SessionId session_id, StoredSpace& space, const Json& body,
                    std::vector<std::uint32_t> ids, const ControlDone& done) {
  match_prefix(engine, space, std::move(ids),
               [&engine, &space, session_id, body, done](Result<MatchResult> match) {
                 if (!match) return done(error(match.error()));
                 decline_slow_parts(engine, space, &*match);
                 if (find_session(engine, session_id) == nullptr)
                   return done(error(Code::kCancelled, "the connection was closed"));
                 const Result<NewSequence> wanted = parse_new(engine, body, "name", space);
                 if (!wanted) return done(error(wanted.error()));
                 StoredSequence& sequence = make_sequence(engine, space, *wanted, match->parts);
                 start_new_sequence(engine, session_id, sequence, true, match_json(*match), done);
               });
}

void op_create(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<StoredSpace*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  const Result<NewSequence> wanted = parse_new(engine, request.body, "name", **space);
  if (!wanted) return done(error(wanted.error()));
  Result<std::vector<std::uint32_t>> ids = ids_of(request.payload);
  if (!ids) return done(error(ids.error()));
  StoredSpace* target = *space;
  if (wanted->is_private)
    return create_matched(engine, session.id, *target, request.body, *std::move(ids), done);
  keep_space(engine, *target,
             [&engine, target, id = session.id, body = request.body, ids = *std::move(ids),
              done = std::move(done)](Result<void> kept) {
               kept ? create_matched(engine, id, *target, body, ids, done)
                    : done(error(kept.error()));
             });
}

// ---- attach ----

void attach_reader(EngineState& engine, SessionId session_id, SequenceId id, ControlDone done) {
  StoredSequence& sequence = *engine.sequences.all.at(id);
  const auto open = [&engine, session_id, id, done](Result<void> loaded) {
    StoredSequence& found = *engine.sequences.all.at(id);
    Session* session = find_session(engine, session_id);
    if (!loaded) return done(error(loaded.error()));
    if (session == nullptr) return done(error(Code::kCancelled, "the connection was closed"));
    const Result<OpenSequence*> made = open_in_session(engine, *session, found, false, nullptr);
    made ? done(info_reply(found, *made)) : done(error(made.error()));
  };
  if (sequence.log.loaded) return open({});
  // The tail log is read only to count its tokens.
  const Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *sequence.space);
  if (!tail) return done(error(tail.error()));
  load_log(engine, sequence, *tail, open);
}

// Runs in the sequence's queue: nothing else of it is under way. Calls work_finished.
void attach_writer(EngineState& engine, SessionId session_id, SequenceId id, ControlDone done) {
  StoredSequence& sequence = *engine.sequences.all.at(id);
  const auto finish = [&engine, id, done](Result<OpenSequence*> open) {
    StoredSequence& found = *engine.sequences.all.at(id);
    found.writer_coming = false;
    open ? done(info_reply(found, *open)) : done(error(open.error()));
    work_finished(engine, found);
  };
  const Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *sequence.space);
  if (!tail) return finish(error(tail.error()));
  load_log(engine, sequence, *tail,
           [&engine, session_id, id, tail = *tail, finish](Result<void> loaded) {
             if (!loaded) return finish(error(loaded.error()));
             open_writer(engine, session_id, *engine.sequences.all.at(id), tail, finish);
           });
}

Result<StoredSequence*> sequence_by_name_or_id(EngineState& engine, const Json& body) {
  return target_sequence(engine, body, body.contains("name") ? "name" : "sequence");
}

void op_attach(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<StoredSpace*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  const Result<StoredSequence*> target = sequence_by_name_or_id(engine, request.body);
  if (!target) {
    const bool had_id = request.body.contains("sequence") && target.error().code == Code::kNotFound;
    if (had_id && engine.metrics.sequences_evicted > 0)
      ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kEvicted)];
    return done(error(target.error()));
  }
  const Result<bool> write = json_bool(request.body, "write", false);
  if (!write) return done(error(write.error()));
  StoredSequence& sequence = **target;
  if (sequence.space != *space)
    return done(
        error(Code::kWrongSpace, "the sequence belongs to another model, runtime or layout"));
  const SessionId session_id = session.id;
  const SequenceId id = sequence.row.id;
  if (*write && (sequence.writer != nullptr || sequence.writer_coming))
    return done(error(refusal(
        Code::kBusy,
        "the sequence is open for writing: close it there, or open it here for reading only",
        sequence.writer == nullptr ? "" : ": by " + process_text(engine, *sequence.writer))));
  if (*write) sequence.writer_coming = true;
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  const bool wait = *write || !sequence.log.loaded;
  if (!wait) return attach_reader(engine, session_id, id, std::move(done));
  if (*write) {
    work.run = [&engine, session_id, id, done = std::move(done)] {
      attach_writer(engine, session_id, id, done);
    };
  } else {
    work.run = [&engine, session_id, id, done = std::move(done)] {
      attach_reader(engine, session_id, id, [&engine, id, done](Result<ControlReply> reply) {
        done(std::move(reply));
        work_finished(engine, *engine.sequences.all.at(id));
      });
    };
  }
  add_work(engine, sequence, std::move(work));
}

// ---- fork ----

struct ForkRequest {
  SessionId session;
  SequenceId source;
  NewSequence wanted;
  std::uint64_t tokens = UINT64_MAX;
  bool write = false;
  ControlDone done;
};

void fork_now(EngineState& engine, ForkRequest fork) {
  StoredSequence& source = *engine.sequences.all.at(fork.source);
  Session* session = find_session(engine, fork.session);
  if (session == nullptr) return fork.done(error(Code::kCancelled, "the connection was closed"));
  const std::uint64_t tokens = fork.tokens == UINT64_MAX ? source.tokens_sealed : fork.tokens;
  if (tokens > source.tokens_sealed)
    return fork.done(error(refusal(
        Code::kInvalid, "the source has fewer sealed tokens",
        ": " + std::to_string(source.tokens_sealed) + ", and " + std::to_string(tokens) +
            " were asked for" +
            (source.writer != nullptr ? "; what its writer has not sealed does not count" : ""))));
  if (!fork.wanted.name.empty() && engine.sequences.names.count(fork.wanted.name) != 0)
    return fork.done(error(Code::kExists, "the name is taken: choose another"));
  fork.wanted.is_private = fork.wanted.is_private || source.is_private;
  if (engine.read_only && !fork.wanted.is_private && !session->data)
    return fork.done(error(kNoWrites));
  StoredSequence& made =
      make_sequence(engine, *source.space, fork.wanted, parts_up_to(source, tokens));
  if (session->data)
    return start_new_sequence(engine, fork.session, made, fork.write, Json::object(),
                              std::move(fork.done));
  if (made.is_private) {
    fork.done(info_reply(made, nullptr));
    return drop_if_ephemeral(engine, made);
  }
  ++made.busy;
  post_sequence_row(engine, made, true,
                    [&engine, id = made.row.id, done = std::move(fork.done)](Result<void> result) {
                      StoredSequence& found = *engine.sequences.all.at(id);
                      --found.busy;
                      if (result) return done(info_reply(found, nullptr));
                      forget_unwritten(engine, found);
                      done(error(result.error()));
                    });
}

// A committed tail that nobody writes on is sealed before the fork. In the source's queue.
void seal_then_fork(EngineState& engine, ForkRequest fork) {
  const SequenceId id = fork.source;
  const auto shared = std::make_shared<ForkRequest>(std::move(fork));
  seal_stored_tail(engine, id, [&engine, shared](Result<void> sealed) {
    sealed ? fork_now(engine, *shared) : shared->done(error(sealed.error()));
  });
}

void op_fork(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Json& body = request.body;
  Result<StoredSequence*> source = error(Code::kInvalid);
  if (body.contains("handle")) {
    const Result<OpenSequence*> open = handle_of(session, body);
    source = open ? Result<StoredSequence*>((*open)->sequence) : error(open.error());
  } else {
    source = sequence_by_name_or_id(engine, body);
  }
  if (!source) return done(error(source.error()));
  // A person who forks by name has no space at hand: it is the source's.
  const Result<StoredSpace*> space =
      body.contains("space") ? space_of(engine, body) : Result<StoredSpace*>((*source)->space);
  if (!space) return done(error(space.error()));
  if ((*source)->space != *space)
    return done(
        error(Code::kWrongSpace, "the sequence belongs to another model, runtime or layout"));
  const Result<NewSequence> wanted = parse_new(engine, body, kNewName, **space);
  const Result<std::uint64_t> tokens = json_uint(body, "tokens", UINT64_MAX);
  const Result<bool> write = json_bool(body, "write", false);
  if (!wanted || !tokens || !write)
    return done(error(!wanted ? wanted.error() : !tokens ? tokens.error() : write.error()));
  ForkRequest fork{session.id, (*source)->row.id, *wanted, *tokens, *write, std::move(done)};
  StoredSequence& sequence = **source;
  const bool has_tail =
      sequence.log.generation != 0 && sequence.writer == nullptr && !sequence.writer_coming;
  if (!has_tail && sequence.work.empty() && !sequence.working)
    return fork_now(engine, std::move(fork));
  // Behind what is under way: a seal that was submitted before counts.
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  const auto shared = std::make_shared<ForkRequest>(std::move(fork));
  work.run = [&engine, shared] {
    StoredSequence& found = *engine.sequences.all.at(shared->source);
    if (found.writer == nullptr && found.log.generation != 0)
      return seal_then_fork(engine, std::move(*shared));
    fork_now(engine, *shared);
    work_finished(engine, found);
  };
  add_work(engine, sequence, std::move(work));
}

}  // namespace

std::span<const ControlOp> opening_ops() {
  static constexpr ControlOp kOps[] = {
      {"create", true, op_create}, {"attach", true, op_attach}, {"fork", false, op_fork}};
  return kOps;
}

}  // namespace kvtier
