#include "daemon/segment_files.h"

#include <algorithm>
#include <cstring>

#include "tiers/codec.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kWindowBytes = 4ull << 20;
static_assert(kWindowBytes >= kSlotBytesMax + kDiskAlign, "a window holds any chunk");

}  // namespace

Result<SegmentFiles> SegmentFiles::open(const IoFactory& make) {
  SegmentFiles files;
  KVT_TRY(files.io_, make());
  files.window_ = AlignedBuffer(kWindowBytes);
  return files;
}

void SegmentFiles::end() {
  if (file_.value != 0) io_->close(file_);
  file_ = {};
  window_bytes_ = 0;
}

Result<void> SegmentFiles::fill_window(std::uint64_t offset, std::uint64_t size_bytes) {
  if (offset >= window_offset_ && offset + size_bytes <= window_offset_ + window_bytes_) return {};
  const std::uint64_t begin = offset / kDiskAlign * kDiskAlign;
  std::uint64_t bytes = std::min(kWindowBytes, file_bytes_ - std::min(begin, file_bytes_));
  window_bytes_ = 0;
  if (offset + size_bytes > begin + bytes)
    return error(Code::kCorrupt, "a segment file is shorter than it should be");
  const auto read = [&] {
    return read_fully(*io_, file_, begin, {window_.data(), static_cast<std::size_t>(bytes)});
  };
  if (!read()) {  // a bad sector of what lies behind is no fault of what is asked for
    bytes = offset + size_bytes - begin;
    KVT_TRY_VOID(read());
  }
  bytes_read_ += bytes;
  window_offset_ = begin;
  window_bytes_ = bytes;
  return {};
}

Result<void> SegmentFiles::begin(SegmentId id) {
  end();
  KVT_TRY(file_, io_->open(segment_path(id), {.mode = OpenMode::kRead, .direct = false}));
  KVT_TRY(file_bytes_, io_->size_bytes(file_));
  if (file_bytes_ < kSegmentHeaderBytes)
    return error(Code::kCorrupt, "a segment file is shorter than its header");
  KVT_TRY_VOID(fill_window(0, kSegmentHeaderBytes));
  KVT_TRY(const std::uint64_t meta_bytes,
          parse_segment_header({window_.data(), kSegmentHeaderBytes}));
  if (meta_bytes > file_bytes_)
    return error(Code::kCorrupt, "a segment file is shorter than its metadata");
  std::vector<std::byte> bytes(static_cast<std::size_t>(meta_bytes));
  KVT_TRY_VOID(read_fully(*io_, file_, 0, bytes));
  bytes_read_ += meta_bytes;
  KVT_TRY(meta_, parse_segment_meta(bytes));
  if (!(meta_.id == id)) return error(Code::kCorrupt, "a segment file holds another segment");
  return {};
}

bool SegmentFiles::reaches(std::uint32_t chunk_index) const {
  const ChunkEntry& entry = meta_.chunks[chunk_index];
  return entry.offset <= file_bytes_ && entry.stored_bytes <= file_bytes_ - entry.offset;
}

Result<ByteSpan> SegmentFiles::read_chunk(std::uint32_t chunk_index) {
  if (chunk_index >= meta_.chunks.size()) return error(Code::kInvalid, "no such chunk");
  const ChunkEntry& entry = meta_.chunks[chunk_index];
  if (entry.stored_bytes > kSlotBytesMax)
    return error(Code::kCorrupt, "a chunk is larger than any may be");
  KVT_TRY_VOID(fill_window(entry.offset, entry.stored_bytes));
  const ByteSpan stored{window_.data() + (entry.offset - window_offset_), entry.stored_bytes};
  if (chunk_checksum(meta_.id, chunk_index, stored) != entry.checksum)
    return error(Code::kCorrupt, "the chunk's checksum is wrong");
  const PlaneLayout layout(meta_.geometry, static_cast<std::uint32_t>(meta_.tokens.size()));
  const std::uint32_t layer = layout.place_of(chunk_index).layer;
  const std::uint64_t raw_bytes = meta_.geometry.chunk_bytes(layer);
  if (entry.codec == CodecId::kRaw) {
    if (stored.size() < raw_bytes)
      return error(Code::kCorrupt, "a chunk is shorter than it should be");
    return stored.first(static_cast<std::size_t>(raw_bytes));
  }
  decoded_.resize(static_cast<std::size_t>(raw_bytes));
  KVT_TRY_VOID(
      decode_chunk(entry.codec, stored, dtype_bytes(meta_.geometry.layers[layer].dtype), decoded_));
  return ByteSpan(decoded_);
}

Result<void> SegmentFiles::copy_rows(std::uint32_t first, std::uint32_t count,
                                     const PlaneLayout& target, std::uint32_t target_token,
                                     std::byte* plane) {
  const Geometry& geometry = meta_.geometry;
  const std::uint32_t per_chunk = geometry.chunk_tokens;
  const PlaneLayout layout(geometry, static_cast<std::uint32_t>(meta_.tokens.size()));
  for (std::uint32_t index = 0; index < layout.chunks_total(); ++index) {
    const PlaneLayout::ChunkPlace place = layout.place_of(index);
    const std::uint32_t chunk_first = place.chunk * per_chunk;
    const std::uint32_t begin = std::max(first, chunk_first),
                        end = std::min(first + count, chunk_first + per_chunk);
    if (begin >= end) continue;
    KVT_TRY(const ByteSpan raw, read_chunk(index));
    const LayerGeometry& layer = geometry.layers[place.layer];
    for (std::uint32_t t = begin; t < end; ++t) {
      const std::uint32_t to = target_token + t - first;
      std::byte* chunk = plane + target.chunk_offset(place.layer, to / per_chunk, place.group);
      for (std::uint32_t head = 0; head < geometry.heads_in_group(place.layer); ++head) {
        std::memcpy(chunk + k_row_offset(geometry, layer, head, to % per_chunk),
                    raw.data() + k_row_offset(geometry, layer, head, t - chunk_first),
                    layer.k_row_bytes);
        std::memcpy(chunk + v_row_offset(geometry, layer, head, to % per_chunk),
                    raw.data() + v_row_offset(geometry, layer, head, t - chunk_first),
                    layer.v_row_bytes);
      }
    }
  }
  return {};
}

}  // namespace kvtier
