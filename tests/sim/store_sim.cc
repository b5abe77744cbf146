#include "tests/sim/store_sim.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "base/hash.h"
#include "daemon/engine_state.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_objects.h"

namespace kvtier::sim {

namespace {

using Ids = std::vector<std::uint32_t>;

struct ModelSequence {
  std::string name;
  std::unique_ptr<SimSequence> open;  // the writer's
  Ids ids;                            // what the writer has, sealed and tail
  bool acknowledged = false;          // it must exist
  Ids durable;                        // its content, where acknowledged
  std::vector<std::optional<Ids>> maybe;
};

class StoreSim {
 public:
  explicit StoreSim(const StoreSimOptions& options)
      : options_(options), random_(options.seed * 77 + 5), world_(world_options(options)) {}

  StoreSimResult run() {
    restart();
    for (std::uint32_t i = 0; i < options_.operations && result_.failure.empty(); ++i) operation();
    if (result_.failure.empty()) {
      heal();
      crash(true);
    }
    if (result_.failure.empty()) check_everything();
    objects_.reset();
    result_.state_hash = hash64(as_bytes(result_.trace));
    writer_.reset();
    reader_.reset();
    return std::move(result_);
  }

 private:
  static SimWorldOptions world_options(const StoreSimOptions& options) {
    SimWorldOptions world;
    world.seed = options.seed;
    world.host_bytes = 2ull << 20;
    world.abstracts_bytes = 256ull << 10;
    world.disk.capacity_bytes = 256ull << 20;
    world.disk.latency_ns_max = 60'000;
    return world;
  }

  void note(const std::string& line) { result_.trace += line + "\n"; }
  void fail(const std::string& what) {
    if (result_.failure.empty())
      result_.failure = "seed " + std::to_string(options_.seed) + ": " + what;
    note("FAILED: " + what);
  }
  bool one_in(std::uint64_t n) { return random_.one_in(n); }

  // ---- the world ----

  void restart() {
    lenient_ = false;
    const Result<void> started = world_.start();
    if (!started) return fail(std::string("the store does not open: ") + started.error().message());
    writer_ = std::make_unique<SimClient>(world_, "writer");
    reader_ = std::make_unique<SimClient>(world_, "reader");
    objects_ = std::make_unique<SimObjects>(*writer_);
    if (!objects_->ready()) return fail("there is no staging memory");
    evicted_ = 0;
    space_ = writer_->open_space(geometry_);
    if (space_ == 0 || reader_->open_space(geometry_) != space_) fail("the space does not open");
  }

  void heal() {
    world_.disk().set_error_rates(0, 0);
    world_.disk().set_capacity_bytes(256ull << 20);
  }

  void crash(bool power) {
    note(power ? "power cut" : "kill");
    ++result_.crashes;
    heal();
    static_cast<void>(note_evictions());
    for (auto& [name, sequence] : sequences_) close_model(sequence);
    objects_.reset();
    reader_.reset();
    writer_.reset();
    power ? world_.crash() : world_.kill();
    restart();
    if (!result_.failure.empty()) return;
    for (auto& [name, sequence] : sequences_) reopen(sequence, true);
    std::erase_if(sequences_, [](const auto& entry) { return entry.second.open == nullptr; });
    check_objects();
  }

  // The writer's handle is gone: what was not acknowledged is not expected any more.
  void close_model(ModelSequence& sequence) {
    sequence.open.reset();
    sequence.ids = sequence.durable;
  }

  // ---- what must hold ----

  std::string describe(const ModelSequence& sequence, const Ids& found) {
    std::string text = "sequence " + sequence.name + " has " + std::to_string(found.size()) +
                       " tokens, acknowledged were " + std::to_string(sequence.durable.size());
    for (const auto& maybe : sequence.maybe)
      text += maybe ? ", or " + std::to_string(maybe->size()) : std::string(", or absent");
    return text;
  }

