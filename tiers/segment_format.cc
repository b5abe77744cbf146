#include "tiers/segment_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTSEG\x1a\n";
constexpr std::string_view kPrefix = "segments/";
constexpr std::string_view kSuffix = ".kvs";
constexpr std::uint64_t kRegionAlign = 8;
constexpr std::uint64_t kGeometryFixedBytes = 8;
constexpr std::uint64_t kGeometryLayerBytes = 16;
constexpr std::uint64_t kGeometryBytesMax = kGeometryFixedBytes + kGeometryLayerBytes * kLayersMax;
constexpr std::uint64_t kChunksMax =
    static_cast<std::uint64_t>(kLayersMax) * kHeadsMax * (kSegmentTokensMax / 8);

static_assert(kSegmentHeaderBytes == kHeadBytes);

// The metadata's regions, in this order, each at the next multiple of 8.
enum Region : std::size_t { kGeometry, kTokens, kText, kSnapshot, kChunkTable, kRegions };

struct RegionEntry {
  std::uint64_t offset = 0;  // in the file
  std::uint64_t size_bytes = 0;
  std::uint64_t checksum = 0;
};

struct Header {
  SegmentId id;
  SpaceId space;
  BlockHash fingerprint;
  SegmentId parent;
  std::uint32_t parent_visible = 0;
  std::uint32_t tokens = 0;
  std::uint64_t start_token = 0;
  std::uint64_t created_unix_ns = 0;
  BlockHash previous_chain;
  std::uint32_t chunks = 0;
  std::uint64_t meta_bytes = 0;
  std::uint64_t file_bytes = 0;
  std::array<RegionEntry, kRegions> regions;
};

std::array<std::uint64_t, kRegions> region_sizes(const SegmentMeta& meta) noexcept {
  const std::uint64_t chunks =
      PlaneLayout(meta.geometry, static_cast<std::uint32_t>(meta.tokens.size())).chunks_total();
  return {kGeometryFixedBytes + kGeometryLayerBytes * meta.geometry.layers.size(),
          meta.tokens.size() * sizeof(TokenRecord), meta.texts.encoded_bytes(),
          meta.snapshot.size(), chunks * sizeof(ChunkEntry)};
}

// Fills the offsets from the sizes; returns where the metadata ends, padded.
std::uint64_t place_regions(std::array<RegionEntry, kRegions>* regions) noexcept {
  std::uint64_t offset = kSegmentHeaderBytes;
  for (RegionEntry& region : *regions) {
    offset = align_up(offset, kRegionAlign);
    region.offset = offset;
    offset += region.size_bytes;
  }
  return align_up(offset, kDiskAlign);
}

void write_header(const Header& header, ByteWriter* writer) {
  begin_head(kMagic, kSegmentVersion, writer);
  writer->write(header.id);
  writer->write(header.space);
  writer->write(header.fingerprint);
  writer->write(header.parent);
  writer->write(header.parent_visible);
  writer->write(header.tokens);
  writer->write(header.start_token);
  writer->write(header.created_unix_ns);
  writer->write(header.previous_chain);
  writer->write(header.chunks);
  writer->write<std::uint32_t>(0);
  writer->write(header.meta_bytes);
  writer->write(header.file_bytes);
  for (const RegionEntry& region : header.regions) writer->write(region);
  finish_head(writer);
}

