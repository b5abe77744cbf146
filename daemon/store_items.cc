#include "daemon/store_items.h"

#include <algorithm>
#include <functional>

#include "tiers/codebook_format.h"
#include "tiers/sidecar_format.h"

namespace kvtier {

namespace {

// What a failed open or read says of the file: only that it is gone, or shorter than it must be, is
// something about its bytes.
bool says_damage(const Status& status) {
  return status.code == Code::kCorrupt || status.code == Code::kNotFound ||
         status.code == Code::kVersion;
}
// How many chunks of a segment are named one by one, and from how many problems on only the first:
// all of them go into one reply.
constexpr std::uint32_t kChunksNamedMax = 64;
constexpr std::size_t kProblemsNamedEachMax = 10'000;
constexpr const char* kUnread = "cannot be read now: nothing is known about it, nothing is dropped";

void check_sidecar(Check& check, const Check::SegmentItem& item, const std::string& path) {
  const auto problem = [&](const char* reason, bool newer = false) {
    Problem found{path, "abstracts", reason, item.row.id, {}, true};
    found.path = path;
    found.warning = !newer;  // nobody syncs it: a power cut may leave a part of it
    found.newer = newer;
    check.problems.push_back(std::move(found));
  };
  const Result<FileId> file =
      check.files->io().open(path, {.mode = OpenMode::kRead, .direct = false});
  if (!file) return;  // derived data: made again when it is wanted
  const Result<std::uint64_t> size = check.files->io().size_bytes(*file);
  std::vector<std::byte> bytes(size && *size <= (1ull << 30) ? static_cast<std::size_t>(*size) : 0);
  const Result<void> read = read_fully(check.files->io(), *file, 0, bytes);
  check.files->io().close(*file);
  if (!size || (!read && !says_damage(read.error()))) return;
  if (!read || bytes.size() < kSidecarHeaderBytes) return problem("cannot be read whole");
  const Result<SidecarHeader> header = parse_sidecar_header(bytes);
  if (!header) return problem(header.error().message(), header.error().code == Code::kVersion);
  if (header->payload_bytes > bytes.size() - kSidecarHeaderBytes) return problem("is cut short");
  const ByteSpan payload{bytes.data() + kSidecarHeaderBytes,
                         static_cast<std::size_t>(header->payload_bytes)};
  const Result<void> sound = check_sidecar_payload(*header, payload);
  if (!sound || !(header->segment == item.row.id)) return problem("does not hold what it should");
}

void check_codebook_of(Check& check, const Check::CodebookItem& item) {
  const std::string path = codebook_path(item.space->row.id, item.id);
  const auto problem = [&](const char* reason, bool newer = false) {
    Problem found{path, "codebook", reason, {}, {}, true};
    found.path = path;
    found.newer = newer;
    check.problems.push_back(std::move(found));
  };
  const Result<FileId> file =
      check.files->io().open(path, {.mode = OpenMode::kRead, .direct = false});
  if (!file) return;  // derived: trained again when codes are wanted
  const Result<std::uint64_t> size = check.files->io().size_bytes(*file);
  const bool may_be = size && *size <= 2 * kCodebookPayloadBytesMax;
  std::vector<std::byte> bytes(may_be ? static_cast<std::size_t>(*size) : 0);
  const Result<void> read = read_fully(check.files->io(), *file, 0, bytes);
  check.files->io().close(*file);
  if (!size || (!read && !says_damage(read.error()))) return;
  if (!read) return problem("cannot be read whole");
  const Result<CodebookFileHeader> header = parse_codebook_header(bytes);
  if (!header) return problem(header.error().message(), header.error().code == Code::kVersion);
  if (header->id != item.id || !(header->fingerprint == item.space->row.digest))
    return problem("is of another space");
  const Result<ByteSpan> sound = check_codebook(*header, item.space->row.geometry, bytes);
  if (!sound) return problem(sound.error().message());
}

// All chunks of the segment whose file is open: what is bad is named and the rest is looked at.
void check_chunks(Check& check,
                  const std::function<void(std::string region, const Status& status)>& problem) {
  const std::uint32_t named_max =
      check.problems.size() < kProblemsNamedEachMax ? kChunksNamedMax : 1;
  std::uint32_t bad = 0, unnamed = 0, behind_end = 0;
  bool unnamed_damage = false;
  for (std::uint32_t i = 0; i < check.files->meta().chunks.size(); ++i) {
    if (!check.files->reaches(i)) {
      ++behind_end;
      continue;
    }
    const Result<ByteSpan> chunk = check.files->read_chunk(i);
    ++check.chunks;
    if (chunk) continue;
    if (++bad <= named_max) {
      problem(chunk_name(check.files->meta(), i), chunk.error());
    } else {
      ++unnamed;
      unnamed_damage = unnamed_damage || says_damage(chunk.error());
    }
  }
  if (unnamed != 0) {
    problem("chunks", {unnamed_damage ? Code::kCorrupt : Code::kIo});
    check.problems.back().reason = "and " + std::to_string(unnamed) + " more chunks";
  }
  if (behind_end != 0) {
    problem("chunks", {Code::kCorrupt});
    check.problems.back().reason =
        std::to_string(behind_end) + " chunks lie behind the end of the file";
  }
}

void check_segment(Check& check, const Check::SegmentItem& item) {
  const auto problem = [&](std::string region, const Status& status) {
    Problem found{segment_path(item.row.id), std::move(region), status.message(), item.row.id, {}};
    found.missing = status.code == Code::kNotFound;
    found.newer = status.code == Code::kVersion;
    found.unread = !says_damage(status);
    if (found.unread) found.reason += std::string(": ") + kUnread;
    check.problems.push_back(std::move(found));
  };
  ++check.segments_checked;
  const Result<void> begun = check.files->begin(item.row.id);
  if (!begun) return problem("metadata", begun.error());
  const SegmentMeta& meta = check.files->meta();
  if (meta.tokens.size() != item.row.tokens || !(meta.fingerprint == item.fingerprint) ||
      meta.start_token != item.row.start_token || !(meta.parent == item.row.parent))
    return problem("metadata", {Code::kCorrupt, 0, "file and catalogue differ"});
  if (check.deep) check_chunks(check, problem);
  for (const std::string& path : item.sidecars) check_sidecar(check, item, path);
}

void check_log(Check& check, const Check::LogItem& item) {
  const std::string path = tail_log_path(item.header.sequence, item.header.generation);
  const auto problem = [&](const std::string& reason, bool warning = false) {
    Problem found{path, "records", reason, {}, item.header.sequence};
    found.log_generation = item.header.generation;
    found.warning = warning;
    check.problems.push_back(std::move(found));
  };
  const Result<FileId> file =
      check.files->io().open(path, {.mode = OpenMode::kRead, .direct = false});
  if (!file && file.error().code == Code::kNotFound) return problem("the file is missing");
  const auto unread = [&] {
    problem(kUnread);
    check.problems.back().unread = true;
  };
  if (!file) return unread();
  const Result<std::uint64_t> size = check.files->io().size_bytes(*file);
  std::vector<std::byte> bytes(size ? static_cast<std::size_t>(*size) : 0);
  const Result<void> read = read_fully(check.files->io(), *file, 0, bytes);
  check.files->io().close(*file);
  if (!size || (!read && !says_damage(read.error()))) return unread();
  if (!read) return problem("cannot be read");
  std::vector<TokenRecord> tokens(kSegmentTokensMax);
  std::vector<std::byte> plane(static_cast<std::size_t>(item.space->tail.plane.size_bytes()));
  const Result<TailReplay> replay =
      replay_tail_log(bytes, item.header, item.space->row.geometry, item.space->tail.plane,
                      tokens.data(), plane.data());
  if (!replay) {
    problem(replay.error().message());
    check.problems.back().newer = replay.error().code == Code::kVersion;
    return;
  }
  check.log_tokens[item.header.sequence.value] = replay->tokens;
  const std::string left = ": " + std::to_string(replay->tokens) + " tokens before it are left";
  if (replay->tokens < item.tokens) return problem("holds fewer tokens than were committed");
  if (!replay->torn || item.tokens != 0) return;  // one that is in use goes on in a new file
  later_commit_follows(bytes, item.header, *replay)
      ? problem("a record is damaged and sound ones follow it" + left)
      : problem("the last record is not whole, as after a power cut" + left, true);
}

void check_value(Check& check, const ObjectHeader& expected) {
  const std::string path = object_path(expected.file);
  const auto problem = [&](const char* region, const char* reason) {
    Problem found{path, region, reason, {}, {}};
    found.key = expected.key;
    found.file = expected.file;
    check.problems.push_back(std::move(found));
  };
  ++check.values_checked;
  Io& io = check.files->io();
  const Result<FileId> file = io.open(path, {.mode = OpenMode::kRead, .direct = false});
  if (!file && file.error().code == Code::kNotFound) return problem("file", "is missing");
  const auto unread = [&] {
    problem("file", kUnread);
    check.problems.back().unread = true;
  };
  if (!file) return unread();
  const Result<std::uint64_t> size = io.size_bytes(*file);
  const bool whole = size && *size == object_file_bytes(expected.value_bytes);
  std::vector<std::byte> bytes(!whole       ? 0
                               : check.deep ? static_cast<std::size_t>(*size)
                                            : static_cast<std::size_t>(kObjectHeaderBytes));
  const Result<void> read = read_fully(io, *file, 0, bytes);
  io.close(*file);
  if (!size || (!read && !says_damage(read.error()))) return unread();
  if (!whole) return problem("file", "has another size than it was written with");
  if (!read) return problem("file", "cannot be read");
  check.value_bytes += bytes.size();
  const Result<ObjectHeader> header = parse_object_header(bytes);
  if (!header) return problem("header", header.error().message());
  if (header->file != expected.file || header->key != expected.key ||
      header->value_bytes != expected.value_bytes || header->checksum != expected.checksum)
    return problem("header", "file and catalogue differ");
  if (!check.deep) return;
  const Result<void> value =
      check_object_value(*header, ByteSpan(bytes).subspan(kObjectHeaderBytes));
  if (!value) problem("value", value.error().message());
}

}  // namespace

void check_next(Check& check) {
  if (!check.segments.empty()) {
    check_segment(check, check.segments.front());
    check.segments.pop_front();
  } else if (!check.codebooks.empty()) {
    check_codebook_of(check, check.codebooks.front());
    check.codebooks.pop_front();
  } else if (!check.values.empty()) {
    check_value(check, check.values.front());
    check.values.pop_front();
  } else {
    check_log(check, check.logs.front());
    check.logs.pop_front();
  }
}

}  // namespace kvtier
