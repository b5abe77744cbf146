#include "tiers/store_rebuild.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "base/log.h"
#include "base/unique_fd.h"
#include "tiers/io.h"
#include "tiers/object_format.h"
#include "tiers/prefix_index.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier {
namespace {

constexpr std::size_t kAsideMax = 1000;
constexpr const char* kNew = "catalogue.new";
constexpr std::uint64_t kSalvageBytes = 1u << 20;  // beside the copy and the tables of its logs
const std::string kKept(kKeptPrefix);
constexpr std::uint64_t kIdsSkipped = 1024;  // the daemon reserves sequence ids in such steps

// What one segment file says, and the chain of hashes at its first token.
struct Found {
  SegmentRow row;
  std::vector<std::uint32_t> ids;
  BlockHash chain;
  std::vector<std::uint32_t> open_ids;  // since the last whole block before it
};

class Rebuild {
 public:
  Rebuild(Io& io, std::string store) : io_(io), store_(std::move(store)) {}

  // What the old catalogue still gives; true where it is sound and in step with the files. What it
  // does not give as it lies, a repaired copy may.
  Result<bool> read_old();
  Result<bool> read_rows(const std::string& path);
  Result<void> read_salvaged(const std::string& copy);
  [[nodiscard]] bool in_step() const;
  Result<void> read_files();
  Result<void> write_new();
  Result<void> move_old_aside();
  [[nodiscard]] const RebuildReport& report() const noexcept { return report_; }

 private:
  Result<std::vector<std::byte>> read(const std::string& path, std::uint64_t bytes_max);
  Result<void> add_segment(SegmentId id);
  Result<void> add_log(const TailLogName& name);
  Result<void> add_objects();
  void keep_sequences();
  Result<void> leave_out(const std::string& path, bool whole);
  [[nodiscard]] std::uint64_t number(const std::string& name) const;
  [[nodiscard]] bool kept_as_newer(const std::string& path) const;
  [[nodiscard]] bool newer_log(const TailLogName& name) const;
  SpaceRow& space_of(const SegmentMeta& meta);

