#include "tiers/store_check_files.h"

#include <algorithm>
#include <string_view>

#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

// A file that is open for reading, and its length. Closed at the end of the scope.
class ReadFile {
 public:
  ReadFile(Io& io, const std::string& path, CheckSink* sink) : io_(io), sink_(*sink) {
    const Result<FileId> file = io.open(path, {.mode = OpenMode::kRead, .direct = false});
    if (!file) {
      sink_.failed(path, "", file.error());
      return;
    }
    file_ = *file;
    const Result<std::uint64_t> size = io.size_bytes(file_);
    if (!size) {
      sink_.failed(path, "", size.error());
      return;
    }
    size_bytes_ = *size;
    open_ = true;
    sink_.report().file_bytes += size_bytes_;
  }
  ~ReadFile() {
    if (file_.value != 0) io_.close(file_);
  }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  [[nodiscard]] bool open() const noexcept { return open_; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  // What the file has of [offset, offset + size_bytes).
  [[nodiscard]] Result<std::vector<std::byte>> read(std::uint64_t offset,
                                                    std::uint64_t size_bytes) {
    if (offset >= size_bytes_) return std::vector<std::byte>{};
    std::vector<std::byte> bytes(std::min(size_bytes, size_bytes_ - offset));
    KVT_TRY_VOID(read_fully(io_, file_, offset, bytes));
    sink_.count_read(bytes.size());
    return bytes;
  }

 private:
  Io& io_;
  CheckSink& sink_;
  FileId file_;
  std::uint64_t size_bytes_ = 0;
  bool open_ = false;
};

// Where a chunk ends with its padding; saturates instead of wrapping.
std::uint64_t padded_end(const ChunkEntry& chunk) {
  const std::uint64_t size = align_up<std::uint64_t>(chunk.stored_bytes, kDiskAlign);
  return chunk.offset > UINT64_MAX - size ? UINT64_MAX : chunk.offset + size;
}

void check_one_chunk(const std::string& path, const SegmentMeta& meta, std::uint32_t index,
                     ByteSpan padded, CheckSink* sink) {
  const ChunkEntry& chunk = meta.chunks[index];
  ++sink->report().chunks_checked;
  if (chunk_checksum(meta.id, index, padded.first(chunk.stored_bytes)) != chunk.checksum) {
    sink->damaged(path, chunk_name(meta, index), "the chunk's checksum is wrong");
  } else if (!all_zero(padded.subspan(chunk.stored_bytes))) {
    sink->add(path, chunk_name(meta, index) + ", padding", FindingKind::kDamaged,
              FindingSeverity::kWarning,
              "bytes that nobody reads are not zero as they were written");
  }
}

// Reads chunks that follow each other together, up to kReadBytesMax; one by one where that fails.
void check_chunks(ReadFile& file, const std::string& path, const SegmentMeta& meta,
                  CheckSink* sink) {
  const auto count = static_cast<std::uint32_t>(meta.chunks.size());
  std::uint32_t missing = 0;
  for (std::uint32_t first = 0; first < count && !sink->cancelled();) {
    const std::uint64_t begin = meta.chunks[first].offset;
    if (padded_end(meta.chunks[first]) > file.size_bytes()) {
      ++missing;
      ++first;
      continue;
    }
    std::uint32_t last = first + 1;
    while (last < count && meta.chunks[last].offset == padded_end(meta.chunks[last - 1]) &&
           padded_end(meta.chunks[last]) <= file.size_bytes() &&
           padded_end(meta.chunks[last]) - begin <= kReadBytesMax)
      ++last;
    Result<std::vector<std::byte>> bytes =
        file.read(begin, padded_end(meta.chunks[last - 1]) - begin);
    if (!bytes && last - first > 1) {
      last = first + 1;
      bytes = file.read(begin, padded_end(meta.chunks[first]) - begin);
    }
    if (!bytes) {
      sink->failed(path, chunk_name(meta, first), bytes.error());
    } else {
      for (std::uint32_t i = first; i < last; ++i)
        check_one_chunk(
            path, meta, i,
            ByteSpan(*bytes).subspan(meta.chunks[i].offset - begin,
                                     padded_end(meta.chunks[i]) - meta.chunks[i].offset),
            sink);
    }
    first = last;
  }
  if (missing != 0)
    sink->damaged(path, "chunks",
                  std::to_string(missing) + " chunks lie behind the end of the file");
}

// Metadata that does not parse: names every region, and keeps what is sound.
std::optional<SegmentMeta> salvage(ByteSpan bytes, const std::string& path, SegmentId id,
                                   const Status& why, bool* chunks_known, CheckSink* sink) {
  if (why.code == Code::kVersion) {
    sink->failed(path, "header", why);
    return std::nullopt;
  }
  SegmentSalvage found = salvage_segment_meta(bytes);
  for (const char* region : found.damaged) sink->damaged(path, region, why.message());
  if (found.damaged.empty()) sink->damaged(path, "metadata", why.message());
  *chunks_known = found.chunks_known;
  if (found.meta_bytes == 0) return std::nullopt;
  const bool header_damaged =
      !found.damaged.empty() && std::string_view(found.damaged.front()) == "header";
  if (header_damaged) found.meta.id = id;
  return std::move(found.meta);
}

void check_length(const std::string& path, std::uint64_t found, std::uint64_t expected,
                  CheckSink* sink) {
  if (found < expected) {
    sink->damaged(path, "length",
                  "the file is cut short: " + std::to_string(found) + " of " +
                      std::to_string(expected) + " bytes");
  } else if (found > expected) {
    sink->add(path, "length", FindingKind::kMismatch, FindingSeverity::kWarning,
              "the file goes on behind its end: " + std::to_string(found) + " instead of " +
                  std::to_string(expected) + " bytes");
  }
}

std::uint64_t metadata_bytes(ByteSpan head) {
  if (const Result<std::uint64_t> bytes = parse_segment_header(head)) return *bytes;
  return std::max(salvage_segment_meta(head).meta_bytes, kSegmentHeaderBytes);
}

}  // namespace

