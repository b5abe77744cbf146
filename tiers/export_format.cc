#include "tiers/export_format.h"

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "kernels/abstract_spec.h"
#include "tiers/format_head.h"
#include "tiers/segment_format.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTEXP\x1a\n";
constexpr std::uint32_t kFrameMagic = 0x5854564B;  // "KVTX"
enum FrameKind : std::uint32_t { kDescription = 1, kSegment = 2, kChunk = 3, kEnd = 4 };

static_assert(kExportHeadBytes == kHeadBytes);

struct FrameHeader {
  std::uint32_t magic = kFrameMagic;
  std::uint32_t kind = 0;
  std::uint64_t order = 0;  // 0, 1, 2 ... in the file
  std::uint64_t payload_bytes = 0;
  std::uint64_t payload_checksum = 0;
  std::uint32_t codec = 0;  // of a chunk
  std::uint32_t index = 0;  // of a chunk, in plane order
  std::uint64_t chain = 0;  // over the head and all frame headers before this one
  std::uint64_t reserved = 0;
  std::uint64_t header_checksum = 0;  // of the fields above
};
static_assert(sizeof(FrameHeader) == kExportFrameHeaderBytes, "written as it is");
constexpr std::size_t kFrameHeaderSummed = sizeof(FrameHeader) - sizeof(std::uint64_t);

constexpr std::uint64_t kSegmentFixedBytes = 24;
constexpr std::uint64_t kSegmentPayloadMax = kSegmentFixedBytes +
                                             kSegmentTokensMax * sizeof(TokenRecord) +
                                             kSegmentTextBytesMax + kSegmentSnapshotBytesMax;
constexpr std::uint64_t kDescriptionPayloadMax =
    4 * (kExportTextBytesMax + 4) + 8 + 16 * kLayersMax + 64;

void write_text(const std::string& text, ByteWriter* writer) {
  writer->write<std::uint32_t>(static_cast<std::uint32_t>(text.size()));
  writer->write_bytes(as_bytes(text));
}

// Sets the reader to failed where the text is above its limit.
std::string read_text(ByteReader* reader, std::uint32_t bytes_max) {
  const auto size = reader->read<std::uint32_t>();
  const ByteSpan bytes = reader->read_bytes(size > bytes_max ? UINT64_MAX : size);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<void> check_description(const ExportDescription& description) {
  const Fingerprint& fingerprint = description.fingerprint;
  for (const std::string* text : {&fingerprint.model, &fingerprint.runtime, &fingerprint.detail})
    if (text->size() > kExportTextBytesMax)
      return error(Code::kTooLarge, "a text of the space is above 64 KiB");
  if (description.name.size() > kNameBytesMax)
    return error(Code::kTooLarge, "the name is above 256 bytes");
  if (description.tokens > kSequenceTokensMax || description.segments > kSequenceSegmentsMax)
    return error(Code::kTooLarge, "the sequence is too long");
  if (description.segments > description.tokens)
    return error(Code::kInvalid, "a segment has at least one token");
  return fingerprint.geometry.validate();
}

// The layer of a chunk, and what of it lies behind the last of `tokens` tokens.
void clear_invisible_rows(const Geometry& geometry, const PlaneLayout::ChunkPlace& place,
                          std::uint32_t tokens, std::byte* chunk) {
  const LayerGeometry& layer = geometry.layers[place.layer];
  const std::uint32_t first = place.chunk * geometry.chunk_tokens;
  const std::uint32_t used = std::min<std::uint32_t>(tokens - first, geometry.chunk_tokens);
  if (used == geometry.chunk_tokens) return;
  const std::uint64_t rest = geometry.chunk_tokens - used;
  for (std::uint32_t head = 0; head < geometry.heads_in_group(place.layer); ++head) {
    std::memset(chunk + k_row_offset(geometry, layer, head, used), 0, rest * layer.k_row_bytes);
    std::memset(chunk + v_row_offset(geometry, layer, head, used), 0, rest * layer.v_row_bytes);
  }
}

std::uint64_t next_chain(std::uint64_t chain, const FrameHeader& header) {
  return hash64(as_bytes_of(header), chain);
}

// Kinds of abstracts that there are, none twice.
bool are_abstracts(std::vector<std::uint32_t> kinds) {
  std::sort(kinds.begin(), kinds.end());
  return std::adjacent_find(kinds.begin(), kinds.end()) == kinds.end() &&
         std::all_of(kinds.begin(), kinds.end(), [](std::uint32_t kind) {
           return kind != 0 && unpack_abstract_spec(kind).has_value();
         });
}

}  // namespace

ExportWriter::ExportWriter(ExportSink sink, CodecId codec)
    : sink_(std::move(sink)), codec_(codec) {}