Result<void> check_regions(const Header& header) {
  static constexpr std::array<std::uint64_t, kRegions> kBytesMax = {
      kGeometryBytesMax, kSegmentTokensMax * sizeof(TokenRecord), kSegmentTextBytesMax,
      kSegmentSnapshotBytesMax, kChunksMax * sizeof(ChunkEntry)};
  for (std::size_t i = 0; i < kRegions; ++i)
    if (header.regions[i].size_bytes > kBytesMax[i])
      return error(Code::kCorrupt, "a region of the segment is above its limit");
  if (header.regions[kTokens].size_bytes != header.tokens * sizeof(TokenRecord) ||
      header.regions[kChunkTable].size_bytes != header.chunks * sizeof(ChunkEntry))
    return error(Code::kCorrupt, "the segment's counts and regions do not agree");
  std::array<RegionEntry, kRegions> expected = header.regions;
  if (place_regions(&expected) != header.meta_bytes)
    return error(Code::kCorrupt, "the segment's metadata has another length than its regions");
  for (std::size_t i = 0; i < kRegions; ++i)
    if (expected[i].offset != header.regions[i].offset)
      return error(Code::kCorrupt, "a region of the segment is not where it must be");
  if (header.file_bytes < header.meta_bytes || header.file_bytes % kDiskAlign != 0)
    return error(Code::kCorrupt, "the segment's length is wrong");
  return {};
}

// The fields as they stand in the header; the reader stands behind the flags.
Result<Header> read_fields(ByteReader reader) {
  Header header;
  header.id = reader.read<SegmentId>();
  header.space = reader.read<SpaceId>();
  header.fingerprint = reader.read<BlockHash>();
  header.parent = reader.read<SegmentId>();
  header.parent_visible = reader.read<std::uint32_t>();
  header.tokens = reader.read<std::uint32_t>();
  header.start_token = reader.read<std::uint64_t>();
  header.created_unix_ns = reader.read<std::uint64_t>();
  header.previous_chain = reader.read<BlockHash>();
  header.chunks = reader.read<std::uint32_t>();
  const auto reserved = reader.read<std::uint32_t>();
  header.meta_bytes = reader.read<std::uint64_t>();
  header.file_bytes = reader.read<std::uint64_t>();
  for (RegionEntry& region : header.regions) region = reader.read<RegionEntry>();
  KVT_TRY_VOID(expect_zeros(&reader));
  if (reserved != 0) return error(Code::kCorrupt, "bytes that must be zero are not");
  return header;
}

Result<void> check_identity(const Header& header) {
  if (!header.id.valid() || !header.space.valid())
    return error(Code::kCorrupt, "the segment has no id or no space");
  if (header.tokens == 0 || header.tokens > kSegmentTokensMax)
    return error(Code::kCorrupt, "a segment has 1 to 2048 tokens");
  if (header.start_token > kSequenceTokensMax - header.tokens)
    return error(Code::kCorrupt, "the segment lies beyond the longest sequence");
  if (header.parent.valid()
          ? header.parent_visible == 0 || header.parent_visible > kSegmentTokensMax
          : header.parent_visible != 0)
    return error(Code::kCorrupt, "the segment's parent is wrong");
  return {};
}

Result<Header> read_header(ByteSpan bytes) {
  KVT_TRY(const ByteReader reader, open_head(bytes, kMagic, kSegmentVersion));
  KVT_TRY(const Header header, read_fields(reader));
  KVT_TRY_VOID(check_identity(header));
  KVT_TRY_VOID(check_regions(header));
  return header;
}

// Checksums of all regions, and zeros between and after them.
Result<void> check_region_bytes(const Header& header, ByteSpan bytes) {
  std::uint64_t end = kSegmentHeaderBytes;
  for (const RegionEntry& region : header.regions) {
    if (!all_zero(bytes.subspan(end, region.offset - end)))
      return error(Code::kCorrupt, "bytes that must be zero are not");
    if (hash64(bytes.subspan(region.offset, region.size_bytes)) != region.checksum)
      return error(Code::kCorrupt, "a metadata checksum of the segment is wrong");
    end = region.offset + region.size_bytes;
  }
  if (!all_zero(bytes.subspan(end, header.meta_bytes - end)))
    return error(Code::kCorrupt, "bytes that must be zero are not");
  return {};
}

Result<Geometry> read_geometry(ByteSpan bytes) {
  ByteReader reader(bytes);
  Result<Geometry> geometry = decode_geometry(&reader);
  if (!geometry) return error(Code::kCorrupt, geometry.error().text);
  ByteWriter again;  // one geometry, one byte form
  encode_geometry(*geometry, &again);
  if (!std::ranges::equal(again.view(), bytes))
    return error(Code::kCorrupt, "the geometry has another byte form");
  return geometry;
}

