#include "tests/sim/store_life.h"

#include <algorithm>
#include <cstring>

#include "daemon/admin.h"
#include "daemon/engine_state.h"
#include "tiers/segment_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier::sim {

namespace {

constexpr std::uint64_t kCapacityBytes = 256ull << 20;
constexpr std::size_t kGivenUpMax = 6;

SimWorldOptions world_options(const StoreSimOptions& options) {
  SimWorldOptions world;
  world.seed = options.seed;
  world.host_bytes = 2ull << 20;
  world.abstracts_bytes = 256ull << 10;
  world.disk.capacity_bytes = kCapacityBytes;
  world.disk.latency_ns_max = 60'000;
  world.scrub_mb_per_s = options.seed % 4 == 0 ? 100 : 0;
  return world;
}

Traits traits_of(const Json& row) {
  return {row["name"].get<std::string>(), row["pinned"].get<bool>(),
          row["expires_unix_s"].get<std::uint64_t>()};
}

}  // namespace

StoreLife::StoreLife(const StoreSimOptions& in)
    : options(in), random(in.seed * 77 + 5), world(world_options(in)) {
  add_admin_ops();
}

void StoreLife::fail(const std::string& what) {
  if (result.failure.empty()) result.failure = "seed " + std::to_string(options.seed) + ": " + what;
  note("FAILED: " + what);
}

void StoreLife::expect_fault(const std::string& what, const Status& status) {
  note(what + " failed: " + status.message());
  if (!lenient && rotted.empty()) fail(what + " failed without a reason: " + status.message());
}

// ---- the world ----

void StoreLife::restart() {
  lenient = false;
  restarted_unix_s_ = now_unix_s();
  const Result<void> started = world.start();
  if (!started) return fail(std::string("the store does not open: ") + started.error().message());
  world.turn();  // what has expired goes
  writer = std::make_unique<SimClient>(world, "writer");
  reader = std::make_unique<SimClient>(world, "reader");
  objects = std::make_unique<SimObjects>(*writer);
  if (!objects->ready()) return fail("there is no staging memory");
  evicted = 0;
  space = writer->open_space(geometry);
  if (space == 0 || reader->open_space(geometry) != space) fail("the space does not open");
}

void StoreLife::heal() {
  world.disk().set_error_rates(0, 0);
  world.disk().set_capacity_bytes(kCapacityBytes);
}

void StoreLife::crash(bool power) {
  note(power ? "power cut" : "kill");
  ++result.crashes;
  heal();
  static_cast<void>(note_evictions());
  for (auto& [name, sequence] : sequences) sequence.close();
  objects.reset();
  reader.reset();
  writer.reset();
  power ? world.crash() : world.kill();
  restart();
  std::map<std::string, ModelSequence> left;
  for (auto& [name, sequence] : sequences) {
    if (!result.failure.empty()) return;
    if (reopen(sequence, true)) left.emplace(sequence.name(), std::move(sequence));
  }
  sequences = std::move(left);
  check_given_up();
  check_objects();
  if (ModelSequence* some = pick(); some != nullptr && result.failure.empty())
    fetch_all(*writer, *some->open, *some);
}

void StoreLife::turns(std::uint64_t most) {
  for (std::uint64_t i = random.below(most); i > 0; --i) world.turn();
}

// ---- what must hold: sequences ----

void StoreLife::close(ModelSequence& sequence) {
  const Reply reply = writer->control(Json{{"op", "close"}, {"handle", sequence.open->handle}});
  if (!reply.ok()) return fail("close failed");
  note("close " + sequence.name());
  sequence.close();
}

// A rename that was under way may have happened.
std::unique_ptr<SimSequence> StoreLife::attach_by_any_name(const ModelSequence& sequence,
                                                           Reply* reply) {
  std::unique_ptr<SimSequence> open = writer->attach(space, sequence.name(), true, reply);
  for (const Traits& maybe : sequence.maybe_traits) {
    if (open != nullptr || reply->status.code != Code::kNotFound) break;
    if (maybe.name != sequence.name()) open = writer->attach(space, maybe.name, true, reply);
  }
  return open;
}

