#include "tests/sim/sim_client.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace kvtier::sim {

Geometry tiny_geometry(std::uint16_t heads_per_chunk) {
  Geometry geometry;
  geometry.chunk_tokens = 8;
  geometry.heads_per_chunk = heads_per_chunk;
  for (int i = 0; i < 2; ++i) {
    LayerGeometry layer;
    layer.kv_heads = 2;
    layer.query_heads = 2;
    layer.k_row_bytes = layer.v_row_bytes = 32;
    geometry.layers.push_back(layer);
  }
  return geometry;
}

std::vector<std::uint64_t> prefix_hashes(const std::vector<std::uint32_t>& ids) {
  std::vector<std::uint64_t> hashes;
  hashes.reserve(ids.size());
  std::uint64_t hash = 1;
  for (const std::uint32_t id : ids) {
    hash = (hash ^ id) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
    hashes.push_back(hash);
  }
  return hashes;
}

void fill_row(std::uint64_t prefix_hash, std::uint32_t layer, std::uint32_t head, bool value,
              std::byte* row, std::uint32_t row_bytes) {
  std::uint64_t state = prefix_hash ^ (layer * 1000003ull + head * 7919ull + (value ? 1 : 0));
  for (std::uint32_t i = 0; i + 4 <= row_bytes; i += 4) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const float element =
        static_cast<float>(static_cast<std::int32_t>(state >> 40)) / 8388608.0f - 1.0f;
    std::memcpy(row + i, &element, 4);
  }
}

DirectoryView SimSequence::read_directory() const {
  DirectoryView view;
  view.header = reinterpret_cast<DirectoryHeader*>(directory.data());
  view.tokens = view.header->tokens;
  const auto* entries =
      reinterpret_cast<const DirectoryEntry*>(directory.data() + sizeof(DirectoryHeader));
  view.entries.assign(entries, entries + view.header->segments);
  return view;
}

std::string DirectoryView::check(std::uint64_t expected) const {
  std::uint64_t next = 0;
  for (const DirectoryEntry& entry : entries) {
    if (entry.first_token != next)
      return "an entry begins at token " + std::to_string(entry.first_token) + " behind " +
             std::to_string(next);
    next += entry.visible_tokens;
  }
  if (next == expected && tokens == expected) return "";
  return "the directory shows " + std::to_string(next) + " tokens and says " +
         std::to_string(tokens) + ", not " + std::to_string(expected);
}

SimClient::SimClient(SimWorld& in, const std::string& name, bool data)
    : world(in), epoch_(in.epoch()) {
  const Result<SessionId> opened = world.engine().open_session(name, 1, data);
  if (!opened) return;
  session_ = *opened;
  if (!data) return;
  const SessionFds fds = world.engine().session_fds(session_);
  control_ = Mapping::map(fds.control, sizeof(ControlLayout), true).value();
  arena_ = Mapping::map(fds.arena, static_cast<std::size_t>(::lseek(fds.arena, 0, SEEK_END)), false)
               .value();
  abstracts_ = Mapping::map(fds.abstracts,
                            static_cast<std::size_t>(::lseek(fds.abstracts, 0, SEEK_END)), false)
                   .value();
  rings_ = make_client_rings(layout(), -1);
}

SimClient::~SimClient() {
  if (alive()) world.engine().close_session(session_);
}

bool SimClient::alive() const {
  return world.running() && world.epoch() == epoch_ && session_.valid();
}

SimClient::Answer SimClient::start_control(Json body, std::vector<std::byte> payload) {
  auto answer = std::make_shared<std::unique_ptr<Reply>>();
  if (!alive()) {
    *answer = std::make_unique<Reply>(Reply{{Code::kDaemonLost, 0, nullptr}, {}, {}, {}});
    return answer;
  }
  body = parse_json(dump_json(body)).value();  // as it comes off a socket
  world.engine().control(session_, {std::move(body), std::move(payload)},
                         [answer](Result<ControlReply> result) {
                           auto reply = std::make_unique<Reply>();
                           if (result) {
                             reply->body = std::move(result->body);
                             reply->payload = std::move(result->payload);
                             for (const int fd : result->fds) reply->fds.emplace_back(::dup(fd));
                           } else {
                             reply->status = result.error();
                           }
                           *answer = std::move(reply);
                         });
  return answer;
}

