#include "daemon/recovery.h"

#include <algorithm>
#include <cinttypes>
#include <unordered_set>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "tiers/codebook_format.h"
#include "tiers/object_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

namespace {

struct Loaded {
  std::vector<SpaceRow> spaces;
  std::vector<SegmentRow> segments;
  std::vector<SequenceRow> sequences;
  std::vector<ObjectRow> objects;
  std::uint64_t chain_key = 0;
  std::uint64_t next_segment = 1, next_sequence = 1, next_log = 1;
  bool newer = false;    // a row of a newer version
  bool damaged = false;  // a row that cannot be trusted: what it named is unknown
};

Result<void> load_rows(EngineState& engine, Loaded* loaded) {
  CatalogueVisitor visitor;
  visitor.space = [loaded](SpaceRow row) { loaded->spaces.push_back(std::move(row)); };
  visitor.segment = [loaded](SegmentRow row) { loaded->segments.push_back(std::move(row)); };
  visitor.sequence = [loaded](SequenceRow row) { loaded->sequences.push_back(std::move(row)); };
  visitor.object = [loaded](ObjectRow row) { loaded->objects.push_back(std::move(row)); };
  visitor.number = [&engine, loaded](std::string_view name, std::uint64_t value) {
    if (name == "chain_key") loaded->chain_key = value;
    if (name == "next_segment") loaded->next_segment = value;
    if (name == "next_sequence") loaded->next_sequence = value;
    if (name == "next_log") loaded->next_log = value;
    recover_write_budget(engine, name, value);
    recall_kept_file(engine, name, value);
  };
  visitor.damaged = [&engine, loaded](const std::string& key, Status status) {
    ++engine.metrics.rows_damaged;
    loaded->newer = loaded->newer || status.code == Code::kVersion;
    loaded->damaged = true;
    KVT_LOG(kWarn, "catalogue: a row of kind %c is damaged (%s) and is left out",
            key.empty() ? '?' : key[0], status.message());
  };
  return engine.world.catalogue->load(visitor);
}

// A catalogue that cannot speak for the files must not have them removed.
Result<void> check_rows(Io& io, const Loaded& loaded) {
  if (loaded.newer)
    return error(Code::kVersion,
                 "the store was written by a newer kvtier: upgrade this one, or set store.path");
  if (loaded.chain_key != 0) return {};
  for (const char* directory : {"segments", "logs", "objects"}) {
    KVT_TRY(const std::vector<std::string> names, io.list(directory));
    const bool any = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return segment_id_of(name).has_value() || tail_log_name_of(name).has_value() ||
             object_number_of(name).has_value();
    });
    if (any)
      return error(Code::kCorrupt,
                   "the catalogue is empty and the store is not: `kvtier repair --store PATH` "
                   "makes a new one from the files");
  }
  return {};
}

void drop_file(EngineState& engine, const std::string& path) {
  if (engine.metrics.rows_damaged != 0 || rows_were_lost(engine)) {
    KVT_LOG(kWarn, "%s: a row that is damaged or lost may have named it: left where it is",
            path.c_str());
    return;
  }
  ++engine.metrics.files_dropped;
  KVT_LOG(kInfo, "%s was never published: removed", path.c_str());
  static_cast<void>(engine.io->io().unlink(path));
}

// Adds the files that no row names and that are not kept to `orphans`.
Result<std::unordered_set<std::uint64_t>> list_segments(EngineState& engine, Loaded* loaded,
                                                        std::vector<std::string>* orphans) {
  const std::uint64_t newer_from = loaded->next_segment;
  std::unordered_set<std::uint64_t> known;
  for (const SegmentRow& row : loaded->segments) known.insert(row.id.value);
  KVT_TRY(const std::vector<std::string> names, engine.io->io().list("segments"));
  std::unordered_set<std::uint64_t> files;
  for (const std::string& name : names) {
    const Result<SegmentId> id = segment_id_of(name);
    if (!id) continue;
    loaded->next_segment = std::max(loaded->next_segment, id->value + 1);
    if (known.count(id->value) != 0)
      files.insert(id->value);
    else if (!keep_segment_file(engine, *id, id->value >= newer_from))
      orphans->push_back(segment_path(*id));
  }
  return files;
}

// Of a log that is there; how much of it counts is known when it is read.
void count_log(EngineState& engine, StoredSequence& sequence) {
  Io& io = engine.io->io();
  const Result<FileId> file =
      io.open(tail_log_path(sequence.row.id, sequence.row.log_generation), {});
  if (!file) return;
  sequence.log.file_bytes = io.size_bytes(*file).value_or(0);
  io.close(*file);
}

