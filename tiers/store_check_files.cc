#include "tiers/store_check_files.h"

#include <algorithm>

#include "base/hash.h"
#include "tiers/format_head.h"
#include "tiers/store_check_read.h"

namespace kvtier {

std::optional<TailLogHeader> read_log_header(Io& io, const TailLogName& name,
                                             const TailLogHeader* expected, CheckSink* sink) {
  const std::string path = tail_log_path(name.sequence, name.generation);
  ReadFile file(io, path, &sink->report().logs, sink);
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
    sink->mismatch(path, "header",
                   "this is the log of sequence " + hex16(header->sequence.value) +
                       ", generation " + hex16(header->generation));
    return std::nullopt;
  }
  if (expected == nullptr) return *header;
  if (header->space != expected->space)
    sink->mismatch(path, "header", "the log's space is not its sequence's");
  if (header->fingerprint != expected->fingerprint)
    sink->mismatch(path, "header", "the log's fingerprint is not its space's");
  if (header->base_token != expected->base_token)
    sink->mismatch(path, "header",
                   "the log begins at token " + std::to_string(header->base_token) +
                       ", the sequence's tail at " + std::to_string(expected->base_token));
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

std::uint64_t check_log_records(Io& io, const TailLogHeader& header, const Geometry* geometry,
                                std::uint64_t committed, CheckSink* sink) {
  const std::string path = tail_log_path(header.sequence, header.generation);
  std::uint64_t counted = 0;  // with the header already
  ReadFile file(io, path, &counted, sink);
  if (!file.open()) return 0;
  sink->report().file_bytes -= file.size_bytes();  // so is its length
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
  const std::string region = "record " + std::to_string(order);
  const bool ends = committed != 0 || sink->cancelled() || offset >= file.size_bytes() ||
                    rest_is_zero(file, offset);
  const bool goes_on = !ends && later_commit(file, offset, header, order);
  if (!file.failure().ok())  // not torn: nothing is known
    sink->failed(path, region, file.failure());
  else if (tokens < committed)
    sink->damaged(path, region, "the log holds fewer tokens than were committed");
  else if (goes_on)
    sink->damaged(path, region,
                  "the record is damaged and sound ones follow it: " + std::to_string(tokens) +
                      " tokens before it are left");
  else if (!ends)
    sink->add(path, region, FindingKind::kTorn, FindingSeverity::kWarning,
              "the last record is not whole, as after a power cut: " + std::to_string(tokens) +
                  " tokens before it are left");
  return tokens;
}

namespace {

std::optional<SidecarHeader> check_sidecar_alone(Io& io, const std::string& path,
                                                 const SidecarName& name, CheckSink* sink) {
  ReadFile file(io, path, &sink->report().sidecars, sink);
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
    sink->mismatch(path, "header",
                   "this is the sidecar of segment " + hex16(header->segment.value) + ", kind " +
                       std::to_string(header->kind));
    return std::nullopt;
  }
  const std::uint64_t payload_bytes = align_up(header->payload_bytes, kDiskAlign);
  file.check_length(kSidecarHeaderBytes + payload_bytes);
  if (sink->deep() && file.size_bytes() >= kSidecarHeaderBytes + payload_bytes) {
    const Result<std::vector<std::byte>> payload = file.read(kSidecarHeaderBytes, payload_bytes);
    if (!payload)
      sink->failed(path, "payload", payload.error());
    else if (const Result<void> right = check_sidecar_payload(*header, *payload); !right)
      sink->failed(path, "payload", right.error());
  }
  return *header;
}

}  // namespace

void check_sidecar_file(Io& io, const SidecarName& name, const SidecarOwner& of, CheckSink* sink) {
  const std::string path = sidecar_path(name.segment, name.kind);
  const std::uint64_t before = sink->report().sidecars;
  const std::optional<SidecarHeader> header = check_sidecar_alone(io, path, name, sink);
  if (sink->report().sidecars == before) return;  // missing
  if (!of.there)
    return sink->add(path, "", FindingKind::kOrphan, FindingSeverity::kWarning,
                     "its segment is not there");
  if (!header || !of.sound) return;
  if (header->fingerprint != of.fingerprint)
    sink->mismatch(path, "header", "the sidecar is of another space");
  if (header->tokens != of.tokens)
    sink->mismatch(path, "header", "the sidecar is of a segment of another length");
  const Result<AbstractSpec> spec = unpack_abstract_spec(header->kind);
  if (!spec || of.geometry == nullptr || header->tokens != of.tokens) return;
  const bool fits =
      (spec->by_tokens() || header->units == spec->units_of(header->tokens)) &&
      header->payload_bytes ==
          AbstractLayout(*of.geometry, *spec, header->tokens, header->units).size_bytes();
  if (!fits)
    sink->mismatch(path, "header", "the abstracts have another length than the geometry says");
}

std::optional<std::uint32_t> sidecar_of_seal(const SpaceRow& space, std::uint32_t tokens) {
  if (space.abstracts.empty()) return std::nullopt;
  const Result<AbstractSpec> spec = unpack_abstract_spec(space.abstracts[0]);
  const bool later = !spec || spec->by_head() || spec->rendition() ||
                     spec->abstract == AbstractKind::kOwnCodes ||
                     spec->abstract == AbstractKind::kCodes;
  if (later || AbstractLayout(space.geometry, *spec, tokens, 1).size_bytes() == 0)
    return std::nullopt;
  return space.abstracts[0];
}

void check_codebook_file(Io& io, const CodebookName& name, const SpaceRow* space, CheckSink* sink) {
  const std::string path = codebook_path(name.space, name.id);
  ReadFile file(io, path, &sink->report().codebooks, sink);
  if (!file.open()) return;
  const std::uint64_t most = std::min(file.size_bytes(), 2 * kCodebookPayloadBytesMax);
  const Result<std::vector<std::byte>> bytes = file.read(0, most);
  if (!bytes) return sink->failed(path, "", bytes.error());
  const Result<CodebookFileHeader> header = parse_codebook_header(*bytes);
  if (!header) return sink->failed(path, "header", header.error());
  const bool right = header->space == name.space && header->id == name.id &&
                     (space == nullptr || header->fingerprint == space->digest);
  if (!right)
    return sink->mismatch(path, "header",
                          "this is another codebook than its name says, or of another space");
  if (space == nullptr) return;
  const Result<ByteSpan> sound = check_codebook(*header, space->geometry, *bytes);
  if (!sound) sink->failed(path, "payload", sound.error());
}

namespace {

std::optional<ObjectHeader> check_object_alone(Io& io, const std::string& path,
                                               std::uint64_t number, CheckSink* sink) {
  ReadFile file(io, path, &sink->report().objects, sink);
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
    sink->mismatch(path, "header", "this is the file of object " + hex16(header->file));
    return std::nullopt;
  }
  const std::uint64_t file_bytes = object_file_bytes(header->value_bytes);
  file.check_length(file_bytes);
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

}  // namespace

void check_object_file(Io& io, std::uint64_t number, const ObjectRow* row, CheckSink* sink) {
  const std::string path = object_path(number);
  const std::optional<ObjectHeader> header = check_object_alone(io, path, number, sink);
  if (!header || row == nullptr) return;
  if (header->key != row->key)
    sink->mismatch(path, "header", "the catalogue's row says another key");
  if (header->value_bytes != row->value_bytes || header->checksum != row->checksum)
    sink->mismatch(path, "header", "the catalogue's row says another value");
}

}  // namespace kvtier