Reply SimClient::control(Json body, std::vector<std::byte> payload) {
  return wait(start_control(std::move(body), std::move(payload)));
}

Reply SimClient::wait(const Answer& answer) {
  if (!world.run_until([&] { return *answer != nullptr || !alive(); }) || *answer == nullptr)
    return Reply{{Code::kTimeout, 0, "the engine did not answer"}, {}, {}, {}};
  return std::move(**answer);
}

std::uint64_t SimClient::open_space(const Geometry& geometry, const std::string& model,
                                    bool is_private, const char* abstracts) {
  ByteWriter writer;
  encode_geometry(geometry, &writer);
  const Reply reply = control(Json{{"op", "space"},
                                   {"model", model},
                                   {"runtime", "sim"},
                                   {"detail", ""},
                                   {"private", is_private},
                                   {"abstract", abstracts}},
                              writer.take());
  if (!reply.ok()) KVT_LOG(kError, "simulated client: space: %s", reply.status.message());
  return reply.ok() ? reply.body["space"].get<std::uint64_t>() : 0;
}

std::unique_ptr<SimSequence> SimClient::opened(Reply reply) {
  if (!reply.ok()) return nullptr;
  auto sequence = std::make_unique<SimSequence>();
  sequence->info = reply.body;
  sequence->handle = reply.body["handle"].get<std::uint32_t>();
  sequence->id = reply.body["sequence"].get<std::uint64_t>();
  sequence->tokens_sealed = reply.body["tokens_sealed"].get<std::uint64_t>();
  sequence->count = reply.body["tail_tokens"].get<std::uint32_t>();
  sequence->writable = reply.body["writable"].get<bool>();
  sequence->directory_fd = std::move(reply.fds.at(0));
  sequence->directory = Mapping::map(sequence->directory_fd.get(), kDirectoryBytes, false).value();
  if (!sequence->writable) return sequence;
  sequence->tail_fd = std::move(reply.fds.at(1));
  const off_t bytes = ::lseek(sequence->tail_fd.get(), 0, SEEK_END);
  sequence->tail =
      Mapping::map(sequence->tail_fd.get(), static_cast<std::size_t>(bytes), true).value();
  return sequence;
}

namespace {
std::vector<std::byte> id_bytes(const std::vector<std::uint32_t>& ids) {
  std::vector<std::byte> bytes(ids.size() * 4);
  if (!ids.empty()) std::memcpy(bytes.data(), ids.data(), bytes.size());
  return bytes;
}
}  // namespace

std::unique_ptr<SimSequence> SimClient::create(std::uint64_t space,
                                               const std::vector<std::uint32_t>& ids,
                                               const std::string& name, bool is_private,
                                               Reply* reply_out) {
  Json body{{"op", "create"}, {"space", space}, {"private", is_private}};
  if (!name.empty()) body["name"] = name;
  Reply reply = control(std::move(body), id_bytes(ids));
  if (reply_out != nullptr) {
    reply_out->status = reply.status;
    reply_out->body = reply.body;
  }
  return opened(std::move(reply));
}

std::unique_ptr<SimSequence> SimClient::attach(std::uint64_t space, const Json& which, bool write,
                                               Reply* reply_out) {
  Json body{{"op", "attach"}, {"space", space}, {"write", write}};
  body[which.is_string() ? "name" : "sequence"] = which;
  Reply reply = control(std::move(body));
  if (reply_out != nullptr) {
    reply_out->status = reply.status;
    reply_out->body = reply.body;
  }
  return opened(std::move(reply));
}

