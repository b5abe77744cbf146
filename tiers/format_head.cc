#include "tiers/format_head.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"

namespace kvtier {

void begin_head(std::string_view magic, std::uint32_t version, ByteWriter* writer) {
  KVT_CHECK(magic.size() == kHeadMagicBytes && writer->size() == 0);
  writer->write_bytes(as_bytes(magic));
  writer->write<std::uint32_t>(version);
  writer->write<std::uint32_t>(0);
}

void finish_head(ByteWriter* writer) {
  KVT_CHECK(writer->size() >= kHeadFieldsOffset && writer->size() <= kHeadChecksumOffset);
  const std::vector<std::byte> zeros(kHeadChecksumOffset - writer->size());
  writer->write_bytes(zeros);
  writer->write<std::uint64_t>(hash64(writer->view()));
}

Result<ByteReader> open_head(ByteSpan bytes, std::string_view magic, std::uint32_t version) {
  if (bytes.size() < kHeadBytes)
    return error(Code::kCorrupt, "the file is shorter than its header");
  const ByteSpan fields = bytes.first(kHeadChecksumOffset);
  ByteReader checksum_reader(bytes.subspan(kHeadChecksumOffset, sizeof(std::uint64_t)));
  if (hash64(fields) != checksum_reader.read<std::uint64_t>())
    return error(Code::kCorrupt, "the header's checksum is wrong");
  ByteReader reader(fields);
  const ByteSpan found = reader.read_bytes(kHeadMagicBytes);
  if (!std::ranges::equal(found, as_bytes(magic)))
    return error(Code::kCorrupt, "this is a file of another kind");
  const auto found_version = reader.read<std::uint32_t>();
  if (found_version > version)
    return error(Code::kVersion, "the file was written by a newer kvtier: update this one");
  if (found_version == 0) return error(Code::kCorrupt, "the header's version is 0");
  if (reader.read<std::uint32_t>() != 0)
    return error(Code::kCorrupt, "the header has unknown flags");
  return reader;
}

bool all_zero(ByteSpan bytes) noexcept {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte one) { return one == std::byte{0}; });
}

Result<void> expect_zeros(ByteReader* reader) {
  const ByteSpan rest = reader->read_bytes(reader->remaining());
  if (!reader->ok() || !all_zero(rest))
    return error(Code::kCorrupt, "bytes that must be zero are not");
  return {};
}

std::string hex16(std::uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (std::size_t i = 0; i < 16; ++i) text[15 - i] = kDigits[(value >> (4 * i)) & 15];
  return text;
}

Result<std::uint64_t> parse_hex16(std::string_view text) {
  if (text.size() != 16) return error(Code::kInvalid, "not 16 hexadecimal digits");
  std::uint64_t value = 0;
  for (const char one : text) {
    std::uint64_t digit = 0;
    if (one >= '0' && one <= '9')
      digit = static_cast<std::uint64_t>(one - '0');
    else if (one >= 'a' && one <= 'f')
      digit = static_cast<std::uint64_t>(one - 'a') + 10;
    else
      return error(Code::kInvalid, "not 16 hexadecimal digits");
    value = value << 4 | digit;
  }
  return value;
}

}  // namespace kvtier
