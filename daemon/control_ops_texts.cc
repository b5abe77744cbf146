// Requests about the texts of tokens: set_texts, texts, and reads: how often they were read. Texts
// are no part of the shared memory: what a client gives waits in its tail (sequences.h) until a
// commit or seal takes it along.
#include <algorithm>

#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/segment_meta.h"

namespace kvtier {

namespace {

void op_set_texts(EngineState&, Session& session, ControlRequest request, ControlDone done) {
  const Result<OpenSequence*> open = handle_of(session, request.body);
  if (!open) return done(error(open.error()));
  if (!(*open)->writable)
    return done(error(Code::kPermission, "the handle is open for reading only"));
  const Result<std::uint64_t> half = json_uint(request.body, "half", 0, 1);
  const Result<std::uint64_t> first = json_uint(request.body, "first", 0, kSegmentTokensMax);
  const Result<std::uint64_t> count = json_uint(request.body, "count", 0, kSegmentTokensMax);
  for (const auto* field : {&half, &first, &count})
    if (!*field) return done(error(field->error()));
  if (*count > kSegmentTokensMax - *first)
    return done(error(Code::kTooLarge, "texts beyond the end of a half"));
  const auto tokens = static_cast<std::uint32_t>(*count);
  const Result<TokenTexts> given = TokenTexts::parse(request.payload, tokens);
  if (!given) return done(error(Code::kInvalid, "the payload is not the texts of `count` tokens"));
  TokenTexts& texts = (*open)->tail->texts[*half];
  texts.resize(static_cast<std::uint32_t>(*first));
  texts.append(*given, 0, tokens);
  if (texts.empty()) texts = {};
  done(ControlReply{Json::object(), {}, {}});
}

// ---- texts ----

struct TextRead {
  struct Run {
    Segment* segment = nullptr;  // its `busy` is counted
    std::uint32_t first = 0, count = 0;
  };
  std::vector<Run> runs;
  std::size_t next = 0;
  TokenTexts tail;  // behind them
  TokenTexts texts;
  bool as_text = false;  // in the body, for whoever reads JSON only
  ControlDone done;
};
using TextReadPtr = std::shared_ptr<TextRead>;

// The bytes end within a character of UTF-8, whose rest the next token may bring.
bool ends_within_character(ByteSpan bytes) {
  std::size_t back = 0;
  for (; back < 3 && back < bytes.size(); ++back) {
    const auto byte = static_cast<unsigned>(bytes[bytes.size() - 1 - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const unsigned length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back + 1;
  }
  return false;
}

// How many bytes at the front of `bytes` are one character of UTF-8; 0: it is none.
std::size_t character_bytes(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned first = at(0);
  const std::size_t length = first < 0x80                     ? 1
                             : first >= 0xC2 && first <= 0xDF ? 2
                             : (first & 0xF0) == 0xE0         ? 3
                             : first >= 0xF0 && first <= 0xF4 ? 4
                                                              : 0;
  if (length == 0 || length > bytes.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((at(i) & 0xC0) != 0x80) return 0;
  const unsigned second = length > 1 ? at(1) : 0;
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool beyond = (first == 0xED && second > 0x9F) || (first == 0xF4 && second > 0x8F);
  return overlong || beyond ? 0 : length;
}

// JSON takes UTF-8 only: each other byte becomes a question mark, so that lengths stay.
std::string as_utf8(ByteSpan bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_bytes(std::string_view(text).substr(i));
    if (length == 0) text[i] = '?';
    i += std::max<std::size_t>(length, 1);
  }
  return text;
}

void finish_texts(const TextReadPtr& read, Result<void> result) {
  for (const TextRead::Run& run : read->runs) --run.segment->busy;
  if (!result) return read->done(error(result.error()));
  read->texts.append(read->tail, 0, read->tail.tokens());
  // JSON takes whole characters only: who asks on from `count` gets the rest.
  constexpr int kTokensOfACharacter = 4;
  for (int i = 0; read->as_text && i < kTokensOfACharacter && read->texts.tokens() > 1 &&
                  ends_within_character(read->texts.bytes());
       ++i)
    read->texts.resize(read->texts.tokens() - 1);
  ControlReply reply;
  reply.body["count"] = read->texts.tokens();
  const ByteSpan bytes = read->texts.bytes();
  if (read->as_text) {
    reply.body["text"] = as_utf8(bytes);
    reply.body["token_bytes"] = read->texts.lengths();
  } else
    reply.payload = read->texts.encode();
  read->done(std::move(reply));
}

void next_texts(EngineState& engine, const TextReadPtr& read) {
  while (read->next < read->runs.size()) {
    const TextRead::Run run = read->runs[read->next++];
    if (run.segment->state == SegmentState::kInMemory) {
      const auto place = engine.private_texts.find(run.segment->row.id);
      read->texts.append(place != engine.private_texts.end() ? place->second : TokenTexts(),
                         run.first, run.count);
      continue;
    }
    read_segment_meta(engine, *run.segment, IoPriority::kDemand,
                      [&engine, read, run](Result<SegmentMeta> meta) {
                        if (!meta && meta.error().code == Code::kCorrupt)
                          mark_bad(engine, *run.segment, "metadata");
                        if (!meta) return finish_texts(read, error(meta.error()));
                        read->texts.append(meta->texts, run.first, run.count);
                        next_texts(engine, read);
                      });
    return;
  }
  finish_texts(read, {});
}

// Of sealed tokens, and for who writes of the committed tail, which lies in one half.
void op_texts(EngineState& engine, Session& session, ControlRequest request, ControlDone done) {
  const OpenSequence* open = nullptr;
  Result<StoredSequence*> target = error(Code::kInvalid);
  if (request.body.contains("handle")) {
    const Result<OpenSequence*> found = handle_of(session, request.body);
    if (!found) return done(error(found.error()));
    open = *found;
    target = open->sequence;
  } else {
    target = target_sequence(engine, request.body);
  }
  if (!target) return done(error(target.error()));
  const StoredSequence& sequence = **target;
  const Result<std::uint64_t> first = json_uint(request.body, "first", 0, kSequenceTokensMax);
  const Result<std::uint64_t> count = json_uint(request.body, "count", 0, kTextTokensMax);
  const Result<bool> as_text = json_bool(request.body, "as_text", false);
  if (!first || !count) return done(error(first ? count.error() : first.error()));
  if (!as_text) return done(error(as_text.error()));
  const std::uint64_t sealed = sequence.tokens_sealed;
  const std::uint64_t last = sealed + (open != nullptr && open->writable ? sequence.log.tokens : 0);
  if (*first > last || *count > last - *first)
    return done(error(Code::kInvalid, "beyond the tokens of the sequence whose texts are there"));
  auto read = std::make_shared<TextRead>();
  const std::uint64_t end = *first + *count;
  for (const SequencePart& part : sequence.parts) {
    const std::uint64_t from = std::max(*first, part.first_token);
    const std::uint64_t to = std::min(end, part.first_token + part.visible_tokens);
    if (from >= to) continue;
    read->runs.push_back({part.segment, static_cast<std::uint32_t>(from - part.first_token),
                          static_cast<std::uint32_t>(to - from)});
    ++part.segment->busy;
  }
  if (end > sealed) {
    const auto from = static_cast<std::uint32_t>(std::max(*first, sealed) - sealed);
    read->tail.append(open->tail->texts[sequence.log.half], from,
                      static_cast<std::uint32_t>(end - sealed) - from);
  }
  read->as_text = *as_text;
  read->done = std::move(done);
  next_texts(engine, read);
}

// How often selections took sealed tokens since the last prompt.
void op_reads(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = target_sequence(engine, request.body);
  if (!target) return done(error(target.error()));
  const StoredSequence& sequence = **target;
  const Result<std::uint64_t> first = json_uint(request.body, "first", 0, kSequenceTokensMax);
  const Result<std::uint64_t> count = json_uint(request.body, "count", 0, kReadCountTokensMax);
  if (!first || !count) return done(error(first ? count.error() : first.error()));
  if (*first > sequence.tokens_sealed || *count > sequence.tokens_sealed - *first)
    return done(error(Code::kInvalid, "beyond the sealed tokens of the sequence"));
  const auto layers = static_cast<std::uint32_t>(sequence.space->row.geometry.layers.size());
  Json groups = Json::array();
  for (std::uint32_t layer = 0; layer < layers;) {
    const std::uint32_t group = read_group(layer, layers), begin = layer;
    while (layer < layers && read_group(layer, layers) == group) ++layer;
    Json counts = Json::array();
    for (std::uint64_t i = 0; i < *count && sequence.reads != nullptr; ++i)
      counts.push_back(sequence.reads->count(group, *first + i));
    groups.push_back({{"first_layer", begin}, {"last_layer", layer - 1}, {"counts", counts}});
  }
  ControlReply reply;
  reply.body["rows"] = sequence.reads != nullptr ? sequence.reads->rows() : 0;
  reply.body["complete"] = sequence.reads == nullptr || sequence.reads->complete();
  reply.body["groups"] = std::move(groups);
  done(std::move(reply));
}

}  // namespace

std::span<const ControlOp> text_ops() {
  static constexpr ControlOp kOps[] = {
      {"set_texts", true, op_set_texts}, {"texts", false, op_texts}, {"reads", false, op_reads}};
  return kOps;
}

}  // namespace kvtier