  // Opens for writing and compares content with what may be. After a crash what is found is
  // durable.
  void reopen(ModelSequence& sequence, bool after_crash) {
    Reply reply;
    std::unique_ptr<SimSequence> open = writer_->attach(space_, sequence.name, true, &reply);
    if (open == nullptr) {
      const bool may_be_absent =
          !sequence.acknowledged || std::any_of(sequence.maybe.begin(), sequence.maybe.end(),
                                                [](const auto& m) { return !m; });
      if (reply.status.code == Code::kNotFound && may_be_absent) return;
      if (lenient_ || rotten_) return;
      return fail("sequence " + sequence.name + " cannot be opened: " + reply.status.message());
    }
    Ids found;
    if (!read_ids(*open, &found)) return;  // damaged, and said so: nothing to compare
    bool allowed = sequence.acknowledged && found == sequence.durable;
    for (const auto& maybe : sequence.maybe) allowed = allowed || (maybe && found == *maybe);
    if (!sequence.acknowledged)
      allowed = allowed || is_prefix(found, sequence.ids) || found.empty();
    if (!allowed && rotten_)
      allowed = is_prefix(found, sequence.durable) || prefix_of_any(found, sequence.maybe);
    if (!allowed && !lenient_) return fail(describe(sequence, found));
    note("open " + sequence.name + " " + std::to_string(open->tokens_sealed) + "+" +
         std::to_string(open->count));
    const std::string tail =
        writer_->check_tail(*open, geometry_, found, open->tokens_sealed, open->count);
    if (!tail.empty()) return fail(sequence.name + ": " + tail);
    sequence.open = std::move(open);
    sequence.ids = found;
    if (!after_crash) return;
    sequence.durable = std::move(found);
    sequence.acknowledged = true;
    sequence.maybe.clear();
  }

  static bool is_prefix(const Ids& a, const Ids& b) {
    return a.size() <= b.size() && std::equal(a.begin(), a.end(), b.begin());
  }
  static bool prefix_of_any(const Ids& found, const std::vector<std::optional<Ids>>& all) {
    return std::any_of(all.begin(), all.end(),
                       [&](const auto& one) { return one && is_prefix(found, *one); });
  }

  // Ids of the sealed tokens by request, of the tail from shared memory.
  bool read_ids(const SimSequence& open, Ids* ids_out) {
    Ids& ids = *ids_out;
    const Reply reply = writer_->control(Json{
        {"op", "tokens"}, {"handle", open.handle}, {"first", 0}, {"count", open.tokens_sealed}});
    if (!reply.ok()) {
      if (!lenient_ && !rotten_)
        fail(std::string("tokens cannot be read: ") + reply.status.message());
      return false;
    }
    for (std::size_t at = 0; at + sizeof(TokenRecord) <= reply.payload.size();
         at += sizeof(TokenRecord)) {
      TokenRecord record;
      std::memcpy(&record, reply.payload.data() + at, sizeof(record));
      ids.push_back(record.id);
    }
    const TailLayout layout(geometry_);
    for (std::uint32_t i = 0; i < open.count; ++i) {
      TokenRecord record;
      std::memcpy(&record, open.tail.data() + layout.tokens_offset(open.half) + i * sizeof(record),
                  sizeof(record));
      ids.push_back(record.id);
    }
    return true;
  }

  void check_fetch(SimClient& client, const DirectoryView& directory,
                   const std::vector<FetchEntry>& entries, const std::vector<std::uint64_t>& hashes,
                   const Completion& completion) {
    if (completion.status != 0 && completion.status != static_cast<std::int32_t>(Code::kFull) &&
        !lenient_)
      return fail("a fetch failed with " + std::to_string(completion.status));
    for (const FetchEntry& entry : entries) {
      const Code code = static_cast<Code>(entry.status);
      if (code == Code::kOk) {
        ++result_.fetched_chunks;
        for (const DirectoryEntry& where : directory.entries) {
          if (where.segment != entry.segment) continue;
          const std::string wrong = client.check_chunk(entry, where, geometry_, hashes);
          if (!wrong.empty()) return fail("WRONG BYTES SERVED: " + wrong);
        }
        continue;
      }
      ++result_.missed_chunks;
      const bool expected = code == Code::kFull || lenient_ || (rotten_ && code == Code::kMiss);
      if (!expected) return fail("a chunk is not served: " + std::to_string(entry.status));
    }
  }

