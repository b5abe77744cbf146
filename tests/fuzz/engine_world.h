// FuzzWorld: an engine over a simulated disk with a hostile client and an honest one beside it. The
// hostile one does what the fuzz input says; whatever that is, the honest one reads its own rows
// right, and the engine answers.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "daemon/admin.h"
#include "tests/sim/sim_client.h"

namespace kvtier::fuzz {

inline void require(bool condition) {
  if (!condition) std::abort();
}

class FuzzWorld {
 public:
  FuzzWorld() {
    add_admin_ops();
    require(world_.start().has_value());
    honest_ = std::make_unique<sim::SimClient>(world_, "honest");
    space_ = honest_->open_space(geometry_);
    require(space_ != 0);
    for (std::uint32_t i = 0; i < kTokens; ++i) ids_.push_back(i * 7 % 50000);
    known_ = store(*honest_, "known");
    require(known_ != nullptr);
  }

  // The hostile client, and a sequence that is its own; made anew where they are gone.
  sim::SimClient& hostile() {
    if (hostile_ == nullptr) {
      hostile_ = std::make_unique<sim::SimClient>(world_, "hostile");
      own_ = store(*hostile_, "");
      require(own_ != nullptr);
    }
    return *hostile_;
  }
  sim::SimSequence& own() {
    static_cast<void>(hostile());
    return *own_;
  }
  void drop_hostile() {
    own_.reset();
    hostile_.reset();
    world_.settle();
  }

  // The engine answers, and every row of the honest client's sequence is right.
  void check() {
    world_.settle();
    require(honest_->control(Json{{"op", "status"}}).ok());
    const sim::DirectoryView directory = known_->read_directory();
    require(directory.check(kTokens).empty());
    const auto hashes = sim::prefix_hashes(ids_);
    const auto got = honest_->fetch(*known_, sim::SimClient::all_entries(directory, geometry_));
    require(got.completion.status == 0);
    for (const FetchEntry& entry : got.entries) {
      if (entry.status == static_cast<std::int16_t>(Code::kFull)) continue;
      require(entry.status == 0);
      for (const DirectoryEntry& where : directory.entries)
        if (where.segment == entry.segment)
          require(honest_->check_chunk(entry, where, geometry_, hashes).empty());
    }
    if (got.completion.value0 != 0) honest_->release(got.completion.value0);
    world_.settle();
  }

  [[nodiscard]] const Geometry& geometry() const { return geometry_; }
  [[nodiscard]] std::uint64_t space() const { return space_; }
  [[nodiscard]] std::uint64_t known_id() const { return known_->id; }
  [[nodiscard]] sim::SimWorld& world() { return world_; }

 private:
  static constexpr std::uint32_t kTokens = 100;

  std::unique_ptr<sim::SimSequence> store(sim::SimClient& client, const std::string& name) {
    auto sequence = client.create(space_, {}, name);
    if (sequence == nullptr) return nullptr;
    client.append(*sequence, geometry_, ids_, 0, kTokens);
    if (client.seal(*sequence).status != 0) return nullptr;
    return sequence;
  }

  Geometry geometry_ = sim::tiny_geometry();
  sim::SimWorldOptions options_;
  sim::SimWorld world_{options_};
  std::vector<std::uint32_t> ids_;
  std::uint64_t space_ = 0;
  std::unique_ptr<sim::SimClient> honest_, hostile_;
  std::unique_ptr<sim::SimSequence> known_, own_;
};

// One world for many inputs, a fresh one now and then, so that memory stays bounded. The last one
// is not destroyed: at exit RocksDB's own statics may be gone before it.
inline FuzzWorld& fuzz_world() {
  static auto& world = *new std::unique_ptr<FuzzWorld>;
  static int inputs = 0;
  if (inputs++ % 512 == 0) {
    world.reset();
    world = std::make_unique<FuzzWorld>();
  }
  return *world;
}

}  // namespace kvtier::fuzz