std::optional<SegmentMeta> check_segment_file(Io& io, const std::string& path, SegmentId id,
                                              CheckSink* sink) {
  ++sink->report().segments;
  ReadFile file(io, path, sink);
  if (!file.open()) return std::nullopt;
  const Result<std::vector<std::byte>> head = file.read(0, kSegmentHeaderBytes);
  if (!head) {
    sink->failed(path, "header", head.error());
    return std::nullopt;
  }
  const Result<std::vector<std::byte>> bytes = file.read(0, metadata_bytes(*head));
  if (!bytes) {
    sink->failed(path, "metadata", bytes.error());
    return std::nullopt;
  }
  Result<SegmentMeta> parsed = parse_segment_meta(*bytes);
  bool chunks_known = true;
  std::optional<SegmentMeta> meta;
  if (parsed) {
    meta = *std::move(parsed);
    check_length(path, file.size_bytes(), meta->file_bytes(), sink);
  } else {
    meta = salvage(*bytes, path, id, parsed.error(), &chunks_known, sink);
    if (!meta) return std::nullopt;
  }
  if (meta->id != id) {
    sink->add(path, "header", FindingKind::kMismatch, FindingSeverity::kDamage,
              "this is the file of segment " + hex16(meta->id.value));
  }
  sink->report().tokens += meta->tokens.size();
  sink->report().chunks += meta->chunks.size();
  if (chunks_known && sink->deep()) check_chunks(file, path, *meta, sink);
  if (!parsed || meta->id != id) return std::nullopt;
  return meta;
}

