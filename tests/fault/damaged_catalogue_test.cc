// Every file of the catalogue flipped, cut, emptied, deleted and put in the place of another
// store's: the daemon refuses in one line that says what mends it and leaves every file where it
// is, or it serves what the catalogue still says and never a wrong byte. After `kvtier repair
// --store` it starts again, and storing the same again heals the rest.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/fault.h"
#include "tests/fault/fault_store.h"
#include "tiers/catalogue.h"
#include "tiers/store_rebuild.h"

namespace kvtier::testing {
namespace {

struct Outcome {
  int refused = 0, served = 0;
};

class DamagedCatalogue : public ::testing::Test {
 protected:
  // Brings the rows into a table file, so that there is something other than a log to damage.
  static void flush(FaultStore& store) {
    CatalogueOptions options;
    options.path = store.path() + "/catalogue";
    auto catalogue = Catalogue::open(options);
    ASSERT_TRUE(catalogue);
    ASSERT_TRUE((*catalogue)->resume());
  }

  // Whether it said more than a daemon of a sound store says: what this machine lacks.
  static bool warned(const FaultStore& store) {
    const auto lines = [](const FaultStore& of) {
      const std::string log = of.log();
      return std::count(log.begin(), log.end(), '\n');
    };
    static const auto sound = [&] {
      FaultStore whole;
      EXPECT_TRUE(whole.start() && whole.stop());
      return lines(whole);
    }();
    return lines(store) > sound;
  }

  static void expect_all(FaultStore& store, bool must_be_whole) {
    for (const Story& story : kStories) {
      const Reading reading = store.read(story);
      EXPECT_EQ(reading.wrong, "") << story.name;
      EXPECT_TRUE(!must_be_whole || reading.whole(story)) << story.name << ": " << reading.text;
    }
    store.close_client();
  }

  // A nameless sequence of 100 committed tokens; it stays open.
  static void commit_new(FaultStore& store, std::uint64_t seed, kvt_sequence** sequence) {
    ASSERT_EQ(kvt_sequence_create(store.space(), nullptr, nullptr, 0, nullptr, sequence), KVT_OK);
    ASSERT_EQ(append_known(*sequence, seed, 100), KVT_OK);
    ASSERT_EQ(kvt_sequence_commit(*sequence), KVT_OK);
  }

  static std::vector<std::string> data_files(FaultStore& store) {
    std::vector<std::string> files = store.files("segments");
    for (const std::string& log : store.files("logs")) files.push_back(log);
    return files;
  }

  // Where RocksDB itself cannot read it. (An empty one is sound to it.)
  static void expect_doctor(FaultStore& store) {
    if (store.log().find("the catalogue is damaged") == std::string::npos) return;
    ::setenv("KVTIER_STORE_PATH", store.path().c_str(), 1);
    int exit_code = -1;
    const std::string found =
        store.command("doctor --json --socket " + store.settings.socket, &exit_code).dump();
    ::unsetenv("KVTIER_STORE_PATH");
    EXPECT_EQ(exit_code, 3);
    EXPECT_NE(found.find("kvtier repair --store"), std::string::npos) << found;
  }

  // One line for the user, in which the mend is named; nothing was removed.
  static void expect_refusal(FaultStore& store, const std::vector<std::string>& before) {
    EXPECT_TRUE(WIFEXITED(store.daemon.last_status())) << "the daemon did not end by itself";
    const std::string log = store.log();
    const std::size_t at = log.find("kvtierd: ");
    EXPECT_NE(at, std::string::npos) << log;
    EXPECT_NE(log.find("kvtier repair --store", at), std::string::npos) << log;
    EXPECT_EQ(data_files(store), before);
    int exit_code = -1;
    const Json offline = store.verify_offline(&exit_code);
    EXPECT_EQ(exit_code, 3);
    EXPECT_TRUE(names(offline, "catalogue")) << offline.dump(1);
    expect_doctor(store);
    const Json repaired = store.command("repair --json --store " + store.path(), &exit_code);
    EXPECT_EQ(exit_code, 0) << repaired.dump(1);
    EXPECT_TRUE(repaired.value("rebuilt", false)) << repaired.dump(1);
    EXPECT_EQ(repaired.value("segments_left_out", 1u), 0u) << repaired.dump(1);
    ASSERT_TRUE(store.start()) << store.log();
    ASSERT_NE(store.space(), nullptr);  // brings the texts of the space, which no file holds
    EXPECT_EQ(store.request("ls")["spaces"][0].value("model", ""), "known rows");
    // What has no name any more is found by its tokens, without storing it again.
    for (const Story& story : kStories) {
      std::vector<std::uint32_t> ids;
      for (std::uint64_t i = 0; i < story.tokens; ++i) ids.push_back(known_token(story.seed, i).id);
      kvt_match match{};
      EXPECT_EQ(kvt_space_match(store.space(), ids.data(), ids.size(), &match), KVT_OK);
      EXPECT_TRUE(!story.sealed || match.tokens == story.tokens) << story.name;
    }
    store.close_client();
  }

