// What happens to rows and to sequences that nobody has open: rename, pin, expire; gc, repair, the
// passing of time; export and import.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "tests/sim/store_life.h"

namespace kvtier::sim {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kTimerSeconds = 11;  // after these the engine has looked for the expired

// ---- rows ----

// The change is durable. The map's key follows the name.
void accept_row(StoreLife& life, ModelSequence& sequence, const Traits& row) {
  const std::string before = sequence.name();
  sequence.acknowledge_row(row);
  if (before == row.name) return;
  life.give_up(before);
  auto node = life.sequences.extract(before);
  node.key() = row.name;
  life.sequences.insert(std::move(node));
}

std::string text_of(const Traits& row) {
  return row.name + (row.pinned ? " pinned" : "") + " expires " +
         std::to_string(row.expires_unix_s);
}

// ---- what is closed ----

std::vector<std::string> close_some(StoreLife& life, bool all) {
  std::vector<std::string> closed;
  for (auto& [name, sequence] : life.sequences) {
    if (!all && life.one_in(4)) continue;
    if (sequence.open != nullptr) life.close(sequence);
    closed.push_back(name);
  }
  return closed;
}

void open_again(StoreLife& life, const std::vector<std::string>& closed) {
  for (const std::string& name : closed) {
    const auto found = life.sequences.find(name);
    if (found == life.sequences.end() || found->second.open != nullptr) continue;
    if (!life.result.failure.empty()) return;
    if (!life.reopen(found->second, false)) life.sequences.erase(found);
  }
}

// Sequences become shorter lists of longer segments, whatever happens meanwhile.
void collect_garbage(StoreLife& life) {
  const std::vector<std::string> closed = close_some(life, false);
  const std::uint64_t epoch = life.world.epoch();
  const SimClient::Answer answer = life.writer->start_control(Json{{"op", "gc"}});
  ++life.result.collections;
  life.note("gc of " + std::to_string(closed.size()));
  life.turns(500);
  if (life.one_in(4)) return life.crash_somehow();
  if (ModelSequence* other = life.pick(); other != nullptr && life.one_in(3)) {
    life.append(*other);
    life.write(*other, life.one_in(2));
  }
  if (life.world.epoch() != epoch || !life.result.failure.empty()) return;
  if (!closed.empty() && life.one_in(4)) open_again(life, {closed.front()});
  const Reply reply = life.writer->wait(answer);
  if (!reply.ok()) {
    life.expect_fault("gc", reply.status);
  } else {
    const auto compacted = reply.body["segments_compacted"].get<std::uint32_t>();
    life.result.segments_compacted += compacted;
    life.note("gc -> " + std::to_string(compacted));
  }
  open_again(life, closed);
}

bool damaged(const Reply& verified) {
  const Json& problems = verified.body["problems"];
  return std::any_of(problems.begin(), problems.end(),
                     [](const Json& problem) { return problem["severity"] != "warning"; });
}

// What was damaged is gone afterwards, and with it what came behind it in its sequences; what is
// left is whole.
void repair(StoreLife& life) {
  const std::vector<std::string> closed = close_some(life, true);
  const SimClient::Answer answer = life.writer->start_control(Json{{"op", "repair"}});
  ++life.result.repairs;
  life.note("repair");
  if (life.one_in(4)) {
    life.turns(300);
    if (!life.rotted.empty()) life.object_model.allow_misses();
    return life.crash_somehow();
  }
  const Reply reply = life.writer->wait(answer);
  if (!reply.ok()) life.expect_fault("repair", reply.status);
  if (reply.ok())
    life.note("repair -> " + std::to_string(reply.body["dropped"].get<std::uint64_t>()));
  if (!life.rotted.empty()) life.object_model.allow_misses();
  open_again(life, closed);
  if (!reply.ok() || life.lenient || !life.result.failure.empty()) return;
  life.rotted.clear();
  for (auto& [name, sequence] : life.sequences) {
    if (sequence.open == nullptr) return life.fail("a sequence cannot be opened after a repair");
    if (std::exchange(sequence.damaged, false) && !sequence.may_hold(sequence.ids))
      sequence.found(sequence.ids);
  }
  const Reply verified = life.writer->control(Json{{"op", "verify"}});
  if (!verified.ok() || damaged(verified)) life.fail("damage is left after a repair");
}

// Sequences expire, tails of closed ones are sealed.
void let_time_pass(StoreLife& life) {
  const std::vector<std::string> closed = close_some(life, false);
  const std::uint64_t seconds = kTimerSeconds + life.random.below(80);
  life.world.clock().advance_ns(seconds * kSecond);
  life.note(std::to_string(seconds) + " s later");
  const std::uint64_t now_s = life.world.clock().wall_ns() / kSecond;
  if (life.one_in(4)) {
    life.turns(300);
    return life.crash_somehow();
  }
  life.world.settle();
  life.world.clock().advance_ns(kTimerSeconds * kSecond);  // where a tail was sealed meanwhile
  life.world.settle();
  for (const std::string& name : closed) {
    ModelSequence& sequence = life.sequences.at(name);
    if (!sequence.must_be_absent(now_s) || life.lenient) continue;
    if (life.writer->control(Json{{"op", "show"}, {"target", name}}).ok())
      return life.fail("sequence " + name + " has expired and is there");
    life.note("expired " + name);
    ++life.result.expired;
    life.give_up(name);
    life.sequences.erase(name);
  }
  open_again(life, closed);
}

// ---- export, import ----

struct RealFile {
  const std::string path = (std::filesystem::temp_directory_path() /
                            ("kvtier_sim_" + std::to_string(::getpid()) + ".kvx"))
                               .string();
  RealFile() { ::unlink(path.c_str()); }
  ~RealFile() { ::unlink(path.c_str()); }
};

// What is durable of a sequence becomes another one, by way of a real file.
void copy_by_file(StoreLife& life, ModelSequence& source) {
  const RealFile file;
  const Reply exported =
      life.writer->control(Json{{"op", "export"}, {"target", source.name()}, {"path", file.path}});
  life.note("export " + source.name());
  if (!exported.ok()) return life.expect_fault("export", exported.status);
  const Ids content = first_of(source.ids, exported.body["tokens"].get<std::uint64_t>());
  if (!source.may_hold(content))
    return life.fail("an export is not what is durable: " + source.describe(content));
  ModelSequence made;
  made.traits.name = life.new_name();
  const SimClient::Answer answer = life.writer->start_control(
      Json{{"op", "import"}, {"path", file.path}, {"name", made.name()}});
  const bool into_crash = life.one_in(4);
  life.note("import " + made.name() + (into_crash ? " into a crash" : ""));
  if (into_crash) {
    life.turns(300);
    made.maybe = {std::nullopt, content};
  } else if (const Reply imported = life.writer->wait(answer); !imported.ok()) {
    return life.expect_fault("import", imported.status);
  } else {
    made.found(content);
  }
  ++life.result.copies;
  life.note_damage(made);
  const std::string name = made.name();
  ModelSequence& kept = life.sequences.emplace(name, std::move(made)).first->second;
  if (into_crash) return life.crash_somehow();
  if (!life.reopen(kept, false)) life.sequences.erase(name);
}

}  // namespace

