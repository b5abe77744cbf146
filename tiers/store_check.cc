#include "tiers/store_check.h"

#include <map>
#include <set>
#include <utility>

#include "tiers/format_head.h"
#include "tiers/store_check_files.h"

namespace kvtier {

void CheckSink::add(std::string path, std::string region, FindingKind kind,
                    FindingSeverity severity, std::string what) {
  // Made again from stored keys when it is wanted; nobody syncs a sidecar, and a power cut may
  // leave a part of it.
  const bool derived = path.starts_with("sidecars/") || path.starts_with("codebooks/");
  const bool bytes_are_wrong = kind == FindingKind::kDamaged || kind == FindingKind::kMismatch ||
                               kind == FindingKind::kMissing;
  if (derived && bytes_are_wrong && severity == FindingSeverity::kDamage)
    severity = FindingSeverity::kWarning;
  switch (severity) {
    case FindingSeverity::kNote:
      ++report_.notes;
      break;
    case FindingSeverity::kWarning:
      ++report_.warnings;
      break;
    case FindingSeverity::kDamage:
      ++report_.damage;
      break;
  }
  if (report_.findings.size() < options_.findings_max)
    report_.findings.push_back(
        {std::move(path), std::move(region), kind, severity, std::move(what)});
}

void CheckSink::failed(const std::string& path, std::string region, const Status& status) {
  FindingKind kind = FindingKind::kUnreadable;
  if (status.code == Code::kCorrupt) kind = FindingKind::kDamaged;
  if (status.code == Code::kVersion) kind = FindingKind::kNewer;
  std::string what = status.message();
  if (status.os_error != 0) what += " (errno " + std::to_string(status.os_error) + ")";
  if (kind == FindingKind::kUnreadable)
    what += ": cannot be read now: nothing is known about it, nothing is dropped";
  add(path, std::move(region), kind, FindingSeverity::kDamage, std::move(what));
}

void CheckSink::missing(const std::string& path) {
  constexpr std::pair<const char*, const char*> kKinds[] = {
      {"segments/", "the file of a published segment is not there"},
      {"logs/", "the tail log of a sequence is not there: its committed tail is lost"},
      {"objects/", "the file of a stored object is not there"},
      {"sidecars/",
       "the segment's abstracts are not stored: they are built again when they are wanted"},
      {"codebooks/", "it is not there: the next view that chooses by key codes makes it anew"}};
  for (const auto& [folder, what] : kKinds)
    if (path.starts_with(folder))
      add(path, "", FindingKind::kMissing, FindingSeverity::kDamage, what);
}

void CheckSink::ask() {
  asked_at_bytes_ = report_.read_bytes;
  if (options_.progress && !options_.progress(files_done_, files_total_, report_.read_bytes))
    report_.cancelled = true;
}

void CheckSink::count_read(std::uint64_t size_bytes) {
  report_.read_bytes += size_bytes;
  if (report_.read_bytes - asked_at_bytes_ >= (1u << 20)) ask();
}

void CheckSink::end_file() {
  ++files_done_;
  ask();
}

const char* finding_kind_name(FindingKind kind) noexcept {
  switch (kind) {
    case FindingKind::kUnreadable:
      return "unreadable";
    case FindingKind::kDamaged:
      return "damaged";
    case FindingKind::kTorn:
      return "torn";
    case FindingKind::kNewer:
      return "newer";
    case FindingKind::kMismatch:
      return "mismatch";
    case FindingKind::kMissing:
      return "missing";
    case FindingKind::kOrphan:
      return "orphan";
  }
  return "unknown";
}

const char* finding_severity_name(FindingSeverity severity) noexcept {
  switch (severity) {
    case FindingSeverity::kNote:
      return "note";
    case FindingSeverity::kWarning:
      return "warning";
    case FindingSeverity::kDamage:
      return "damage";
  }
  return "unknown";
}

Result<StoreRows> load_store_rows(Catalogue& catalogue) {
  StoreRows rows;
  CatalogueVisitor visitor;
  visitor.space = [&](SpaceRow row) { rows.spaces.push_back(std::move(row)); };
  visitor.segment = [&](SegmentRow row) { rows.segments.push_back(std::move(row)); };
  visitor.sequence = [&](SequenceRow row) { rows.sequences.push_back(std::move(row)); };
  visitor.object = [&](ObjectRow row) { rows.objects.push_back(std::move(row)); };
  visitor.number = [](std::string_view, std::uint64_t) {};
  visitor.damaged = [&](std::string key, Status status) {
    rows.damaged.push_back({std::move(key), status});
  };
  KVT_TRY_VOID(catalogue.load(visitor));
  return rows;
}

namespace {

class Checker {
 public:
  Checker(Io& io, const StoreRows* rows, const StoreCheckOptions& options, StoreReport* report)
      : io_(io), rows_(rows), sink_(options, report) {}

