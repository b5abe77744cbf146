// Requests about spaces and open sequences: space, match, tokens, truncate, staging, close.
#include <algorithm>
#include <cmath>

#include "base/fault.h"
#include "daemon/abstracts.h"
#include "daemon/committer.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/matcher.h"

namespace kvtier {

namespace {

// ---- space ----

Result<Rotation> parse_rotation(const Json& body, ByteReader* reader) {
  Rotation rotation;
  KVT_TRY(const std::uint64_t pairing, json_uint(body, "rope_pairing", 0, 2));
  KVT_TRY(const std::uint64_t frequencies, json_uint(body, "rope_frequencies", 0, kHeadDimMax));
  rotation.pairing = static_cast<Rotation::Pairing>(pairing);
  for (std::uint64_t i = 0; i < frequencies && reader->ok(); ++i) {
    rotation.frequencies.push_back(reader->read<float>());
    if (!std::isfinite(rotation.frequencies.back()))
      return error(Code::kInvalid, "a RoPE frequency is not finite");
  }
  return rotation;
}

// payload: the geometry, then f32 [rope_frequencies].
Result<SpaceRow> parse_space(const ControlRequest& request) {
  Fingerprint fingerprint;
  KVT_TRY(fingerprint.model, json_string(request.body, "model", ""));
  KVT_TRY(fingerprint.runtime, json_string(request.body, "runtime", ""));
  KVT_TRY(fingerprint.detail, json_string(request.body, "detail", ""));
  KVT_TRY(const bool is_private, json_bool(request.body, "private", false));
  KVT_TRY(const std::string abstract, json_string(request.body, "abstract", "none", 64));
  KVT_TRY(const AbstractSpec spec, parse_abstract_spec(abstract));
  ByteReader reader(request.payload);
  KVT_TRY(fingerprint.geometry, decode_geometry(&reader));
  KVT_TRY(Rotation rotation, parse_rotation(request.body, &reader));
  if (!reader.ok() || reader.remaining() != 0)
    return error(Code::kInvalid, "the space's payload has another length");
  KVT_TRY(SpaceRow row, make_space_row(fingerprint, is_private));
  if (rotation.known()) row.rotation = std::move(rotation);
  if (!spec.none()) row.abstracts.push_back(spec.packed());
  return row;
}

Json space_reply(const StoredSpace& space, bool created) {
  Json body;
  body["space"] = space.row.id.value;
  body["created"] = created;
  body["abstract"] = space.lanes() != 0 ? space.lane_spec(0).text() : "none";
  return body;
}

// A catalogue that was rebuilt from files knows a space by its digest only: the first client that
// opens it brings the texts, and the digest says that they are right. The first that knows the
// rotation brings it: it is no part of the digest, and another one would only save less. A space is
// private while all who opened it want it so.
void learn(EngineState& engine, StoredSpace& space, const SpaceRow& given) {
  const bool texts = space.row.model.empty() && !given.model.empty();
  const bool rotation = !space.row.rotation.known() && given.rotation.known();
  if (texts) {
    space.row.model = given.model;
    space.row.runtime = given.runtime;
    space.row.detail = given.detail;
  }
  if (rotation) space.row.rotation = given.rotation;
  if (!given.private_only) space.row.private_only = false;
  if (!(texts || rotation) || !space.row_durable || engine.read_only) return;
  CatalogueBatch batch;
  batch.put_space(space.stored_row());
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
}

void op_space(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  Result<SpaceRow> row = parse_space(request);
  if (!row) return done(error(row.error()));
  StoredSpace* space = find_space(engine, row->id);
  const bool is_private = row->private_only;
  const bool created = space == nullptr;
  if (created) {
    row->created_unix_ns = engine.wall_ns();
    space = &add_space(engine, *std::move(row));
  } else {
    if (space->row.digest != row->digest)
      return done(error(Code::kInternal, "two spaces with one id"));
    learn(engine, *space, *row);
  }
  // A client that wants nothing on disk needs no row, whoever else opened the space.
  if (is_private) return done(ControlReply{space_reply(*space, created), {}, {}});
  keep_space(engine, *space,
             [body = space_reply(*space, created), done = std::move(done)](Result<void> kept) {
               kept ? done(ControlReply{body, {}, {}}) : done(error(kept.error()));
             });
}

// ---- match ----

void op_match(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSpace*> space = space_of(engine, request.body);
  if (!space) return done(error(space.error()));
  Result<std::vector<std::uint32_t>> ids = ids_of(request.payload);
  if (!ids) return done(error(ids.error()));
  match_prefix(
      engine, **space, *std::move(ids), [done = std::move(done)](Result<MatchResult> match) {
        match ? done(ControlReply{match_json(*match), {}, {}}) : done(error(match.error()));
      });
}

// ---- tokens ----

struct TokenRead {
  std::vector<std::pair<SegmentId, std::pair<std::uint32_t, std::uint32_t>>>
      runs;  // first and count in the segment
  std::vector<Segment*> held;
  std::size_t next = 0;
  bool loading = false;   // the metadata of held[next]
  bool stepping = false;  // the loop over segments goes on by itself: no recursion
  Result<void> result;
  ControlReply reply;
  ControlDone done;
};

void read_tokens(EngineState& engine, const std::shared_ptr<TokenRead>& read) {
  if (std::exchange(read->stepping, true)) return;
  while (!read->loading && read->result && read->next < read->runs.size()) {
    Segment* segment = read->held[read->next];
    read->loading = true;
    load_meta(engine, *segment, IoPriority::kDemand, [&engine, read, segment](Result<void> loaded) {
      read->loading = false;
      read->result = loaded;
      if (loaded) {
        const auto [first, count] = read->runs[read->next++].second;
        const auto* bytes =
            reinterpret_cast<const std::byte*>(segment->meta->tokens.data() + first);
        read->reply.payload.insert(read->reply.payload.end(), bytes,
                                   bytes + count * sizeof(TokenRecord));
      }
      read_tokens(engine, read);
    });
  }
  read->stepping = false;
  if (read->loading) return;
  for (Segment* segment : read->held) --segment->busy;
  if (!read->result) return read->done(error(read->result.error()));
  read->done(std::move(read->reply));
}

void op_tokens(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  constexpr std::uint64_t kTokensMax = 1ull << 20;
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  const Result<std::uint64_t> first = json_uint(request.body, "first", 0, kSequenceTokensMax);
  const Result<std::uint64_t> count = json_uint(request.body, "count", 0, kTokensMax);
  if (!first || !count) return done(error(first ? count.error() : first.error()));
  const StoredSequence& sequence = *(*open)->sequence;
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

// ---- truncate, close ----

void truncate_reply(const StoredSequence& sequence, const ControlDone& done) {
  ControlReply reply;
  reply.body["tokens_sealed"] = sequence.tokens_sealed;
  reply.body["tail_tokens"] = sequence.log.tokens;
  done(std::move(reply));
}

// In the sequence's queue.
void truncate_sealed(EngineState& engine, SequenceId id, std::uint64_t tokens, ControlDone done) {
  StoredSequence& sequence = *engine.sequences.all.at(id);
  const SequenceRow before = sequence.row;
  const std::vector<PartSpec> parts = parts_up_to(sequence, tokens);
  sequence.row.parts.clear();
  for (const PartSpec& part : parts)
    sequence.row.parts.push_back({part.segment->row.id, part.visible_tokens});
  sequence.row.log_generation = 0;
  const auto apply = [&engine, id, tokens, before, done](Result<void> result) {
    StoredSequence& found = *engine.sequences.all.at(id);
    if (!result) {
      found.row.parts = before.parts;
      found.row.log_generation = before.log_generation;
      found.log.suspect = true;  // the catalogue may say otherwise: the next commit says it anew
      done(error(result.error()));
      return work_finished(engine, found);
    }
    set_parts(engine, found, parts_up_to(found, tokens));
    drop_log(engine, found);
    if (found.writer != nullptr) found.writer->tail->texts = {};
    found.chain_known = false;  // the next seal learns it: what is done here must be said
    KVT_FAULT("truncate.done") ? done(error(Code::kIo, "injected")) : truncate_reply(found, done);
    work_finished(engine, found);
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
  StoredSequence& sequence = *(*open)->sequence;
  if (sequence.working || !sequence.work.empty())
    return done(error(Code::kBusy, "a seal or commit is under way: wait for it"));
  const SequenceId id = sequence.row.id;
  if (*tokens >= sequence.tokens_sealed) {
    const std::uint64_t tail = *tokens - sequence.tokens_sealed;
    const auto cut = static_cast<std::uint32_t>(std::min<std::uint64_t>(tail, kSegmentTokensMax));
    return cut_log(
        engine, sequence, cut, [&engine, id, done = std::move(done)](Result<void> result) {
          if (result && KVT_FAULT("truncate.done")) result = error(Code::kIo, "injected");
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
      {"space", true, op_space},       {"match", true, op_match}, {"tokens", true, op_tokens},
      {"truncate", true, op_truncate}, {"close", true, op_close}, {"staging", true, op_staging},
  };
  return kOps;
}

}  // namespace kvtier
