#include "tests/fault/regions.h"

#include <algorithm>
#include <iterator>

#include "base/bytes.h"
#include "kernels/layout.h"
#include "tiers/format_head.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier::testing {

std::vector<Region> segment_regions(std::string_view file) {
  const ByteSpan bytes = as_bytes(file);
  const Result<std::uint64_t> meta_bytes = parse_segment_header(bytes);
  if (!meta_bytes) return {};
  const Result<SegmentMeta> meta = parse_segment_meta(bytes.first(*meta_bytes));
  if (!meta) return {};
  std::vector<Region> regions = {{"header", 0, kSegmentHeaderBytes, true}};
  static constexpr const char* kNames[] = {"geometry", "tokens", "text", "snapshot", "chunk table"};
  ByteReader entries(bytes.subspan(120, std::size(kNames) * 24));  // docs/formats.md, Segment
  std::uint64_t end = kSegmentHeaderBytes;
  for (const char* name : kNames) {
    Region region{name, 0, 0, true};
    region.offset = entries.read<std::uint64_t>();
    region.size_bytes = entries.read<std::uint64_t>();
    static_cast<void>(entries.read<std::uint64_t>());
    end = region.offset + region.size_bytes;
    if (region.size_bytes != 0) regions.push_back(std::move(region));
  }
  if (end < *meta_bytes) regions.push_back({"padding", end, *meta_bytes - end, true});
  for (std::size_t i = 0; i < meta->chunks.size(); ++i) {
    const ChunkEntry& chunk = meta->chunks[i];
    const std::string name = "chunk " + std::to_string(i);
    regions.push_back({name, chunk.offset, chunk.stored_bytes, true});
    const std::uint64_t padding = align_up<std::uint64_t>(chunk.stored_bytes, kDiskAlign);
    if (padding != chunk.stored_bytes)
      regions.push_back(
          {name, chunk.offset + chunk.stored_bytes, padding - chunk.stored_bytes, false});
  }
  return regions;
}

std::vector<Region> tail_log_regions(std::string_view file) {
  const ByteSpan bytes = as_bytes(file);
  if (!parse_tail_log_header(bytes)) return {};
  std::vector<Region> regions = {{"header", 0, kTailLogHeaderBytes, true}};
  for (std::uint64_t offset = kTailLogHeaderBytes; offset < bytes.size();) {
    const Result<TailRecordInfo> record = parse_tail_record_header(bytes.subspan(offset));
    if (!record) return {};
    const std::string name = "record " + std::to_string(record->order);
    regions.push_back({name, offset, kTailRecordHeaderBytes, true});
    const std::uint64_t tokens = record->count * sizeof(TokenRecord);
    regions.push_back({name, offset + kTailRecordHeaderBytes, tokens, true});
    const std::uint64_t rows = offset + kTailRecordHeaderBytes + tokens;
    regions.push_back({name, rows, offset + record->record_bytes - rows, true});
    offset += record->record_bytes;
  }
  return regions;
}

std::vector<Region> sidecar_regions(std::string_view file) {
  const ByteSpan bytes = as_bytes(file);
  const Result<SidecarHeader> header = parse_sidecar_header(bytes);
  if (!header) return {};
  std::vector<Region> regions = {{"header", 0, kSidecarHeaderBytes, true},
                                 {"payload", kSidecarHeaderBytes, header->payload_bytes, true}};
  const std::uint64_t end = kSidecarHeaderBytes + header->payload_bytes;
  if (end < bytes.size()) regions.push_back({"padding", end, bytes.size() - end, false});
  return regions;
}

}  // namespace kvtier::testing