void SimClient::append(SimSequence& sequence, const Geometry& geometry,
                       const std::vector<std::uint32_t>& ids, std::uint64_t first,
                       std::uint32_t count) {
  const TailLayout layout(geometry);
  const std::vector<std::uint64_t> hashes = prefix_hashes(ids);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t at = sequence.count + i;
    const std::uint64_t token = first + i;
    const TokenRecord record{ids[static_cast<std::size_t>(token)],
                             static_cast<std::uint32_t>(token), 0, 0};
    std::memcpy(
        sequence.tail.data() + layout.tokens_offset(sequence.half) + at * sizeof(TokenRecord),
        &record, sizeof(record));
    for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer) {
      const LayerGeometry& shape = geometry.layers[layer];
      for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
        const std::uint32_t group = head / geometry.heads_in_group(layer),
                            inside = head % geometry.heads_in_group(layer);
        std::byte* chunk = sequence.tail.data() + layout.plane_offset(sequence.half) +
                           layout.plane.chunk_offset(layer, at / geometry.chunk_tokens, group);
        const std::uint32_t row = at % geometry.chunk_tokens;
        const std::uint64_t hash = hashes[static_cast<std::size_t>(token)];
        fill_row(hash, layer, head, false, chunk + k_row_offset(geometry, shape, inside, row),
                 shape.k_row_bytes);
        fill_row(hash, layer, head, true, chunk + v_row_offset(geometry, shape, inside, row),
                 shape.v_row_bytes);
      }
    }
  }
  sequence.count += count;
}

std::uint64_t SimClient::submit(Submission request) {
  request.user_data = next_user_data_++;
  static_cast<void>(rings_.submissions.push(request));
  return request.user_data;
}

void SimClient::drain_completions() {
  Completion completions[64];
  for (;;) {
    const Result<std::uint32_t> count = rings_.completions.pop(completions);
    if (!count || *count == 0) return;
    arrived_.insert(arrived_.end(), completions, completions + *count);
  }
}

bool SimClient::poll(std::uint64_t user_data, Completion* completion) {
  drain_completions();
  for (std::size_t i = 0; i < arrived_.size(); ++i) {
    if (arrived_[i].user_data != user_data) continue;
    *completion = arrived_[i];
    arrived_.erase(arrived_.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  }
  return false;
}

Completion SimClient::wait(std::uint64_t user_data) {
  Completion completion{};
  bool came = false;
  if (alive()) world.run_until([&] { return (came = poll(user_data, &completion)) || !alive(); });
  if (!came)
    completion.status = static_cast<std::int32_t>(alive() ? Code::kTimeout : Code::kDaemonLost);
  return completion;
}

std::uint64_t SimClient::start(Op op, const SimSequence& sequence) {
  Submission request{};
  request.op = static_cast<std::uint16_t>(op);
  request.sequence = sequence.handle;
  request.half = sequence.half;
  request.count = sequence.count;
  request.value1 = sequence.tokens_sealed;
  return submit(request);
}

void SimClient::sealed(SimSequence& sequence) {
  sequence.tokens_sealed += sequence.count;
  sequence.half ^= 1;
  sequence.count = 0;
}

Completion SimClient::seal(SimSequence& sequence) {
  const Completion completion = wait(start_seal(sequence));
  if (completion.status == 0) sealed(sequence);
  return completion;
}

Completion SimClient::commit(SimSequence& sequence) { return wait(start_commit(sequence)); }

std::uint64_t SimClient::start_fetch(SimSequence& sequence, const std::vector<FetchEntry>& entries,
                                     Op op, std::uint64_t argument) {
  std::memcpy(layout()->arguments + argument, entries.data(), entries.size() * sizeof(FetchEntry));
  Submission request{};
  request.op = static_cast<std::uint16_t>(op);
  request.priority = static_cast<std::uint8_t>(Priority::kDemand);
  request.sequence = sequence.handle;
  request.argument_offset = argument;
  request.count = static_cast<std::uint32_t>(entries.size());
  return submit(request);
}

FetchResult SimClient::fetch(SimSequence& sequence, std::vector<FetchEntry> entries, Op op) {
  FetchResult result;
  const std::uint64_t user_data = start_fetch(sequence, entries, op, 0);
  result.completion = wait(user_data);
  result.entries = std::move(entries);
  std::memcpy(result.entries.data(), layout()->arguments,
              result.entries.size() * sizeof(FetchEntry));
  return result;
}

void SimClient::release(std::uint64_t lease) {
  Submission request{};
  request.op = static_cast<std::uint16_t>(Op::kRelease);
  request.value0 = lease;
  submit(request);
}

std::vector<FetchEntry> SimClient::all_entries(const DirectoryView& directory,
                                               const Geometry& geometry) {
  std::vector<FetchEntry> entries;
  for (const DirectoryEntry& entry : directory.entries) {
    const std::uint32_t chunks =
        (entry.visible_tokens + geometry.chunk_tokens - 1) / geometry.chunk_tokens;
    for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer)
      for (std::uint32_t chunk = 0; chunk < chunks; ++chunk)
        for (std::uint32_t group = 0; group < geometry.groups(layer); ++group) {
          FetchEntry wanted{};
          wanted.segment = entry.segment;
          wanted.row_mask = ~0ull;
          wanted.layer = static_cast<std::uint16_t>(layer);
          wanted.chunk = static_cast<std::uint16_t>(chunk);
          wanted.group = static_cast<std::uint16_t>(group);
          entries.push_back(wanted);
        }
  }
  return entries;
}

