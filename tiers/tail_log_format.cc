#include "tiers/tail_log_format.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTLOG\x1a\n";
constexpr std::uint32_t kRecordMagic = 0x5254564B;  // "KVTR"
constexpr std::string_view kPrefix = "logs/";
constexpr std::string_view kSuffix = ".kvl";

static_assert(kTailLogHeaderBytes == kHeadBytes);

constexpr std::uint16_t kHasTexts = 1;      // behind the rows: u32 bytes, and as many of texts
constexpr std::uint16_t kBeginsCommit = 2;  // what lies before it was durable
constexpr std::uint16_t kFlags = kHasTexts | kBeginsCommit;

struct RecordHeader {
  std::uint32_t magic = kRecordMagic;
  std::uint16_t count = 0;
  std::uint16_t flags = 0;
  SequenceId sequence;
  std::uint64_t generation = 0;
  std::uint64_t order = 0;
  std::uint64_t start_token = 0;
  std::uint64_t record_bytes = 0;      // with header and padding
  std::uint64_t payload_checksum = 0;  // of everything after this header, padding too
  std::uint64_t header_checksum = 0;   // of the fields above
};
static_assert(sizeof(RecordHeader) == kTailRecordHeaderBytes, "written as it is");
constexpr std::size_t kRecordHeaderSummed = sizeof(RecordHeader) - sizeof(std::uint64_t);

// Calls fn(offset in the plane, bytes) for every row of the token at `index` of the half, in log
// order.
template <class Fn>
void for_each_row(const Geometry& geometry, const PlaneLayout& layout, std::uint32_t index,
                  Fn&& fn) {
  const std::uint32_t chunk = index / geometry.chunk_tokens;
  const std::uint32_t token = index % geometry.chunk_tokens;
  for (std::uint32_t i = 0; i < geometry.layers.size(); ++i) {
    const LayerGeometry& layer = geometry.layers[i];
    const std::uint32_t heads = geometry.heads_in_group(i);
    for (std::uint32_t group = 0; group < geometry.groups(i); ++group) {
      const std::uint64_t base = layout.chunk_offset(i, chunk, group);
      for (std::uint32_t head = 0; head < heads; ++head) {
        fn(base + k_row_offset(geometry, layer, head, token), layer.k_row_bytes);
        fn(base + v_row_offset(geometry, layer, head, token), layer.v_row_bytes);
      }
    }
  }
}

// False where the checksum or the magic is wrong, or the bytes are too few.
bool read_record_header(ByteSpan bytes, RecordHeader* record) {
  if (bytes.size() < sizeof(RecordHeader)) return false;
  std::memcpy(record, bytes.data(), sizeof(RecordHeader));
  return hash64(bytes.first(kRecordHeaderSummed)) == record->header_checksum &&
         record->magic == kRecordMagic;
}

std::uint64_t rows_bytes(const Geometry& geometry, std::uint32_t count) {
  return count * (sizeof(TokenRecord) + geometry.token_bytes());
}

// The texts of a record whose payload is sound; kCorrupt where its length is not what it says.
Result<TokenTexts> read_texts(ByteSpan payload, const RecordHeader& record,
                              const Geometry& geometry) {
  ByteReader reader(payload);
  reader.skip(rows_bytes(geometry, record.count));
  ByteSpan encoded;
  if ((record.flags & kHasTexts) != 0) encoded = reader.read_bytes(reader.read<std::uint32_t>());
  if (!reader.ok() ||
      record.record_bytes != tail_record_bytes(geometry, record.count, encoded.size()))
    return error(Code::kCorrupt, "a log record has an impossible length");
  return TokenTexts::parse(encoded, record.count);
}

// The header of the record at `offset`, and its texts, if everything about it is right, its
// payload's checksum included.
bool read_record(ByteSpan file, std::uint64_t offset, const TailLogHeader& log,
                 const Geometry& geometry, RecordHeader* record, TokenTexts* texts) {
  if (offset > file.size() || !read_record_header(file.subspan(offset), record)) return false;
  if (record->sequence != log.sequence || record->generation != log.generation) return false;
  if (record->count > kSegmentTokensMax || (record->flags & ~kFlags) != 0 ||
      record->record_bytes < tail_record_bytes(geometry, record->count) ||
      record->record_bytes > file.size() - offset)
    return false;
  const ByteSpan payload =
      file.subspan(offset + sizeof(RecordHeader), record->record_bytes - sizeof(RecordHeader));
  if (hash64(payload) != record->payload_checksum) return false;
  Result<TokenTexts> found = read_texts(payload, *record, geometry);
  if (!found) return false;
  *texts = std::move(*found);
  return true;
}

