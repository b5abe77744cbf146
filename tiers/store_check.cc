#include "tiers/store_check.h"

#include <map>
#include <set>

#include "tiers/format_head.h"
#include "tiers/store_check_files.h"

namespace kvtier {

void CheckSink::add(std::string path, std::string region, FindingKind kind,
                    FindingSeverity severity, std::string what) {
  // Made again when it is wanted; nobody syncs it, and a power cut may leave a part of it.
  const bool bytes_are_wrong = kind == FindingKind::kDamaged || kind == FindingKind::kMismatch;
  if (bytes_are_wrong && path.starts_with("sidecars/")) severity = FindingSeverity::kWarning;
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
  add(path, std::move(region), kind, FindingSeverity::kDamage, std::move(what));
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
    bool sound = false;  // its metadata
    std::uint32_t tokens = 0;
    BlockHash fingerprint;
    SpaceId space;
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
    const std::optional<SegmentMeta> meta = check_segment_file(io_, path, *id, &sink_);
    SegmentFacts& facts = segments_[*id];
    if (meta) {
      facts = {true,
               static_cast<std::uint32_t>(meta->tokens.size()),
               meta->fingerprint,
               meta->space,
               {}};
      geometries_.try_emplace(meta->space, meta->geometry);
    }
    if (rows_ == nullptr) return;
    if (row->bad)
      sink_.add(path, "", FindingKind::kDamaged, FindingSeverity::kNote,
                "the segment is in quarantine already");
    if (meta) compare_segment(path, *meta, *row);
  }

  void compare_segment(const std::string& path, const SegmentMeta& meta, const SegmentRow& row) {
    const auto differ = [&](bool same, const char* field) {
      if (!same) mismatch(path, "header", std::string("the catalogue's row says another ") + field);
    };
    differ(meta.space == row.space, "space");
    differ(meta.parent == row.parent && meta.parent_visible == row.parent_visible, "parent");
    differ(meta.start_token == row.start_token, "start");
    differ(meta.tokens.size() == row.tokens, "number of tokens");
    differ(meta.file_bytes() == row.file_bytes, "length");
    const std::uint64_t blocks =
        (meta.start_token + meta.tokens.size()) / kBlockTokens - meta.start_token / kBlockTokens;
    differ(row.blocks.empty() || row.blocks.size() == blocks, "number of blocks");
    const SpaceRow* space = find(spaces_, meta.space);
    if (space == nullptr) return;  // said with the row
    if (meta.fingerprint != space->digest)
      mismatch(path, "header", "the segment's fingerprint is not its space's");
    if (!(meta.geometry == space->geometry))
      mismatch(path, "geometry", "the segment's geometry is not its space's");
  }

  void check_log(const std::string& name) {
    const std::string path = "logs/" + name;
    const Result<TailLogName> parsed = tail_log_name_of(name);
    if (!parsed) return orphan(path, "this is not the name of a tail log");
    const SequenceRow* row = find(sequence_rows_, parsed->sequence);
    const bool named = row != nullptr && row->log_generation == parsed->generation;
    if (rows_ != nullptr && !named) {
      ++sink_.report().logs;
      return orphan(path, row == nullptr ? "no sequence of the catalogue has this log"
                                         : "the sequence has another log: this one is of the past");
    }
    if (named) logs_.insert(parsed->sequence);
    const std::optional<TailLogHeader> header = read_log_header(io_, path, *parsed, &sink_);
    if (!header) return;
    const SpaceRow* space = find(spaces_, header->space);
    if (row != nullptr) {
      if (header->space != row->space)
        mismatch(path, "header", "the log's space is not its sequence's");
      if (space != nullptr && header->fingerprint != space->digest)
        mismatch(path, "header", "the log's fingerprint is not its space's");
      std::uint64_t sealed = 0;
      for (const SequenceRow::Part& part : row->parts) sealed += part.visible_tokens;
      if (header->base_token != sealed)
        mismatch(path, "header",
                 "the log begins at token " + std::to_string(header->base_token) +
                     ", the sequence's tail at " + std::to_string(sealed));
    }
    if (sink_.deep()) check_log_records(io_, path, *header, geometry_of(header->space), &sink_);
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
    const std::optional<SidecarHeader> header = check_sidecar_file(io_, path, *parsed, &sink_);
    const auto segment = segments_.find(parsed->segment);
    if (segment == segments_.end()) return orphan(path, "its segment is not there");
    segment->second.sidecars.insert(parsed->kind);
    if (!header || !segment->second.sound) return;
    const SegmentFacts& facts = segment->second;
    if (header->fingerprint != facts.fingerprint)
      mismatch(path, "header", "the sidecar is of another space");
    if (header->tokens != facts.tokens)
      mismatch(path, "header", "the sidecar is of a segment of another length");
    const Result<AbstractSpec> spec = unpack_abstract_spec(header->kind);
    const Geometry* geometry = geometry_of(facts.space);
    if (!spec || geometry == nullptr || header->tokens != facts.tokens) return;
    const bool fits =
        (spec->by_tokens() || header->units == spec->units_of(header->tokens)) &&
        header->payload_bytes ==
            AbstractLayout(*geometry, *spec, header->tokens, header->units).size_bytes();
    if (!fits) mismatch(path, "header", "the abstracts have another length than the geometry says");
  }