  void fetch_all(SimClient& client, SimSequence& open, const Ids& ids) {
    const auto hashes = prefix_hashes(ids);
    const DirectoryView directory = open.read_directory();
    if (directory.tokens > ids.size())
      return fail("the directory shows more tokens than were written");
    std::vector<FetchEntry> wanted = SimClient::all_entries(directory, geometry_);
    for (std::size_t at = 0; at < wanted.size() && result_.failure.empty(); at += 256) {
      const auto end =
          wanted.begin() + static_cast<std::ptrdiff_t>(std::min(wanted.size(), at + 256));
      const FetchResult got =
          client.fetch(open, {wanted.begin() + static_cast<std::ptrdiff_t>(at), end});
      check_fetch(client, directory, got.entries, hashes, got.completion);
      if (got.completion.value0 != 0) client.release(got.completion.value0);
    }
  }

  void check_everything() {
    for (auto& [name, sequence] : sequences_) {
      if (sequence.open == nullptr || !result_.failure.empty()) continue;
      fetch_all(*writer_, *sequence.open, sequence.ids);
    }
  }

  // ---- operations ----

  ModelSequence* pick() {
    if (sequences_.empty()) return nullptr;
    auto place = sequences_.begin();
    std::advance(place, static_cast<std::ptrdiff_t>(random_.below(sequences_.size())));
    return place->second.open == nullptr ? nullptr : &place->second;
  }

  Ids random_prefix() {
    Ids ids;
    ModelSequence* source = pick();
    if (source != nullptr && !one_in(3)) {
      ids.assign(
          source->ids.begin(),
          source->ids.begin() + static_cast<std::ptrdiff_t>(random_.below(source->ids.size() + 1)));
    }
    const std::uint64_t more = random_.below(60);
    for (std::uint64_t i = 0; i < more; ++i)
      ids.push_back(static_cast<std::uint32_t>(random_.below(3)));
    return ids;
  }

  void create() {
    if (sequences_.size() >= 4) return;
    ModelSequence made;
    made.name = "s" + std::to_string(next_name_++);
    const Ids wanted = random_prefix();
    Reply reply;
    made.open = writer_->create(space_, wanted, made.name, false, &reply);
    if (made.open == nullptr) return expect_fault("create", reply.status);
    const auto tokens = reply.body["tokens"].get<std::uint64_t>();
    if (tokens > wanted.size()) return fail("a match is longer than what was asked for");
    made.ids.assign(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(tokens));
    if (reply.body["reason"] == "differs" &&
        reply.body["stored_token"] == wanted[static_cast<std::size_t>(tokens)])
      return fail("a match ends at a token that does not differ");
    note("create " + made.name + " matched " + std::to_string(tokens) + "/" +
         std::to_string(wanted.size()));
    made.maybe.push_back(std::nullopt);
    made.maybe.push_back(made.ids);
    sequences_.emplace(made.name, std::move(made));
  }

  void expect_fault(const std::string& what, const Status& status) {
    note(what + " failed: " + status.message());
    if (!lenient_ && !rotten_) fail(what + " failed without a reason: " + status.message());
  }

  void append(ModelSequence& sequence) {
    const auto count = static_cast<std::uint32_t>(1 + random_.below(50));
    if (sequence.ids.size() + count > 400 || sequence.open->count + count > 200) return;
    const std::uint64_t first = sequence.ids.size();
    for (std::uint32_t i = 0; i < count; ++i)
      sequence.ids.push_back(static_cast<std::uint32_t>(random_.below(3)));
    writer_->append(*sequence.open, geometry_, sequence.ids, first, count);
    note("append " + sequence.name + " " + std::to_string(count));
  }

  void acknowledge(ModelSequence& sequence) {
    sequence.acknowledged = true;
    sequence.durable = sequence.ids;
    sequence.maybe.clear();
  }

  void write(ModelSequence& sequence, bool seal) {
    if (seal && sequence.open->count == 0) return;
    if (one_in(6)) return write_into_crash(sequence, seal);
    const Completion completion =
        seal ? writer_->seal(*sequence.open) : writer_->commit(*sequence.open);
    note((seal ? "seal " : "commit ") + sequence.name + " -> " + std::to_string(completion.status) +
         " " + std::to_string(completion.value1));
    ++(seal ? result_.seals : result_.commits);
    if (completion.status == 0) {
      if (completion.value1 != sequence.ids.size())
        fail("an acknowledgement names the wrong number of tokens");
      return acknowledge(sequence);
    }
    sequence.maybe.push_back(sequence.ids);
    expect_fault(seal ? "seal" : "commit", {static_cast<Code>(completion.status), 0, nullptr});
  }