// False where it is gone, as it may. No error of the disk and no damage takes a name away.
bool StoreLife::note_absent(const ModelSequence& sequence, const Status& status, bool after_crash) {
  if (status.code == Code::kNotFound && sequence.may_be_absent(now_unix_s())) {
    note("gone " + sequence.name());
    if (!after_crash) return false;
    give_up(sequence.name());
    for (const Traits& maybe : sequence.maybe_traits) give_up(maybe.name);
    return false;
  }
  note("closed stays " + sequence.name() + ": " + status.message());
  if (status.code == Code::kNotFound || (!lenient && !sequence.damaged))
    fail("sequence " + sequence.name() + " cannot be opened: " + status.message());
  return true;
}

void StoreLife::check_row(ModelSequence& sequence, const SimSequence& open) {
  const Reply reply = writer->control(Json{{"op", "show"}, {"target", open.id}});
  if (!reply.ok()) return fail("a sequence that is open is not shown");
  const Traits row = traits_of(reply.body);
  if (!sequence.may_have(row)) return fail("sequence " + sequence.name() + " has another row");
  std::vector<Traits> others = std::move(sequence.maybe_traits);
  others.push_back(sequence.traits);
  sequence.traits = row;
  sequence.maybe_traits.clear();
  for (const Traits& other : others)
    if (other.name != row.name) give_up(other.name);
}

bool StoreLife::reopen(ModelSequence& sequence, bool after_crash) {
  const auto failed = [this](const std::string& what) {
    fail(what);
    return true;
  };
  Reply reply;
  std::unique_ptr<SimSequence> open = attach_by_any_name(sequence, &reply);
  if (open == nullptr) return note_absent(sequence, reply.status, after_crash);
  if (after_crash && sequence.must_be_absent(restarted_unix_s_))
    return failed("sequence " + sequence.name() + " has expired and is there");
  if (after_crash) check_row(sequence, *open);
  Ids found;
  if (!read_ids(sequence, *open, &found)) {  // damaged, and said so: nothing to compare
    static_cast<void>(writer->control(Json{{"op", "close"}, {"handle", open->handle}}));
    return true;
  }
  if (!sequence.may_hold(found)) return failed(sequence.describe(found));
  note("open " + sequence.name() + " " + std::to_string(open->tokens_sealed) + "+" +
       std::to_string(open->count));
  const std::string tail =
      writer->check_tail(*open, geometry, found, open->tokens_sealed, open->count);
  if (!tail.empty()) return failed(sequence.name() + ": " + tail);
  sequence.open = std::move(open);
  sequence.ids = found;
  if (after_crash) sequence.found(std::move(found));
  return true;
}

// Ids of the sealed tokens by request, of the tail from shared memory.
bool StoreLife::read_ids(const ModelSequence& sequence, const SimSequence& open, Ids* ids_out) {
  Ids& ids = *ids_out;
  const Reply reply = writer->control(
      Json{{"op", "tokens"}, {"handle", open.handle}, {"first", 0}, {"count", open.tokens_sealed}});
  if (!reply.ok()) {
    if (!lenient && !sequence.damaged)
      fail(std::string("tokens cannot be read: ") + reply.status.message());
    return false;
  }
  for (std::size_t at = 0; at + sizeof(TokenRecord) <= reply.payload.size();
       at += sizeof(TokenRecord)) {
    TokenRecord record;
    std::memcpy(&record, reply.payload.data() + at, sizeof(record));
    ids.push_back(record.id);
  }
  const TailLayout layout(geometry);
  for (std::uint32_t i = 0; i < open.count; ++i) {
    TokenRecord record;
    std::memcpy(&record, open.tail.data() + layout.tokens_offset(open.half) + i * sizeof(record),
                sizeof(record));
    ids.push_back(record.id);
  }
  return true;
}

