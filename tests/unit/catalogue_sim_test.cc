// The catalogue on a disk that loses power. Oracle: after a crash the rows are those after the
// first k batches, for one k that is not below the last synced batch: nothing synced is lost, no
// batch is there by half, none without its predecessors. A skipped sync must be seen as loss in
// some runs, or the test would prove nothing.
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "base/random.h"
#include "tiers/catalogue.h"
#include "tiers/catalogue_env_sim.h"

namespace kvtier {
namespace {

// Rows by name of key, as text: enough to compare.
using Rows = std::map<std::string, std::string>;

constexpr const char* kPath = "/store/catalogue";

std::string text_of(const SequenceRow& row) {
  std::string text = row.name + "/" + std::to_string(row.last_used_unix_ns) + "/" +
                     std::to_string(row.parts.size());
  for (const auto& part : row.parts) text += "," + std::to_string(part.segment.value);
  return text;
}

class Machine {
 public:
  explicit Machine(std::uint64_t seed)
      : random_(seed),
        disk_({.seed = seed * 7 + 1, .latency_ns_max = 0}),
        env_(make_sim_catalogue_env(disk_, clock_)) {}

  SimDisk& disk() { return disk_; }
  Random& random() { return random_; }
  Catalogue& catalogue() { return *catalogue_; }
  void stop() { catalogue_.reset(); }

  testing::AssertionResult start(bool read_only = false) {
    auto opened = Catalogue::open({.path = kPath, .env = env_, .read_only = read_only});
    if (!opened) return testing::AssertionFailure() << "open: " << opened.error().message();
    catalogue_ = std::move(*opened);
    return testing::AssertionSuccess();
  }

  // One batch of a few rows; its number is in the row "batch". True where the catalogue took it.
  bool write(bool sync) {
    Rows next = history_.back();
    CatalogueBatch batch;
    const std::uint64_t count = 1 + random_.below(4);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t id = 1 + random_.below(12);
      const std::string key = "Q" + std::to_string(id);
      if (random_.one_in(4)) {
        batch.remove_sequence({id});
        next.erase(key);
        continue;
      }
      SequenceRow row;
      row.id = {id};
      row.name = "s" + std::to_string(history_.size());
      row.last_used_unix_ns = random_.next();
      row.parts.resize(random_.one_in(8) ? random_.below(6000) : random_.below(20));
      for (auto& part : row.parts) part.segment = {random_.below(100)};
      batch.put_sequence(row);
      next[key] = text_of(row);
    }
    batch.put_number("batch", history_.size());
    next["Nbatch"] = std::to_string(history_.size());
    if (!catalogue_->write(std::move(batch), sync)) {
      if (!doubtful_) history_.push_back(std::move(next));  // the first failure stops the rest
      doubtful_ = true;
      return false;
    }
    history_.push_back(std::move(next));
    if (sync) synced_ = history_.size() - 1;
    clock_.advance_ns(1000);
    return true;
  }

  testing::AssertionResult rows(Rows* found) {
    std::string trouble;
    CatalogueVisitor visitor;
    visitor.sequence = [&](SequenceRow row) {
      (*found)["Q" + std::to_string(row.id.value)] = text_of(row);
    };
    visitor.number = [&](std::string_view name, std::uint64_t value) {
      (*found)["N" + std::string(name)] = std::to_string(value);
    };
    visitor.segment = [&](SegmentRow) { trouble = "a segment that nobody wrote"; };
    visitor.damaged = [&](std::string key, Status) { trouble = "damaged row " + key; };
    const auto loaded = catalogue_->load(visitor);
    if (!loaded) return testing::AssertionFailure() << "load: " << loaded.error().message();
    if (!trouble.empty()) return testing::AssertionFailure() << trouble;
    return testing::AssertionSuccess();
  }