  Io& io_;
  std::string store_;
  RebuildReport report_;
  std::map<SpaceId, SpaceRow> spaces_;
  std::map<SegmentId, Found> segments_;
  std::map<SequenceId, SequenceRow> sequences_;
  std::map<SegmentId, SegmentRow> old_segments_;
  std::map<std::string, ObjectRow> objects_;  // by key
  std::map<std::string, std::uint64_t> numbers_;
  std::set<SequenceId> cut_;
  std::map<std::string, std::uint64_t> left_out_;  // numbers of whole files
  std::uint64_t last_segment_ = 0, last_sequence_ = 0, last_log_ = 0;
};

// True: whole and in step. What a moment refuses, or what is of a newer kvtier, is not damaged.
Result<bool> Rebuild::read_rows(const std::string& path) {
  CatalogueOptions options;
  options.path = path;
  options.read_only = true;
  const auto or_refused = [](const Status& status) -> Result<bool> {
    if (status.code == Code::kCorrupt || status.code == Code::kNotFound ||
        status.code == Code::kInternal)  // RocksDB threw: lengths that damage made up
      return false;
    return error(status);
  };
  Result<std::unique_ptr<Catalogue>> catalogue = Catalogue::open(options);
  if (!catalogue) return or_refused(catalogue.error());
  bool damaged = false, newer = false;
  CatalogueVisitor visitor;
  visitor.space = [&](SpaceRow row) { spaces_[row.id] = std::move(row); };
  visitor.segment = [&](SegmentRow row) { old_segments_[row.id] = std::move(row); };
  visitor.sequence = [&](SequenceRow row) { sequences_[row.id] = std::move(row); };
  visitor.object = [&](ObjectRow row) { objects_[row.key] = std::move(row); };
  visitor.number = [&](std::string_view name, std::uint64_t value) {
    numbers_[std::string(name)] = value;
  };
  visitor.damaged = [&](const std::string&, Status status) {
    damaged = true;
    newer = newer || status.code == Code::kVersion;
  };
  const Result<void> loaded = (*catalogue)->load(visitor);
  if (newer)
    return error(Code::kVersion, "the store was written by a newer kvtier: upgrade this one");
  if (!loaded) return or_refused(loaded.error());
  return !damaged && numbers_["chain_key"] != 0 && in_step();
}

// Later rows, where RocksDB stopped at damage in its log, or the first that can be read at all.
Result<void> Rebuild::read_salvaged(const std::string& copy) {
  auto spaces = std::exchange(spaces_, {});
  auto segments = std::exchange(old_segments_, {});
  auto sequences = std::exchange(sequences_, {});
  auto objects = std::exchange(objects_, {});
  auto numbers = std::exchange(numbers_, {});
  KVT_TRY_VOID(read_rows(copy));
  if (number("next_segment") >= numbers["next_segment"] && spaces_.size() >= spaces.size())
    return {};
  spaces_ = std::move(spaces);
  old_segments_ = std::move(segments);
  sequences_ = std::move(sequences);
  objects_ = std::move(objects);
  numbers_ = std::move(numbers);
  return {};
}

Result<bool> Rebuild::read_old() {
  const std::string path = store_ + "/catalogue", copy = store_ + "/catalogue.read";
  KVT_TRY(const bool sound, read_rows(path));
  std::error_code failed;
  if (!sound && std::filesystem::is_directory(path, failed)) {
    std::filesystem::remove_all(copy, failed);
    // On a full disk RocksDB's repair leaves rows out and says nothing.
    std::uint64_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(path, failed))
      if (file.is_regular_file(failed)) bytes += file.file_size(failed);
    KVT_TRY(const std::uint64_t free_bytes, io_.free_bytes());
    if (free_bytes < 2 * bytes + kSalvageBytes)
      return error(Code::kNoSpace,
                   "no room for a copy of the old catalogue: free some and repair again");
    std::filesystem::copy(path, copy, std::filesystem::copy_options::recursive, failed);
    const std::error_code copied = failed;
    const Result<void> read =
        !copied && Catalogue::salvage(copy) ? read_salvaged(copy) : Result<void>();
    std::filesystem::remove_all(copy, failed);
    if (copied)
      return error(
          Code::kIo,
          "the old catalogue cannot be copied: if it stays so, move the folder `catalogue` away",
          copied.value());
    if (!read) return error(read.error());
  }
  report_.rows_kept = spaces_.size() + sequences_.size() + objects_.size();
  return sound;
}

std::uint64_t Rebuild::number(const std::string& name) const {
  const auto place = numbers_.find(name);
  return place == numbers_.end() ? 0 : place->second;
}

bool Rebuild::kept_as_newer(const std::string& path) const {
  const std::uint64_t mark = number(kKept + path);
  return mark == kKeptNewer || mark == kKeptLost;
}

// Newer than all rows of the old catalogue, or kept as such by a start of the daemon.
bool Rebuild::newer_log(const TailLogName& name) const {
  return name.generation >= number("next_log") ||
         kept_as_newer(tail_log_path(name.sequence, name.generation));
}

// A segment or log that no row names, and that is newer than all rows or was kept by a start of the
// daemon (daemon/kept_files.h): the catalogue may have lost its last rows. What a rebuild left out
// before is not looked at again.
bool Rebuild::in_step() const {
  const auto none = [this](const char* directory, const auto& newer) {
    const Result<std::vector<std::string>> names = io_.list(directory);
    return !names || std::none_of(names->begin(), names->end(), newer);
  };
  return none("segments",
              [this](const std::string& name) {
                const Result<SegmentId> id = segment_id_of(name);
                return id && old_segments_.count(*id) == 0 &&
                       (id->value >= number("next_segment") || kept_as_newer(segment_path(*id)));
              }) &&
         none("logs", [this](const std::string& name) {
           const Result<TailLogName> log = tail_log_name_of(name);
           if (!log || !newer_log(*log)) return false;
           const auto row = sequences_.find(log->sequence);
           return row == sequences_.end() || row->second.log_generation != log->generation;
         });
}

Result<void> Rebuild::move_old_aside() {
  KVT_TRY(const std::vector<std::string> names, io_.list("."));
  if (std::count(names.begin(), names.end(), "catalogue") == 0) return {};
  for (std::size_t i = 1; i < kAsideMax; ++i) {
    const std::string aside = "catalogue.damaged-" + std::to_string(i);
    if (std::count(names.begin(), names.end(), aside) != 0) continue;
    KVT_TRY_VOID(io_.rename("catalogue", aside));
    KVT_TRY_VOID(io_.sync_directory("."));
    report_.moved_to = aside;
    return {};
  }
  return error(Code::kFull, "too many catalogue.damaged-* beside it: remove old ones");
}

