// The part of the store check that reads one file at a time and knows nothing of the catalogue.
// Internal to store_check.
#pragma once

#include <optional>
#include <string>
#include <vector>

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
  // A parser's or the device's error, as what it is.
  void failed(const std::string& path, std::string region, const Status& status);

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

// Each adds what it finds and gives what other checks need, where that could be read.
[[nodiscard]] std::optional<SegmentMeta> check_segment_file(Io& io, const std::string& path,
                                                            SegmentId id, CheckSink* sink);
[[nodiscard]] std::optional<TailLogHeader> read_log_header(Io& io, const std::string& path,
                                                           const TailLogName& name,
                                                           CheckSink* sink);
// Deep: every record. `geometry` may be null: then the lengths of records are taken as they say.
void check_log_records(Io& io, const std::string& path, const TailLogHeader& header,
                       const Geometry* geometry, CheckSink* sink);
// Whole, whether deep or not: it is small. `space` null: only what the file says of itself.
void check_codebook_file(Io& io, const std::string& path, const CodebookName& name,
                         const SpaceRow* space, CheckSink* sink);
[[nodiscard]] std::optional<SidecarHeader> check_sidecar_file(Io& io, const std::string& path,
                                                              const SidecarName& name,
                                                              CheckSink* sink);
[[nodiscard]] std::optional<ObjectHeader> check_object_file(Io& io, const std::string& path,
                                                            std::uint64_t number, CheckSink* sink);

}  // namespace kvtier
