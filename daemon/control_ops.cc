// Requests about spaces and sequences: space, match, create, attach, tokens, fork, truncate, close.
#include "daemon/control_ops.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "daemon/abstracts.h"
#include "daemon/committer.h"
#include "daemon/engine_state.h"
#include "daemon/matcher.h"
#include "daemon/stored_tail.h"

namespace kvtier {

namespace {

std::vector<ControlOp>& all_ops() {
  static std::vector<ControlOp> ops = [] {
    std::vector<ControlOp> made(sequence_ops().begin(), sequence_ops().end());
    made.insert(made.end(), housekeeping_ops().begin(), housekeeping_ops().end());
    return made;
  }();
  return ops;
}

}  // namespace

void add_control_ops(std::span<const ControlOp> ops) {
  all_ops().insert(all_ops().end(), ops.begin(), ops.end());
}

const ControlOp* find_control_op(std::string_view name) {
  for (const ControlOp& op : all_ops()) {
    if (op.name == name) return &op;
  }
  return nullptr;
}

Result<Sequence*> target_sequence(EngineState& engine, const Json& body, const char* key) {
  const auto field = body.find(key);
  Sequence* sequence = nullptr;
  if (field == body.end())
    return error(Code::kInvalid, "which sequence? give its number or its name");
  if (field->is_number_unsigned())
    sequence = find_sequence(engine, SequenceId{field->get<std::uint64_t>()});
  else if (field->is_string())
    sequence = find_sequence_by_name(engine, field->get_ref<const std::string&>());
  else
    return error(Code::kInvalid, "a target is a number or a name");
  if (sequence == nullptr || sequence->internal) return error(Code::kNotFound, "no such sequence");
  return sequence;
}

namespace {

Result<Space*> space_of(EngineState& engine, const Json& body) {
  KVT_TRY(const std::uint64_t id, json_uint(body, "space", 0));
  Space* space = find_space(engine, SpaceId{id});
  if (space == nullptr) return error(Code::kNotFound, "no such space: open it first");
  return space;
}

Result<std::vector<std::uint32_t>> ids_of(const std::vector<std::byte>& payload) {
  if (payload.size() % 4 != 0) return error(Code::kInvalid, "token ids are 4 bytes each");
  if (payload.size() / 4 > kSequenceTokensMax) return error(Code::kTooLarge, "too many tokens");
  std::vector<std::uint32_t> ids(payload.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), payload.data(), payload.size());
  return ids;
}

Result<OpenSequence*> handle_of(Session& session, const Json& body) {
  KVT_TRY(const std::uint64_t handle, json_uint(body, "handle", 0, UINT32_MAX));
  OpenSequence* open = find_open(session, static_cast<std::uint32_t>(handle));
  if (open == nullptr) return error(Code::kStale, "no such handle on this connection");
  return open;
}

Json match_json(const MatchResult& match) {
  Json body;
  body["tokens"] = match.tokens;
  body["differs_at"] = match.tokens;
  body["stored_token"] = match.has_stored_token ? Json(match.stored_token) : Json(nullptr);
  body["reason"] = match_end_name(match.end);
  return body;
}

void add_info(const Sequence& sequence, const OpenSequence* open, Json* body) {
  Json& info = *body;
  info["sequence"] = sequence.row.id.value;
  info["handle"] = open != nullptr ? open->handle : 0;
  info["name"] = sequence.row.name;
  info["tokens_sealed"] = sequence.tokens_sealed;
  info["tail_tokens"] = sequence.log.tokens;
  info["private"] = sequence.is_private;
  info["writable"] = open != nullptr && open->writable;
  info["unit_tokens"] = sequence.space->row.unit_tokens;
  info["abstract_kind"] = abstract_kind_name(sequence.space->abstract_kind());
}

ControlReply info_reply(const Sequence& sequence, const OpenSequence* open,
                        Json body = Json::object()) {
  ControlReply reply;
  add_info(sequence, open, &body);
  reply.body = std::move(body);
  if (open != nullptr) reply.fds.push_back(open->directory.fd.get());
  if (open != nullptr && open->writable) reply.fds.push_back(open->tail->memory.fd.get());
  return reply;
}

// ---- space ----

Result<std::uint32_t> abstract_kind_of(const Json& body) {
  KVT_TRY(const std::string name, json_string(body, "abstract_kind", "box", 16));
  for (const AbstractKind kind : {AbstractKind::kNone, AbstractKind::kBox, AbstractKind::kMean}) {
    if (name == abstract_kind_name(kind)) return static_cast<std::uint32_t>(kind);
  }
  return error(Code::kInvalid, "abstract_kind is \"box\", \"mean\" or \"none\"");
}

Result<SpaceRow> parse_space(const ControlRequest& request) {
  Fingerprint fingerprint;
  KVT_TRY(fingerprint.model, json_string(request.body, "model", ""));
  KVT_TRY(fingerprint.runtime, json_string(request.body, "runtime", ""));
  KVT_TRY(fingerprint.detail, json_string(request.body, "detail", ""));
  KVT_TRY(const bool is_private, json_bool(request.body, "private", false));
  KVT_TRY(const std::uint32_t kind, abstract_kind_of(request.body));
  KVT_TRY(const std::uint64_t unit, json_uint(request.body, "unit_tokens", 16, kSegmentTokensMax));
  ByteReader reader(request.payload);
  KVT_TRY(fingerprint.geometry, decode_geometry(&reader));
  if (reader.remaining() != 0) return error(Code::kInvalid, "bytes behind the geometry");
  return make_space_row(fingerprint, kind, static_cast<std::uint32_t>(unit), is_private);
}

Json space_reply(const Space& space, bool created) {
  Json body;
  body["space"] = space.row.id.value;
  body["created"] = created;
  body["abstract_kind"] = abstract_kind_name(space.abstract_kind());
  body["unit_tokens"] = space.row.unit_tokens;
  return body;
}

// A catalogue that was rebuilt from files knows a space by its digest only: the first client that
// opens it brings the texts, and the digest says that they are right.
void learn_texts(EngineState& engine, Space& space, const SpaceRow& given) {
  if (!space.row.model.empty() || given.model.empty()) return;
  space.row.model = given.model;
  space.row.runtime = given.runtime;
  space.row.detail = given.detail;
  if (space.row.private_only) return;
  CatalogueBatch batch;
  batch.put_space(space.row);
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
}

void op_space(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  Result<SpaceRow> row = parse_space(request);
  if (!row) return done(error(row.error()));
  if (Space* space = find_space(engine, row->id); space != nullptr) {
    if (space->row.digest != row->digest)
      return done(error(Code::kInternal, "two spaces with one id"));
    learn_texts(engine, *space, *row);
    return done(ControlReply{space_reply(*space, false), {}, {}});
  }
  row->created_unix_ns = engine.wall_ns();
  Space& space = add_space(engine, *std::move(row));
  const Json body = space_reply(space, true);
  if (space.row.private_only) return done(ControlReply{body, {}, {}});
  CatalogueBatch batch;
  batch.put_space(space.row);
  post_batch(engine, std::move(batch), true, [body, done = std::move(done)](Result<void> result) {
    result ? done(ControlReply{body, {}, {}}) : done(error(result.error()));
  });
}

// ---- match, create ----

void op_match(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<Space*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  Result<std::vector<std::uint32_t>> ids = ids_of(request.payload);
  if (!ids) return done(error(ids.error()));
  match_prefix(
      engine, **space, *std::move(ids), [done = std::move(done)](Result<MatchResult> match) {
        match ? done(ControlReply{match_json(*match), {}, {}}) : done(error(match.error()));
      });
}

// What a request says about a sequence to be made.
struct NewSequence {
  std::string name;
  bool is_private = false;
};

Result<NewSequence> parse_new(EngineState& engine, const Json& body, const char* name_key,
                              const Space& space) {
  if (engine.draining) return error(Code::kCancelled, "the daemon is stopping");
  NewSequence wanted;
  KVT_TRY(wanted.name, json_string(body, name_key, "", kNameBytesMax));
  KVT_TRY(wanted.is_private, json_bool(body, "private", false));
  wanted.is_private = wanted.is_private || space.row.private_only;
  if (wanted.name.empty()) return wanted;
  KVT_TRY_VOID(check_name(wanted.name));
  if (engine.sequences.names.count(wanted.name) != 0)
    return error(Code::kExists, "the name is taken: choose another, or attach to it");
  return wanted;
}

Sequence& make_sequence(EngineState& engine, Space& space, const NewSequence& wanted,
                        const std::vector<PartSpec>& parts) {
  Sequence& sequence = new_sequence(engine, space, wanted.is_private);
  sequence.row.name = wanted.name;
  if (!wanted.name.empty()) engine.sequences.names[wanted.name] = sequence.row.id;
  for (const PartSpec& part : parts)
    sequence.row.parts.push_back({part.segment->row.id, part.visible_tokens});
  set_parts(engine, sequence, parts);
  return sequence;
}

using OpenDone = std::function<void(Result<OpenSequence*>)>;

// Opens for writing: chain, tail, directory. `sequence.writer_coming` is set.
void open_writer(EngineState& engine, SessionId session_id, Sequence& sequence,
                 std::shared_ptr<Tail> tail, OpenDone done) {
  const SequenceId id = sequence.row.id;
  learn_chain(engine, sequence,
              [&engine, session_id, id, tail = std::move(tail),
               done = std::move(done)](Result<void> known) {
                Sequence& found = *engine.sequences.all.at(id);
                found.writer_coming = false;
                Session* session = find_session(engine, session_id);
                Result<OpenSequence*> open = error(Code::kCancelled, "the connection was closed");
                if (!known)
                  open = error(known.error());
                else if (session != nullptr)
                  open = open_in_session(engine, *session, found, true, tail);
                if (!open) found.chain_known = false;
                done(open);  // may have ended the sequence
                Sequence* left = open ? nullptr : find_sequence(engine, id);
                if (left != nullptr) drop_if_ephemeral(engine, *left);
              });
}

// A sequence that was made for a request that failed: as if it had never been.
void forget_unopened(EngineState& engine, Sequence& sequence) {
  const bool free = sequence.open.empty() && !sequence.working && sequence.busy == 0 &&
                    !sequence.writer_coming && !sequence.removed;
  if (free && !sequence.row.name.empty())
    return remove_sequence(engine, sequence, LogFile::kUnlink, [](Result<void>) {});
  drop_if_ephemeral(engine, sequence);
}

void start_new_sequence(EngineState& engine, SessionId session_id, Sequence& sequence, bool write,
                        Json body, ControlDone done) {
  const auto reply = [&engine, id = sequence.row.id, body = std::move(body),
                      done](Result<OpenSequence*> open) {
    if (open) return done(info_reply(*engine.sequences.all.at(id), *open, body));
    done(error(open.error()));
    forget_unopened(engine, *engine.sequences.all.at(id));
  };
  if (!write) {
    Session* session = find_session(engine, session_id);
    return reply(open_in_session(engine, *session, sequence, false, nullptr));
  }
  Result<std::shared_ptr<Tail>> tail = make_tail(*sequence.space);
  if (!tail) {
    return reply(error(tail.error()));
  }
  sequence.writer_coming = true;
  open_writer(engine, session_id, sequence, *tail, reply);
}

void op_create(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<Space*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  if (const Result<NewSequence> wanted = parse_new(engine, request.body, "name", **space); !wanted)
    return done(error(wanted.error()));
  Result<std::vector<std::uint32_t>> ids = ids_of(request.payload);
  if (!ids) return done(error(ids.error()));
  const SessionId session_id = session.id;
  Space* target = *space;
  match_prefix(engine, *target, *std::move(ids),
               [&engine, session_id, target, body = request.body,
                done = std::move(done)](Result<MatchResult> match) {
                 if (!match) return done(error(match.error()));
                 decline_slow_parts(engine, *target, &*match);
                 if (find_session(engine, session_id) == nullptr)
                   return done(error(Code::kCancelled, "the connection was closed"));
                 const Result<NewSequence> wanted = parse_new(engine, body, "name", *target);
                 if (!wanted) return done(error(wanted.error()));
                 Sequence& sequence = make_sequence(engine, *target, *wanted, match->parts);
                 if (!wanted->name.empty() && !wanted->is_private)
                   post_sequence_row(engine, sequence, false, [](Result<void>) {});
                 start_new_sequence(engine, session_id, sequence, true, match_json(*match), done);
               });
}

// ---- attach ----

void attach_reader(EngineState& engine, SessionId session_id, SequenceId id, ControlDone done) {
  Sequence& sequence = *engine.sequences.all.at(id);
  const auto open = [&engine, session_id, id, done](Result<void> loaded) {
    Sequence& found = *engine.sequences.all.at(id);
    Session* session = find_session(engine, session_id);
    if (!loaded) return done(error(loaded.error()));
    if (session == nullptr) return done(error(Code::kCancelled, "the connection was closed"));
    const Result<OpenSequence*> made = open_in_session(engine, *session, found, false, nullptr);
    made ? done(info_reply(found, *made)) : done(error(made.error()));
  };
  if (sequence.log.loaded) return open({});
  // The tail log is read only to count its tokens.
  const Result<std::shared_ptr<Tail>> tail = make_tail(*sequence.space);
  if (!tail) return done(error(tail.error()));
  load_log(engine, sequence, *tail, open);
}

// Runs in the sequence's queue: nothing else of it is under way. Calls work_finished.
void attach_writer(EngineState& engine, SessionId session_id, SequenceId id, ControlDone done) {
  Sequence& sequence = *engine.sequences.all.at(id);
  const auto finish = [&engine, id, done](Result<OpenSequence*> open) {
    Sequence& found = *engine.sequences.all.at(id);
    found.writer_coming = false;
    open ? done(info_reply(found, *open)) : done(error(open.error()));
    work_finished(engine, found);
  };
  const Result<std::shared_ptr<Tail>> tail = make_tail(*sequence.space);
  if (!tail) return finish(error(tail.error()));
  load_log(engine, sequence, *tail,
           [&engine, session_id, id, tail = *tail, finish](Result<void> loaded) {
             if (!loaded) return finish(error(loaded.error()));
             open_writer(engine, session_id, *engine.sequences.all.at(id), tail, finish);
           });
}

Result<Sequence*> sequence_by_name_or_id(EngineState& engine, const Json& body) {
  return target_sequence(engine, body, body.contains("name") ? "name" : "sequence");
}

void op_attach(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<Space*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  const Result<Sequence*> target = sequence_by_name_or_id(engine, request.body);
  if (!target) {
    const bool had_id = request.body.contains("sequence") && target.error().code == Code::kNotFound;
    if (had_id && engine.metrics.sequences_evicted > 0)
      ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kEvicted)];
    return done(error(target.error()));
  }
  const Result<bool> write = json_bool(request.body, "write", false);
  if (!write) return done(error(write.error()));
  Sequence& sequence = **target;
  if (sequence.space != *space)
    return done(
        error(Code::kWrongSpace, "the sequence belongs to another model, runtime or layout"));
  const SessionId session_id = session.id;
  const SequenceId id = sequence.row.id;
  if (*write && (sequence.writer != nullptr || sequence.writer_coming))
    return done(
        error(Code::kBusy, "somebody else writes this sequence: attach without write, or wait"));
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