// Copies the record's tokens and rows into the half from token index `first` on. Everything was
// checked before.
void apply_record(ByteSpan payload, std::uint32_t first, std::uint32_t count,
                  const Geometry& geometry, const PlaneLayout& layout, TokenRecord* tokens,
                  std::byte* plane) {
  if (count == 0) return;
  const std::byte* source = payload.data();
  std::memcpy(tokens + first, source, count * sizeof(TokenRecord));
  source += count * sizeof(TokenRecord);
  for (std::uint32_t i = 0; i < count; ++i)
    for_each_row(geometry, layout, first + i, [&](std::uint64_t offset, std::uint32_t size_bytes) {
      std::memcpy(plane + offset, source, size_bytes);
      source += size_bytes;
    });
}

Result<void> check_expected(const TailLogHeader& found, const TailLogHeader& expected) {
  if (found.sequence != expected.sequence || found.space != expected.space ||
      found.fingerprint != expected.fingerprint)
    return error(Code::kCorrupt, "the tail log belongs to another sequence or space");
  if (found.generation != expected.generation)
    return error(Code::kStale, "the tail log is of another generation than the sequence");
  if (found.base_token != expected.base_token)
    return error(Code::kCorrupt, "the tail log begins at another token than the sequence's tail");
  return {};
}

}  // namespace

std::vector<std::byte> encode_tail_log_header(const TailLogHeader& header) {
  KVT_CHECK(header.sequence.valid() && header.space.valid() &&
            header.base_token <= kSequenceTokensMax);
  ByteWriter writer;
  begin_head(kMagic, kTailLogVersion, &writer);
  writer.write(header.sequence);
  writer.write(header.space);
  writer.write(header.generation);
  writer.write(header.base_token);
  writer.write(header.fingerprint);
  finish_head(&writer);
  return writer.take();
}

Result<TailLogHeader> parse_tail_log_header(ByteSpan bytes) {
  KVT_TRY(ByteReader reader, open_head(bytes, kMagic, kTailLogVersion));
  TailLogHeader header;
  header.sequence = reader.read<SequenceId>();
  header.space = reader.read<SpaceId>();
  header.generation = reader.read<std::uint64_t>();
  header.base_token = reader.read<std::uint64_t>();
  header.fingerprint = reader.read<BlockHash>();
  KVT_TRY_VOID(expect_zeros(&reader));
  if (!header.sequence.valid() || !header.space.valid() || header.base_token > kSequenceTokensMax)
    return error(Code::kCorrupt,
                 "the tail log has no sequence, no space, or begins beyond the longest sequence");
  return header;
}

std::uint64_t tail_record_bytes(const Geometry& geometry, std::uint32_t count,
                                std::uint64_t text_bytes) {
  const std::uint64_t texts = text_bytes == 0 ? 0 : sizeof(std::uint32_t) + text_bytes;
  return align_up<std::uint64_t>(sizeof(RecordHeader) + rows_bytes(geometry, count) + texts,
                                 kDiskAlign);
}

std::uint64_t tail_log_bytes_max(const Geometry& geometry) {
  return kTailLogHeaderBytes +
         kSegmentTokensMax *
             tail_record_bytes(geometry, 1, sizeof(std::uint16_t) + kTokenTextBytesMax);
}

std::uint32_t tail_record_tokens_max(const Geometry& geometry,
                                     std::uint64_t record_bytes_max) noexcept {
  const std::uint64_t room = record_bytes_max - sizeof(RecordHeader);
  const std::uint64_t fit = room / (sizeof(TokenRecord) + geometry.token_bytes());
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(fit, 1, kSegmentTokensMax));
}

Result<TailRecordInfo> parse_tail_record_header(ByteSpan bytes) {
  RecordHeader record;
  if (!read_record_header(bytes, &record))
    return error(Code::kCorrupt, "the header of a log record is damaged");
  if (record.count > kSegmentTokensMax || (record.flags & ~kFlags) != 0 ||
      record.record_bytes < sizeof(RecordHeader) || record.record_bytes % kDiskAlign != 0 ||
      record.record_bytes > kTailLogRecordBytesMax + kDiskAlign)
    return error(Code::kCorrupt, "a log record has impossible counts");
  return TailRecordInfo{.sequence = record.sequence,
                        .generation = record.generation,
                        .order = record.order,
                        .start_token = record.start_token,
                        .count = record.count,
                        .record_bytes = record.record_bytes,
                        .payload_checksum = record.payload_checksum,
                        .begins_commit = (record.flags & kBeginsCommit) != 0};
}

std::vector<std::byte> encode_tail_record(const TailRecordSource& source) {
  const std::uint64_t text_bytes = source.texts == nullptr ? 0 : source.texts->encoded_bytes();
  std::vector<std::byte> record(tail_record_bytes(*source.geometry, source.count, text_bytes));
  encode_tail_record(source, record);
  return record;
}