  void live(const std::string& what, FaultStore& store, Outcome* outcome) {
    SCOPED_TRACE(what);
    const std::vector<std::string> before = data_files(store);
    if (store.start()) {
      ++outcome->served;
      const std::vector<std::string> now = data_files(store);
      for (const std::string& file : before) EXPECT_EQ(std::count(now.begin(), now.end(), file), 1);
      expect_all(store, !warned(store));  // what is lost is said
    } else {
      ++outcome->refused;
      expect_refusal(store, before);
      expect_all(store, false);
    }
    for (const Story& story : kStories)
      EXPECT_EQ(store.heal(story), KVT_OK) << story.name << ": " << kvt_last_error();
    expect_all(store, true);
    ASSERT_TRUE(store.stop()) << store.log();
    ASSERT_TRUE(store.start()) << store.log();
    expect_all(store, true);
    int exit_code = -1;
    const Json verified = store.verify(&exit_code);
    EXPECT_EQ(exit_code, 0) << verified.dump(1);
    ASSERT_TRUE(store.stop()) << store.log();
  }

  static std::vector<std::string> catalogue_files(bool flushed) {
    FaultStore store;
    if (flushed) flush(store);
    std::vector<std::string> files;
    for (const std::string& file : store.files("catalogue"))
      if (!store.get(file).empty()) files.push_back(file);  // LOCK is empty
    return files;
  }

