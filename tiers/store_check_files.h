// The part of the store check that reads one file at a time, and compares it with its row where
// that is given. For store_check, and for a daemon that checks the store beside its work
// (daemon/store_items.cc): both say the same of the same file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tiers/catalogue.h"
#include "tiers/codebook_format.h"
#include "tiers/object_format.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/store_check.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

// Findings and totals, and the right to go on.
class CheckSink {
 public:
  CheckSink(const StoreCheckOptions& options, StoreReport* report)
      : options_(options), report_(*report) {}

  void add(std::string path, std::string region, FindingKind kind, FindingSeverity severity,
           std::string what);
  void damaged(const std::string& path, std::string region, std::string what) {
    add(path, std::move(region), FindingKind::kDamaged, FindingSeverity::kDamage, std::move(what));
  }
  void mismatch(const std::string& path, std::string region, std::string what) {
    add(path, std::move(region), FindingKind::kMismatch, FindingSeverity::kDamage, std::move(what));
  }
  // A parser's or the device's error, as what it is.
  void failed(const std::string& path, std::string region, const Status& status);
  // Something names the file, and it is not there.
  void missing(const std::string& path);

  void count_read(std::uint64_t size_bytes);
  void begin_files(std::uint64_t files_total) { files_total_ += files_total; }
  void end_file();
  [[nodiscard]] bool cancelled() const noexcept { return report_.cancelled; }
  [[nodiscard]] bool deep() const noexcept { return options_.deep; }
  [[nodiscard]] StoreReport& report() noexcept { return report_; }

 private:
  void ask();

  const StoreCheckOptions& options_;
  StoreReport& report_;
  std::uint64_t files_done_ = 0, files_total_ = 0;
  std::uint64_t asked_at_bytes_ = 0;
};

// Each adds what it finds and gives what other checks need, where that could be read. Rows may be
// null: then only what the file says of itself.
[[nodiscard]] std::optional<SegmentMeta> check_segment_file(Io& io, SegmentId id,
                                                            const SegmentRow* row,
                                                            const SpaceRow* space, CheckSink* sink);
// `expected`: what the header must say.
[[nodiscard]] std::optional<TailLogHeader> read_log_header(Io& io, const TailLogName& name,
                                                           const TailLogHeader* expected,
                                                           CheckSink* sink);
// Deep: every record; the sound tokens. `geometry` may be null: then the lengths of records are
// taken as they say. `committed`, not 0: a client writes the log, which holds so many at least;
// what is behind them may be anything.
std::uint64_t check_log_records(Io& io, const TailLogHeader& header, const Geometry* geometry,
                                std::uint64_t committed, CheckSink* sink);
// Whole, whether deep or not: it is small. `space` null: only what the file says of itself.
void check_codebook_file(Io& io, const CodebookName& name, const SpaceRow* space, CheckSink* sink);
// The segment that a sidecar is of, as far as it is known.
struct SidecarOwner {
  bool there = true;   // its file
  bool sound = false;  // its metadata, which says the rest
  std::uint32_t tokens = 0;
  BlockHash fingerprint = {};
  const Geometry* geometry = nullptr;
};
void check_sidecar_file(Io& io, const SidecarName& name, const SidecarOwner& of, CheckSink* sink);
// The kind of sidecar that a segment of the space has from its seal on, if there is one: others are
// built when a view wants them, so that they may be missing.
[[nodiscard]] std::optional<std::uint32_t> sidecar_of_seal(const SpaceRow& space,
                                                           std::uint32_t tokens);
void check_object_file(Io& io, std::uint64_t number, const ObjectRow* row, CheckSink* sink);

}  // namespace kvtier