std::optional<TailLogHeader> read_log_header(Io& io, const std::string& path,
                                             const TailLogName& name, CheckSink* sink) {
  ++sink->report().logs;
  ReadFile file(io, path, sink);
  if (!file.open()) return std::nullopt;
  const Result<std::vector<std::byte>> head = file.read(0, kTailLogHeaderBytes);
  if (!head) {
    sink->failed(path, "header", head.error());
    return std::nullopt;
  }
  const Result<TailLogHeader> header = parse_tail_log_header(*head);
  if (!header) {
    sink->failed(path, "header", header.error());
    return std::nullopt;
  }
  if (header->sequence != name.sequence || header->generation != name.generation) {
    sink->add(path, "header", FindingKind::kMismatch, FindingSeverity::kDamage,
              "this is the log of sequence " + hex16(header->sequence.value) + ", generation " +
                  hex16(header->generation));
    return std::nullopt;
  }
  return *header;
}

namespace {

// As later_commit_follows, by record headers at multiples of 4096 behind `offset`.
bool later_commit(ReadFile& file, std::uint64_t offset, const TailLogHeader& header,
                  std::uint64_t order) {
  for (offset += kDiskAlign; offset < file.size_bytes(); offset += kDiskAlign) {
    const Result<std::vector<std::byte>> bytes = file.read(offset, kTailRecordHeaderBytes);
    if (!bytes) return false;
    const Result<TailRecordInfo> record = parse_tail_record_header(*bytes);
    if (record && record->sequence == header.sequence && record->generation == header.generation &&
        record->begins_commit && record->order > order)
      return true;
  }
  return false;
}

// The record at `offset`, if it is the next one of this log and whole.
std::optional<TailRecordInfo> next_record(ReadFile& file, std::uint64_t offset,
                                          const TailLogHeader& header, const Geometry* geometry,
                                          std::uint64_t order, std::uint64_t tokens) {
  const Result<std::vector<std::byte>> head = file.read(offset, kTailRecordHeaderBytes);
  if (!head) return std::nullopt;
  const Result<TailRecordInfo> record = parse_tail_record_header(*head);
  if (!record || record->sequence != header.sequence || record->generation != header.generation ||
      record->order != order || record->start_token < header.base_token)
    return std::nullopt;
  const std::uint64_t first = record->start_token - header.base_token;
  if (first > tokens || record->count > kSegmentTokensMax - first) return std::nullopt;
  if (geometry != nullptr && record->record_bytes < tail_record_bytes(*geometry, record->count))
    return std::nullopt;
  const Result<std::vector<std::byte>> payload =
      file.read(offset + kTailRecordHeaderBytes, record->record_bytes - kTailRecordHeaderBytes);
  if (!payload || payload->size() != record->record_bytes - kTailRecordHeaderBytes ||
      hash64(*payload) != record->payload_checksum)
    return std::nullopt;
  return *record;
}

bool rest_is_zero(ReadFile& file, std::uint64_t offset) {
  for (; offset < file.size_bytes(); offset += kReadBytesMax) {
    const Result<std::vector<std::byte>> bytes = file.read(offset, kReadBytesMax);
    if (!bytes || !all_zero(*bytes)) return false;
  }
  return true;
}

}  // namespace

void check_log_records(Io& io, const std::string& path, const TailLogHeader& header,
                       const Geometry* geometry, CheckSink* sink) {
  ReadFile file(io, path, sink);
  if (!file.open()) return;
  sink->report().file_bytes -= file.size_bytes();  // counted with the header
  std::uint64_t offset = kTailLogHeaderBytes, order = 0, tokens = 0;
  while (!sink->cancelled()) {
    const std::optional<TailRecordInfo> record =
        next_record(file, offset, header, geometry, order, tokens);
    if (!record) break;
    ++order;
    ++sink->report().records;
    tokens = record->start_token - header.base_token + record->count;
    offset += record->record_bytes;
  }
  if (sink->cancelled() || offset >= file.size_bytes() || rest_is_zero(file, offset)) return;
  const std::string region = "record " + std::to_string(order);
  if (later_commit(file, offset, header, order))
    return sink->damaged(path, region,
                         "the record is damaged and sound ones follow it: " +
                             std::to_string(tokens) + " tokens before it are left");
  sink->add(path, region, FindingKind::kTorn, FindingSeverity::kWarning,
            "the last record is not whole, as after a power cut: " + std::to_string(tokens) +
                " tokens before it are left");
}