  // The crash comes somewhere inside the operation.
  void write_into_crash(ModelSequence& sequence, bool seal) {
    Submission request{};
    request.op = static_cast<std::uint16_t>(seal ? Op::kSeal : Op::kCommit);
    request.sequence = sequence.open->handle;
    request.half = sequence.open->half;
    request.count = sequence.open->count;
    request.value1 = sequence.open->tokens_sealed;
    const std::uint64_t user_data = writer_->submit(request);
    const std::uint64_t turns = random_.below(120);
    Completion completion{};
    bool came = false;
    for (std::uint64_t i = 0; i < turns && !came; ++i) {
      world_.turn();
      came = writer_->poll(user_data, &completion);
    }
    note(std::string(seal ? "seal " : "commit ") + sequence.name + " into a crash" +
         (came ? ", done" : ""));
    if (came && completion.status == 0)
      acknowledge(sequence);
    else
      sequence.maybe.push_back(sequence.ids);
    crash(options_.power_cuts && !one_in(4));
  }

  void fetch(ModelSequence& sequence) {
    Reply reply;
    std::unique_ptr<SimSequence> open = reader_->attach(space_, sequence.name, false, &reply);
    if (open == nullptr) return expect_fault("attach", reply.status);
    note("fetch " + sequence.name);
    fetch_all(*reader_, *open, sequence.ids);
    const Reply closed = reader_->control(Json{{"op", "close"}, {"handle", open->handle}});
    if (!closed.ok()) fail("close failed");
  }

  // Two clients ask while a seal runs, in an arena that does not hold everything.
  void busy(ModelSequence& sequence) {
    ModelSequence* other = pick();
    if (other == nullptr || sequence.open->count == 0 || other->open->tokens_sealed == 0) return;
    const auto hashes = prefix_hashes(other->ids);
    const DirectoryView directory = other->open->read_directory();
    std::vector<FetchEntry> wanted = SimClient::all_entries(directory, geometry_);
    if (wanted.size() > 200) wanted.resize(200);
    Submission request{};
    request.op = static_cast<std::uint16_t>(Op::kSeal);
    request.sequence = sequence.open->handle;
    request.half = sequence.open->half;
    request.count = sequence.open->count;
    request.value1 = sequence.open->tokens_sealed;
    const std::uint64_t seal = writer_->submit(request);
    const std::uint64_t prefetch =
        writer_->start_fetch(*other->open, wanted, Op::kPrefetch, 1 << 20);
    const FetchResult got = writer_->fetch(*other->open, wanted);
    check_fetch(*writer_, directory, got.entries, hashes, got.completion);
    if (got.completion.value0 != 0) writer_->release(got.completion.value0);
    const Completion completion = writer_->wait(seal);
    static_cast<void>(writer_->wait(prefetch));
    note("busy " + sequence.name + " " + other->name + " -> " + std::to_string(completion.status));
    if (completion.status != 0) {
      sequence.maybe.push_back(sequence.ids);
      return expect_fault("seal", {static_cast<Code>(completion.status), 0, nullptr});
    }
    sequence.open->tokens_sealed += sequence.open->count;
    sequence.open->half ^= 1;
    sequence.open->count = 0;
    acknowledge(sequence);
  }

  void fork(ModelSequence& sequence) {
    if (sequences_.size() >= 4) return;
    const std::uint64_t tokens = random_.below(sequence.open->tokens_sealed + 1);
    ModelSequence made;
    made.name = "s" + std::to_string(next_name_++);
    Reply reply = writer_->control(Json{{"op", "fork"},
                                        {"space", space_},
                                        {"handle", sequence.open->handle},
                                        {"tokens", tokens},
                                        {"new_name", made.name},
                                        {"write", true}});
    note("fork " + sequence.name + " " + std::to_string(tokens));
    if (!reply.ok()) return expect_fault("fork", reply.status);
    made.open = writer_->opened(std::move(reply), geometry_);
    made.ids.assign(sequence.ids.begin(),
                    sequence.ids.begin() + static_cast<std::ptrdiff_t>(tokens));
    made.maybe.push_back(std::nullopt);
    made.maybe.push_back(made.ids);
    sequences_.emplace(made.name, std::move(made));
  }