Result<void> ExportWriter::write(ByteSpan bytes) {
  if (state_ == State::kFailed) return error(Code::kInvalid, "the export has failed before");
  Result<void> result = sink_(bytes);
  if (!result) {
    state_ = State::kFailed;
    return result;
  }
  written_bytes_ += bytes.size();
  return {};
}

Result<void> ExportWriter::write_frame(std::uint32_t kind, std::uint32_t codec, std::uint32_t index,
                                       ByteSpan payload) {
  FrameHeader header;
  header.kind = kind;
  header.order = order_++;
  header.payload_bytes = payload.size();
  header.payload_checksum = hash64(payload);
  header.codec = codec;
  header.index = index;
  header.chain = chain_;
  header.header_checksum = hash64(as_bytes_of(header).first(kFrameHeaderSummed));
  chain_ = next_chain(chain_, header);
  KVT_TRY_VOID(write(as_bytes_of(header)));
  return write(payload);
}

Result<void> ExportWriter::begin(const ExportDescription& description) {
  if (state_ != State::kNew) return error(Code::kInvalid, "an export begins once");
  KVT_TRY_VOID(check_description(description));
  description_ = description;
  state_ = State::kOpen;
  ByteWriter head;
  begin_head(kMagic, kExportVersion, &head);
  head.write(fingerprint_digest(description.fingerprint));
  head.write(description.tokens);
  head.write(description.segments);
  finish_head(&head);
  chain_ = hash64(head.view());
  KVT_TRY_VOID(write(head.view()));
  ByteWriter payload;
  write_text(description.fingerprint.model, &payload);
  write_text(description.fingerprint.runtime, &payload);
  write_text(description.fingerprint.detail, &payload);
  encode_geometry(description.fingerprint.geometry, &payload);
  write_text(description.name, &payload);
  payload.write(static_cast<std::uint32_t>(description.abstracts.size()));
  for (const std::uint32_t abstract : description.abstracts) payload.write(abstract);
  payload.write(description.created_unix_ns);
  return write_frame(kDescription, 0, 0, payload.view());
}

Result<void> ExportWriter::begin_segment(const ExportSegment& segment) {
  if (state_ != State::kOpen || next_chunk_ != chunks_)
    return error(Code::kInvalid, "a segment begins after all chunks of the one before");
  const std::uint64_t count = segment.tokens.size();
  if (count == 0 || count > kSegmentTokensMax)
    return error(Code::kInvalid, "a segment has 1 to 2048 tokens");
  if (segments_ == description_.segments || count > description_.tokens - tokens_ ||
      segment.start_token != tokens_)
    return error(Code::kInvalid, "the segments do not add up to the sequence");
  if (!segment.texts.empty() && segment.texts.tokens() != count)
    return error(Code::kInvalid, "the texts are of another number of tokens");
  if (segment.snapshot.size() > kSegmentSnapshotBytesMax)
    return error(Code::kTooLarge, "the snapshot of the segment is above its limit");
  ByteWriter payload;
  payload.write(segment.start_token);
  payload.write(static_cast<std::uint32_t>(count));
  payload.write(static_cast<std::uint32_t>(segment.texts.encoded_bytes()));
  payload.write<std::uint64_t>(segment.snapshot.size());
  payload.write_bytes(std::as_bytes(std::span(segment.tokens)));
  payload.write_bytes(segment.texts.encode());
  payload.write_bytes(segment.snapshot);
  KVT_TRY_VOID(write_frame(kSegment, 0, segments_, payload.view()));
  ++segments_;
  tokens_ += count;
  segment_tokens_ = static_cast<std::uint32_t>(count);
  next_chunk_ = 0;
  chunks_ = PlaneLayout(description_.fingerprint.geometry, segment_tokens_).chunks_total();
  return {};
}

Result<void> ExportWriter::add_chunk(ByteSpan raw) {
  if (state_ != State::kOpen || next_chunk_ == chunks_)
    return error(Code::kInvalid, "the segment has all its chunks");
  const Geometry& geometry = description_.fingerprint.geometry;
  const PlaneLayout::ChunkPlace place =
      PlaneLayout(geometry, segment_tokens_).place_of(next_chunk_);
  if (raw.size() != geometry.chunk_bytes(place.layer))
    return error(Code::kInvalid, "the chunk has another length");
  scratch_.assign(raw.begin(), raw.end());
  clear_invisible_rows(geometry, place, segment_tokens_, scratch_.data());
  CodecId used{};
  const std::vector<std::byte> stored =
      encode_chunk(codec_, scratch_, dtype_bytes(geometry.layers[place.layer].dtype), &used);
  return write_frame(kChunk, static_cast<std::uint32_t>(used), next_chunk_++, stored);
}

