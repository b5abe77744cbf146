// The proof that the simulation would notice a missing sync or a reversed publish order.
//
// A step is one acknowledged operation. Each of its syncs is made to lie in turn, the power is cut
// right behind the operation, and over some seeds something acknowledged must then be missing.
// Exempt is only what the disk itself tells apart: a sync that had nothing to write, or whose work
// a later one of the same file did. How many are left is written beside the step, so that an
// operation which gains or loses a sync is noticed, too.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "base/fault.h"
#include "base/log.h"
#include "daemon/admin.h"
#include "daemon/engine_state.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/store_sim.h"
#include "tiers/segment_format.h"

namespace kvtier::sim {
namespace {

constexpr std::uint64_t kSeeds = 40;
constexpr const char* kCodes = "codes:4/tokens";

// A store, a client of it and the sequence that it writes.
class Life {
 public:
  explicit Life(std::uint64_t seed)
      : world([seed] {
          SimWorldOptions options;
          options.seed = seed;
          return options;
        }()) {
    add_admin_ops();
    for (std::uint32_t i = 0; i < 90; ++i) ids.push_back(i % 7);
  }

  // A daemon recovers, a client opens the space. False where one of them cannot.
  bool begin(const std::string& model = "model") {
    if (!world.start()) return false;
    client = std::make_unique<SimClient>(world, "client");
    space = client->open_space(geometry, model);
    return space != 0;
  }
  void end(bool power_cut) {
    power_cut ? world.crash() : world.kill();
    chat.reset();
    client.reset();
  }

  bool request(Json body) { return client->control(std::move(body)).ok(); }
  // Sealed tokens of a new sequence "chat", in pieces of these lengths.
  void store(const std::vector<std::uint32_t>& lengths) {
    chat = client->create(space, {}, "chat");
    for (const std::uint32_t length : lengths) {
      append(length);
      EXPECT_TRUE(seal());
    }
  }
  void append(std::uint32_t count) {
    client->append(*chat, geometry, ids, chat->tokens_sealed + chat->count, count);
  }
  bool seal() { return client->seal(*chat).status == 0; }
  bool commit() { return client->commit(*chat).status == 0; }
  bool close() {
    const bool closed = request({{"op", "close"}, {"handle", chat->handle}});
    chat.reset();
    return closed;
  }

  // Whether the name has the first `tokens` tokens, and every row of them is served.
  bool has(const std::string& name, std::uint64_t tokens) {
    const auto found = client->attach(space, name, true);
    if (found == nullptr || found->tokens_sealed + found->count != tokens) return false;
    if (!client->check_tail(*found, geometry, ids, found->tokens_sealed, found->count).empty())
      return false;
    const DirectoryView directory = found->read_directory();
    if (!directory.check(found->tokens_sealed).empty()) return false;
    const auto wanted = SimClient::all_entries(directory, geometry);
    if (wanted.empty()) return true;
    const auto hashes = prefix_hashes(ids);
    const FetchResult got = client->fetch(*found, wanted);
    return std::all_of(got.entries.begin(), got.entries.end(), [&](const FetchEntry& entry) {
      return entry.status == 0 &&
             std::any_of(directory.entries.begin(), directory.entries.end(),
                         [&](const DirectoryEntry& where) {
                           return where.segment == entry.segment &&
                                  client->check_chunk(entry, where, geometry, hashes).empty();
                         });
    });
  }
  bool has_not(const std::string& name) { return client->attach(space, name, false) == nullptr; }
  Json show(const std::string& name) {
    return client->control(Json{{"op", "show"}, {"target", name}}).body;
  }
  std::vector<SegmentId> segments_of_chat() {
    std::vector<SegmentId> segments;
    for (const SequencePart& part : find_sequence_by_name(world.engine().state(), "chat")->parts)
      segments.push_back(part.segment->row.id);
    return segments;
  }