bool StoreLife::uses(const ModelSequence& sequence, const std::string& path) {
  const StoredSequence* stored = find_sequence_by_name(world.engine().state(), sequence.name());
  if (stored == nullptr) return true;
  const auto generations = stored->log.generations();
  return std::any_of(stored->parts.begin(), stored->parts.end(),
                     [&](const SequencePart& part) {
                       return segment_path(part.segment->row.id) == path;
                     }) ||
         std::any_of(generations.begin(), generations.end(), [&](std::uint64_t generation) {
           return tail_log_path(stored->row.id, generation) == path;
         });
}

// Of a row in doubt the catalogue may name files that the daemon does not.
void StoreLife::rotted_now(const std::string& path) {
  rotted.insert(path);
  if (path.starts_with("objects/")) return;
  for (auto& [name, sequence] : sequences)
    sequence.damaged = sequence.damaged || !sequence.maybe.empty() || uses(sequence, path);
}

void StoreLife::note_damage(ModelSequence& sequence) {
  sequence.damaged = std::any_of(rotted.begin(), rotted.end(),
                                 [&](const std::string& path) { return uses(sequence, path); });
}

void StoreLife::give_up(const std::string& name) {
  given_up.push_back(name);
  if (given_up.size() > kGivenUpMax) given_up.erase(given_up.begin());
}

void StoreLife::check_given_up() {
  for (const std::string& name : given_up) {
    if (!result.failure.empty()) return;
    if (writer->control(Json{{"op", "show"}, {"target", name}}).ok())
      fail("sequence " + name + " was removed or renamed, and is there");
  }
}

// ---- what must hold: rows that are served ----

void StoreLife::check_fetch(SimClient& client, const DirectoryView& directory,
                            const std::vector<FetchEntry>& entries,
                            const std::vector<std::uint64_t>& hashes,
                            const Completion& completion) {
  if (completion.status != 0 && completion.status != static_cast<std::int32_t>(Code::kFull) &&
      !lenient)
    return fail("a fetch failed with " + std::to_string(completion.status));
  for (const FetchEntry& entry : entries) {
    const Code code = static_cast<Code>(entry.status);
    if (code == Code::kOk) {
      ++result.fetched_chunks;
      for (const DirectoryEntry& where : directory.entries) {
        if (where.segment != entry.segment) continue;
        const std::string wrong = client.check_chunk(entry, where, geometry, hashes);
        if (!wrong.empty()) return fail("WRONG BYTES SERVED: " + wrong);
      }
      continue;
    }
    ++result.missed_chunks;
    const bool expected =
        code == Code::kFull || lenient ||
        (code == Code::kMiss && rotted.contains(segment_path(SegmentId{entry.segment})));
    if (!expected) return fail("a chunk is not served: " + std::to_string(entry.status));
  }
}

void StoreLife::fetch_all(SimClient& client, SimSequence& open, const ModelSequence& model) {
  const auto hashes = prefix_hashes(model.ids);
  const DirectoryView directory = open.read_directory();
  const std::string wrong = directory.check(model.ids.size() - model.open->count);
  if (!wrong.empty()) return fail(wrong);
  std::vector<FetchEntry> wanted = SimClient::all_entries(directory, geometry);
  for (std::size_t at = 0; at < wanted.size() && result.failure.empty(); at += 256) {
    const auto end =
        wanted.begin() + static_cast<std::ptrdiff_t>(std::min(wanted.size(), at + 256));
    const FetchResult got =
        client.fetch(open, {wanted.begin() + static_cast<std::ptrdiff_t>(at), end});
    check_fetch(client, directory, got.entries, hashes, got.completion);
    if (got.completion.value0 != 0) client.release(got.completion.value0);
  }
}