// A file that cannot be read for another reason than damage must not be left out, and be removed by
// the next start: the rebuild ends there.
bool refused(const Status& status) {
  return status.code != Code::kCorrupt && status.code != Code::kNotFound &&
         status.code != Code::kVersion;
}

// At most `bytes_max` from the front of the file.
Result<std::vector<std::byte>> Rebuild::read(const std::string& path, std::uint64_t bytes_max) {
  KVT_TRY(const FileId file, io_.open(path, {.mode = OpenMode::kRead, .direct = false}));
  Result<std::uint64_t> size = io_.size_bytes(file);
  std::vector<std::byte> bytes(size ? std::min(*size, bytes_max) : 0);
  Result<void> got = size ? read_fully(io_, file, 0, bytes) : error(size.error());
  io_.close(file);
  if (!got) return error(got.error());
  return bytes;
}

// The kept row, or one made from the file: the texts are not in it, and come back when a client
// opens the space.
SpaceRow& Rebuild::space_of(const SegmentMeta& meta) {
  SpaceRow& row = spaces_[meta.space];
  if (row.id.valid()) return row;
  row.id = meta.space;
  row.digest = meta.fingerprint;
  row.geometry = meta.geometry;
  row.created_unix_ns = meta.created_unix_ns;
  const Result<std::vector<std::string>> sidecars = io_.list("sidecars");
  for (const std::string& name : sidecars ? *sidecars : std::vector<std::string>()) {
    const Result<SidecarName> sidecar = sidecar_name_of(name);
    if (sidecar && sidecar->segment == meta.id && unpack_abstract_spec(sidecar->kind) &&
        row.abstracts.size() < kSpaceAbstractsMax)
      row.abstracts.push_back(sidecar->kind);
  }
  return row;
}

// What is whole, or was kept before, stays beside the new catalogue.
Result<void> Rebuild::leave_out(const std::string& path, bool whole) {
  if (whole || number(kKept + path) != 0) left_out_[kKept + path] = kKeptLeftOut;
  return {};
}

// Parents have smaller ids and are there already.
Result<void> Rebuild::add_segment(SegmentId id) {
  last_segment_ = std::max(last_segment_, id.value);
  ++report_.segments_left_out;
  const std::string path = segment_path(id);
  const Result<std::vector<std::byte>> head = read(path, kSegmentHeaderBytes);
  if (!head && refused(head.error())) return error(head.error());
  const Result<std::uint64_t> meta_bytes = head ? parse_segment_header(*head) : error(head.error());
  if (!meta_bytes) return leave_out(path, meta_bytes.error().code == Code::kVersion);
  const Result<std::vector<std::byte>> bytes = read(path, *meta_bytes);
  if (!bytes && refused(bytes.error())) return error(bytes.error());
  Result<SegmentMeta> meta = bytes ? parse_segment_meta(*bytes) : error(bytes.error());
  if (!meta) return leave_out(path, meta.error().code == Code::kVersion);
  if (meta->id != id) return leave_out(path, false);
  const SpaceRow& space = space_of(*meta);
  if (space.digest != meta->fingerprint || space.geometry != meta->geometry)
    return leave_out(path, true);
  const PrefixIndex index(numbers_["chain_key"]);
  Found found;
  if (meta->parent.valid()) {
    const auto parent = segments_.find(meta->parent);
    if (parent == segments_.end() || meta->parent_visible > parent->second.row.tokens ||
        parent->second.row.space != meta->space ||
        parent->second.row.start_token + meta->parent_visible != meta->start_token)
      return leave_out(path, true);
    found.chain = parent->second.chain;
    found.open_ids = parent->second.open_ids;
    for (std::uint32_t i = 0; i < meta->parent_visible; ++i) {
      found.open_ids.push_back(parent->second.ids[i]);
      if (found.open_ids.size() < kBlockTokens) continue;
      found.chain = index.extend(found.chain, found.open_ids);
      found.open_ids.clear();
    }
  } else if (meta->start_token != 0) {
    return leave_out(path, true);
  }
  BlockHash chain = found.chain;
  std::vector<std::uint32_t> open = found.open_ids;
  for (const TokenRecord& token : meta->tokens) {
    found.ids.push_back(token.id);
    open.push_back(token.id);
    if (open.size() < kBlockTokens) continue;
    chain = index.extend(chain, open);
    found.row.blocks.push_back(chain);
    open.clear();
  }
  found.row.id = id;
  found.row.space = meta->space;
  found.row.parent = meta->parent;
  found.row.parent_visible = meta->parent_visible;
  found.row.start_token = meta->start_token;
  found.row.tokens = static_cast<std::uint32_t>(meta->tokens.size());
  found.row.file_bytes = meta->file_bytes();
  found.row.created_unix_ns = found.row.last_used_unix_ns = meta->created_unix_ns;
  const auto old = old_segments_.find(id);
  found.row.bad = old != old_segments_.end() && old->second.bad;
  segments_.emplace(id, std::move(found));
  --report_.segments_left_out;
  return {};
}