  SimWorld world;
  const Geometry geometry = tiny_geometry();
  std::vector<std::uint32_t> ids;
  std::unique_ptr<SimClient> client;
  std::uint64_t space = 0;
  std::unique_ptr<SimSequence> chat;
  // What an operation leaves for the look at what it did.
  std::vector<SegmentId> seen;
  std::uint64_t syncs_max = UINT64_MAX;  // its first ones; what comes behind is RocksDB's own
};

struct Step {
  const char* name;
  void (*prepare)(Life&);
  bool (*act)(Life&);                 // true: acknowledged
  bool (*holds)(Life&);               // of the next daemon
  std::uint64_t needed;               // syncs that nothing else makes good
  bool (*clean)(SimDisk&) = nullptr;  // of what the power cut left
};

void nothing(Life&) {}

// An export of "chat" with 40 tokens, in a space of its own: made once.
const std::string& exported() {
  struct File {
    std::string path = testing::TempDir() + "kvtier_sim_" + std::to_string(::getpid()) + ".kvx";
    File() {
      Life life(1);
      EXPECT_TRUE(life.begin("imported"));
      life.store({40});
      ::unlink(path.c_str());
      EXPECT_TRUE(life.request({{"op", "export"}, {"target", "chat"}, {"path", path}}));
    }
    ~File() { ::unlink(path.c_str()); }
  };
  static const File file;
  return file.path;
}

void store_and_commit(Life& life) {
  life.store({});
  life.append(40);
  EXPECT_TRUE(life.commit());
}

// A record that is whole in the log and that nobody synced: its commit failed, its daemon was
// killed.
void leave_unsynced_record(Life& life) {
  store_and_commit(life);
  life.append(50);
  EXPECT_TRUE(arm_faults("commit.appended=fail"));
  EXPECT_FALSE(life.commit());
  EXPECT_TRUE(arm_faults(""));
  life.end(false);
  EXPECT_TRUE(life.begin());
}

// A row that only the log of RocksDB has, unsynced, in a log file that this daemon began.
void leave_unsynced_row(Life& life) {
  life.end(false);
  EXPECT_TRUE(life.begin());
  life.store({});
}

// The next daemon shows the row's sequence; a commit without a token acknowledges that it is there.
// Of the syncs in front of the replay that of the copy of the log with the row is needed, and that
// of its name; the older log has nothing new.
bool commit_after_kill(Life& life) {
  life.end(false);
  const auto names = life.world.disk().list("catalogue");
  life.syncs_max = 1 + static_cast<std::uint64_t>(std::count_if(
                           names->begin(), names->end(),
                           [](const std::string& name) { return name.ends_with(".log"); }));
  if (!life.begin()) return false;
  life.chat = life.client->attach(life.space, "chat", true);
  return life.chat != nullptr && life.commit();
}

// Until readers are shown the new segments.
bool compact_until_visible(Life& life) {
  const std::vector<SegmentId> before = life.segments_of_chat();
  const SimClient::Answer answer = life.client->start_control(Json{{"op", "gc"}});
  const bool swapped = life.world.run_until([&] { return life.segments_of_chat() != before; });
  life.seen = life.segments_of_chat();
  return swapped && before.size() == 2 && life.seen.size() == 1;
}

bool wait_for_idle_seal(Life& life) {
  life.world.clock().advance_ns((life.world.engine().state().options.idle_seal_s + 5) *
                                1'000'000'000ull);
  return life.world.run_until([&] { return life.segments_of_chat().size() == 1; });
}

bool fork_by_tool(Life& life) {
  SimClient tool(life.world, "tool", false);
  return tool.control(Json{{"op", "fork"}, {"name", "chat"}, {"new_name", "copy"}}).ok();
}

void store_and_want_codes(Life& life) {
  life.store({40, 50});
  EXPECT_TRUE(
      life.request({{"op", "abstract_want"}, {"handle", life.chat->handle}, {"abstract", kCodes}}));
}

bool has_sound_codebook(Life& life) {
  const Json list = life.client->control(Json{{"op", "codebooks"}}).body["codebooks"];
  return list.size() == 1 && list[0]["id"] != 0 && !list[0].contains("problem");
}

// No file of rows holds anything but zeros.
bool is_wiped(SimDisk& disk) {
  for (const std::string folder : {"segments", "sidecars", "logs"}) {
    const auto names = disk.list(folder);
    for (const std::string& name : *names) {
      const std::string path = folder + "/" + name;
      std::vector<std::byte> bytes(static_cast<std::size_t>(*disk.size_bytes(path)));
      std::uint64_t got = 0;
      EXPECT_TRUE(disk.read(path, 0, bytes, &got));
      if (std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0}; }))
        return false;
    }
  }
  return true;
}