  // Compares with the history and cuts off what was lost.
  testing::AssertionResult check() {
    Rows found;
    if (auto good = rows(&found); !good) return good;
    const std::size_t k = found.contains("Nbatch") ? std::stoul(found["Nbatch"]) : 0;
    if (k < synced_)
      return testing::AssertionFailure() << "synced up to " << synced_ << ", found " << k;
    if (k >= history_.size()) return testing::AssertionFailure() << "a batch from nowhere: " << k;
    if (found != history_[k])
      return testing::AssertionFailure() << "not the rows after batch " << k;
    history_.resize(k + 1);
    doubtful_ = false;
    synced_ = k;  // what a reopened catalogue showed must stay
    return testing::AssertionSuccess();
  }

  // Whether these were the rows after some batch, and which.
  bool is_historical(const Rows& found, std::size_t* batch) const {
    const auto number = found.find("Nbatch");
    *batch = number == found.end() ? 0 : std::stoul(number->second);
    return *batch < history_.size() && found == history_[*batch];
  }

 private:
  Random random_;
  VirtualClock clock_;
  SimDisk disk_;
  std::shared_ptr<CatalogueEnv> env_;
  std::unique_ptr<Catalogue> catalogue_;
  std::vector<Rows> history_{Rows{}};
  std::size_t synced_ = 0;
  bool doubtful_ = false;  // the last batch of the history failed: it may be there
};

TEST(CatalogueSim, SyncedBatchesSurvivePowerCuts) {
  double open_ms = 0;
  int opens = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(seed);
    for (int life = 0; life < 5; ++life) {
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(machine.start());
      open_ms += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                     .count();
      ++opens;
      ASSERT_TRUE(machine.check());
      const std::uint64_t writes = machine.random().below(30);
      for (std::uint64_t i = 0; i < writes; ++i)
        ASSERT_TRUE(machine.write(machine.random().one_in(3)));
      // A process may die before the power does, and what it had open may be closed before or after
      // the cut.
      const std::uint64_t end = machine.random().below(3);
      if (end == 0) machine.stop();
      if (end < 2) machine.disk().crash();
      machine.stop();
    }
  }
  RecordProperty("open_us", static_cast<int>(open_ms * 1000 / opens));
  std::printf("open: %.2f ms on average\n", open_ms / opens);
}

TEST(CatalogueSim, ASkippedSyncIsSeenAsLoss) {
  int losses = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Machine machine(seed);
    ASSERT_TRUE(machine.start());
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(machine.write(true));
    machine.disk().skip_sync(0);
    ASSERT_TRUE(machine.write(true));
    machine.disk().crash();
    machine.stop();
    if (!machine.start() || !machine.check()) ++losses;
  }
  EXPECT_GE(losses, 10);
  EXPECT_LE(losses, 59) << "a write may also survive without its sync";
}

TEST(CatalogueSim, TheSameSeedGivesTheSameDisk) {
  const auto run = [](std::uint64_t seed) {
    Machine machine(seed);
    std::string trace;
    for (int life = 0; life < 4; ++life) {
      EXPECT_TRUE(machine.start());
      EXPECT_TRUE(machine.check());
      for (int i = 0; i < 40; ++i) EXPECT_TRUE(machine.write(machine.random().one_in(3)));
      trace += std::to_string(machine.disk().syncs()) + " " +
               std::to_string(machine.disk().used_bytes()) + " ";
      machine.disk().crash();
      machine.stop();
      trace += std::to_string(machine.disk().used_bytes()) + "\n";
    }
    return trace;
  };
  for (std::uint64_t seed = 1; seed <= 10; ++seed)
    EXPECT_EQ(run(seed), run(seed)) << "seed " << seed;
}