Result<void> ExportWriter::finish() {
  if (state_ != State::kOpen || next_chunk_ != chunks_ || segments_ != description_.segments ||
      tokens_ != description_.tokens)
    return error(Code::kInvalid, "the export is not complete");
  const std::uint64_t total[2] = {written_bytes_, chain_};
  KVT_TRY_VOID(write_frame(kEnd, 0, 0, as_bytes_of(total)));
  state_ = State::kDone;
  return {};
}

struct ExportReader::Frame {
  FrameHeader header;
  std::vector<std::byte> payload;
  // Where the next frame begins.
  [[nodiscard]] Place after(const Place& at) const noexcept {
    return {at.offset + sizeof(FrameHeader) + payload.size(), at.order + 1,
            next_chain(at.chain, header), at.start_token};
  }
};

Result<ExportReader::Frame> ExportReader::read_frame(const Place& at, std::uint32_t kind,
                                                     std::uint64_t bytes_max) {
  if (at.offset > source_.size_bytes || source_.size_bytes - at.offset < sizeof(FrameHeader))
    return error(Code::kCorrupt, "the export file is cut short");
  Frame frame;
  KVT_TRY_VOID(
      source_.read(at.offset, {reinterpret_cast<std::byte*>(&frame.header), sizeof(FrameHeader)}));
  const FrameHeader& header = frame.header;
  if (hash64(as_bytes_of(header).first(kFrameHeaderSummed)) != header.header_checksum ||
      header.magic != kFrameMagic)
    return error(Code::kCorrupt, "a frame of the export file is damaged");
  if (header.kind != kind || header.order != at.order || header.chain != at.chain ||
      header.reserved != 0 || (kind != kChunk && header.codec != 0))
    return error(Code::kCorrupt, "a frame of the export file is not in its place");
  if (header.payload_bytes > bytes_max ||
      header.payload_bytes > source_.size_bytes - at.offset - sizeof(FrameHeader))
    return error(Code::kCorrupt, "a frame of the export file is cut short, or above its limit");
  frame.payload.resize(header.payload_bytes);
  KVT_TRY_VOID(source_.read(at.offset + sizeof(FrameHeader), frame.payload));
  if (hash64(frame.payload) != header.payload_checksum)
    return error(Code::kCorrupt, "a checksum of the export file is wrong");
  return frame;
}

Result<void> ExportReader::read_description(Place* at) {
  // Before any checksum: a file of another kind is not called damaged.
  std::vector<std::byte> head(std::min<std::uint64_t>(source_.size_bytes, kExportHeadBytes));
  KVT_TRY_VOID(source_.read(0, head));
  const std::size_t magic_bytes = std::min(head.size(), kMagic.size());
  if (magic_bytes == 0 || !std::ranges::equal(ByteSpan(head).first(magic_bytes),
                                              as_bytes(kMagic.substr(0, magic_bytes))))
    return error(Code::kCorrupt, kNoExport);
  if (head.size() < kExportHeadBytes) return error(Code::kCorrupt, "the export file is cut short");
  KVT_TRY(ByteReader head_reader, open_head(head, kMagic, kExportVersion));
  const auto digest = head_reader.read<BlockHash>();
  description_.tokens = head_reader.read<std::uint64_t>();
  description_.segments = head_reader.read<std::uint32_t>();
  KVT_TRY_VOID(expect_zeros(&head_reader));
  *at = {.offset = kExportHeadBytes, .order = 0, .chain = hash64(head), .start_token = 0};
  KVT_TRY(const Frame frame, read_frame(*at, kDescription, kDescriptionPayloadMax));
  *at = frame.after(*at);
  ByteReader reader(frame.payload);
  Fingerprint& fingerprint = description_.fingerprint;
  fingerprint.model = read_text(&reader, kExportTextBytesMax);
  fingerprint.runtime = read_text(&reader, kExportTextBytesMax);
  fingerprint.detail = read_text(&reader, kExportTextBytesMax);
  Result<Geometry> geometry = decode_geometry(&reader);
  if (!geometry) return error(Code::kCorrupt, geometry.error().text);
  fingerprint.geometry = *std::move(geometry);
  description_.name = read_text(&reader, kNameBytesMax);
  const auto abstracts = reader.read<std::uint32_t>();
  for (std::uint32_t i = 0; i < abstracts && i < kSpaceAbstractsMax; ++i)
    description_.abstracts.push_back(reader.read<std::uint32_t>());
  description_.created_unix_ns = reader.read<std::uint64_t>();
  if (!reader.ok() || reader.remaining() != 0 || frame.header.index != 0 ||
      !are_abstracts(description_.abstracts) || !check_description(description_))
    return error(Code::kCorrupt, "the description of the export file is wrong");
  if (fingerprint_digest(fingerprint) != digest)
    return error(Code::kCorrupt, "the export file's space has another fingerprint");
  return {};
}