Result<void> list_logs(EngineState& engine, std::uint64_t newer_from,
                       std::vector<std::string>* orphans) {
  KVT_TRY(const std::vector<std::string> names, engine.io->io().list("logs"));
  for (const std::string& name : names) {
    const Result<TailLogName> log = tail_log_name_of(name);
    if (!log) continue;
    SequenceTable& table = engine.sequences;
    table.next_log = std::max(table.next_log, log->generation + 1);
    StoredSequence* sequence = find_sequence(engine, log->sequence);
    if (sequence != nullptr && sequence->row.log_generation == log->generation)
      count_log(engine, *sequence);
    else if (keep_log_file(engine, *log, log->generation >= newer_from))
      table.next_id = std::max(table.next_id, log->sequence.value + 1);
    else
      orphans->push_back(tail_log_path(log->sequence, log->generation));
  }
  return {};
}

Result<void> drop_orphans(EngineState& engine) {
  Io& io = engine.io->io();
  KVT_TRY(const std::vector<std::string> codebooks, io.list("codebooks"));
  for (const std::string& name : codebooks) {
    const Result<CodebookName> codebook = codebook_name_of(name);
    if (!codebook) continue;
    const StoredSpace* space = find_space(engine, codebook->space);
    const bool known =
        space != nullptr &&
        std::any_of(space->row.codebooks.begin(), space->row.codebooks.end(),
                    [&](const SpaceRow::Codebook& row) { return row.id == codebook->id; });
    if (!known) drop_file(engine, codebook_path(codebook->space, codebook->id));
  }
  for (const auto& [id, space] : engine.spaces)
    for (const SpaceRow::Codebook& row : space->row.codebooks) {
      const std::string path = codebook_path(id, row.id);
      if (!std::binary_search(codebooks.begin(), codebooks.end(), path.substr(path.find('/') + 1)))
        engine.codebooks.all[{id.value, row.abstract}].problem = "is not there";
    }
  KVT_TRY(const std::vector<std::string> sidecars, io.list("sidecars"));
  for (const std::string& name : sidecars) {
    const Result<SidecarName> sidecar = sidecar_name_of(name);
    if (is_sidecar_part(name)) drop_file(engine, "sidecars/" + name);
    if (!sidecar) continue;
    Segment* segment = find_segment(engine, sidecar->segment);
    const bool kept = engine.kept_files.all.count(segment_path(sidecar->segment)) != 0;
    if (segment == nullptr && !kept)
      drop_file(engine, sidecar_path(sidecar->segment, sidecar->kind));
    else if (segment != nullptr)
      note_sidecar(engine, *segment, sidecar->kind);
  }
  return {};
}

// Segments that a sequence shows.
std::unordered_set<std::uint64_t> wanted_segments(const Loaded& loaded) {
  std::unordered_set<std::uint64_t> wanted;
  for (const SequenceRow& row : loaded.sequences)
    for (const SequenceRow::Part& part : row.parts) wanted.insert(part.segment.value);
  return wanted;
}

// A segment whose file is gone stays as lost where a sequence shows it: reading it is a miss that
// says so, verify names it, repair drops it, and where the file comes back it is served again (from
// the next verify, repair or start on). One that was a cache only is forgotten.
void add_segments(EngineState& engine, Loaded& loaded,
                  const std::unordered_set<std::uint64_t>& files, CatalogueBatch* mend) {
  const std::unordered_set<std::uint64_t> wanted = wanted_segments(loaded);
  // Parents first, so that children find them.
  std::sort(loaded.segments.begin(), loaded.segments.end(),
            [](const SegmentRow& a, const SegmentRow& b) { return a.id < b.id; });
  for (SegmentRow& row : loaded.segments) {
    loaded.next_segment = std::max(loaded.next_segment, row.id.value + 1);
    StoredSpace* space = find_space(engine, row.space);
    const bool file_there = files.count(row.id.value) != 0;
    if (space == nullptr || !file_there) {
      KVT_LOG(kWarn, "segment %" PRIx64 ": its %s is gone; what it held is a miss", row.id.value,
              space == nullptr ? "space" : "file");
      ++engine.metrics.segments_missing;
      if (space == nullptr || wanted.count(row.id.value) == 0) {
        if (!loaded.damaged) mend->remove_segment(row.id);
        continue;
      }
    }
    ++engine.metrics.recovered_segments;
    add_segment(engine, std::move(row), *space,
                file_there ? SegmentState::kOnDisk : SegmentState::kLost);
  }
  for (const SegmentRow& moved : loaded.segments) {
    Segment* segment = find_segment(engine, moved.id);
    if (segment != nullptr && may_be_indexed(engine, *segment)) index_segment(*segment);
  }
}

// Two rows of one name, as an older kvtier could leave them: the later one has it.
void take_name(EngineState& engine, const SequenceRow& row, CatalogueBatch* mend) {
  if (row.name.empty()) return;
  SequenceId& owner = engine.sequences.names[row.name];
  if (owner.valid()) {
    SequenceRow& other = engine.sequences.all.at(owner)->row;
    KVT_LOG(kWarn,
            "sequences %" PRIu64 " and %" PRIu64 " have one name: %" PRIu64 " is nameless now",
            owner.value, row.id.value, owner.value);
    other.name.clear();
    if (engine.metrics.rows_damaged == 0) mend->put_sequence(other);
  }
  owner = row.id;
}