  void truncate(ModelSequence& sequence) {
    const std::uint64_t tokens = random_.below(sequence.ids.size() + 1);
    const Reply reply = writer_->control(
        Json{{"op", "truncate"}, {"handle", sequence.open->handle}, {"tokens", tokens}});
    note("truncate " + sequence.name + " " + std::to_string(tokens));
    const auto cut = [tokens](Ids ids) {
      ids.resize(std::min<std::size_t>(ids.size(), static_cast<std::size_t>(tokens)));
      return ids;
    };
    if (!reply.ok()) {
      const std::vector<std::optional<Ids>> before = sequence.maybe;
      for (const auto& maybe : before) {
        if (maybe) sequence.maybe.push_back(cut(*maybe));
      }
      sequence.maybe.push_back(cut(sequence.durable));
      return expect_fault("truncate", reply.status);
    }
    sequence.ids = cut(std::move(sequence.ids));
    sequence.durable = cut(std::move(sequence.durable));
    for (auto& maybe : sequence.maybe) {
      if (maybe) maybe = cut(*std::move(maybe));
    }
    SimSequence& open = *sequence.open;
    if (tokens < open.tokens_sealed) {
      open.tokens_sealed = tokens;
      open.half = 0;
      open.count = 0;
    } else {
      open.count = static_cast<std::uint32_t>(tokens - open.tokens_sealed);
    }
    if (open.read_directory().tokens != open.tokens_sealed)
      fail("the directory does not show the truncation");
  }

  void close_and_reopen(ModelSequence& sequence) {
    const Reply reply = writer_->control(Json{{"op", "close"}, {"handle", sequence.open->handle}});
    if (!reply.ok()) return fail("close failed");
    note("close " + sequence.name);
    close_model(sequence);
    reopen(sequence, false);
    if (sequence.open == nullptr) sequences_.erase(sequence.name);
  }

  void remove(ModelSequence& sequence) {
    if (!writer_->control(Json{{"op", "close"}, {"handle", sequence.open->handle}}).ok())
      return fail("close failed");
    close_model(sequence);
    const Reply reply =
        writer_->control(Json{{"op", "rm"}, {"target", sequence.name}, {"wipe", one_in(2)}});
    note("rm " + sequence.name + " -> " + std::to_string(static_cast<int>(reply.status.code)));
    const std::string name = sequence.name;
    if (!reply.ok() && reply.status.code != Code::kNotFound) {
      expect_fault("rm", reply.status);
      sequence.maybe.push_back(std::nullopt);
      reopen(sequence, false);
      if (sequence.open == nullptr) sequences_.erase(name);
      return;
    }
    sequences_.erase(name);
    if (writer_->attach(space_, name, false) != nullptr) fail("a removed sequence is still there");
  }

  // ---- opaque keys ----

  bool note_evictions() {
    const std::uint64_t evicted = world_.engine().state().metrics.objects.evicted;
    const bool some = evicted != evicted_;
    if (some) object_model_.allow_misses();
    evicted_ = evicted;
    return some;
  }

  void note_object(const ObjectCall& call) {
    const bool write = call.op == Op::kObjectSet || call.op == Op::kObjectDelete;
    note("object " + std::to_string(static_cast<int>(call.op)) + " " + call.key + " " +
         std::to_string(call.value.size()) + " -> " +
         (call.answered ? std::to_string(static_cast<int>(call.code)) : std::string("?")));
    if (call.answered && call.code == Code::kOk)
      ++(write ? result_.object_writes : result_.objects_compared);
    const std::string wrong = object_model_.note(call, lenient_, rotten_);
    if (!wrong.empty()) fail(wrong);
  }

  // What a crash left is what stays.
  void check_objects() {
    const auto before = object_model_.all();
    for (const auto& [key, values] : before) {
      const ObjectCall call = objects_->call(Op::kObjectGet, key);
      note_object(call);
      if (call.code == Code::kOk || (call.code == Code::kMiss && !rotten_))
        object_model_.found(key, call.got);
    }
  }

