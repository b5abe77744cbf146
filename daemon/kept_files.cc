#include "daemon/kept_files.h"

#include <algorithm>
#include <cinttypes>

#include "base/log.h"
#include "base/shell_word.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

std::string number_name(const std::string& path) { return std::string(kKeptPrefix) + path; }

struct Opened {
  Io& io;
  FileId file;
  std::uint64_t bytes = 0;
  ~Opened() { io.close(file); }
};

Result<std::vector<std::byte>> read_front(Opened& opened, std::uint64_t bytes) {
  if (opened.bytes < bytes) return error(Code::kCorrupt, "the file is too short");
  std::vector<std::byte> front(static_cast<std::size_t>(bytes));
  KVT_TRY_VOID(read_fully(opened.io, opened.file, 0, front));
  return front;
}

Result<void> check_segment(Opened& opened, SegmentId id) {
  KVT_TRY(const std::vector<std::byte> head, read_front(opened, kSegmentHeaderBytes));
  KVT_TRY(const std::uint64_t meta_bytes, parse_segment_header(head));
  KVT_TRY(const std::vector<std::byte> bytes, read_front(opened, meta_bytes));
  KVT_TRY(const SegmentMeta meta, parse_segment_meta(bytes));
  const bool whole = meta.id == id && meta.file_bytes() == opened.bytes;
  return whole ? Result<void>() : error(Code::kCorrupt, "not a whole segment file");
}

Result<void> check_log(Opened& opened, const TailLogName& name) {
  KVT_TRY(const std::vector<std::byte> bytes,
          read_front(opened, kTailLogHeaderBytes + kTailRecordHeaderBytes));
  const ByteSpan span(bytes);
  KVT_TRY(const TailLogHeader header, parse_tail_log_header(span.first(kTailLogHeaderBytes)));
  KVT_TRY(const TailRecordInfo record, parse_tail_record_header(span.subspan(kTailLogHeaderBytes)));
  const bool whole = header.sequence == name.sequence && header.generation == name.generation &&
                     record.record_bytes <= opened.bytes - kTailLogHeaderBytes;
  return whole ? Result<void>() : error(Code::kCorrupt, "not a tail log with a record");
}

// `check` looks at a file that is not known yet; anything but damage keeps it.
template <class Check>
bool keep(EngineState& engine, const std::string& path, bool newer, Check check) {
  KeptFiles& kept = engine.kept_files;
  const bool known = kept.all.count(path) != 0;
  if (!known && !newer) return false;
  Io& io = engine.io->io();
  KeptFile found;
  found.there = true;
  if (const Result<FileId> file = io.open(path, {.mode = OpenMode::kRead, .direct = false}); file) {
    Opened opened{io, *file};
    const Result<std::uint64_t> size = io.size_bytes(*file);
    if (size) opened.bytes = found.bytes = *size;
    if (size && !known) {
      const Result<void> whole = check(opened);
      if (!whole && whole.error().code == Code::kCorrupt) return false;
    }
  }
  found.fresh = !known;
  if (known) found.mark = kept.all[path].mark;
  kept.all[path] = found;
  return true;
}

}  // namespace

void recall_kept_file(EngineState& engine, std::string_view name, std::uint64_t value) {
  if (value != 0 && name.starts_with(kKeptPrefix))
    engine.kept_files.all[std::string(name.substr(kKeptPrefix.size()))].mark = value;
}

bool keep_segment_file(EngineState& engine, SegmentId id, bool newer) {
  return keep(engine, segment_path(id), newer,
              [id](Opened& opened) { return check_segment(opened, id); });
}

bool keep_log_file(EngineState& engine, const TailLogName& name, bool newer) {
  return keep(engine, tail_log_path(name.sequence, name.generation), newer,
              [&name](Opened& opened) { return check_log(opened, name); });
}

void settle_kept_files(EngineState& engine, CatalogueBatch* batch) {
  KeptFiles& kept = engine.kept_files;
  const auto fresh = std::count_if(kept.all.begin(), kept.all.end(),
                                   [](const auto& file) { return file.second.fresh; });
  for (auto file = kept.all.begin(); file != kept.all.end();) {
    if (!file->second.there) {
      batch->remove_number(number_name(file->first));
      file = kept.all.erase(file);
      continue;
    }
    if (file->second.fresh) {
      if (fresh > std::ptrdiff_t{kSealsAtOnce}) file->second.mark = kKeptLost;
      batch->put_number(number_name(file->first), file->second.mark);
    }
    kept.total_bytes += file->second.bytes;
    if (file->second.mark != kKeptLeftOut) ++kept.newer;
    if (file->second.mark == kKeptLost) ++kept.lost;
    ++file;
  }
  if (kept.newer != 0)
    KVT_LOG(kWarn,
            "%" PRIu64
            " files are whole, and newer than all that the catalogue knows: a crash came before "
            "they were published, or the catalogue has lost its last rows. They stay where they "
            "are. If something is missing, stop kvtierd and run `kvtier repair --store %s`; if "
            "nothing is, `kvtier gc` removes them",
            kept.newer, shell_word(engine.options.store_path).c_str());
  if (kept.all.size() > kept.newer)
    KVT_LOG(kWarn,
            "%zu files are of no use to this store (`kvtier repair` left them out) and stay where "
            "they are: `kvtier gc` removes them",
            kept.all.size() - static_cast<std::size_t>(kept.newer));
}

bool rows_were_lost(const EngineState& engine) { return engine.kept_files.lost != 0; }

std::vector<std::string> let_go_of_logs(EngineState& engine, SequenceId sequence) {
  KeptFiles& kept = engine.kept_files;
  std::vector<std::string> paths;
  CatalogueBatch batch;
  for (auto file = kept.all.begin(); file != kept.all.end();) {
    const auto name = tail_log_name_of(file->first.substr(file->first.rfind('/') + 1));
    if (!name || name->sequence != sequence) {
      ++file;
      continue;
    }
    paths.push_back(file->first);
    batch.remove_number(number_name(file->first));
    kept.total_bytes -= file->second.bytes;
    if (file->second.mark != kKeptLeftOut) --kept.newer;
    if (file->second.mark == kKeptLost) --kept.lost;
    file = kept.all.erase(file);
  }
  if (!paths.empty()) post_batch(engine, std::move(batch), false, [](Result<void>) {});
  return paths;
}

std::uint64_t remove_kept_files(EngineState& engine) {
  KeptFiles& kept = engine.kept_files;
  if (kept.all.empty()) return 0;
  const std::uint64_t bytes = kept.total_bytes;
  KVT_LOG(kWarn, "%zu files (%" PRIu64 " bytes) that were kept without a row are removed",
          kept.all.size(), bytes);
  CatalogueBatch batch;
  for (const auto& [path, file] : kept.all) {
    batch.remove_number(number_name(path));
    static_cast<void>(engine.io->io().unlink(path));
  }
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
  kept = {};
  return bytes;
}

}  // namespace kvtier