Result<void> check_chunk(const ChunkEntry& chunk, std::uint64_t chunk_bytes) {
  const bool zeros = chunk.flags == 0 && chunk.reserved[0] == 0 && chunk.reserved[1] == 0;
  if (!zeros) return error(Code::kCorrupt, "a chunk has unknown flags");
  if (chunk.key_id != 0 || !all_zero(chunk.tag))
    return error(Code::kVersion, "the segment has encrypted chunks: this kvtier cannot read them");
  if (chunk.codec != CodecId::kRaw && chunk.codec != CodecId::kZstd)
    return error(Code::kCorrupt, "a chunk's codec is unknown");
  if (chunk.codec == CodecId::kRaw ? chunk.stored_bytes != chunk_bytes
                                   : chunk.stored_bytes == 0 || chunk.stored_bytes > chunk_bytes)
    return error(Code::kCorrupt, "a chunk has another length than its geometry says");
  return {};
}

Result<void> check_chunks(const Header& header, const SegmentMeta& meta) {
  const PlaneLayout layout(meta.geometry, header.tokens);
  if (layout.chunks_total() != header.chunks)
    return error(Code::kCorrupt, "the segment has another number of chunks than its geometry says");
  std::uint64_t end = header.meta_bytes;  // so far; chunks lie in plane order and do not overlap
  std::uint32_t index = 0;
  for (std::uint32_t layer = 0; layer < meta.geometry.layers.size(); ++layer) {
    const std::uint64_t chunk_bytes = meta.geometry.chunk_bytes(layer);
    const std::uint32_t count = layout.chunks_per_layer() * meta.geometry.groups(layer);
    for (std::uint32_t i = 0; i < count; ++i, ++index) {
      const ChunkEntry& chunk = meta.chunks[index];
      KVT_TRY_VOID(check_chunk(chunk, chunk_bytes));
      const std::uint64_t padded = align_up<std::uint64_t>(chunk.stored_bytes, kDiskAlign);
      if (chunk.offset % kDiskAlign != 0 || chunk.offset < end ||
          chunk.offset > header.file_bytes || padded > header.file_bytes - chunk.offset)
        return error(Code::kCorrupt, "a chunk is not inside the segment, or overlaps another");
      end = chunk.offset + padded;
    }
  }
  if (end != header.file_bytes)
    return error(Code::kCorrupt, "the segment does not end with its last chunk");
  return {};
}