void add_sequence(EngineState& engine, SequenceRow row, CatalogueBatch* mend) {
  StoredSpace* space = find_space(engine, row.space);
  if (space == nullptr) {
    KVT_LOG(kWarn, "sequence %" PRIx64 ": its space is gone; it is dropped", row.id.value);
    if (engine.metrics.rows_damaged == 0) mend->remove_sequence(row.id);
    return;
  }
  auto made = std::make_unique<StoredSequence>();
  StoredSequence& sequence = *made;
  sequence.space = space;
  sequence.in_catalogue = sequence.row_durable = true;
  std::vector<PartSpec> parts;
  std::uint64_t tokens = 0;
  bool cut = false;
  for (const SequenceRow::Part& part : row.parts) {
    Segment* segment = find_segment(engine, part.segment);
    cut = segment == nullptr || segment->row.start_token != tokens ||
          part.visible_tokens > segment->row.tokens || part.visible_tokens == 0;
    if (cut) break;
    parts.push_back({segment, part.visible_tokens});
    tokens += part.visible_tokens;
  }
  sequence.row = std::move(row);
  // Its client has a day from now on to come back for it (expiry.cc).
  if (sequence.row.provisional) sequence.row.last_used_unix_ns = engine.wall_ns();
  if (cut) {
    KVT_LOG(kWarn, "sequence %" PRIx64 " is cut to %" PRIu64 " tokens: a segment of it is missing",
            sequence.row.id.value, tokens);
    ++engine.metrics.sequences_cut;
    sequence.row.parts.resize(parts.size());
    sequence.row.log_generation = 0;  // it went on behind what is missing
    // Where the row of a segment is damaged, a rebuild of the catalogue may find the segment again.
    if (engine.metrics.rows_damaged == 0) mend->put_sequence(sequence.row);
  }
  sequence.log.generation = sequence.row.log_generation;
  sequence.log.loaded = sequence.log.generation == 0;
  engine.sequences.next_id = std::max(engine.sequences.next_id, sequence.row.id.value + 1);
  engine.sequences.next_log = std::max(engine.sequences.next_log, sequence.row.log_generation + 1);
  take_name(engine, sequence.row, mend);
  ++space->sequences;
  ++engine.metrics.recovered_sequences;
  engine.sequences.all.emplace(sequence.row.id, std::move(made));
  set_parts(engine, sequence, parts);
}

}  // namespace

Result<void> recover_engine(EngineState& engine) {
  const std::uint64_t begin_ns = engine.now_ns();
  Io& io = engine.io->io();
  for (const char* directory : {"segments", "sidecars", "logs", "objects", "codebooks"})
    KVT_TRY_VOID(io.make_directory(directory));
  KVT_TRY_VOID(io.sync_directory("."));
  Loaded loaded;
  KVT_TRY_VOID(load_rows(engine, &loaded));
  KVT_TRY_VOID(check_rows(io, loaded));
  CatalogueBatch mend;
  if (loaded.chain_key == 0) {
    loaded.chain_key = engine.world.random->next() | 1;
    mend.put_number("chain_key", loaded.chain_key);
  }
  engine.chain_key = loaded.chain_key;
  for (SpaceRow& row : loaded.spaces) add_space(engine, std::move(row)).row_durable = true;
  std::vector<std::string> orphans;
  KVT_TRY(const std::unordered_set<std::uint64_t> files, list_segments(engine, &loaded, &orphans));
  add_segments(engine, loaded, files, &mend);
  for (SequenceRow& row : loaded.sequences) add_sequence(engine, std::move(row), &mend);
  engine.segments.next_id = loaded.next_segment;
  engine.sequences.next_id = std::max(engine.sequences.next_id, loaded.next_sequence);
  KVT_TRY_VOID(list_logs(engine, loaded.next_log, &orphans));
  engine.sequences.reserved_until = engine.sequences.next_id;
  engine.sequences.next_log = std::max(engine.sequences.next_log, loaded.next_log);
  settle_kept_files(engine, &mend);
  // Only now: files of both kinds tell whether rows were lost.
  for (const std::string& path : orphans) drop_file(engine, path);
  KVT_TRY_VOID(drop_orphans(engine));
  KVT_TRY_VOID(recover_objects(engine, std::move(loaded.objects), &mend));
  if (!mend.empty()) KVT_TRY_VOID(engine.world.catalogue->write(std::move(mend), true));
  engine.metrics.recovery_ns = engine.now_ns() - begin_ns;
  engine.recovered = true;
  return {};
}

}  // namespace kvtier