// A sequence is cut before its first part that is not there.
void Rebuild::keep_sequences() {
  for (auto& [id, row] : sequences_) {
    last_sequence_ = std::max(last_sequence_, id.value);
    last_log_ = std::max(last_log_, row.log_generation);
    std::uint64_t tokens = 0;
    std::size_t sound = 0;
    for (const SequenceRow::Part& part : row.parts) {
      const auto segment = segments_.find(part.segment);
      if (segment == segments_.end() || segment->second.row.space != row.space ||
          segment->second.row.start_token != tokens || part.visible_tokens == 0 ||
          part.visible_tokens > segment->second.row.tokens)
        break;
      tokens += part.visible_tokens;
      ++sound;
    }
    if (sound == row.parts.size()) continue;
    row.parts.resize(sound);
    row.log_generation = 0;
    cut_.insert(id);
  }
}

Result<void> Rebuild::add_log(const TailLogName& name) {
  last_sequence_ = std::max(last_sequence_, name.sequence.value);
  last_log_ = std::max(last_log_, name.generation);
  const auto known = sequences_.find(name.sequence);
  if (known != sequences_.end() && known->second.log_generation == name.generation) return {};
  ++report_.logs_left_out;
  const std::string path = tail_log_path(name.sequence, name.generation);
  const Result<std::vector<std::byte>> head = read(path, kTailLogHeaderBytes);
  if (!head && refused(head.error())) return error(head.error());
  const Result<TailLogHeader> header = head ? parse_tail_log_header(*head) : error(head.error());
  if (!header) return leave_out(path, header.error().code == Code::kVersion);
  if (header->sequence != name.sequence || header->generation != name.generation)
    return leave_out(path, false);
  // Behind sealed tokens: which ones they were, the log does not say. Of a sequence whose row is
  // sound, an older log is one that a seal or a later log took the place of.
  if (header->base_token != 0 || known != sequences_.end())
    return leave_out(
        path, known == sequences_.end() || cut_.count(name.sequence) != 0 || newer_log(name));
  const auto space = spaces_.find(header->space);
  if (space == spaces_.end() || space->second.digest != header->fingerprint)
    return leave_out(path, true);
  SequenceRow& row = sequences_[name.sequence];
  row.id = name.sequence;
  row.space = header->space;
  row.name = "recovered " + std::to_string(name.sequence.value);
  row.log_generation = name.generation;
  ++report_.sequences_from_logs;
  --report_.logs_left_out;
  return {};
}

// A file names its key. The newest of a key counts, a row of the old catalogue more than any.
Result<void> Rebuild::add_objects() {
  const Result<std::vector<std::string>> names = io_.list("objects");
  if (!names) return names.error().code == Code::kNotFound ? Result<void>() : error(names.error());
  std::map<std::string, ObjectRow> found;
  for (const std::string& name : *names) {
    const Result<std::uint64_t> file = object_number_of(name);
    if (!file) continue;
    const Result<std::vector<std::byte>> head = read(object_path(*file), kObjectHeaderBytes);
    if (!head && refused(head.error())) return error(head.error());
    const Result<ObjectHeader> header = head ? parse_object_header(*head) : error(head.error());
    if (!header || header->file != *file || objects_.count(header->key) != 0) continue;
    ObjectRow& row = found[header->key];
    if (row.file > *file) continue;
    row = {header->key, *file, header->value_bytes, header->checksum, 0};
  }
  objects_.merge(found);
  return {};
}

