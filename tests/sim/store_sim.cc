#include "tests/sim/store_sim.h"

#include "base/fault.h"
#include "base/hash.h"
#include "daemon/engine_state.h"
#include "tests/sim/store_life.h"

namespace kvtier::sim {

namespace {

// What happens in a store's life, drawn from the seed.
class StoreSim : private StoreLife {
 public:
  using StoreLife::StoreLife;

  StoreSimResult run() {
    restart();
    for (std::uint32_t i = 0; i < options.operations && result.failure.empty(); ++i) operation();
    if (result.failure.empty()) {
      heal();
      crash(true);
    }
    if (result.failure.empty()) verify(*this);
    if (result.failure.empty()) check_everything();
    objects.reset();
    note("fetched " + std::to_string(result.fetched_chunks) + ", missed " +
         std::to_string(result.missed_chunks) + ", syncs " + std::to_string(world.disk().syncs()) +
         ", used " + std::to_string(world.disk().used_bytes()));
    result.state_hash = hash64(as_bytes(result.trace));
    writer.reset();
    reader.reset();
    return std::move(result);
  }

 private:
  // Its row is not synced: it may be there, as it was made.
  void add(ModelSequence made) {
    made.maybe.push_back(std::nullopt);
    made.maybe.push_back(made.ids);
    note_damage(made);
    const std::string name = made.name();
    sequences.emplace(name, std::move(made));
  }

  Ids random_prefix() {
    Ids ids;
    ModelSequence* source = pick();
    if (source != nullptr && !one_in(3)) {
      ids.assign(
          source->ids.begin(),
          source->ids.begin() + static_cast<std::ptrdiff_t>(random.below(source->ids.size() + 1)));
    }
    const std::uint64_t more = random.below(60);
    for (std::uint64_t i = 0; i < more; ++i)
      ids.push_back(static_cast<std::uint32_t>(random.below(3)));
    return ids;
  }

  void create() {
    if (all_open().size() >= 4) return;
    ModelSequence made;
    made.traits.name = new_name();
    const Ids wanted = random_prefix();
    Reply reply;
    made.open = writer->create(space, wanted, made.name(), false, &reply);
    if (made.open == nullptr) return expect_fault("create", reply.status);
    const auto tokens = reply.body["tokens"].get<std::uint64_t>();
    if (tokens > wanted.size()) return fail("a match is longer than what was asked for");
    made.ids.assign(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(tokens));
    if (reply.body["reason"] == "differs" &&
        reply.body["stored_token"] == wanted[static_cast<std::size_t>(tokens)])
      return fail("a match ends at a token that does not differ");
    note("create " + made.name() + " matched " + std::to_string(tokens) + "/" +
         std::to_string(wanted.size()));
    add(std::move(made));
  }

  void fetch(ModelSequence& sequence) {
    Reply reply;
    std::unique_ptr<SimSequence> open = reader->attach(space, sequence.name(), false, &reply);
    if (open == nullptr) return expect_fault("attach", reply.status);
    note("fetch " + sequence.name());
    fetch_all(*reader, *open, sequence);
    const Reply closed = reader->control(Json{{"op", "close"}, {"handle", open->handle}});
    if (!closed.ok()) fail("close failed");
  }

  // Two clients ask while a seal runs, in an arena that does not hold everything.
  void busy(ModelSequence& sequence) {
    ModelSequence* other = pick();
    if (other == nullptr || sequence.open->count == 0 || other->open->tokens_sealed == 0) return;
    const auto hashes = prefix_hashes(other->ids);
    const DirectoryView directory = other->open->read_directory();
    std::vector<FetchEntry> wanted = SimClient::all_entries(directory, geometry);
    if (wanted.size() > 200) wanted.resize(200);
    const std::uint64_t seal = writer->start_seal(*sequence.open);
    const std::uint64_t prefetch =
        writer->start_fetch(*other->open, wanted, Op::kPrefetch, 1 << 20);
    const FetchResult got = writer->fetch(*other->open, wanted);
    check_fetch(*writer, directory, got.entries, hashes, got.completion);
    if (got.completion.value0 != 0) writer->release(got.completion.value0);
    const Completion completion = writer->wait(seal);
    static_cast<void>(writer->wait(prefetch));
    note("busy " + sequence.name() + " " + other->name() + " -> " +
         std::to_string(completion.status));
    if (completion.status != 0) {
      sequence.maybe.push_back(sequence.ids);
      return expect_fault("seal", {static_cast<Code>(completion.status), 0, nullptr});
    }
    SimClient::sealed(*sequence.open);
    sequence.acknowledge();
  }