bool is_sound(Life& life) {
  return life.client->control(Json{{"op", "verify"}}).body["sound"] == true;
}

// Not even as a cache of prefixes: its file is overwritten.
bool no_segment_is_known(Life& life) {
  const Json spaces = life.client->control(Json{{"op", "ls"}}).body["spaces"];
  return life.has_not("chat") && spaces.size() == 1 && spaces[0]["segments"] == 0 && is_sound(life);
}

// A bit of the last chunk of the second segment, in front of its padding.
void store_and_rot(Life& life) {
  life.store({40, 50});
  const std::string path = segment_path(life.segments_of_chat()[1]);
  life.world.disk().rot(path, *life.world.disk().size_bytes(path) - kDiskAlign + 5, 3);
  EXPECT_TRUE(life.close());
}

constexpr Step kSteps[] = {
    {"seal",
     [](Life& life) {
       life.store({});
       life.append(40);
     },
     [](Life& life) { return life.seal(); }, [](Life& life) { return life.has("chat", 40); }, 3},
    {"first commit",
     [](Life& life) {
       life.store({});
       life.append(40);
     },
     [](Life& life) { return life.commit(); }, [](Life& life) { return life.has("chat", 40); }, 3},
    {"second commit",
     [](Life& life) {
       store_and_commit(life);
       life.append(50);
     },
     [](Life& life) { return life.commit(); }, [](Life& life) { return life.has("chat", 90); }, 1},
    {"seal after commit",
     [](Life& life) {
       store_and_commit(life);
       life.append(50);
     },
     [](Life& life) { return life.seal(); }, [](Life& life) { return life.has("chat", 90); }, 3},
    {"truncate", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.request({{"op", "truncate"}, {"handle", life.chat->handle}, {"tokens", 17}});
     },
     [](Life& life) { return life.has("chat", 17); }, 1},
    {"truncate inside the tail", store_and_commit,
     [](Life& life) {
       return life.request({{"op", "truncate"}, {"handle", life.chat->handle}, {"tokens", 17}});
     },
     [](Life& life) { return life.has("chat", 17); }, 3},
    {"idle seal",
     [](Life& life) {
       store_and_commit(life);
       EXPECT_TRUE(life.close());
     },
     wait_for_idle_seal,
     [](Life& life) { return life.segments_of_chat().size() == 1 && life.has("chat", 40); }, 3},
    {"rm", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.close() && life.request({{"op", "rm"}, {"target", "chat"}});
     },
     [](Life& life) { return life.has_not("chat"); }, 1},
    {"rm --wipe", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.close() && life.request({{"op", "rm"}, {"target", "chat"}, {"wipe", true}});
     },
     no_segment_is_known, 3, is_wiped},
    {"rename", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.request({{"op", "rename"}, {"target", "chat"}, {"name", "talk"}});
     },
     [](Life& life) { return life.has_not("chat") && life.has("talk", 40); }, 1},
    {"pin", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.request({{"op", "pin"}, {"target", "chat"}});
     },
     [](Life& life) { return life.show("chat")["pinned"] == true; }, 1},
    {"expire", [](Life& life) { life.store({40}); },
     [](Life& life) {
       return life.request({{"op", "expire"}, {"target", "chat"}, {"at_unix_s", 4'000'000'000}});
     },
     [](Life& life) { return life.show("chat")["expires_unix_s"] == 4'000'000'000; }, 1},
    {"fork by a tool", [](Life& life) { life.store({40}); }, fork_by_tool,
     [](Life& life) { return life.has("copy", 40); }, 1},
    {"a new space", nothing,
     [](Life& life) { return life.client->open_space(life.geometry, "second") != 0; },
     [](Life& life) {
       const Json spaces = life.client->control(Json{{"op", "ls"}}).body["spaces"];
       return std::any_of(spaces.begin(), spaces.end(),
                          [](const Json& space) { return space["model"] == "second"; });
     },
     1},
    {"attach after a kill", leave_unsynced_record,
     [](Life& life) {
       life.chat = life.client->attach(life.space, "chat", true);
       return life.chat != nullptr && life.chat->count == 90;
     },
     [](Life& life) { return life.has("chat", 90); }, 1},
    {"commit after a kill", leave_unsynced_row, commit_after_kill,
     [](Life& life) { return life.has("chat", 0); }, 2},
    {"gc",
     [](Life& life) {
       life.store({40, 50});
       EXPECT_TRUE(life.close());
     },
     compact_until_visible,
     [](Life& life) { return life.segments_of_chat() == life.seen && life.has("chat", 90); }, 3},
    {"repair", store_and_rot,
     [](Life& life) {
       return life.client->control(Json{{"op", "repair"}}).body["dropped"] == 1;
     },
     [](Life& life) { return is_sound(life) && life.has("chat", 40); }, 1},
    {"import", [](Life&) { static_cast<void>(exported()); },
     [](Life& life) {
       return life.request({{"op", "import"}, {"path", exported()}, {"name", "copy"}});
     },
     [](Life& life) {
       life.space = life.client->open_space(life.geometry, "imported");
       return life.has("copy", 40);
     },
     3},
    {"calibrate", store_and_want_codes,
     [](Life& life) {
       return life.request(
           {{"op", "calibrate"}, {"handle", life.chat->handle}, {"abstract", kCodes}});
     },
     has_sound_codebook, 3},
};

struct Outcome {
  std::uint64_t syncs = 0;  // of the acknowledged operation
  SkippedSync skipped = SkippedSync::kNone;
  bool lost = false;  // something acknowledged was not there after the power cut
};

// `skip`: the sync of the operation that lies; UINT64_MAX: none.
Outcome run(const Step& step, std::uint64_t seed, std::uint64_t skip) {
  Outcome outcome;
  Life life(seed);
  EXPECT_TRUE(life.begin());
  step.prepare(life);
  life.world.settle();
  const std::uint64_t before = life.world.disk().syncs();
  if (skip != UINT64_MAX) life.world.disk().skip_sync(skip);
  EXPECT_TRUE(step.act(life)) << step.name << ", seed " << seed;
  outcome.syncs = std::min(life.world.disk().syncs() - before, life.syncs_max);
  outcome.skipped = life.world.disk().skipped_sync();
  life.world.disk().skip_sync(UINT64_MAX);
  life.end(true);
  const bool clean = step.clean == nullptr || step.clean(life.world.disk());
  outcome.lost = !clean || !life.begin() || !step.holds(life);
  return outcome;
}

class StoreSimMutation : public testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kError); }
  void TearDown() override { static_cast<void>(arm_faults("")); }
};

TEST_F(StoreSimMutation, EverySyncOfAnAcknowledgedOperationIsNeeded) {
  for (const Step& step : kSteps) {
    SCOPED_TRACE(step.name);
    std::uint64_t syncs = 0;
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const Outcome outcome = run(step, seed, UINT64_MAX);
      EXPECT_FALSE(outcome.lost) << "seed " << seed << ", nothing skipped";
      syncs = outcome.syncs;
    }
    std::uint64_t needed = 0;
    for (std::uint64_t skip = 0; skip < syncs; ++skip) {
      bool noticed = false, missing = false;
      for (std::uint64_t seed = 1; seed <= kSeeds && !noticed; ++seed) {
        const Outcome outcome = run(step, seed, skip);
        noticed = outcome.lost;
        missing = missing || outcome.skipped == SkippedSync::kMissing;
      }
      needed += missing ? 1 : 0;
      EXPECT_EQ(noticed, missing) << "without its sync number " << skip << " of " << syncs;
    }
    EXPECT_EQ(needed, step.needed) << "of " << syncs << " syncs";
  }
}

// The row comes first, then its file, then the answer: only a cut in the middle shows it.
TEST_F(StoreSimMutation, RowsBeforeTheirFilesAreNoticedInRandomRuns) {
  for (const std::string point : {"seal.publish_early", "object.publish_early"}) {
    std::string faults = point + "=fail";
    for (int visit = 2; visit <= 60; ++visit)
      faults += "," + point + "=fail@" + std::to_string(visit);
    bool noticed = false;
    for (std::uint64_t seed = 1; seed <= 300 && !noticed; ++seed) {
      ASSERT_TRUE(arm_faults(faults));
      noticed = !run_store_sim({.seed = seed, .disk_faults = false}).failure.empty();
    }
    EXPECT_TRUE(noticed) << point;
  }
}

}  // namespace
}  // namespace kvtier::sim
