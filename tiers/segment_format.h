// Segment file, format version 1 (byte tables in docs/formats.md: keep both in step, and the golden
// files).
//
//   [header, 4096][metadata: geometry, tokens, text, snapshot, chunk table][chunks at multiples of
//   4096]
//
// Header and every metadata region carry an xxh3-64; each chunk's is in the table. Immutable once
// published. A parser trusts no length before its checksum and bounds are checked; wrong bytes are
// kCorrupt, a newer version kVersion.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/token_texts.h"
#include "kernels/geometry.h"
#include "kernels/layout.h"
#include "tiers/codec.h"

namespace kvtier {

inline constexpr std::uint32_t kSegmentVersion = 1;
inline constexpr std::uint64_t kSegmentHeaderBytes = 4096;
inline constexpr std::uint64_t kSegmentTextBytesMax =
    kSegmentTokensMax * (kTokenTextBytesMax + sizeof(std::uint16_t));
inline constexpr std::uint64_t kSegmentSnapshotBytesMax = 256ull << 20;

// One chunk in the file. 64 bytes on disk. `checksum` is xxh3-64 of the stored bytes, seeded with
// the segment id mixed with the chunk index, so that a chunk read from another place or file never
// passes.
struct ChunkEntry {
  std::uint64_t offset = 0;        // in the file, a multiple of kDiskAlign
  std::uint32_t stored_bytes = 0;  // without padding
  CodecId codec = CodecId::kRaw;
  std::uint16_t flags = 0;  // 0
  std::uint64_t checksum = 0;
  std::uint64_t key_id = 0;  // 0: not encrypted
  std::byte tag[16] = {};    // room for an authentication tag
  std::uint64_t reserved[2] = {};
};
static_assert(sizeof(ChunkEntry) == 64);

// Everything of a segment but its chunks' bytes.
struct SegmentMeta {
  SegmentId id;
  SpaceId space;
  BlockHash fingerprint;  // of the space
  Geometry geometry;
  SegmentId parent;                  // none for a first segment
  std::uint32_t parent_visible = 0;  // tokens of the parent before this segment
  std::uint64_t start_token = 0;     // index in the sequence of the first token
  std::uint64_t created_unix_ns = 0;
  BlockHash
      previous_chain;  // chain hash of the last whole block before start_token ({0,0} if none)
  std::vector<TokenRecord> tokens;  // 1 .. kSegmentTokensMax
  TokenTexts texts;                 // of all tokens, or empty
  std::vector<std::byte> snapshot;  // optional, opaque; state of layers that cannot be sliced
  std::vector<ChunkEntry>
      chunks;  // in plane order, PlaneLayout(geometry, tokens.size()).chunks_total()

  [[nodiscard]] std::uint64_t file_bytes() const noexcept;  // end of the last chunk, padded
};

[[nodiscard]] std::uint64_t chunk_checksum(SegmentId segment, std::uint32_t chunk_index,
                                           ByteSpan stored) noexcept;

// Bytes of header and metadata together (a multiple of kDiskAlign): where the first chunk may lie.
[[nodiscard]] std::uint64_t segment_meta_bytes(const SegmentMeta& meta);
// Places raw chunks one after the other from segment_meta_bytes on, in plane order; sets offset,
// stored_bytes, codec.
void place_raw_chunks(SegmentMeta* meta);
// Header and metadata as they go to offset 0 of the file. The chunks must be placed; the snapshot
// within its limit.
[[nodiscard]] std::vector<std::byte> encode_segment_meta(const SegmentMeta& meta);

// How many bytes from offset 0 hold header and metadata, from the first kSegmentHeaderBytes of a
// file.
[[nodiscard]] Result<std::uint64_t> parse_segment_header(ByteSpan header_bytes);
// Parses header and metadata (as many bytes as parse_segment_header said). Checks everything that
// it says.
[[nodiscard]] Result<SegmentMeta> parse_segment_meta(ByteSpan bytes);

// What can still be read of damaged metadata, for the offline inspector only: never serve from it.
// Takes a header whose checksum is wrong as long as it says where the regions are, and then every
// region whose own checksum is right.
struct SegmentSalvage {
  SegmentMeta meta;  // of what is sound; the rest is empty
  // "header", "geometry", "tokens", "text", "snapshot", "chunk table", "padding"
  std::vector<const char*> damaged;
  bool chunks_known = false;     // meta.chunks can be followed
  std::uint64_t meta_bytes = 0;  // 0: nothing says where the regions are
  std::uint64_t file_bytes = 0;
};
[[nodiscard]] SegmentSalvage salvage_segment_meta(ByteSpan bytes);

// How reports name a chunk: "chunk 17 (layer 2, group 0, tokens 64-95)", tokens counted within the
// segment; as much of it as damaged metadata leaves.
[[nodiscard]] std::string chunk_name(const SegmentMeta& meta, std::uint32_t chunk_index);

// "segments/0000000000000a2f.kvs" for an id; and back, kInvalid for other names.
[[nodiscard]] std::string segment_path(SegmentId id);
[[nodiscard]] Result<SegmentId> segment_id_of(std::string_view file_name);

}  // namespace kvtier