  void check_codebook(const std::string& name) {
    const std::string path = "codebooks/" + name;
    const Result<CodebookName> parsed = codebook_name_of(name);
    if (!parsed) return orphan(path, "this is not the name of a codebook");
    const SpaceRow* space = find(spaces_, parsed->space);
    if (rows_ != nullptr && space == nullptr) return orphan(path, "its space is not there");
    check_codebook_file(io_, path, *parsed, space, &sink_);
  }

  void check_object(const std::string& name) {
    const std::string path = "objects/" + name;
    const Result<std::uint64_t> number = object_number_of(name);
    if (!number) return orphan(path, "this is not the name of an object file");
    const ObjectRow* row = find(object_rows_, *number);
    if (rows_ != nullptr && row == nullptr) {
      ++sink_.report().objects;
      return orphan(path, "no row of the catalogue names it: never published, or of the past");
    }
    objects_.insert(*number);
    const std::optional<ObjectHeader> header = check_object_file(io_, path, *number, &sink_);
    if (!header || row == nullptr) return;
    if (header->key != row->key) mismatch(path, "header", "the catalogue's row says another key");
    if (header->value_bytes != row->value_bytes || header->checksum != row->checksum)
      mismatch(path, "header", "the catalogue's row says another value");
  }

  void check_rows() {
    for (const StoreRows::Damaged& one : rows_->damaged)
      sink_.add("catalogue/" + one.key, "", FindingKind::kDamaged, FindingSeverity::kDamage,
                one.status.message());
    for (const SegmentRow& row : rows_->segments) check_segment_row(row);
    for (const SequenceRow& row : rows_->sequences) check_sequence(row);
    for (const ObjectRow& row : rows_->objects)
      if (!objects_.contains(row.file))
        missing(object_path(row.file), "the file of a stored object is not there");
  }

  void check_segment_row(const SegmentRow& row) {
    const std::string path = "catalogue/segment/" + hex16(row.id.value);
    const SpaceRow* space = find(spaces_, row.space);
    if (space == nullptr) missing(path, "the row of the segment's space is not there");
    if (row.parent.valid() && find(segment_rows_, row.parent) == nullptr)
      sink_.add(path, "", FindingKind::kMissing, FindingSeverity::kWarning,
                "its parent " + hex16(row.parent.value) + " is not in the catalogue");
    const auto file = segments_.find(row.id);
    if (file == segments_.end())
      return missing(segment_path(row.id), "the file of a published segment is not there");
    if (space != nullptr && !space->abstracts.empty() &&
        !file->second.sidecars.contains(space->abstracts[0]))
      sink_.add(
          sidecar_path(row.id, space->abstracts[0]), "", FindingKind::kMissing,
          FindingSeverity::kNote,
          "the segment's abstracts are not stored: they are built again when they are wanted");
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
      missing(tail_log_path(row.id, row.log_generation),
              "the tail log of a sequence is not there: its committed tail is lost");
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
};

}  // namespace

StoreReport check_store(Io& io, const StoreRows* rows, const StoreCheckOptions& options) {
  StoreReport report;
  Checker(io, rows, options, &report).run();
  return report;
}

}  // namespace kvtier