TEST(CatalogueSim, AFullDiskStopsWritesAndResumeGoesOn) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(seed);
    ASSERT_TRUE(machine.start());
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(machine.write(true));
    machine.disk().set_capacity_bytes(machine.disk().used_bytes() + machine.random().below(8000));
    int taken = 0;
    while (machine.write(true)) ASSERT_LT(++taken, 10000);
    CatalogueBatch refused;
    refused.put_number("batch", 0);
    const auto status = machine.catalogue().write(std::move(refused), true);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, Code::kNoSpace);
    machine.disk().set_capacity_bytes(4ull << 30);
    ASSERT_TRUE(machine.catalogue().resume());
    ASSERT_TRUE(machine.check());
    ASSERT_TRUE(machine.write(true));
    ASSERT_TRUE(machine.check());
    machine.disk().crash();
    machine.stop();
    ASSERT_TRUE(machine.start());
    ASSERT_TRUE(machine.check());
  }
}

TEST(CatalogueSim, WriteErrorsStopWritesAndNothingSyncedIsLost) {
  int failures = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(seed);
    ASSERT_TRUE(machine.start());
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(machine.write(true));
    machine.disk().set_error_rates(0, 12);
    int written = 0;
    while (written < 30 && machine.write(machine.random().one_in(2))) ++written;
    machine.disk().set_error_rates(0, 0);
    if (written < 30) {
      ++failures;
      EXPECT_FALSE(machine.write(true)) << "no writes before resume()";
      if (machine.random().one_in(2)) {
        machine.disk().crash();  // before anybody could resume
        machine.stop();
        ASSERT_TRUE(machine.start());
        ASSERT_TRUE(machine.check());
      }
      ASSERT_TRUE(machine.catalogue().resume());
    }
    ASSERT_TRUE(machine.check());
    ASSERT_TRUE(machine.write(true));
    machine.disk().crash();
    machine.stop();
    ASSERT_TRUE(machine.start());
    ASSERT_TRUE(machine.check());
  }
  EXPECT_GT(failures, 20);
}

// One bit of any file goes bad. Opening or loading may then fail, or rows of the end may be
// missing; but what is shown are the rows after some batch, never others.
TEST(CatalogueSim, BitRotNeverShowsRowsThatWereNotThere) {
  int refused = 0, noticed = 0;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(seed);
    ASSERT_TRUE(machine.start());
    const std::uint64_t writes = 3 + machine.random().below(60);
    for (std::uint64_t i = 0; i < writes; ++i) ASSERT_TRUE(machine.write(true));
    machine.stop();
    const auto files = machine.disk().list(kPath);
    ASSERT_TRUE(files);
    const std::string path =
        std::string(kPath) + "/" + (*files)[machine.random().below(files->size())];
    const auto size = machine.disk().size_bytes(path);
    ASSERT_TRUE(size);
    if (*size == 0) continue;
    const std::uint64_t offset = machine.random().below(*size);
    machine.disk().rot(path, offset, static_cast<std::uint32_t>(machine.random().below(8)));
    Rows found;
    if (!machine.start() || !machine.rows(&found)) {
      ++refused;
      continue;
    }
    std::size_t batch = 0;
    ASSERT_TRUE(machine.is_historical(found, &batch)) << path << " byte " << offset;
    noticed += batch < writes;
  }
  EXPECT_GT(refused, 10);
  EXPECT_GT(refused + noticed, 40);
}

TEST(CatalogueSim, AReadOnlyOpenChangesNothing) {
  Machine machine(3);
  ASSERT_TRUE(machine.start());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(machine.write(i % 4 == 0));
  machine.disk().crash();
  machine.stop();
  const std::uint64_t used = machine.disk().used_bytes(), syncs = machine.disk().syncs();
  ASSERT_TRUE(machine.start(true));
  Rows rows;
  ASSERT_TRUE(machine.rows(&rows));
  EXPECT_FALSE(rows.empty());
  machine.stop();
  EXPECT_EQ(machine.disk().used_bytes(), used);
  EXPECT_EQ(machine.disk().syncs(), syncs);
}

}  // namespace
}  // namespace kvtier