void encode_tail_record(const TailRecordSource& source, MutableByteSpan record) {
  KVT_CHECK(source.first <= kSegmentTokensMax && source.count <= kSegmentTokensMax - source.first);
  const Geometry& geometry = *source.geometry;
  const std::vector<std::byte> texts =
      source.texts == nullptr ? std::vector<std::byte>() : source.texts->encode();
  KVT_CHECK(texts.empty() || source.texts->tokens() == source.count);
  KVT_CHECK(record.size() == tail_record_bytes(geometry, source.count, texts.size()));
  std::byte* target = record.data() + sizeof(RecordHeader);
  if (source.count != 0) {
    std::memcpy(target, source.tokens + source.first, source.count * sizeof(TokenRecord));
    target += source.count * sizeof(TokenRecord);
  }
  for (std::uint32_t i = 0; i < source.count; ++i)
    for_each_row(geometry, *source.layout, source.first + i,
                 [&](std::uint64_t offset, std::uint32_t size_bytes) {
                   std::memcpy(target, source.plane + offset, size_bytes);
                   target += size_bytes;
                 });
  RecordHeader header;
  header.flags = source.begins_commit ? kBeginsCommit : 0;
  if (!texts.empty()) {
    header.flags |= kHasTexts;
    const auto size = static_cast<std::uint32_t>(texts.size());
    std::memcpy(target, &size, sizeof(size));
    std::memcpy(target + sizeof(size), texts.data(), texts.size());
    target += sizeof(size) + texts.size();
  }
  std::memset(target, 0, static_cast<std::size_t>(record.data() + record.size() - target));
  header.count = static_cast<std::uint16_t>(source.count);
  header.sequence = source.header->sequence;
  header.generation = source.header->generation;
  header.order = source.order;
  header.start_token = source.start_token;
  header.record_bytes = record.size();
  header.payload_checksum = hash64(record.subspan(sizeof(RecordHeader)));
  header.header_checksum = hash64(as_bytes_of(header).first(kRecordHeaderSummed));
  std::memcpy(record.data(), &header, sizeof(header));
}

Result<TailReplay> replay_tail_log(ByteSpan file, const TailLogHeader& expected,
                                   const Geometry& geometry, const PlaneLayout& layout,
                                   TokenRecord* tokens, std::byte* plane) {
  KVT_TRY(const TailLogHeader header, parse_tail_log_header(file));
  KVT_TRY_VOID(check_expected(header, expected));
  TailReplay replay;
  RecordHeader record;
  TokenTexts texts;
  while (read_record(file, replay.end_offset, header, geometry, &record, &texts)) {
    // A record continues what was replayed, or replaces the end of it; it stays inside the half.
    if (record.order != replay.next_order || record.start_token < header.base_token) break;
    const std::uint64_t first = record.start_token - header.base_token;
    if (first > replay.tokens || record.count > kSegmentTokensMax - first) break;
    const ByteSpan payload = file.subspan(replay.end_offset + sizeof(RecordHeader),
                                          record.record_bytes - sizeof(RecordHeader));
    apply_record(payload, static_cast<std::uint32_t>(first), record.count, geometry, layout, tokens,
                 plane);
    replay.texts.resize(static_cast<std::uint32_t>(first));
    replay.texts.append(texts, 0, record.count);
    replay.tokens = static_cast<std::uint32_t>(first) + record.count;
    replay.end_offset += record.record_bytes;
    ++replay.next_order;
  }
  replay.torn = file.size() % kDiskAlign != 0 ||
                !all_zero(file.subspan(std::min<std::uint64_t>(replay.end_offset, file.size())));
  return replay;
}

bool later_commit_follows(ByteSpan file, const TailLogHeader& header, const TailReplay& replay) {
  for (std::uint64_t offset = replay.end_offset + kDiskAlign;
       offset + kTailRecordHeaderBytes <= file.size(); offset += kDiskAlign) {
    const Result<TailRecordInfo> record = parse_tail_record_header(file.subspan(offset));
    if (record && record->sequence == header.sequence && record->generation == header.generation &&
        record->begins_commit && record->order > replay.next_order)
      return true;
  }
  return false;
}

std::string tail_log_path(SequenceId sequence, std::uint64_t generation) {
  std::string path(kPrefix);
  path += hex16(sequence.value);
  path += '-';
  path += hex16(generation);
  path += kSuffix;
  return path;
}

Result<TailLogName> tail_log_name_of(std::string_view file_name) {
  if (file_name.size() != 33 + kSuffix.size() || !file_name.ends_with(kSuffix) ||
      file_name[16] != '-')
    return error(Code::kInvalid, "not the name of a tail log");
  KVT_TRY(const std::uint64_t sequence, parse_hex16(file_name.substr(0, 16)));
  KVT_TRY(const std::uint64_t generation, parse_hex16(file_name.substr(17, 16)));
  if (sequence == 0) return error(Code::kInvalid, "not the name of a tail log");
  return TailLogName{SequenceId{sequence}, generation};
}

}  // namespace kvtier