void StoreLife::check_everything() {
  for (auto& [name, sequence] : sequences) {
    if (sequence.open == nullptr || !result.failure.empty()) continue;
    fetch_all(*writer, *sequence.open, sequence);
  }
}

// ---- what must hold: opaque keys ----

bool StoreLife::note_evictions() {
  const std::uint64_t now = world.engine().state().metrics.objects.evicted;
  const bool some = now != evicted;
  if (some) object_model.allow_misses();
  evicted = now;
  return some;
}

void StoreLife::note_object(const ObjectCall& call) {
  const bool write = call.op == Op::kObjectSet || call.op == Op::kObjectDelete;
  note("object " + std::to_string(static_cast<int>(call.op)) + " " + call.key + " " +
       std::to_string(call.value.size()) + " -> " +
       (call.answered ? std::to_string(static_cast<int>(call.code)) : std::string("?")));
  if (call.answered && call.code == Code::kOk)
    ++(write ? result.object_writes : result.objects_compared);
  const std::string wrong = object_model.note(call, lenient, !rotted.empty());
  if (!wrong.empty()) fail(wrong);
}

// What a crash left is what stays.
void StoreLife::check_objects() {
  if (!result.failure.empty()) return;
  const auto before = object_model.all();
  for (const auto& [key, values] : before) {
    const ObjectCall call = objects->call(Op::kObjectGet, key);
    note_object(call);
    if (call.code == Code::kOk || (call.code == Code::kMiss && rotted.empty()))
      object_model.found(key, call.got);
  }
}

// ---- operations of several parts ----

std::vector<ModelSequence*> StoreLife::all_open() {
  std::vector<ModelSequence*> open;
  for (auto& [name, sequence] : sequences)
    if (sequence.open != nullptr) open.push_back(&sequence);
  return open;
}

ModelSequence* StoreLife::pick() {
  const std::vector<ModelSequence*> open = all_open();
  return open.empty() ? nullptr : open[static_cast<std::size_t>(random.below(open.size()))];
}

void StoreLife::append(ModelSequence& sequence) {
  const auto count = static_cast<std::uint32_t>(1 + random.below(50));
  if (sequence.ids.size() + count > 400 || sequence.open->count + count > 200) return;
  const std::uint64_t first = sequence.ids.size();
  for (std::uint32_t i = 0; i < count; ++i)
    sequence.ids.push_back(static_cast<std::uint32_t>(random.below(3)));
  writer->append(*sequence.open, geometry, sequence.ids, first, count);
  note("append " + sequence.name() + " " + std::to_string(count));
}

void StoreLife::write(ModelSequence& sequence, bool seal, bool may_crash) {
  if (seal && sequence.open->count == 0) return;
  const bool into_crash = may_crash && one_in(6);  // somewhere inside the operation
  const std::uint64_t user_data =
      seal ? writer->start_seal(*sequence.open) : writer->start_commit(*sequence.open);
  Completion completion{};
  bool came = false;
  if (into_crash) {
    for (std::uint64_t i = random.below(120); i > 0 && !came; --i) {
      world.turn();
      came = writer->poll(user_data, &completion);
    }
  } else {
    completion = writer->wait(user_data);
    came = true;
  }
  note((seal ? "seal " : "commit ") + sequence.name() + (into_crash ? " into a crash" : "") +
       (came ? " -> " + std::to_string(completion.status) + " " + std::to_string(completion.value1)
             : std::string()));
  ++(seal ? result.seals : result.commits);
  if (came && completion.status == 0) {
    if (completion.value1 != sequence.ids.size())
      fail("an acknowledgement names the wrong number of tokens");
    if (seal) SimClient::sealed(*sequence.open);
    sequence.acknowledge();
  } else {
    sequence.maybe.push_back(sequence.ids);
  }
  if (into_crash) return crash_somehow();
  if (completion.status != 0)
    expect_fault(seal ? "seal" : "commit", {static_cast<Code>(completion.status), 0, nullptr});
}

}  // namespace kvtier::sim
