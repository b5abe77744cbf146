// EngineFixture: an engine over a simulated disk with one client and its space, for the tests of
// unit/engine_*_test.cc; FaultyDiskFixture: over one that fails or holds what it is told to. One
// thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/fault.h"
#include "daemon/admin.h"
#include "daemon/engine_state.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/store_model.h"
#include "tiers/io_faulty.h"

namespace kvtier {

// Token ids; another `salt`, other ids from the first on.
inline std::vector<std::uint32_t> make_ids(std::uint32_t count, std::uint32_t salt = 0) {
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < count; ++i) ids.push_back((i * 7 + salt * 131 + (i / 13)) % 50000);
  return ids;
}

class EngineFixture : public ::testing::Test {
 protected:
  explicit EngineFixture(const sim::SimWorldOptions& options = {}) : world(options) {}
  void SetUp() override {
    add_admin_ops();
    restart();
  }
  void TearDown() override { static_cast<void>(arm_faults("")); }

  // The engine recovers from what is on the disk; a new client opens the space.
  void restart() {
    client.reset();
    ASSERT_TRUE(world.start());
    client = std::make_unique<sim::SimClient>(world, "test");
    space = client->open_space(geometry);
    ASSERT_NE(space, 0u);
  }
  void crash() {
    world.crash();
    restart();
  }
  // Appends `count` tokens and seals them.
  void seal(sim::SimSequence& sequence, const std::vector<std::uint32_t>& ids,
            std::uint32_t count) {
    client->append(sequence, geometry, ids, sequence.tokens_sealed, count);
    ASSERT_EQ(client->seal(sequence).status, 0);
  }
  // Appends and seals all that is not sealed yet, in pieces of `piece`.
  void seal_all(sim::SimSequence& sequence, const std::vector<std::uint32_t>& ids,
                std::uint32_t piece) {
    while (sequence.tokens_sealed < ids.size() && !HasFatalFailure())
      seal(sequence, ids,
           static_cast<std::uint32_t>(
               std::min<std::uint64_t>(piece, ids.size() - sequence.tokens_sealed)));
  }
  // The directory shows all of `ids`: fetches and compares every row. `*disk`: bytes read for it.
  void expect_all(sim::SimClient& reader, sim::SimSequence& sequence,
                  const std::vector<std::uint32_t>& ids, std::uint64_t* disk = nullptr) {
    const auto hashes = sim::prefix_hashes(ids);
    const sim::DirectoryView directory = sequence.read_directory();
    ASSERT_EQ(directory.check(ids.size()), "");
    const std::vector<FetchEntry> wanted = sim::SimClient::all_entries(directory, geometry);
    for (std::size_t at = 0; at < wanted.size(); at += 512) {
      const auto end =
          wanted.begin() + static_cast<std::ptrdiff_t>(std::min(wanted.size(), at + 512));
      const sim::FetchResult got =
          reader.fetch(sequence, {wanted.begin() + static_cast<std::ptrdiff_t>(at), end});
      ASSERT_EQ(got.completion.status, 0);
      ASSERT_EQ(got.completion.count, got.entries.size());
      if (disk != nullptr) *disk += got.completion.bytes_disk;
      for (const FetchEntry& entry : got.entries) {
        ASSERT_EQ(entry.status, 0);
        for (const DirectoryEntry& where : directory.entries) {
          if (where.segment != entry.segment) continue;
          ASSERT_EQ(reader.check_chunk(entry, where, geometry, hashes), "");
        }
      }
      reader.release(got.completion.value0);
    }
    world.settle();
  }
  // How many of them are stored.
  std::uint64_t match(const std::vector<std::uint32_t>& ids) {
    std::vector<std::byte> payload(ids.size() * 4);
    std::memcpy(payload.data(), ids.data(), payload.size());
    return client->control(Json{{"op", "match"}, {"space", space}}, payload)
        .body["tokens"]
        .get<std::uint64_t>();
  }
  bool close(const sim::SimSequence& sequence) {
    const bool closed = client->control(Json{{"op", "close"}, {"handle", sequence.handle}}).ok();
    world.settle();
    return closed;
  }
  EngineState& state() { return world.engine().state(); }

  sim::SimWorld world;
  Geometry geometry = sim::tiny_geometry();
  std::unique_ptr<sim::SimClient> client;
  std::uint64_t space = 0;
};

class FaultyDiskFixture : public EngineFixture {
 protected:
  explicit FaultyDiskFixture(const sim::SimWorldOptions& options = {}) : EngineFixture(options) {
    world.wrap_io([this](std::unique_ptr<Io> io) {
      auto made = std::make_unique<FaultyIo>(std::move(io));
      disk = made.get();
      return made;
    });
  }
  // None of these begins before let_go().
  void hold(IoOp op) {
    held = op;
    disk->set_plan({.kind = FaultKind::kDelay,
                    .data_at = 0,
                    .count = UINT64_MAX,
                    .delay_polls = UINT32_MAX,
                    .data_op = op});
  }
  // Those that begin from here on are counted.
  void let_go() {
    disk->set_plan({.data_op = held});
    disk->end_delays();
  }

  FaultyIo* disk = nullptr;  // of the engine that runs: restart() makes another
  IoOp held = IoOp::kRead;
};

}  // namespace kvtier