  void run() {
    if (rows_ != nullptr) index_rows();
    const std::vector<std::string> segments = list("segments");
    const std::vector<std::string> logs = list("logs");
    const std::vector<std::string> sidecars = list("sidecars");
    const std::vector<std::string> codebooks = list("codebooks");
    const std::vector<std::string> objects = list("objects");
    sink_.begin_files(segments.size() + logs.size() + sidecars.size() + codebooks.size() +
                      objects.size());
    each(segments, &Checker::check_segment);
    each(logs, &Checker::check_log);
    each(sidecars, &Checker::check_sidecar);
    each(codebooks, &Checker::check_codebook);
    each(objects, &Checker::check_object);
    if (rows_ != nullptr && !sink_.cancelled()) check_rows();
  }

 private:
  // What other checks need to know of a segment, from its file.
  struct SegmentFacts {
    SidecarOwner owner;
    std::set<std::uint32_t> sidecars;
  };

  std::vector<std::string> list(const char* directory) {
    Result<std::vector<std::string>> names = io_.list(directory);
    if (names) return *std::move(names);
    if (names.error().code != Code::kNotFound) sink_.failed(directory, "", names.error());
    return {};
  }

  void each(const std::vector<std::string>& names, void (Checker::*check)(const std::string&)) {
    for (const std::string& name : names) {
      if (sink_.cancelled()) return;
      (this->*check)(name);
      sink_.end_file();
    }
  }

  void orphan(const std::string& path, const char* what) {
    sink_.add(path, "", FindingKind::kOrphan, FindingSeverity::kWarning, what);
  }
  void mismatch(const std::string& path, const char* region, std::string what) {
    sink_.add(path, region, FindingKind::kMismatch, FindingSeverity::kDamage, std::move(what));
  }
  void missing(const std::string& path, std::string what) {
    sink_.add(path, "", FindingKind::kMissing, FindingSeverity::kDamage, std::move(what));
  }

  void index_rows() {
    sink_.report().spaces = rows_->spaces.size();
    sink_.report().sequences = rows_->sequences.size();
    for (const SpaceRow& row : rows_->spaces) spaces_[row.id] = &row;
    for (const SegmentRow& row : rows_->segments) segment_rows_[row.id] = &row;
    for (const SequenceRow& row : rows_->sequences) sequence_rows_[row.id] = &row;
    for (const ObjectRow& row : rows_->objects) object_rows_[row.file] = &row;
  }
  template <class Map, class Key>
  static auto find(const Map& map, Key key) -> typename Map::mapped_type {
    const auto found = map.find(key);
    return found == map.end() ? nullptr : found->second;
  }