void change_row(StoreLife& life, ModelSequence& sequence) {
  Traits wanted = sequence.traits;
  Json body{{"target", sequence.name()}};
  const std::uint64_t choice = life.random.below(3);
  if (choice == 0) {
    wanted.name = life.new_name();
    body["op"] = "rename";
    body["name"] = wanted.name;
  } else if (choice == 1) {
    wanted.pinned = !wanted.pinned;
    body["op"] = "pin";
    body["pinned"] = wanted.pinned;
  } else {
    const std::uint64_t now_s = life.world.clock().wall_ns() / kSecond;
    wanted.expires_unix_s = life.one_in(4) ? 0 : now_s + 1 + life.random.below(100);
    body["op"] = "expire";
    body["at_unix_s"] = wanted.expires_unix_s;
  }
  const bool into_crash = life.one_in(6);
  life.note("row of " + sequence.name() + ": " + text_of(wanted) +
            (into_crash ? " into a crash" : ""));
  const SimClient::Answer answer = life.writer->start_control(std::move(body));
  if (into_crash) {
    life.turns(60);
    const bool done = *answer != nullptr && (*answer)->ok();
    if (done)
      accept_row(life, sequence, wanted);
    else
      sequence.maybe_traits.push_back(wanted);
    return life.crash_somehow();
  }
  const Reply reply = life.writer->wait(answer);
  if (reply.ok()) return accept_row(life, sequence, wanted);
  sequence.maybe_traits.push_back(wanted);
  life.expect_fault("a change of a row", reply.status);
}

void get_well(StoreLife& life) {
  life.note("the disk is well");
  life.heal();
  life.world.clock().advance_ns(kSecond);  // the catalogue opens again
  life.world.settle();
  life.lenient = false;
  ++life.result.healed;
  open_again(life, close_some(life, true));
}

void verify(StoreLife& life) {
  const Reply reply = life.writer->control(Json{{"op", "verify"}});
  if (!reply.ok()) return life.expect_fault("verify", reply.status);
  life.note("verify " + std::to_string(reply.body["chunks"].get<std::uint64_t>()));
  if (life.lenient || !life.rotted.empty() || !damaged(reply)) return;
  for (const Json& problem : reply.body["problems"])
    if (problem["severity"] != "warning")
      life.fail("verify: " + problem["object"].get<std::string>() + " " +
                problem["region"].get<std::string>() + ": " + problem["reason"].get<std::string>());
}

void look_after(StoreLife& life) {
  const std::uint64_t choice = life.random.below(5);
  ModelSequence* source = life.pick();
  // The file is a real one, and slow.
  if (life.options.seed % 8 == 0 && source != nullptr && life.one_in(2))
    return copy_by_file(life, *source);
  choice < 2 ? collect_garbage(life) : choice < 3 ? repair(life) : let_time_pass(life);
}

}  // namespace kvtier::sim
