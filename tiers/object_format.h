// Object file, format version 1: the value of one opaque key. [header 4096 bytes][value, padded
// with zeros to 4096]. A value is written once, under a number that no other file has; an overwrite
// is a new file. The header names number, key, length and checksum, so that a file is told from any
// other without the catalogue.
//
// The checksum is seeded with number and key: a value read from another file does not pass. Any
// thread; no state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/result.h"

namespace kvtier {

inline constexpr std::uint32_t kObjectFileVersion = 1;
inline constexpr std::uint64_t kObjectHeaderBytes = 4096;

struct ObjectHeader {
  std::uint64_t file = 0;
  std::string key;
  std::uint64_t value_bytes = 0;
  std::uint64_t checksum = 0;
};

[[nodiscard]] std::uint64_t object_checksum(std::uint64_t file, std::string_view key,
                                            ByteSpan value) noexcept;
[[nodiscard]] std::vector<std::byte> encode_object_header(const ObjectHeader& header);
[[nodiscard]] Result<ObjectHeader> parse_object_header(ByteSpan first_bytes);
// Compares a value, with or without its padding, with length and checksum of its header.
[[nodiscard]] Result<void> check_object_value(const ObjectHeader& header, ByteSpan value);
// Header and value together.
[[nodiscard]] constexpr std::uint64_t object_file_bytes(std::uint64_t value_bytes) noexcept {
  return kObjectHeaderBytes + align_up(value_bytes, kDiskAlign);
}

// "objects/<file>.kvo", hexadecimal.
[[nodiscard]] std::string object_path(std::uint64_t file);
[[nodiscard]] Result<std::uint64_t> object_number_of(std::string_view file_name);

}  // namespace kvtier
