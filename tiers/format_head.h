// The first 4,096 bytes of every file of the store: magic, version, flags, the format's own fields,
// zeros, and in the last 8 bytes an xxh3-64 over all that comes before. Segment, tail log, sidecar
// and export file share this frame.
//
// Magic, version and checksum keep their places in every version, so that a newer file is told from
// a damaged one: a wrong magic or checksum is kCorrupt, a higher version under a right checksum
// kVersion. Any thread; no state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace kvtier {

inline constexpr std::uint64_t kHeadBytes = 4096;
inline constexpr std::size_t kHeadMagicBytes = 8;
inline constexpr std::size_t kHeadFieldsOffset = 16;
inline constexpr std::size_t kHeadChecksumOffset = kHeadBytes - sizeof(std::uint64_t);

// Writes magic (8 bytes), version and flags 0 into an empty writer.
void begin_head(std::string_view magic, std::uint32_t version, ByteWriter* writer);
// Pads what was written to kHeadBytes and puts the checksum at its end.
void finish_head(ByteWriter* writer);

// A reader at the format's own fields, ending before the checksum. `bytes` may go on after the
// head.
[[nodiscard]] Result<ByteReader> open_head(ByteSpan bytes, std::string_view magic,
                                           std::uint32_t version);
// kCorrupt unless everything that the reader has left is zero, and nothing was read past its end.
[[nodiscard]] Result<void> expect_zeros(ByteReader* reader);
[[nodiscard]] bool all_zero(ByteSpan bytes) noexcept;

// 16 lower-case hexadecimal digits; and back, kInvalid for anything else.
[[nodiscard]] std::string hex16(std::uint64_t value);
[[nodiscard]] Result<std::uint64_t> parse_hex16(std::string_view text);

}  // namespace kvtier