  ObjectCall random_object_call() {
    ObjectCall call;
    const std::uint64_t choice = random_.below(10);
    call.op = choice < 5   ? Op::kObjectSet
              : choice < 8 ? Op::kObjectGet
              : choice < 9 ? Op::kObjectExists
                           : Op::kObjectDelete;
    call.key = "k" + std::to_string(random_.below(5));
    if (call.op != Op::kObjectSet) return call;
    call.value.resize(static_cast<std::size_t>(random_.below(one_in(2) ? 200 : 12'000)));
    std::uint64_t state = random_.next();
    for (char& c : call.value) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      c = static_cast<char>(state >> 56);
    }
    return call;
  }

  // Several at once, maybe of one key, maybe into a crash.
  void objects() {
    std::vector<ObjectCall> calls(static_cast<std::size_t>(1 + random_.below(6)));
    for (ObjectCall& call : calls) {
      call = random_object_call();
      objects_->start(&call);
    }
    const bool into_crash = one_in(8);
    const std::uint64_t turns = random_.below(150);
    for (std::uint64_t i = 0; into_crash && i < turns; ++i) world_.turn();
    for (ObjectCall& call : calls)
      into_crash ? static_cast<void>(objects_->poll(&call)) : objects_->wait(&call);
    const bool evicted = note_evictions();
    for (const ObjectCall& call : calls) note_object(call);
    if (evicted) object_model_.allow_misses();  // it may have been what was just set
    if (into_crash) crash(options_.power_cuts && !one_in(4));
  }

  void rot() {
    const char* folders[] = {"segments", "segments", "sidecars", "logs", "objects"};
    const std::string folder = folders[random_.below(5)];
    const auto names = world_.disk().list(folder);
    if (!names || names->empty()) return;
    const std::string path =
        folder + "/" + (*names)[static_cast<std::size_t>(random_.below(names->size()))];
    const Result<std::uint64_t> size = world_.disk().size_bytes(path);
    if (!size || *size == 0) return;
    world_.disk().rot(path, random_.below(*size), static_cast<std::uint32_t>(random_.below(8)));
    note("rot " + path);
    ++result_.faults;
    if (folder == "sidecars") return;
    rotten_ = true;
  }

  void disk_fault() {
    lenient_ = true;
    ++result_.faults;
    if (one_in(2)) {
      world_.disk().set_capacity_bytes(world_.disk().used_bytes() + random_.below(200'000));
      note("disk full");
    } else {
      world_.disk().set_error_rates(static_cast<std::uint32_t>(20 + random_.below(60)),
                                    static_cast<std::uint32_t>(5 + random_.below(40)));
      note("disk errors");
    }
  }

  void operation() {
    if (one_in(8)) return objects();
    const std::uint64_t choice = random_.below(100);
    ModelSequence* sequence = pick();
    if (sequence == nullptr || choice < 8) return create();
    if (choice < 34) return append(*sequence);
    if (choice < 48) return write(*sequence, false);
    if (choice < 62) return write(*sequence, true);
    if (choice < 72) return fetch(*sequence);
    if (choice < 77) return busy(*sequence);
    if (choice < 81) return fork(*sequence);
    if (choice < 85) return truncate(*sequence);
    if (choice < 89) return close_and_reopen(*sequence);
    if (choice < 91) return remove(*sequence);
    if (choice < 95) return crash(options_.power_cuts && !one_in(3));
    if (!options_.disk_faults) return;
    choice < 97 ? rot() : disk_fault();
  }

  const StoreSimOptions options_;
  Random random_;
  SimWorld world_;
  Geometry geometry_ = tiny_geometry();
  std::unique_ptr<SimClient> writer_, reader_;
  std::unique_ptr<SimObjects> objects_;
  ObjectModel object_model_;
  std::uint64_t evicted_ = 0;  // objects, by this daemon
  std::uint64_t space_ = 0;
  std::map<std::string, ModelSequence> sequences_;
  std::uint32_t next_name_ = 1;
  bool lenient_ = false;  // this daemon's disk fails: errors are fine, wrong bytes are not
  bool rotten_ = false;   // stored bytes were damaged: misses are fine
  StoreSimResult result_;
};

}  // namespace

StoreSimResult run_store_sim(const StoreSimOptions& options) { return StoreSim(options).run(); }

}  // namespace kvtier::sim