// ---- tokens ----

struct TokenRead {
  std::vector<std::pair<SegmentId, std::pair<std::uint32_t, std::uint32_t>>>
      runs;  // first and count in the segment
  std::vector<Segment*> held;
  std::size_t next = 0;
  ControlReply reply;
  ControlDone done;
};

void read_tokens(EngineState& engine, const std::shared_ptr<TokenRead>& read) {
  const auto finish = [read](Result<ControlReply> reply) {
    for (Segment* segment : read->held) --segment->busy;
    read->done(std::move(reply));
  };
  if (read->next == read->runs.size()) return finish(std::move(read->reply));
  Segment* segment = read->held[read->next];
  load_meta(engine, *segment, IoPriority::kDemand,
            [&engine, read, segment, finish](Result<void> loaded) {
              if (!loaded) return finish(error(loaded.error()));
              const auto [first, count] = read->runs[read->next++].second;
              const auto* bytes =
                  reinterpret_cast<const std::byte*>(segment->meta->tokens.data() + first);
              read->reply.payload.insert(read->reply.payload.end(), bytes,
                                         bytes + count * sizeof(TokenRecord));
              read_tokens(engine, read);
            });
}

void op_tokens(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  constexpr std::uint64_t kTokensMax = 1ull << 20;
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> first = json_uint(request.body, "first", 0, kSequenceTokensMax);
  const Result<std::uint64_t> count = json_uint(request.body, "count", 0, kTokensMax);
  if (!first || !count) return done(error(first ? count.error() : first.error()));
  const Sequence& sequence = *(*open)->sequence;
  if (*first > sequence.tokens_sealed || *count > sequence.tokens_sealed - *first)
    return done(error(Code::kInvalid, "beyond the sealed tokens of the sequence"));
  auto read = std::make_shared<TokenRead>();
  const std::uint64_t end = *first + *count;
  for (const SequencePart& part : sequence.parts) {
    const std::uint64_t from = std::max(*first, part.first_token);
    const std::uint64_t to = std::min(end, part.first_token + part.visible_tokens);
    if (from >= to) continue;
    read->runs.push_back({part.segment->row.id,
                          {static_cast<std::uint32_t>(from - part.first_token),
                           static_cast<std::uint32_t>(to - from)}});
    read->held.push_back(part.segment);
    ++part.segment->busy;
  }
  read->reply.body["count"] = *count;
  read->done = std::move(done);
  read_tokens(engine, read);
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
  Sequence& source = *engine.sequences.all.at(fork.source);
  Session* session = find_session(engine, fork.session);
  if (session == nullptr) return fork.done(error(Code::kCancelled, "the connection was closed"));
  const std::uint64_t tokens = fork.tokens == UINT64_MAX ? source.tokens_sealed : fork.tokens;
  if (tokens > source.tokens_sealed)
    return fork.done(
        error(Code::kInvalid, "the source has fewer sealed tokens: seal its tail first"));
  if (!fork.wanted.name.empty() && engine.sequences.names.count(fork.wanted.name) != 0)
    return fork.done(error(Code::kExists, "the name is taken: choose another, or attach to it"));
  fork.wanted.is_private = fork.wanted.is_private || source.is_private;
  Sequence& made = make_sequence(engine, *source.space, fork.wanted, parts_up_to(source, tokens));
  if (session->data) {
    if (!made.row.name.empty() && !made.is_private)
      post_sequence_row(engine, made, false, [](Result<void>) {});
    return start_new_sequence(engine, fork.session, made, fork.write, Json::object(),
                              std::move(fork.done));
  }
  if (made.is_private) {
    fork.done(info_reply(made, nullptr));
    return drop_if_ephemeral(engine, made);
  }
  ++made.busy;
  post_sequence_row(engine, made, true,
                    [&engine, id = made.row.id, done = std::move(fork.done)](Result<void> result) {
                      Sequence& found = *engine.sequences.all.at(id);
                      --found.busy;
                      result ? done(info_reply(found, nullptr)) : done(error(result.error()));
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
  Result<Sequence*> source = error(Code::kInvalid);
  if (body.contains("handle")) {
    const Result<OpenSequence*> open = handle_of(session, body);
    source = open ? Result<Sequence*>((*open)->sequence) : error(open.error());
  } else {
    source = sequence_by_name_or_id(engine, body);
  }
  if (!source) return done(error(source.error()));
  // A person who forks by name has no space at hand: it is the source's.
  const Result<Space*> space =
      body.contains("space") ? space_of(engine, body) : Result<Space*>((*source)->space);
  if (!space) return done(error(space.error()));
  if ((*source)->space != *space)
    return done(
        error(Code::kWrongSpace, "the sequence belongs to another model, runtime or layout"));
  const Result<NewSequence> wanted = parse_new(engine, body, "new_name", **space);
  const Result<std::uint64_t> tokens = json_uint(body, "tokens", UINT64_MAX);
  const Result<bool> write = json_bool(body, "write", false);
  if (!wanted || !tokens || !write)
    return done(error(!wanted ? wanted.error() : !tokens ? tokens.error() : write.error()));
  ForkRequest fork{session.id, (*source)->row.id, *wanted, *tokens, *write, std::move(done)};
  Sequence& sequence = **source;
  const bool has_tail =
      sequence.log.generation != 0 && sequence.writer == nullptr && !sequence.writer_coming;
  if (!has_tail && sequence.work.empty() && !sequence.working)
    return fork_now(engine, std::move(fork));
  // Behind what is under way: a seal that was submitted before counts.
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  const auto shared = std::make_shared<ForkRequest>(std::move(fork));
  work.run = [&engine, shared] {
    Sequence& found = *engine.sequences.all.at(shared->source);
    if (found.writer == nullptr && found.log.generation != 0)
      return seal_then_fork(engine, std::move(*shared));
    fork_now(engine, *shared);
    work_finished(engine, found);
  };
  add_work(engine, sequence, std::move(work));
}

// ---- truncate, close ----

void truncate_reply(const Sequence& sequence, const ControlDone& done) {
  ControlReply reply;
  reply.body["tokens_sealed"] = sequence.tokens_sealed;
  reply.body["tail_tokens"] = sequence.log.tokens;
  done(std::move(reply));
}

// In the sequence's queue.
void truncate_sealed(EngineState& engine, SequenceId id, std::uint64_t tokens, ControlDone done) {
  Sequence& sequence = *engine.sequences.all.at(id);
  const SequenceRow before = sequence.row;
  const std::vector<PartSpec> parts = parts_up_to(sequence, tokens);
  sequence.row.parts.clear();
  for (const PartSpec& part : parts)
    sequence.row.parts.push_back({part.segment->row.id, part.visible_tokens});
  sequence.row.log_generation = 0;
  const auto apply = [&engine, id, tokens, before, done](Result<void> result) {
    Sequence& found = *engine.sequences.all.at(id);
    if (!result) {
      found.row.parts = before.parts;
      found.row.log_generation = before.log_generation;
      found.log.suspect = true;  // the catalogue may say otherwise: the next commit says it anew
      done(error(result.error()));
      return work_finished(engine, found);
    }
    set_parts(engine, found, parts_up_to(found, tokens));
    drop_log(engine, found);
    found.chain_known = false;
    learn_chain(engine, found, [&engine, id, done](Result<void> known) {
      Sequence& sequence = *engine.sequences.all.at(id);
      known ? truncate_reply(sequence, done) : done(error(known.error()));
      work_finished(engine, sequence);
    });
  };
  if (!sequence.in_catalogue) return apply({});
  post_sequence_row(engine, sequence, true, apply);
}

void op_truncate(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> tokens = json_uint(request.body, "tokens", UINT64_MAX);
  if (!tokens) return done(error(tokens.error()));
  if (!(*open)->writable)
    return done(error(Code::kPermission, "the handle is open for reading only"));
  Sequence& sequence = *(*open)->sequence;
  if (sequence.working || !sequence.work.empty())
    return done(error(Code::kBusy, "a seal or commit is under way: wait for it"));
  const SequenceId id = sequence.row.id;
  if (*tokens >= sequence.tokens_sealed) {
    const std::uint64_t tail = *tokens - sequence.tokens_sealed;
    const auto cut = static_cast<std::uint32_t>(std::min<std::uint64_t>(tail, kSegmentTokensMax));
    return cut_log(
        engine, sequence, cut, [&engine, id, done = std::move(done)](Result<void> result) {
          result ? truncate_reply(*engine.sequences.all.at(id), done) : done(error(result.error()));
        });
  }
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  work.run = [&engine, id, tokens = *tokens, done = std::move(done)] {
    truncate_sealed(engine, id, tokens, done);
  };
  add_work(engine, sequence, std::move(work));
}

void op_staging(EngineState&, Session& session, ControlRequest request, ControlDone done) {
  const Result<std::uint64_t> wanted = json_uint(request.body, "bytes", UINT64_MAX);
  if (!wanted) return done(error(wanted.error()));
  if (*wanted == 0) return done(error(Code::kInvalid, "bytes: at least 1"));
  if (*wanted > kObjectBytesMax)
    return done(error(Code::kTooLarge, "more staging memory than limits.staging_bytes"));
  if (session.object_requests != 0)
    return done(error(Code::kBusy, "an object request is under way: wait for it"));
  const std::uint64_t bytes = align_up<std::uint64_t>(*wanted, 4096);
  Result<Memfd> made = make_memfd("kvtier-staging", static_cast<std::size_t>(bytes),
                                  MemfdAccess::kSharedWrite, false);
  if (!made) return done(error(made.error()));
  session.staging = std::make_shared<Memfd>(std::move(*made));
  done(ControlReply{Json{{"bytes", bytes}}, {}, {session.staging->fd.get()}});
}

void op_close(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> measured = json_uint(request.body, "compute_ns_per_token", 0);
  if (measured) learn_compute_time(engine, *(*open)->sequence->space, *measured);
  close_open_sequence(engine, session, **open);
  done(ControlReply{Json::object(), {}, {}});
}

}  // namespace

std::span<const ControlOp> sequence_ops() {
  static constexpr ControlOp kOps[] = {
      {"space", true, op_space},       {"match", true, op_match},   {"create", true, op_create},
      {"attach", true, op_attach},     {"tokens", true, op_tokens}, {"fork", false, op_fork},
      {"truncate", true, op_truncate}, {"close", true, op_close},   {"staging", true, op_staging},
  };
  return kOps;
}

}  // namespace kvtier