Result<ExportSegment> ExportReader::read_segment_at(std::uint32_t index, Place* at) {
  KVT_TRY(const Frame frame, read_frame(*at, kSegment, kSegmentPayloadMax));
  ByteReader reader(frame.payload);
  ExportSegment segment;
  segment.start_token = reader.read<std::uint64_t>();
  const auto tokens = reader.read<std::uint32_t>();
  const auto text_bytes = reader.read<std::uint32_t>();
  const auto snapshot_bytes = reader.read<std::uint64_t>();
  const ByteSpan token_span = reader.read_bytes(tokens * sizeof(TokenRecord));
  const ByteSpan texts = reader.read_bytes(text_bytes);
  const ByteSpan snapshot = reader.read_bytes(snapshot_bytes);
  if (!reader.ok() || reader.remaining() != 0 || tokens == 0 || tokens > kSegmentTokensMax ||
      frame.header.index != index || segment.start_token != at->start_token ||
      tokens > description_.tokens - at->start_token || text_bytes > kSegmentTextBytesMax ||
      snapshot_bytes > kSegmentSnapshotBytesMax)
    return error(Code::kCorrupt, "a segment of the export file is wrong");
  segment.tokens.resize(tokens);
  std::memcpy(static_cast<void*>(segment.tokens.data()), token_span.data(), token_span.size());
  KVT_TRY(segment.texts, TokenTexts::parse(texts, tokens));
  segment.snapshot.assign(snapshot.begin(), snapshot.end());
  *at = frame.after(*at);
  at->start_token += tokens;
  return segment;
}

Result<void> ExportReader::read_chunks_at(Place* at, std::uint32_t tokens,
                                          const ChunkVisitor& visit) {
  const Geometry& geometry = description_.fingerprint.geometry;
  const PlaneLayout layout(geometry, tokens);
  std::vector<std::byte> raw;
  for (std::uint32_t index = 0; index < layout.chunks_total(); ++index) {
    const std::uint32_t layer = layout.place_of(index).layer;
    raw.resize(geometry.chunk_bytes(layer));
    KVT_TRY(const Frame frame, read_frame(*at, kChunk, raw.size()));
    if (frame.header.index != index ||
        frame.header.codec > static_cast<std::uint32_t>(CodecId::kZstd))
      return error(Code::kCorrupt, "a chunk of the export file is not in its place");
    KVT_TRY_VOID(decode_chunk(static_cast<CodecId>(frame.header.codec), frame.payload,
                              dtype_bytes(geometry.layers[layer].dtype), raw));
    KVT_TRY_VOID(visit(index, raw));
    *at = frame.after(*at);
  }
  return {};
}

Result<void> ExportReader::read_end(const Place& at) {
  KVT_TRY(const Frame frame, read_frame(at, kEnd, 2 * sizeof(std::uint64_t)));
  ByteReader reader(frame.payload);
  const auto bytes = reader.read<std::uint64_t>();
  const auto chain = reader.read<std::uint64_t>();
  if (!reader.ok() || bytes != at.offset || chain != at.chain ||
      at.start_token != description_.tokens)
    return error(Code::kCorrupt, "the export file does not end as it must");
  if (frame.after(at).offset != source_.size_bytes)
    return error(Code::kCorrupt, "the export file goes on behind its end");
  return {};
}

Result<ExportReader> ExportReader::open(
    ExportSource source, const std::function<bool(std::uint64_t done_bytes)>& progress) {
  ExportReader reader;
  reader.source_ = std::move(source);
  Place at;
  KVT_TRY_VOID(reader.read_description(&at));
  for (std::uint32_t i = 0; i < reader.description_.segments; ++i) {
    reader.offsets_.push_back(at);
    KVT_TRY(const ExportSegment segment, reader.read_segment_at(i, &at));
    KVT_TRY_VOID(reader.read_chunks_at(&at, static_cast<std::uint32_t>(segment.tokens.size()),
                                       [](std::uint32_t, ByteSpan) -> Result<void> { return {}; }));
    if (progress && !progress(at.offset))
      return error(Code::kCancelled, "the import was cancelled");
  }
  KVT_TRY_VOID(reader.read_end(at));
  return reader;
}

Result<ExportSegment> ExportReader::read_segment(std::uint32_t index) {
  if (index >= offsets_.size()) return error(Code::kInvalid, "the export file has fewer segments");
  Place at = offsets_[index];
  return read_segment_at(index, &at);
}

Result<void> ExportReader::read_chunks(std::uint32_t index, const ChunkVisitor& visit) {
  if (index >= offsets_.size()) return error(Code::kInvalid, "the export file has fewer segments");
  Place at = offsets_[index];
  KVT_TRY(const ExportSegment segment, read_segment_at(index, &at));
  return read_chunks_at(&at, static_cast<std::uint32_t>(segment.tokens.size()), visit);
}

}  // namespace kvtier
