// Byte forms of the catalogue's rows. Internal to the catalogue; no RocksDB here, so that a fuzzer
// can reach it.
//
// key   = one letter, then the id (u64, big-endian: rows come in id order) or the text of an
// object's key or a name value = version u8 | fields, little-endian | xxh3-64 over version and
// fields, seeded with xxh3-64 of the key, so that a
//         value under a wrong key is damage too
// string = u32 length | bytes
//   'S' space:    digest 2 x u64 | abstracts u32 | abstracts x u32 | codebooks u32 |
//                 codebooks x (abstract u32, id u64) | private u8 | created u64 | model, runtime,
//                 detail: strings | geometry (kernels/geometry.h) | only where it is known, the
//                 rotation: pairing u8 | frequencies u32 | frequencies x f32
//   'G' segment:  space u64 | parent u64 | parent_visible u32 | start_token u64 | tokens u32 |
//   file_bytes u64 |
//                 created u64 | last_used u64 | bad u8 | blocks u32 | blocks x 2 x u64
//   'Q' sequence: space u64 | log_generation u64 | pinned u8 | expires u64 | created u64 |
//   last_used u64 | name string |
//                 parts u32 | parts x (segment u64, visible u32)
//   'O' object:   file u64 | value_bytes u64 | checksum u64 | stored u64
//   'N' number:   u64
// A newer version is kVersion; anything else that is wrong is kCorrupt. Any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "tiers/catalogue.h"

namespace kvtier::catalogue_rows {

inline constexpr std::uint8_t kVersion = 1;
enum class Kind : char {
  kSpace = 'S',
  kSegment = 'G',
  kSequence = 'Q',
  kObject = 'O',
  kNumber = 'N'
};

[[nodiscard]] std::string key_of(Kind kind, std::uint64_t id);
[[nodiscard]] std::string key_of(Kind kind, std::string_view text);

// The row's limits (base/limits.h) are checked here as they are when reading: what is written can
// be read.
[[nodiscard]] std::vector<std::byte> encode(std::string_view key, const SpaceRow& row);
[[nodiscard]] std::vector<std::byte> encode(std::string_view key, const SegmentRow& row);
[[nodiscard]] std::vector<std::byte> encode(std::string_view key, const SequenceRow& row);
[[nodiscard]] std::vector<std::byte> encode(std::string_view key, const ObjectRow& row);
[[nodiscard]] std::vector<std::byte> encode(std::string_view key, std::uint64_t number);

[[nodiscard]] Result<SpaceRow> decode_space(std::string_view key, ByteSpan value);
[[nodiscard]] Result<SegmentRow> decode_segment(std::string_view key, ByteSpan value);
[[nodiscard]] Result<SequenceRow> decode_sequence(std::string_view key, ByteSpan value);
[[nodiscard]] Result<ObjectRow> decode_object(std::string_view key, ByteSpan value);
[[nodiscard]] Result<std::uint64_t> decode_number(std::string_view key, ByteSpan value);

// Decodes one row of any kind and hands it to the visitor; what cannot be trusted goes to
// visitor.damaged. Null members of the visitor are skipped.
void visit(std::string_view key, ByteSpan value, const CatalogueVisitor& visitor);

}  // namespace kvtier::catalogue_rows