std::optional<SidecarHeader> check_sidecar_file(Io& io, const std::string& path,
                                                const SidecarName& name, CheckSink* sink) {
  ++sink->report().sidecars;
  ReadFile file(io, path, sink);
  if (!file.open()) return std::nullopt;
  const Result<std::vector<std::byte>> head = file.read(0, kSidecarHeaderBytes);
  if (!head) {
    sink->failed(path, "header", head.error());
    return std::nullopt;
  }
  const Result<SidecarHeader> header = parse_sidecar_header(*head);
  if (!header) {
    sink->failed(path, "header", header.error());
    return std::nullopt;
  }
  if (header->segment != name.segment || header->kind != name.kind) {
    sink->add(path, "header", FindingKind::kMismatch, FindingSeverity::kDamage,
              "this is the sidecar of segment " + hex16(header->segment.value) + ", kind " +
                  std::to_string(header->kind));
    return std::nullopt;
  }
  const std::uint64_t payload_bytes = align_up(header->payload_bytes, kDiskAlign);
  check_length(path, file.size_bytes(), kSidecarHeaderBytes + payload_bytes, sink);
  if (sink->deep() && file.size_bytes() >= kSidecarHeaderBytes + payload_bytes) {
    const Result<std::vector<std::byte>> payload = file.read(kSidecarHeaderBytes, payload_bytes);
    if (!payload)
      sink->failed(path, "payload", payload.error());
    else if (const Result<void> right = check_sidecar_payload(*header, *payload); !right)
      sink->failed(path, "payload", right.error());
  }
  return *header;
}

void check_codebook_file(Io& io, const std::string& path, const CodebookName& name,
                         const SpaceRow* space, CheckSink* sink) {
  ++sink->report().codebooks;
  ReadFile file(io, path, sink);
  if (!file.open()) return;
  const std::uint64_t most = std::min(file.size_bytes(), 2 * kCodebookPayloadBytesMax);
  const Result<std::vector<std::byte>> bytes = file.read(0, most);
  if (!bytes) return sink->failed(path, "", bytes.error());
  const Result<CodebookFileHeader> header = parse_codebook_header(*bytes);
  if (!header) return sink->failed(path, "header", header.error());
  const bool right = header->space == name.space && header->id == name.id &&
                     (space == nullptr || header->fingerprint == space->digest);
  if (!right)
    return sink->add(path, "header", FindingKind::kMismatch, FindingSeverity::kDamage,
                     "this is another codebook than its name says, or of another space");
  if (space == nullptr) return;
  const Result<ByteSpan> sound = check_codebook(*header, space->geometry, *bytes);
  if (!sound) sink->failed(path, "payload", sound.error());
}

std::optional<ObjectHeader> check_object_file(Io& io, const std::string& path, std::uint64_t number,
                                              CheckSink* sink) {
  ++sink->report().objects;
  ReadFile file(io, path, sink);
  if (!file.open()) return std::nullopt;
  const Result<std::vector<std::byte>> head = file.read(0, kObjectHeaderBytes);
  if (!head) {
    sink->failed(path, "header", head.error());
    return std::nullopt;
  }
  const Result<ObjectHeader> header = parse_object_header(*head);
  if (!header) {
    sink->failed(path, "header", header.error());
    return std::nullopt;
  }
  if (header->file != number) {
    sink->add(path, "header", FindingKind::kMismatch, FindingSeverity::kDamage,
              "this is the file of object " + hex16(header->file));
    return std::nullopt;
  }
  const std::uint64_t file_bytes = object_file_bytes(header->value_bytes);
  check_length(path, file.size_bytes(), file_bytes, sink);
  if (sink->deep() && file.size_bytes() >= file_bytes) {
    const Result<std::vector<std::byte>> value =
        file.read(kObjectHeaderBytes, file_bytes - kObjectHeaderBytes);
    if (!value)
      sink->failed(path, "value", value.error());
    else if (const Result<void> right = check_object_value(*header, *value); !right)
      sink->failed(path, "value", right.error());
  }
  return *header;
}

}  // namespace kvtier