  void fork(ModelSequence& sequence) {
    if (all_open().size() >= 4) return;
    const std::uint64_t tokens = random.below(sequence.open->tokens_sealed + 1);
    ModelSequence made;
    made.traits.name = new_name();
    Reply reply = writer->control(Json{{"op", "fork"},
                                       {"space", space},
                                       {"handle", sequence.open->handle},
                                       {"tokens", tokens},
                                       {"new_name", made.name()},
                                       {"write", true}});
    note("fork " + sequence.name() + " " + std::to_string(tokens));
    if (!reply.ok()) return expect_fault("fork", reply.status);
    made.open = writer->opened(std::move(reply));
    made.ids.assign(sequence.ids.begin(),
                    sequence.ids.begin() + static_cast<std::ptrdiff_t>(tokens));
    add(std::move(made));
  }

  void truncate(ModelSequence& sequence, std::uint64_t tokens) {
    const Reply reply = writer->control(
        Json{{"op", "truncate"}, {"handle", sequence.open->handle}, {"tokens", tokens}});
    note("truncate " + sequence.name() + " " + std::to_string(tokens));
    if (!reply.ok()) {
      sequence.maybe_cut(tokens);
      return expect_fault("truncate", reply.status);
    }
    sequence.cut(tokens);
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
    close(sequence);
    if (!reopen(sequence, false)) sequences.erase(sequence.name());
  }

  void remove(ModelSequence& sequence) {
    close(sequence);
    Json body{{"op", "rm"}, {"target", sequence.name()}, {"wipe", one_in(2)}};
    if (sequence.traits.pinned && sequence.maybe_traits.empty() && writer->control(body).ok())
      return fail("a pinned sequence was removed without force");
    body["force"] = true;
    const Reply reply = writer->control(std::move(body));
    note("rm " + sequence.name() + " -> " + std::to_string(static_cast<int>(reply.status.code)));
    const std::string name = sequence.name();
    if (!reply.ok() && reply.status.code != Code::kNotFound) {
      expect_fault("rm", reply.status);
      sequence.maybe.push_back(std::nullopt);
      if (!reopen(sequence, false)) sequences.erase(name);
      return;
    }
    if (!reply.ok() && !sequence.may_be_absent(now_unix_s()))
      return fail("sequence " + name + " is gone before it is removed");
    sequences.erase(name);
    if (reply.ok()) give_up(name);
    if (writer->attach(space, name, false) != nullptr) fail("a removed sequence is still there");
  }