template <class T>
std::vector<T> copy_of(ByteSpan bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

std::uint64_t SegmentMeta::file_bytes() const noexcept {
  if (chunks.empty()) return segment_meta_bytes(*this);
  return chunks.back().offset + align_up<std::uint64_t>(chunks.back().stored_bytes, kDiskAlign);
}

std::uint64_t chunk_checksum(SegmentId segment, std::uint32_t chunk_index,
                             ByteSpan stored) noexcept {
  const std::uint64_t index = chunk_index + 1ull;
  return hash64(stored, segment.value * 0x9E3779B97F4A7C15ull ^ index * 0xBF58476D1CE4E5B9ull);
}

std::uint64_t segment_meta_bytes(const SegmentMeta& meta) {
  const std::array<std::uint64_t, kRegions> sizes = region_sizes(meta);
  std::array<RegionEntry, kRegions> regions;
  for (std::size_t i = 0; i < kRegions; ++i) regions[i].size_bytes = sizes[i];
  return place_regions(&regions);
}

void place_raw_chunks(SegmentMeta* meta) {
  const PlaneLayout layout(meta->geometry, static_cast<std::uint32_t>(meta->tokens.size()));
  meta->chunks.resize(layout.chunks_total());
  std::uint64_t offset = segment_meta_bytes(*meta);
  std::uint32_t index = 0;
  for (std::uint32_t layer = 0; layer < meta->geometry.layers.size(); ++layer) {
    const std::uint32_t count = layout.chunks_per_layer() * meta->geometry.groups(layer);
    for (std::uint32_t i = 0; i < count; ++i, ++index) {
      ChunkEntry& chunk = meta->chunks[index];
      chunk.offset = offset;
      chunk.stored_bytes = static_cast<std::uint32_t>(meta->geometry.chunk_bytes(layer));
      chunk.codec = CodecId::kRaw;
      offset += meta->geometry.slot_bytes(layer);
    }
  }
}

std::vector<std::byte> encode_segment_meta(const SegmentMeta& meta) {
  KVT_CHECK(meta.id.valid() && meta.space.valid());
  KVT_CHECK(!meta.tokens.empty() && meta.tokens.size() <= kSegmentTokensMax);
  KVT_CHECK(meta.texts.empty() || meta.texts.tokens() == meta.tokens.size());
  KVT_CHECK(meta.snapshot.size() <= kSegmentSnapshotBytesMax);
  ByteWriter geometry;
  encode_geometry(meta.geometry, &geometry);
  const std::vector<std::byte> texts = meta.texts.encode();
  const std::array<ByteSpan, kRegions> parts = {
      geometry.view(), std::as_bytes(std::span(meta.tokens)), texts, meta.snapshot,
      std::as_bytes(std::span(meta.chunks))};
  const std::array<std::uint64_t, kRegions> sizes = region_sizes(meta);
  Header header{.id = meta.id,
                .space = meta.space,
                .fingerprint = meta.fingerprint,
                .parent = meta.parent,
                .parent_visible = meta.parent_visible,
                .tokens = static_cast<std::uint32_t>(meta.tokens.size()),
                .start_token = meta.start_token,
                .created_unix_ns = meta.created_unix_ns,
                .previous_chain = meta.previous_chain,
                .chunks = static_cast<std::uint32_t>(meta.chunks.size()),
                .meta_bytes = 0,
                .file_bytes = meta.file_bytes(),
                .regions = {}};
  for (std::size_t i = 0; i < kRegions; ++i) {
    KVT_CHECK(parts[i].size() == sizes[i]);  // of the chunk table: place_raw_chunks was called
    header.regions[i].size_bytes = sizes[i];
    header.regions[i].checksum = hash64(parts[i]);
  }
  header.meta_bytes = place_regions(&header.regions);
  ByteWriter writer;
  write_header(header, &writer);
  for (const ByteSpan part : parts) {
    writer.pad_to(kRegionAlign);
    writer.write_bytes(part);
  }
  writer.pad_to(kDiskAlign);
  KVT_CHECK(writer.size() == header.meta_bytes);
  return writer.take();
}

Result<std::uint64_t> parse_segment_header(ByteSpan header_bytes) {
  KVT_TRY(const Header header, read_header(header_bytes));
  return header.meta_bytes;
}

Result<SegmentMeta> parse_segment_meta(ByteSpan bytes) {
  KVT_TRY(const Header header, read_header(bytes));
  if (bytes.size() < header.meta_bytes)
    return error(Code::kCorrupt, "the segment's metadata is cut short");
  KVT_TRY_VOID(check_region_bytes(header, bytes));
  const auto region = [&](Region index) {
    return bytes.subspan(header.regions[index].offset, header.regions[index].size_bytes);
  };
  SegmentMeta meta;
  meta.id = header.id;
  meta.space = header.space;
  meta.fingerprint = header.fingerprint;
  KVT_TRY(meta.geometry, read_geometry(region(kGeometry)));
  meta.parent = header.parent;
  meta.parent_visible = header.parent_visible;
  meta.start_token = header.start_token;
  meta.created_unix_ns = header.created_unix_ns;
  meta.previous_chain = header.previous_chain;
  meta.tokens = copy_of<TokenRecord>(region(kTokens));
  KVT_TRY(meta.texts, TokenTexts::parse(region(kText), header.tokens));
  meta.snapshot = copy_of<std::byte>(region(kSnapshot));
  meta.chunks = copy_of<ChunkEntry>(region(kChunkTable));
  KVT_TRY_VOID(check_chunks(header, meta));
  return meta;
}

SegmentSalvage salvage_segment_meta(ByteSpan bytes) {
  SegmentSalvage salvage;
  const bool header_sound = read_header(bytes).has_value();
  if (!header_sound) salvage.damaged.push_back("header");
  if (bytes.size() < kHeadBytes) return salvage;
  ByteReader reader(bytes.first(kHeadChecksumOffset));
  reader.skip(kHeadFieldsOffset);
  const Result<Header> header = read_fields(reader);
  if (!header || !check_regions(*header)) return salvage;
  SegmentMeta& meta = salvage.meta;
  meta.id = header->id;
  meta.space = header->space;
  meta.fingerprint = header->fingerprint;
  meta.parent = header->parent;
  meta.parent_visible = header->parent_visible;
  meta.start_token = header->start_token;
  meta.created_unix_ns = header->created_unix_ns;
  meta.previous_chain = header->previous_chain;
  salvage.meta_bytes = header->meta_bytes;
  salvage.file_bytes = header->file_bytes;
  const auto sound = [&](Region index, const char* name) -> ByteSpan {
    const RegionEntry& region = header->regions[index];
    if (region.offset <= bytes.size() && region.size_bytes <= bytes.size() - region.offset) {
      const ByteSpan found = bytes.subspan(region.offset, region.size_bytes);
      if (hash64(found) == region.checksum) return found;
    }
    salvage.damaged.push_back(name);
    return {};
  };
  if (const ByteSpan found = sound(kGeometry, "geometry"); !found.empty())
    meta.geometry = read_geometry(found).value_or(Geometry{});
  meta.tokens = copy_of<TokenRecord>(sound(kTokens, "tokens"));
  if (Result<TokenTexts> texts = TokenTexts::parse(sound(kText, "text"), header->tokens); texts)
    meta.texts = std::move(*texts);
  else
    salvage.damaged.push_back("text");
  meta.snapshot = copy_of<std::byte>(sound(kSnapshot, "snapshot"));
  const std::size_t before = salvage.damaged.size();
  meta.chunks = copy_of<ChunkEntry>(sound(kChunkTable, "chunk table"));
  salvage.chunks_known = salvage.damaged.size() == before;
  if (salvage.damaged.empty() && !parse_segment_meta(bytes)) salvage.damaged.push_back("padding");
  return salvage;
}

std::string chunk_name(const SegmentMeta& meta, std::uint32_t index) {
  std::string name = "chunk " + std::to_string(index);
  if (meta.geometry.layers.empty() || meta.tokens.empty()) return name;
  const PlaneLayout layout(meta.geometry, static_cast<std::uint32_t>(meta.tokens.size()));
  if (index >= layout.chunks_total()) return name;
  const PlaneLayout::ChunkPlace place = layout.place_of(index);
  const std::size_t first = static_cast<std::size_t>(place.chunk) * meta.geometry.chunk_tokens;
  const std::size_t last = std::min(first + meta.geometry.chunk_tokens, meta.tokens.size()) - 1;
  return name + " (layer " + std::to_string(place.layer) + ", group " +
         std::to_string(place.group) + ", tokens " + std::to_string(first) + "-" +
         std::to_string(last) + " of the segment)";
}

std::string segment_path(SegmentId id) {
  std::string path(kPrefix);
  path += hex16(id.value);
  path += kSuffix;
  return path;
}

Result<SegmentId> segment_id_of(std::string_view file_name) {
  if (!file_name.ends_with(kSuffix)) return error(Code::kInvalid, "not the name of a segment file");
  file_name.remove_suffix(kSuffix.size());
  KVT_TRY(const std::uint64_t value, parse_hex16(file_name));
  if (value == 0) return error(Code::kInvalid, "not the name of a segment file");
  return SegmentId{value};
}

}  // namespace kvtier
