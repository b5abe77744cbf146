// The inside of SimDisk, for sim_disk*.cc and io_sim.cc only. One thread.
//
// A file is two views (what processes see, what a power cut leaves for certain) over shared 16 KiB
// pages, and the list of writes and resizes since the last sync. A directory entry maps a path to a
// node; changes of names that no directory sync covered wait in one list in order of time.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiers/sim_disk.h"

namespace kvtier {

inline constexpr std::uint64_t kSimPageBytes = 16384;
inline constexpr std::uint64_t kSimSectorBytes = 512;

// Contents of a file; copying shares pages, writing copies what is shared.
class SimView {
 public:
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  void read(std::uint64_t offset, MutableByteSpan target) const;  // inside the file
  void write(std::uint64_t offset, ByteSpan source);              // grows
  void resize(std::uint64_t size_bytes);
  void flip_bit(std::uint64_t offset, std::uint32_t bit);

 private:
  using Page = std::array<std::byte, kSimPageBytes>;
  Page& own(std::uint64_t index);

  std::vector<std::shared_ptr<Page>> pages_;  // null: zeros
  std::uint64_t size_bytes_ = 0;
};

// One write, or a resize where `resize`.
struct SimChange {
  bool resize = false;
  std::uint64_t offset = 0;  // of a resize: the new size
  std::vector<std::byte> bytes;
};

struct SimNode {
  bool directory = false;
  bool linked = false;        // has a name now; counts for the space used
  bool direct = false;        // opened so once: what a failed sync left waits for the next one
  bool sync_skipped = false;  // and none since
  bool differs = false;       // a sync failed: `now` shows what the disk will never have
  SimView now, durable;
  std::vector<SimChange> unsynced;
};
using SimNodePtr = std::shared_ptr<SimNode>;
using SimNames = std::map<std::string, SimNodePtr, std::less<>>;

// One change of the namespace: afterwards `to` names `node`, and `from` (if not empty) names
// nothing. An unlink has only `from`.
struct SimNameChange {
  std::string from, to;
  SimNodePtr node;
};

void apply_names(const SimNameChange& change, SimNames* names);

struct SimDisk::State {
  explicit State(SimDiskOptions options_in) : options(options_in), random(options_in.seed) {}

  SimDiskOptions options;
  Random random;
  SimNames names, durable_names;
  std::vector<SimNameChange> unsynced_names;
  std::uint64_t used_bytes = 0;
  std::uint64_t syncs = 0;
  std::uint64_t skip_sync_at = UINT64_MAX;  // value of `syncs` at which one is skipped
  SkippedSync skipped = SkippedSync::kNone;
  std::string skipped_directory;  // where it is one, as "/name"
  std::uint64_t power_cuts = 0;

  [[nodiscard]] Result<std::string> place(
      std::string_view path) const;  // normal form, parent checked
  [[nodiscard]] Result<SimNodePtr> file(std::string_view path) const;
  [[nodiscard]] Result<SimNodePtr> create(std::string_view path, bool must_be_new);
  [[nodiscard]] Result<void> read(const SimNode& node, std::uint64_t offset, MutableByteSpan target,
                                  std::uint64_t* got);
  [[nodiscard]] Result<void> write(SimNode& node, std::uint64_t offset, ByteSpan source);
  [[nodiscard]] Result<void> resize(SimNode& node, std::uint64_t size_bytes);
  [[nodiscard]] Result<void> sync(SimNode& node);
  [[nodiscard]] Result<void> unlink(std::string_view path, bool directories_too);

  [[nodiscard]] bool grow(SimNode& node, std::uint64_t size_bytes);  // false: no space
  void change_names(SimNameChange change);
  [[nodiscard]] bool count_sync() noexcept;  // false: this one is skipped
  void cut_power();
  void cut_names();
  void cut_file(SimNode& node);
  void fail_sync(SimNode& node);
};

}  // namespace kvtier
