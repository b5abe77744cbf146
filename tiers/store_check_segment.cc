// The store check of one segment: metadata as far as it is sound, every chunk, its row.
#include <algorithm>
#include <string_view>

#include "tiers/format_head.h"
#include "tiers/store_check_files.h"
#include "tiers/store_check_read.h"

namespace kvtier {
namespace {

// Where a chunk ends with its padding; saturates instead of wrapping.
std::uint64_t padded_end(const ChunkEntry& chunk) {
  const std::uint64_t size = align_up<std::uint64_t>(chunk.stored_bytes, kDiskAlign);
  return chunk.offset > UINT64_MAX - size ? UINT64_MAX : chunk.offset + size;
}

// How many chunks of a segment are named one by one, and from how much damage on only the first:
// all of it goes into one answer.
constexpr std::uint32_t kChunksNamedMax = 64;
constexpr std::uint64_t kDamageNamedEachMax = 10'000;

// Bad chunks of one segment: those that are named, then how many more.
class BadChunks {
 public:
  BadChunks(const std::string& path, const SegmentMeta& meta, CheckSink* sink)
      : path_(path),
        meta_(meta),
        sink_(*sink),
        named_max_(sink->report().damage < kDamageNamedEachMax ? kChunksNamedMax : 1) {}

  void add(std::uint32_t index, const Status& why) {
    if (count_++ < named_max_) return sink_.failed(path_, chunk_name(meta_, index), why);
    all_unread_ = all_unread_ && why.code != Code::kCorrupt;
  }
  void end() {
    if (count_ > named_max_)
      sink_.add(path_, "chunks", all_unread_ ? FindingKind::kUnreadable : FindingKind::kDamaged,
                FindingSeverity::kDamage,
                "and " + std::to_string(count_ - named_max_) + " more chunks");
  }

 private:
  const std::string& path_;
  const SegmentMeta& meta_;
  CheckSink& sink_;
  const std::uint32_t named_max_;
  std::uint32_t count_ = 0;
  bool all_unread_ = true;  // of those that are not named
};

void check_one_chunk(const std::string& path, const SegmentMeta& meta, std::uint32_t index,
                     ByteSpan padded, BadChunks* bad, CheckSink* sink) {
  const ChunkEntry& chunk = meta.chunks[index];
  ++sink->report().chunks_checked;
  if (chunk_checksum(meta.id, index, padded.first(chunk.stored_bytes)) != chunk.checksum) {
    bad->add(index, {Code::kCorrupt, 0, "the chunk's checksum is wrong"});
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
  BadChunks bad(path, meta, sink);
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
      bad.add(first, bytes.error());
    } else {
      for (std::uint32_t i = first; i < last; ++i)
        check_one_chunk(
            path, meta, i,
            ByteSpan(*bytes).subspan(meta.chunks[i].offset - begin,
                                     padded_end(meta.chunks[i]) - meta.chunks[i].offset),
            &bad, sink);
    }
    first = last;
  }
  bad.end();
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

std::uint64_t metadata_bytes(ByteSpan head) {
  if (const Result<std::uint64_t> bytes = parse_segment_header(head)) return *bytes;
  return std::max(salvage_segment_meta(head).meta_bytes, kSegmentHeaderBytes);
}

void compare_segment(const std::string& path, const SegmentMeta& meta, const SegmentRow& row,
                     const SpaceRow* space, CheckSink* sink) {
  const auto differ = [&](bool same, const char* field) {
    if (!same)
      sink->mismatch(path, "header", std::string("the catalogue's row says another ") + field);
  };
  differ(meta.space == row.space, "space");
  differ(meta.parent == row.parent && meta.parent_visible == row.parent_visible, "parent");
  differ(meta.start_token == row.start_token, "start");
  differ(meta.tokens.size() == row.tokens, "number of tokens");
  differ(meta.file_bytes() == row.file_bytes, "length");
  const std::uint64_t blocks =
      (meta.start_token + meta.tokens.size()) / kBlockTokens - meta.start_token / kBlockTokens;
  differ(row.blocks.empty() || row.blocks.size() == blocks, "number of blocks");
  if (space == nullptr) return;  // said with the row
  if (meta.fingerprint != space->digest)
    sink->mismatch(path, "header", "the segment's fingerprint is not its space's");
  if (!(meta.geometry == space->geometry))
    sink->mismatch(path, "geometry", "the segment's geometry is not its space's");
}

// Without its row.
std::optional<SegmentMeta> check_segment_alone(Io& io, const std::string& path, SegmentId id,
                                               CheckSink* sink) {
  ReadFile file(io, path, &sink->report().segments, sink);
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
    file.check_length(meta->file_bytes());
  } else {
    meta = salvage(*bytes, path, id, parsed.error(), &chunks_known, sink);
    if (!meta) return std::nullopt;
  }
  if (meta->id != id) {
    sink->mismatch(path, "header", "this is the file of segment " + hex16(meta->id.value));
  }
  sink->report().tokens += meta->tokens.size();
  sink->report().chunks += meta->chunks.size();
  if (chunks_known && sink->deep()) check_chunks(file, path, *meta, sink);
  if (!parsed || meta->id != id) return std::nullopt;
  return meta;
}

}  // namespace

std::optional<SegmentMeta> check_segment_file(Io& io, SegmentId id, const SegmentRow* row,
                                              const SpaceRow* space, CheckSink* sink) {
  const std::string path = segment_path(id);
  std::optional<SegmentMeta> meta = check_segment_alone(io, path, id, sink);
  if (row == nullptr) return meta;
  if (row->bad)
    sink->add(path, "", FindingKind::kDamaged, FindingSeverity::kNote,
              "the segment is in quarantine already");
  if (meta) compare_segment(path, *meta, *row, space, sink);
  return meta;
}

}  // namespace kvtier
