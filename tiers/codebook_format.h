// Codebook file, format version 1: what the key codes of a space refer to. [header 4096 bytes]
// [payload, CodebookLayout order, padded to 4096]. The header names space, kind of codes, id and
// the payload's xxh3-64. Written once, synced before a catalogue row names it, never changed. Any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "kernels/codebook_layout.h"

namespace kvtier {

inline constexpr std::uint32_t kCodebookFileVersion = 1;
inline constexpr std::uint64_t kCodebookPayloadBytesMax = 1ull << 30;

struct CodebookFileHeader {
  SpaceId space;
  BlockHash fingerprint;
  std::uint32_t spec = 0;
  std::uint64_t id = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t payload_checksum = 0;
};

// The whole file; fills the last two fields of the header it writes.
[[nodiscard]] std::vector<std::byte> encode_codebook(CodebookFileHeader header, ByteSpan payload);
// Everything about the file that can be said without knowing which one is wanted.
[[nodiscard]] Result<CodebookFileHeader> parse_codebook_header(ByteSpan first_bytes);
// The payload of a whole file, after its checksum and its contents were checked against the
// geometry. kCorrupt otherwise.
[[nodiscard]] Result<ByteSpan> check_codebook(const CodebookFileHeader& header,
                                              const Geometry& geometry, ByteSpan file);

// "codebooks/<space>-<id>.kvb", both hexadecimal.
[[nodiscard]] std::string codebook_path(SpaceId space, std::uint64_t id);
struct CodebookName {
  SpaceId space;
  std::uint64_t id = 0;
};
[[nodiscard]] Result<CodebookName> codebook_name_of(std::string_view file_name);

}  // namespace kvtier