  static Outcome damage_all(DamagedCatalogue* test, bool flushed) {
    Outcome outcome;
    for (const std::string& file : catalogue_files(flushed)) {
      const auto run = [&](const std::string& what, const auto& change) {
        FaultStore store;
        if (flushed) flush(store);
        const std::string before = store.get(file);
        ASSERT_FALSE(before.empty()) << file;
        change(store, before);
        ASSERT_NE(store.get(file), before) << what << ": nothing was damaged";
        test->live(what + " " + file, store, &outcome);
      };
      for (const int part : {0, 3, 7})
        run("flip in eighth " + std::to_string(part), [&](FaultStore& store, std::string bytes) {
          const std::size_t at = bytes.size() * static_cast<std::size_t>(part) / 8;
          bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
          store.put(file, bytes);
        });
      run("cut", [&](FaultStore& store, const std::string& bytes) {
        store.put(file, bytes.substr(0, bytes.size() / 2));
      });
      run("empty", [&](FaultStore& store, const std::string&) { store.put(file, ""); });
      run("delete", [&](FaultStore& store, const std::string&) { store.remove(file); });
    }
    return outcome;
  }
};

TEST_F(DamagedCatalogue, EveryFileWhereAllIsInTheLog) {
  const Outcome outcome = damage_all(this, false);
  EXPECT_GT(outcome.refused, 5);
  EXPECT_GT(outcome.served, 0);
}

TEST_F(DamagedCatalogue, EveryFileWhereATableHoldsTheRows) {
  const Outcome outcome = damage_all(this, true);
  EXPECT_GT(outcome.refused, 5);
  EXPECT_GT(outcome.served, 0);
}

// One opaque value, set or got; what came of it.
kvt_status object(const std::string& socket, std::int32_t verb, std::string* value) {
  kvt_client* client = nullptr;
  kvt_status status = open_known_client(socket, &client);
  kvt_object one{};
  one.key = "a key";
  one.key_bytes = 5;
  one.value = value->data();
  one.value_bytes = value->size();
  std::uint64_t batch = 0;
  if (status == KVT_OK) status = kvt_objects_submit(client, verb, &one, 1, &batch);
  kvt_object_result result{};
  std::uint32_t count = 0;
  if (status == KVT_OK) status = kvt_objects_poll(client, &result, 1, 20000, &count);
  if (status == KVT_OK) status = count == 1 ? result.status : KVT_ERROR_TIMEOUT;
  kvt_client_close(client);
  return status;
}

TEST_F(DamagedCatalogue, GoneAsAWhole) {
  FaultStore store;
  std::string stored(10000, 'o'), got(10000, ' ');
  ASSERT_TRUE(store.start());
  ASSERT_EQ(object(store.settings.socket, KVT_OBJECT_SET, &stored), KVT_OK);
  ASSERT_TRUE(store.stop());
  std::filesystem::remove_all(store.path() + "/catalogue");
  Outcome outcome;
  live("no catalogue", store, &outcome);
  EXPECT_EQ(outcome.refused, 1);
  ASSERT_TRUE(store.start());
  EXPECT_EQ(object(store.settings.socket, KVT_OBJECT_GET, &got), KVT_OK) << "an opaque value";
  EXPECT_EQ(got, stored);
}

// Nothing but the list of its files is damaged: all names are still in tables and logs.
TEST_F(DamagedCatalogue, NamesOutliveTheManifest) {
  for (const bool table : {false, true}) {
    FaultStore store;
    if (table) flush(store);
    ASSERT_TRUE(store.start());
    const Json before = store.request("ls")["sequences"];
    store.close_client();
    ASSERT_TRUE(store.stop());
    for (const auto& file : std::filesystem::directory_iterator(store.path() + "/catalogue"))
      if (file.path().filename().string().starts_with("MANIFEST"))
        std::filesystem::resize_file(file, 10);
    ASSERT_FALSE(store.start());
    int exit_code = -1;
    const Json repaired = store.command("repair --json --store " + store.path(), &exit_code);
    EXPECT_EQ(repaired.value("sequences", 0u), before.size()) << repaired.dump(1);
    EXPECT_FALSE(std::filesystem::exists(store.path() + "/catalogue.read"));
    ASSERT_TRUE(store.start()) << store.log();
    const Json after = store.request("ls")["sequences"];
    ASSERT_EQ(after.size(), before.size());
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(after[i]["name"], before[i]["name"]);
      EXPECT_EQ(after[i]["tokens"], before[i]["tokens"]);
    }
    expect_all(store, true);
    store.close_client();
    ASSERT_TRUE(store.stop());
  }
}

// The second try finds what the first one read, also where a daemon is started in between: it
// refuses as before, or puts the new catalogue in place.
TEST_F(DamagedCatalogue, ARepairThatFailsLosesNoRow) {
  const auto tokens_of_all = [](FaultStore& store) {
    std::map<std::string, std::uint64_t> tokens;
    EXPECT_TRUE(store.start()) << store.log();
    const Json listed = store.request("ls");
    for (const Json& row : listed["sequences"])
      tokens[row.value("name", "")] = row.value("tokens", 0u);
    store.close_client();
    EXPECT_TRUE(store.stop());
    return tokens;
  };
  int steps = 0;
  for (const std::string point :
       {"catalogue.write", "catalogue.written", "io.rename", "io.sync_directory"}) {
    for (int n = 1, failed = 1; failed != 0; ++n) {
      for (const bool start_between : {false, true}) {
        SCOPED_TRACE(point + "@" + std::to_string(n) + (start_between ? ", a daemon" : ""));
        FaultStore store;
        const auto before = tokens_of_all(store);
        ASSERT_EQ(before.size(), std::size(kStories));
        for (const std::string& file : store.files("catalogue"))
          if (file.find("MANIFEST") != std::string::npos)
            std::filesystem::resize_file(store.path() + "/" + file, 10);
        ASSERT_TRUE(arm_faults(point + "=fail@" + std::to_string(n)));
        failed = rebuild_catalogue(store.path()) ? 0 : 1;
        ASSERT_TRUE(arm_faults(""));
        if (failed == 0) break;
        ++steps;
        const bool moved = std::filesystem::exists(store.path() + "/catalogue.damaged-1");
        if (start_between) {
          EXPECT_EQ(store.start(), moved) << store.log();
          EXPECT_EQ(store.stop(), moved);
        }
        const Result<RebuildReport> second = rebuild_catalogue(store.path());
        EXPECT_TRUE(second || (moved && second.error().code == Code::kExists));
        EXPECT_EQ(tokens_of_all(store), before);
        EXPECT_FALSE(std::filesystem::exists(store.path() + "/catalogue.new"));
      }
    }
  }
  EXPECT_EQ(steps, 12);
}

// Nothing of it is damaged: a new catalogue would lose the names that this kvtier cannot read.
TEST_F(DamagedCatalogue, OfANewerKvtierIsLeftAsItIs) {
  FaultStore store;
  {
    CatalogueOptions options;
    options.path = store.path() + "/catalogue";
    auto catalogue = Catalogue::open(options);
    ASSERT_TRUE(catalogue);
    CatalogueBatch batch;
    ASSERT_TRUE(arm_faults("catalogue.newer_row=fail@1"));
    SequenceRow row;
    row.id = SequenceId{1};
    batch.put_sequence(row);
    ASSERT_TRUE(arm_faults(""));
    ASSERT_TRUE((*catalogue)->write(std::move(batch), true));
  }
  const auto contents = [&] {
    std::map<std::string, std::string> all;
    for (const std::string& file : store.files("catalogue")) all[file] = store.get(file);
    return all;
  };
  const auto before = contents();
  const Result<RebuildReport> rebuilt = rebuild_catalogue(store.path());
  ASSERT_FALSE(rebuilt);
  EXPECT_EQ(rebuilt.error().code, Code::kVersion);
  EXPECT_EQ(contents(), before);
  for (const char* made : {"/catalogue.damaged-1", "/catalogue.new", "/catalogue.read"})
    EXPECT_FALSE(std::filesystem::exists(store.path() + made)) << made;
}

// A catalogue that is sound and knows nothing of these files.
TEST_F(DamagedCatalogue, OfAnotherStore) {
  FaultStore store, empty;
  std::filesystem::remove_all(empty.path());
  ASSERT_TRUE(empty.start());
  ASSERT_TRUE(empty.stop());
  std::filesystem::remove_all(store.path() + "/catalogue");
  std::filesystem::copy(empty.path() + "/catalogue", store.path() + "/catalogue");
  Outcome outcome;
  live("of an empty store", store, &outcome);
}

// A catalogue as it was before the last rows, as where RocksDB's log ends early: what they named
// stays where it is, the user is told once, and a repair finds it again by its tokens.
TEST_F(DamagedCatalogue, OfAnHourAgo) {
  FaultStore store;
  const std::string catalogue = store.path() + "/catalogue";
  std::filesystem::copy(catalogue, store.path() + "/before");
  ASSERT_TRUE(store.start());
  for (std::uint64_t seed = 50; seed < 54; ++seed) {
    kvt_sequence* sequence = nullptr;
    ASSERT_EQ(kvt_sequence_create(store.space(), nullptr, nullptr, 0, nullptr, &sequence), KVT_OK);
    ASSERT_EQ(append_known(sequence, seed, 100), KVT_OK);
    ASSERT_EQ(kvt_sequence_close(sequence), KVT_OK);
  }
  kvt_sequence* open = nullptr;
  commit_new(store, 60, &open);
  store.daemon.kill_now();
  kvt_sequence_close(open);
  store.close_client();
  std::filesystem::remove_all(catalogue);
  std::filesystem::rename(store.path() + "/before", catalogue);
  const std::vector<std::string> before = store.files("segments");
  for (int start = 0; start < 2; ++start) {
    ASSERT_TRUE(store.start()) << store.log();
    EXPECT_NE(store.log().find("newer than all that the catalogue knows"), std::string::npos)
        << store.log();
    EXPECT_NE(store.log().find("kvtier repair --store " + store.path()), std::string::npos);
    const std::vector<std::string> now = store.files("segments");  // with tails that were sealed
    for (const std::string& file : before) EXPECT_EQ(std::count(now.begin(), now.end(), file), 1);
    expect_all(store, true);
    ASSERT_TRUE(store.stop());
  }
  int exit_code = -1;
  const Json repaired = store.command("repair --json --store " + store.path(), &exit_code);
  EXPECT_TRUE(repaired.value("rebuilt", false)) << repaired.dump(1);
  ASSERT_TRUE(store.start());
  expect_all(store, true);
  for (std::uint64_t seed = 50; seed < 54; ++seed) {
    std::vector<std::uint32_t> ids;
    for (std::uint64_t i = 0; i < 100; ++i) ids.push_back(known_token(seed, i).id);
    kvt_match match{};
    EXPECT_EQ(kvt_space_match(store.space(), ids.data(), ids.size(), &match), KVT_OK);
    EXPECT_EQ(match.tokens, 100u);
  }
  store.close_client();
  ASSERT_TRUE(store.stop());
  const Json again = store.command("repair --json --store " + store.path(), &exit_code);
  EXPECT_FALSE(again.value("rebuilt", true)) << again.dump(1);
}

// Where tail logs alone are newer, a repair takes in the one that begins at token 0. One behind
// sealed tokens stays out, and stays where it is.
TEST_F(DamagedCatalogue, OfAMomentAgo) {
  FaultStore store;
  const std::string catalogue = store.path() + "/catalogue";
  std::filesystem::copy(catalogue, store.path() + "/before");
  const std::vector<std::string> logs = store.files("logs");
  ASSERT_TRUE(store.start());
  kvt_sequence* open[2] = {};
  commit_new(store, 60, &open[0]);
  ASSERT_EQ(kvt_sequence_open(store.space(), "short", 0, 1, &open[1]), KVT_OK);
  ASSERT_EQ(append_known(open[1], 1, 50), KVT_OK);
  ASSERT_EQ(kvt_sequence_commit(open[1]), KVT_OK);
  store.daemon.kill_now();
  for (kvt_sequence* sequence : open) kvt_sequence_close(sequence);
  store.close_client();
  std::filesystem::remove_all(catalogue);
  std::filesystem::rename(store.path() + "/before", catalogue);
  ASSERT_EQ(store.files("logs").size(), logs.size() + 2);
  ASSERT_TRUE(store.start());
  EXPECT_NE(store.log().find("kvtier repair --store " + store.path()), std::string::npos);
  ASSERT_TRUE(store.stop());
  int exit_code = -1;
  const Json repaired = store.command("repair --json --store " + store.path(), &exit_code);
  EXPECT_TRUE(repaired.value("rebuilt", false)) << repaired.dump(1);
  EXPECT_EQ(repaired.value("sequences_from_logs", 0u), 1u) << repaired.dump(1);
  EXPECT_EQ(repaired.value("logs_left_out", 0u), 1u) << repaired.dump(1);
  for (int start = 0; start < 2; ++start) {
    ASSERT_TRUE(store.start()) << store.log();
    EXPECT_NE(store.log().find("1 files are of no use to this store"), std::string::npos)
        << store.log();
    EXPECT_EQ(store.request("stats")["disk"].value("kept_files", 0u), 1u);
    store.close_client();
    ASSERT_TRUE(store.stop());
    const Json again = store.command("repair --json --store " + store.path(), &exit_code);
    EXPECT_FALSE(again.value("rebuilt", true)) << again.dump(1);
  }
  ASSERT_TRUE(store.start());
  expect_all(store, true);
  store.request("gc");
  EXPECT_EQ(store.request("stats")["disk"].value("kept_files", 1u), 0u);
  store.close_client();
  ASSERT_TRUE(store.stop());
}

TEST_F(DamagedCatalogue, RepairOfASoundStoreDoesNothing) {
  FaultStore store;
  int exit_code = -1;
  const Json repaired = store.command("repair --json --store " + store.path(), &exit_code);
  EXPECT_EQ(exit_code, 0);
  EXPECT_FALSE(repaired.value("rebuilt", true));
  ASSERT_TRUE(store.start());
  const Json busy = store.command("repair --json --store " + store.path(), &exit_code);
  EXPECT_EQ(exit_code, 1);
  EXPECT_NE(busy.value("error", "").find("stop it first"), std::string::npos) << busy.dump(1);
  expect_all(store, true);
}

}  // namespace
}  // namespace kvtier::testing
