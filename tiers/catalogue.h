// Catalogue: what the store holds, in RocksDB. Rows of spaces, segments (with their block hashes),
// sequences, opaque objects and numbers. Everything is read once at open; afterwards the owner's
// memory is the truth and the catalogue its durable log. The doors to RocksDB are catalogue.cc and
// catalogue_env*.cc.
//
// write() may block on a sync; the engine calls it from a worker, one batch at a time, in order.
// Values are our own versioned, checksummed byte forms: a damaged row is reported by load() and
// skipped, never trusted, never an abort.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "kernels/geometry.h"
#include "kernels/rotation.h"

namespace kvtier {

struct SpaceRow {
  SpaceId id;
  BlockHash digest;
  std::string model, runtime, detail;
  Geometry geometry;
  // AbstractSpec::packed, by lane; the first is built when a segment is sealed. At most
  // kSpaceAbstractsMax, none twice; a lane never changes its meaning.
  std::vector<std::uint32_t> abstracts;
  struct Codebook {
    std::uint32_t abstract = 0;  // the codes that refer to it: one of `abstracts`
    std::uint64_t id = 0;
  };
  std::vector<Codebook> codebooks;
  // How the runtime turns keys; not known until a client says so, and then as it is. At most
  // kHeadDimMax frequencies.
  Rotation rotation;
  bool private_only = false;
  std::uint64_t created_unix_ns = 0;
};

struct SegmentRow {
  SegmentId id;
  SpaceId space;
  SegmentId parent;
  std::uint32_t parent_visible = 0;
  std::uint64_t start_token = 0;
  std::uint32_t tokens = 0;
  std::uint64_t file_bytes = 0;
  std::uint64_t created_unix_ns = 0;
  std::uint64_t last_used_unix_ns = 0;
  std::vector<BlockHash>
      blocks;        // chain hashes of the blocks whose last token lies in this segment, in order
  bool bad = false;  // quarantined: something in it failed its checksum
};

struct SequenceRow {
  SequenceId id;
  SpaceId space;
  std::string name;  // may be empty
  struct Part {
    SegmentId segment;
    std::uint32_t visible_tokens = 0;
  };
  std::vector<Part> parts;
  std::uint64_t log_generation = 0;  // tail log that belongs to it; 0: none
  bool pinned = false;
  bool provisional = false;          // nameless and never sealed or committed: nobody else knows it
  std::uint64_t expires_unix_s = 0;  // 0: never
  std::uint64_t created_unix_ns = 0;
  std::uint64_t last_used_unix_ns = 0;
};

struct ObjectRow {
  std::string key;
  std::uint64_t file = 0;  // number of the object's file
  std::uint64_t value_bytes = 0;
  std::uint64_t checksum = 0;
  std::uint64_t stored_unix_ns = 0;
};

// The number "kept." + path: why a file that no row names stays where it is (daemon/kept_files.h).
inline constexpr std::string_view kKeptPrefix = "kept.";
inline constexpr std::uint64_t kKeptNewer = 1;    // than every row, as a crash leaves one or two
inline constexpr std::uint64_t kKeptLeftOut = 2;  // whole, and of no use to a rebuild
inline constexpr std::uint64_t kKeptLost = 3;     // newer, and too many at once: rows were lost

// Changes that become visible together. Later entries of one key win.
class CatalogueBatch {
 public:
  CatalogueBatch();
  ~CatalogueBatch();
  CatalogueBatch(CatalogueBatch&&) noexcept;
  CatalogueBatch& operator=(CatalogueBatch&&) noexcept;

  void put_space(const SpaceRow& row);
  void put_segment(const SegmentRow& row);
  void put_sequence(const SequenceRow& row);
  void put_object(const ObjectRow& row);
  void put_number(std::string_view name,
                  std::uint64_t value);  // "next_segment", "written_day", ...
  void remove_segment(SegmentId id);
  void remove_sequence(SequenceId id);
  void remove_object(std::string_view key);
  void remove_number(std::string_view name);
  [[nodiscard]] bool empty() const noexcept;

 private:
  friend class Catalogue;
  struct State;
  std::unique_ptr<State> state_;
};

// Where RocksDB keeps its files: the real file system, or a simulated one (catalogue_env_sim.h).
class CatalogueEnv;

struct CatalogueOptions {
  std::string path;                   // directory, made if absent
  std::shared_ptr<CatalogueEnv> env;  // null: the real file system
  bool read_only = false;             // for offline inspection: never writes
};

struct CatalogueVisitor {
  std::function<void(SpaceRow)> space;
  std::function<void(SegmentRow)> segment;
  std::function<void(SequenceRow)> sequence;
  std::function<void(ObjectRow)> object;
  std::function<void(std::string_view name, std::uint64_t value)> number;
  std::function<void(std::string key, Status)> damaged;  // a row that cannot be trusted
};

// The texts of errors that a repair mends say `--store PATH`, as a Status has no room for more;
// this puts the store's directory there.
[[nodiscard]] std::string with_store_named(std::string text, const std::string& store_path);

class Catalogue {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Catalogue>> open(const CatalogueOptions& options);
  ~Catalogue();
  // Makes a copy of a damaged catalogue one that opens, with the rows that its tables and logs
  // still give, whatever else is missing of it; RocksDB's own repair. Offline, on the real file
  // system.
  [[nodiscard]] static Result<void> salvage(const std::string& path);

  // Visits every row. Fails only where RocksDB itself does.
  [[nodiscard]] Result<void> load(const CatalogueVisitor& visitor);
  // Atomic; durable on return where `sync`, and with it every batch before. After a failure
  // (kNoSpace, kIo, kReadOnly) the store takes no writes until resume() succeeds; the batch that
  // failed is there as a whole afterwards, or absent.
  [[nodiscard]] Result<void> write(CatalogueBatch batch, bool sync);
  // Closes and opens again. Where that fails there is nothing to load() either; try again later.
  [[nodiscard]] Result<void> resume();
  [[nodiscard]] std::uint64_t disk_bytes() const;  // any thread

 private:
  Catalogue();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvtier
