#include "tiers/sidecar_format.h"

#include <charconv>

#include "base/check.h"
#include "base/hash.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTSID\x1a\n";
constexpr std::string_view kPrefix = "sidecars/";
constexpr std::string_view kSuffix = ".kva";
constexpr std::string_view kPart = ".part";

static_assert(kSidecarHeaderBytes == kHeadBytes);

}  // namespace

std::vector<std::byte> encode_sidecar(SidecarHeader header, ByteSpan payload) {
  KVT_CHECK(header.segment.valid() && header.kind != 0);
  KVT_CHECK(header.tokens >= 1 && header.tokens <= kSegmentTokensMax &&
            header.units <= kSegmentTokensMax);
  KVT_CHECK(payload.size() <= kSidecarPayloadBytesMax);
  ByteWriter writer;
  begin_head(kMagic, kSidecarVersion, &writer);
  writer.write(header.segment);
  writer.write(header.fingerprint);
  writer.write(header.kind);
  writer.write(header.version);
  writer.write(header.units);
  writer.write(header.tokens);
  writer.write<std::uint64_t>(payload.size());
  writer.write<std::uint64_t>(hash64(payload));
  finish_head(&writer);
  writer.write_bytes(payload);
  writer.pad_to(kDiskAlign);
  return writer.take();
}

Result<SidecarHeader> parse_sidecar_header(ByteSpan first_bytes) {
  KVT_TRY(ByteReader reader, open_head(first_bytes, kMagic, kSidecarVersion));
  SidecarHeader header;
  header.segment = reader.read<SegmentId>();
  header.fingerprint = reader.read<BlockHash>();
  header.kind = reader.read<std::uint32_t>();
  header.version = reader.read<std::uint32_t>();
  header.units = reader.read<std::uint32_t>();
  header.tokens = reader.read<std::uint32_t>();
  header.payload_bytes = reader.read<std::uint64_t>();
  header.payload_checksum = reader.read<std::uint64_t>();
  KVT_TRY_VOID(expect_zeros(&reader));
  if (!header.segment.valid() || header.kind == 0)
    return error(Code::kCorrupt, "the sidecar has no segment or no kind");
  if (header.tokens == 0 || header.tokens > kSegmentTokensMax || header.units > kSegmentTokensMax)
    return error(Code::kCorrupt, "the sidecar's token counts are wrong");
  if (header.payload_bytes > kSidecarPayloadBytesMax)
    return error(Code::kCorrupt, "the sidecar is above its limit");
  return header;
}

Result<void> check_sidecar_payload(const SidecarHeader& header, ByteSpan payload) {
  const std::uint64_t padded = align_up(header.payload_bytes, kDiskAlign);
  if (payload.size() != header.payload_bytes && payload.size() != padded)
    return error(Code::kCorrupt, "the sidecar has another length than its header says");
  if (hash64(payload.first(header.payload_bytes)) != header.payload_checksum)
    return error(Code::kCorrupt, "the sidecar's checksum is wrong");
  if (!all_zero(payload.subspan(header.payload_bytes)))
    return error(Code::kCorrupt, "bytes that must be zero are not");
  return {};
}

std::string sidecar_path(SegmentId segment, std::uint32_t kind) {
  std::string path(kPrefix);
  path += hex16(segment.value);
  path += '-';
  path += std::to_string(kind);
  path += kSuffix;
  return path;
}

std::string sidecar_part_path(const std::string& path, std::uint64_t number) {
  return path + '.' + std::to_string(number) + std::string(kPart);
}

bool is_sidecar_part(std::string_view file_name) noexcept { return file_name.ends_with(kPart); }

Result<SidecarName> sidecar_name_of(std::string_view file_name) {
  if (file_name.size() < 18 + kSuffix.size() || !file_name.ends_with(kSuffix) ||
      file_name[16] != '-')
    return error(Code::kInvalid, "not the name of a sidecar");
  KVT_TRY(const std::uint64_t segment, parse_hex16(file_name.substr(0, 16)));
  const std::string_view digits = file_name.substr(17, file_name.size() - 17 - kSuffix.size());
  std::uint32_t kind = 0;
  const auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), kind);
  const bool whole = failed == std::errc() && end == digits.data() + digits.size();
  if (!whole || kind == 0 || digits.front() == '0' || segment == 0)
    return error(Code::kInvalid, "not the name of a sidecar");
  return SidecarName{SegmentId{segment}, kind};
}

}  // namespace kvtier