  void check_segment(const std::string& name) {
    const std::string path = "segments/" + name;
    const Result<SegmentId> id = segment_id_of(name);
    if (!id) return orphan(path, "this is not the name of a segment");
    const SegmentRow* row = find(segment_rows_, *id);
    // Whatever a crash left of it, nothing that was acknowledged is in it.
    if (rows_ != nullptr && row == nullptr)
      return orphan(path, "no row of the catalogue names the segment: it was never published");
    const SpaceRow* space = row != nullptr ? find(spaces_, row->space) : nullptr;
    const std::optional<SegmentMeta> meta = check_segment_file(io_, *id, row, space, &sink_);
    SegmentFacts& facts = segments_[*id];
    if (!meta) return;
    geometries_.try_emplace(meta->space, meta->geometry);
    facts.owner = {true, true, static_cast<std::uint32_t>(meta->tokens.size()), meta->fingerprint,
                   geometry_of(meta->space)};
  }

  void check_log(const std::string& name) {
    const std::string path = "logs/" + name;
    const Result<TailLogName> parsed = tail_log_name_of(name);
    if (!parsed) return orphan(path, "this is not the name of a tail log");
    const SequenceRow* row = find(sequence_rows_, parsed->sequence);
    const bool named = row != nullptr && row->log_generation == parsed->generation;
    if (rows_ != nullptr && !named)
      return orphan(path, row == nullptr ? "no sequence of the catalogue has this log"
                                         : "the sequence has another log: this one is of the past");
    if (named) logs_.insert(parsed->sequence);
    const SpaceRow* space = named ? find(spaces_, row->space) : nullptr;
    TailLogHeader expected;
    if (space != nullptr) {
      expected.space = row->space;
      expected.fingerprint = space->digest;
      for (const SequenceRow::Part& part : row->parts) expected.base_token += part.visible_tokens;
    }
    const std::optional<TailLogHeader> header =
        read_log_header(io_, *parsed, space != nullptr ? &expected : nullptr, &sink_);
    if (header && sink_.deep())
      check_log_records(io_, *header, geometry_of(header->space), 0, &sink_);
  }

  const Geometry* geometry_of(SpaceId space) const {
    if (const SpaceRow* row = find(spaces_, space)) return &row->geometry;
    const auto found = geometries_.find(space);
    return found == geometries_.end() ? nullptr : &found->second;
  }

  void check_sidecar(const std::string& name) {
    const std::string path = "sidecars/" + name;
    const Result<SidecarName> parsed = sidecar_name_of(name);
    if (!parsed) return orphan(path, "this is not the name of a sidecar");
    const auto segment = segments_.find(parsed->segment);
    const bool there = segment != segments_.end();
    if (there) segment->second.sidecars.insert(parsed->kind);
    check_sidecar_file(io_, *parsed, there ? segment->second.owner : SidecarOwner{.there = false},
                       &sink_);
  }

  void check_codebook(const std::string& name) {
    const std::string path = "codebooks/" + name;
    const Result<CodebookName> parsed = codebook_name_of(name);
    if (!parsed) return orphan(path, "this is not the name of a codebook");
    const SpaceRow* space = find(spaces_, parsed->space);
    if (rows_ != nullptr && space == nullptr) return orphan(path, "its space is not there");
    codebooks_.insert(path);
    check_codebook_file(io_, *parsed, space, &sink_);
  }

  void check_object(const std::string& name) {
    const std::string path = "objects/" + name;
    const Result<std::uint64_t> number = object_number_of(name);
    if (!number) return orphan(path, "this is not the name of an object file");
    const ObjectRow* row = find(object_rows_, *number);
    if (rows_ != nullptr && row == nullptr)
      return orphan(path, "no row of the catalogue names it: never published, or of the past");
    objects_.insert(*number);
    check_object_file(io_, *number, row, &sink_);
  }