namespace {

std::string check_rows(const std::byte* chunk, std::uint32_t rows, const Geometry& geometry,
                       std::uint32_t layer, std::uint32_t group, std::uint64_t first_token,
                       const std::vector<std::uint64_t>& hashes) {
  const LayerGeometry& shape = geometry.layers[layer];
  std::vector<std::byte> expected(shape.k_row_bytes);
  for (std::uint32_t inside = 0; inside < geometry.heads_in_group(layer); ++inside) {
    const std::uint32_t head = group * geometry.heads_in_group(layer) + inside;
    for (std::uint32_t row = 0; row < rows; ++row) {
      for (const bool value : {false, true}) {
        const std::uint64_t token = first_token + row;
        if (token >= hashes.size()) return "more tokens than were ever written";
        fill_row(hashes[static_cast<std::size_t>(token)], layer, head, value, expected.data(),
                 shape.k_row_bytes);
        const std::uint64_t offset = value ? v_row_offset(geometry, shape, inside, row)
                                           : k_row_offset(geometry, shape, inside, row);
        if (std::memcmp(chunk + offset, expected.data(), shape.k_row_bytes) != 0)
          return "token " + std::to_string(token) + " layer " + std::to_string(layer) + " head " +
                 std::to_string(head) + (value ? ": V differs" : ": K differs");
      }
    }
  }
  return "";
}

}  // namespace

std::string SimClient::check_chunk(const FetchEntry& entry, const DirectoryEntry& where,
                                   const Geometry& geometry,
                                   const std::vector<std::uint64_t>& hashes) const {
  const std::uint32_t first = entry.chunk * geometry.chunk_tokens;
  const std::uint32_t rows =
      std::min<std::uint32_t>(geometry.chunk_tokens, where.visible_tokens - first);
  return check_rows(arena() + entry.slot_offset, rows, geometry, entry.layer, entry.group,
                    where.first_token + first, hashes);
}

std::string SimClient::check_tail(const SimSequence& sequence, const Geometry& geometry,
                                  const std::vector<std::uint32_t>& ids, std::uint64_t first,
                                  std::uint32_t count) const {
  const TailLayout layout(geometry);
  const std::vector<std::uint64_t> hashes = prefix_hashes(ids);
  const auto* records = reinterpret_cast<const TokenRecord*>(sequence.tail.data() +
                                                             layout.tokens_offset(sequence.half));
  for (std::uint32_t i = 0; i < count; ++i) {
    if (first + i >= ids.size()) return "the tail has more tokens than were ever written";
    if (records[i].id != ids[static_cast<std::size_t>(first + i)])
      return "a token id of the tail differs";
  }
  for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer)
    for (std::uint32_t group = 0; group < geometry.groups(layer); ++group)
      for (std::uint32_t chunk = 0; chunk * geometry.chunk_tokens < count; ++chunk) {
        const std::uint32_t rows =
            std::min<std::uint32_t>(geometry.chunk_tokens, count - chunk * geometry.chunk_tokens);
        const std::byte* bytes = sequence.tail.data() + layout.plane_offset(sequence.half) +
                                 layout.plane.chunk_offset(layer, chunk, group);
        std::string wrong = check_rows(bytes, rows, geometry, layer, group,
                                       first + chunk * geometry.chunk_tokens, hashes);
        if (!wrong.empty()) return "tail: " + wrong;
      }
  return "";
}

}  // namespace kvtier::sim
