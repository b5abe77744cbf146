#include "tiers/object_format.h"

#include "base/check.h"
#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTOBJ\x1a\n";
constexpr std::string_view kPrefix = "objects/";
constexpr std::string_view kSuffix = ".kvo";

static_assert(kObjectHeaderBytes == kHeadBytes);
static_assert(kHeadFieldsOffset + 32 + kObjectKeyBytesMax <= kHeadChecksumOffset,
              "the longest key fits in the header");

}  // namespace

std::uint64_t object_checksum(std::uint64_t file, std::string_view key, ByteSpan value) noexcept {
  return hash64(value, hash64(as_bytes(key), file));
}

std::vector<std::byte> encode_object_header(const ObjectHeader& header) {
  KVT_CHECK(header.file != 0 && !header.key.empty() && header.key.size() <= kObjectKeyBytesMax &&
            header.value_bytes <= kObjectBytesMax);
  ByteWriter writer;
  begin_head(kMagic, kObjectFileVersion, &writer);
  writer.write(header.file);
  writer.write(header.value_bytes);
  writer.write(header.checksum);
  writer.write(static_cast<std::uint32_t>(header.key.size()));
  writer.write(std::uint32_t{0});
  writer.write_bytes(as_bytes(header.key));
  finish_head(&writer);
  return writer.take();
}

Result<ObjectHeader> parse_object_header(ByteSpan first_bytes) {
  KVT_TRY(ByteReader reader, open_head(first_bytes, kMagic, kObjectFileVersion));
  ObjectHeader header;
  header.file = reader.read<std::uint64_t>();
  header.value_bytes = reader.read<std::uint64_t>();
  header.checksum = reader.read<std::uint64_t>();
  const auto key_bytes = reader.read<std::uint32_t>();
  const auto reserved = reader.read<std::uint32_t>();
  if (header.file == 0 || reserved != 0 || key_bytes == 0 || key_bytes > kObjectKeyBytesMax ||
      header.value_bytes > kObjectBytesMax)
    return error(Code::kCorrupt, "the object's number, key or length is wrong");
  const ByteSpan key = reader.read_bytes(key_bytes);
  header.key.assign(reinterpret_cast<const char*>(key.data()), key.size());
  KVT_TRY_VOID(expect_zeros(&reader));
  return header;
}

Result<void> check_object_value(const ObjectHeader& header, ByteSpan value) {
  const std::uint64_t padded = align_up(header.value_bytes, kDiskAlign);
  if (value.size() != header.value_bytes && value.size() != padded)
    return error(Code::kCorrupt, "the object has another length than its header says");
  const ByteSpan bytes = value.first(static_cast<std::size_t>(header.value_bytes));
  if (object_checksum(header.file, header.key, bytes) != header.checksum)
    return error(Code::kCorrupt, "the object's checksum is wrong");
  if (!all_zero(value.subspan(bytes.size())))
    return error(Code::kCorrupt, "bytes that must be zero are not");
  return {};
}

std::string object_path(std::uint64_t file) {
  std::string path(kPrefix);
  path += hex16(file);
  path += kSuffix;
  return path;
}

Result<std::uint64_t> object_number_of(std::string_view file_name) {
  if (file_name.size() != 16 + kSuffix.size() || !file_name.ends_with(kSuffix))
    return error(Code::kInvalid, "not the name of an object file");
  KVT_TRY(const std::uint64_t file, parse_hex16(file_name.substr(0, 16)));
  if (file == 0) return error(Code::kInvalid, "not the name of an object file");
  return file;
}

}  // namespace kvtier