  void check_rows() {
    for (const StoreRows::Damaged& one : rows_->damaged)
      sink_.add("catalogue/" + one.key, "", FindingKind::kDamaged, FindingSeverity::kDamage,
                one.status.message());
    for (const SegmentRow& row : rows_->segments) check_segment_row(row);
    for (const SequenceRow& row : rows_->sequences) check_sequence(row);
    for (const ObjectRow& row : rows_->objects)
      if (!objects_.contains(row.file)) sink_.missing(object_path(row.file));
    for (const SpaceRow& row : rows_->spaces)
      for (const SpaceRow::Codebook& codebook : row.codebooks)
        if (const std::string path = codebook_path(row.id, codebook.id); !codebooks_.contains(path))
          sink_.missing(path);
  }

  void check_segment_row(const SegmentRow& row) {
    const std::string path = "catalogue/segment/" + hex16(row.id.value);
    const SpaceRow* space = find(spaces_, row.space);
    if (space == nullptr) missing(path, "the row of the segment's space is not there");
    if (row.parent.valid() && find(segment_rows_, row.parent) == nullptr)
      sink_.add(path, "", FindingKind::kMissing, FindingSeverity::kWarning,
                "its parent " + hex16(row.parent.value) + " is not in the catalogue");
    const auto file = segments_.find(row.id);
    if (file == segments_.end()) return sink_.missing(segment_path(row.id));
    if (space == nullptr) return;
    const std::optional<std::uint32_t> kind = sidecar_of_seal(*space, row.tokens);
    if (kind && !file->second.sidecars.contains(*kind)) sink_.missing(sidecar_path(row.id, *kind));
  }

  void check_sequence(const SequenceRow& row) {
    const std::string path = "catalogue/sequence/" + hex16(row.id.value);
    if (find(spaces_, row.space) == nullptr)
      missing(path, "the row of the sequence's space is not there");
    std::uint64_t start = 0;
    for (std::size_t i = 0; i < row.parts.size(); ++i) {
      const SequenceRow::Part& part = row.parts[i];
      const std::string what =
          "part " + std::to_string(i) + ", segment " + hex16(part.segment.value) + ": ";
      const SegmentRow* segment = find(segment_rows_, part.segment);
      if (segment == nullptr) {
        missing(path, what + "it is not in the catalogue");
      } else if (segment->space != row.space) {
        mismatch(path, "parts", what + "it is of another space");
      } else if (part.visible_tokens == 0 || part.visible_tokens > segment->tokens) {
        mismatch(path, "parts", what + "it has fewer tokens than the sequence shows");
      } else if (segment->start_token != start) {
        mismatch(path, "parts", what + "it begins at another token of the sequence");
      }
      start += part.visible_tokens;
    }
    if (row.log_generation != 0 && !logs_.contains(row.id))
      sink_.missing(tail_log_path(row.id, row.log_generation));
  }

  Io& io_;
  const StoreRows* rows_;
  CheckSink sink_;
  std::map<SpaceId, const SpaceRow*> spaces_;
  std::map<SegmentId, const SegmentRow*> segment_rows_;
  std::map<SequenceId, const SequenceRow*> sequence_rows_;
  std::map<std::uint64_t, const ObjectRow*> object_rows_;
  std::map<SpaceId, Geometry> geometries_;      // from segment files
  std::map<SegmentId, SegmentFacts> segments_;  // files that are there
  std::set<SequenceId> logs_;                   // sequences whose log is there
  std::set<std::uint64_t> objects_;             // files that are there and have a row
  std::set<std::string> codebooks_;             // files that are there
};

}  // namespace

StoreReport check_codebooks(Io& io, const StoreRows& rows) {
  StoreReport report;
  const StoreCheckOptions options;
  CheckSink sink(options, &report);
  for (const SpaceRow& row : rows.spaces)
    for (const SpaceRow::Codebook& codebook : row.codebooks)
      check_codebook_file(io, {row.id, codebook.id}, &row, &sink);
  return report;
}

StoreReport check_store(Io& io, const StoreRows* rows, const StoreCheckOptions& options) {
  StoreReport report;
  Checker(io, rows, options, &report).run();
  return report;
}

}  // namespace kvtier