  ObjectCall random_object_call() {
    ObjectCall call;
    const std::uint64_t choice = random.below(10);
    call.op = choice < 5   ? Op::kObjectSet
              : choice < 8 ? Op::kObjectGet
              : choice < 9 ? Op::kObjectExists
                           : Op::kObjectDelete;
    call.key = "k" + std::to_string(random.below(5));
    if (call.op != Op::kObjectSet) return call;
    call.value.resize(static_cast<std::size_t>(random.below(one_in(2) ? 200 : 12'000)));
    std::uint64_t state = random.next();
    for (char& c : call.value) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      c = static_cast<char>(state >> 56);
    }
    return call;
  }

  // Several at once, maybe of one key, maybe into a crash.
  void call_objects() {
    std::vector<ObjectCall> calls(static_cast<std::size_t>(1 + random.below(6)));
    for (ObjectCall& call : calls) {
      call = random_object_call();
      objects->start(&call);
    }
    const bool into_crash = one_in(8);
    const std::uint64_t turns = random.below(150);
    for (std::uint64_t i = 0; into_crash && i < turns; ++i) world.turn();
    for (ObjectCall& call : calls)
      into_crash ? static_cast<void>(objects->poll(&call)) : objects->wait(&call);
    const bool evicted = note_evictions();
    for (const ObjectCall& call : calls) note_object(call);
    if (evicted) object_model.allow_misses();  // it may have been what was just set
    if (into_crash) crash_somehow();
  }

  void rot() {
    const char* folders[] = {"segments", "segments", "sidecars", "logs", "objects"};
    const std::string folder = folders[random.below(5)];
    const auto names = world.disk().list(folder);
    if (!names || names->empty()) return;
    const std::string path =
        folder + "/" + (*names)[static_cast<std::size_t>(random.below(names->size()))];
    const Result<std::uint64_t> size = world.disk().size_bytes(path);
    if (!size || *size == 0) return;
    world.disk().rot(path, random.below(*size), static_cast<std::uint32_t>(random.below(8)));
    note("rot " + path);
    ++result.faults;
    if (folder != "sidecars") rotted_now(path);
  }

  void disk_fault() {
    lenient = true;
    ++result.faults;
    if (one_in(2)) {
      world.disk().set_capacity_bytes(world.disk().used_bytes() + random.below(200'000));
      note("disk full");
    } else {
      world.disk().set_error_rates(static_cast<std::uint32_t>(20 + random.below(60)),
                                   static_cast<std::uint32_t>(5 + random.below(40)));
      note("disk errors");
    }
  }

  // A seal, a truncation or a removal whose batch is written and said to have failed: the catalogue
  // says another thing than the daemon. What is committed afterwards must be there all the same.
  void catalogue_fault(ModelSequence& sequence) {
    if (lenient || !rotted.empty()) return;
    append(sequence);
    write(sequence, false, false);
    world.settle();
    if (sequence.open->count == 0 || sequence.may_be_absent(now_unix_s() + 2)) return;
    if (!result.failure.empty()) return;
    const std::uint64_t choice = random.below(3);
    note("catalogue fault");
    ++result.catalogue_faults;
    lenient = true;
    if (choice == 2) {
      close(sequence);
      world.settle();
    }
    const std::uint64_t failures = world.engine().state().metrics.catalogue_failures;
    static_cast<void>(arm_faults("catalogue.written=fail"));
    if (choice == 0) write(sequence, true, false);
    if (choice == 1) truncate(sequence, random.below(sequence.ids.size()));
    if (choice == 2) {
      const Reply reply =
          writer->control(Json{{"op", "rm"}, {"target", sequence.name()}, {"force", true}});
      note("rm " + sequence.name() + " -> " + std::to_string(static_cast<int>(reply.status.code)));
      sequence.maybe.push_back(std::nullopt);
    }
    static_cast<void>(arm_faults(""));
    lenient = false;
    if (world.engine().state().metrics.catalogue_failures == failures)
      return fail("no batch of the catalogue failed");
    if (choice != 2) close(sequence);
    world.clock().advance_ns(1'000'000'000);  // the catalogue opens again
    world.settle();
    if (!reopen(sequence, false)) return static_cast<void>(sequences.erase(sequence.name()));
    if (!result.failure.empty()) return;
    append(sequence);
    write(sequence, false, false);
    crash_somehow();
  }

  void operation() {
    if (one_in(8)) return call_objects();
    if (lenient && one_in(12)) return get_well(*this);
    const std::uint64_t choice = random.below(100);
    ModelSequence* sequence = pick();
    if (sequence == nullptr || choice < 8) return create();
    if (choice < 31) return append(*sequence);
    if (choice < 44) return write(*sequence, false);
    if (choice < 57) return write(*sequence, true);
    if (choice < 66) return fetch(*sequence);
    if (choice < 71) return busy(*sequence);
    if (choice < 75) return fork(*sequence);
    if (choice < 79) return truncate(*sequence, random.below(sequence->ids.size() + 1));
    if (choice < 82) return close_and_reopen(*sequence);
    if (choice < 84) return remove(*sequence);
    if (choice < 88) return change_row(*this, *sequence);
    if (choice < 91) return look_after(*this);
    if (choice < 92) return verify(*this);
    if (choice < 95) return crash(options.power_cuts && !one_in(3));
    if (!options.disk_faults) return;
    if (choice < 97) return rot();
    choice < 98 ? catalogue_fault(*sequence) : disk_fault();
  }
};

}  // namespace

StoreSimResult run_store_sim(const StoreSimOptions& options) { return StoreSim(options).run(); }

}  // namespace kvtier::sim