Result<void> Rebuild::read_files() {
  if (numbers_["chain_key"] == 0) {
    std::random_device device;
    numbers_["chain_key"] = (std::uint64_t{device()} << 32 | device()) | 1;
  }
  std::vector<SegmentId> ids;
  const Result<std::vector<std::string>> segments = io_.list("segments");
  if (!segments && segments.error().code != Code::kNotFound) return error(segments.error());
  for (const std::string& name : segments.value_or(std::vector<std::string>{}))
    if (const Result<SegmentId> id = segment_id_of(name); id) ids.push_back(*id);
  std::sort(ids.begin(), ids.end());
  for (const SegmentId id : ids) KVT_TRY_VOID(add_segment(id));
  keep_sequences();
  const Result<std::vector<std::string>> logs = io_.list("logs");
  if (!logs && logs.error().code != Code::kNotFound) return error(logs.error());
  for (const std::string& name : logs.value_or(std::vector<std::string>{}))
    if (const Result<TailLogName> log = tail_log_name_of(name); log) KVT_TRY_VOID(add_log(*log));
  return add_objects();
}

Result<void> Rebuild::write_new() {
  CatalogueOptions options;
  options.path = store_ + "/" + kNew;
  KVT_TRY(const std::unique_ptr<Catalogue> catalogue, Catalogue::open(options));
  CatalogueBatch batch;
  for (const auto& [id, row] : spaces_) batch.put_space(row);
  for (const auto& [id, found] : segments_) batch.put_segment(found.row);
  for (const auto& [id, row] : sequences_) batch.put_sequence(row);
  for (const auto& [key, row] : objects_) batch.put_object(row);
  const auto at_least = [&](const char* name, std::uint64_t value) {
    numbers_[name] = std::max(numbers_[name], value);
  };
  at_least("next_segment", last_segment_ + 1);
  at_least("next_sequence", last_sequence_ + kIdsSkipped);
  at_least("next_log", last_log_ + 1);
  for (const auto& [name, value] : numbers_)
    if (!name.starts_with(kKeptPrefix)) batch.put_number(name, value);
  for (const auto& [name, mark] : left_out_) batch.put_number(name, mark);
  report_.spaces = spaces_.size();
  report_.segments = segments_.size();
  report_.sequences = sequences_.size();
  report_.objects = objects_.size();
  return catalogue->write(std::move(batch), true);
}

}  // namespace

Result<void> settle_catalogue(Io& io, const std::string& store_path) {
  KVT_TRY(const std::vector<std::string> names, io.list("."));
  if (std::count(names.begin(), names.end(), kNew) == 0) return {};
  if (std::count(names.begin(), names.end(), "catalogue") == 0) {
    KVT_TRY_VOID(io.rename(kNew, "catalogue"));
    return io.sync_directory(".");
  }
  std::error_code failed;
  std::filesystem::remove_all(store_path + "/" + kNew, failed);
  if (failed) return error(Code::kIo, "catalogue.new cannot be removed", failed.value());
  return {};
}

Result<RebuildReport> rebuild_catalogue(const std::string& store_path) {
  const UniqueFd lock(::open((store_path + "/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return error(Code::kNotFound, "there is no store that can be written", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
    return error(Code::kBusy, "a kvtierd serves this store: stop it first (kvtier stop)");
  IoOptions options;
  options.root = store_path;
  options.backend = "threads";
  options.threads = 1;
  KVT_TRY(const std::unique_ptr<Io> io, make_io(options));
  KVT_TRY_VOID(settle_catalogue(*io, store_path));
  Rebuild rebuild(*io, store_path);
  KVT_TRY(const bool sound, rebuild.read_old());
  if (sound)
    return error(Code::kExists,
                 "the catalogue is sound: start kvtierd, and `kvtier repair` mends the rest");
  KVT_TRY_VOID(rebuild.read_files());
  KVT_TRY_VOID(rebuild.write_new());
  KVT_TRY_VOID(rebuild.move_old_aside());
  KVT_TRY_VOID(settle_catalogue(*io, store_path));
  return rebuild.report();
}

}  // namespace kvtier
