#include "tiers/codebook_format.h"

#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "base/limits.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::string_view kMagic = "KVTCBK\x1a\n";
constexpr std::string_view kPrefix = "codebooks/";
constexpr std::string_view kSuffix = ".kvb";

}  // namespace

std::vector<std::byte> encode_codebook(CodebookFileHeader header, ByteSpan payload) {
  KVT_CHECK(header.space.valid() && header.id != 0 && payload.size() <= kCodebookPayloadBytesMax);
  ByteWriter writer;
  begin_head(kMagic, kCodebookFileVersion, &writer);
  writer.write(header.space);
  writer.write(header.fingerprint);
  writer.write(header.spec);
  writer.write(std::uint32_t{0});
  writer.write(header.id);
  writer.write<std::uint64_t>(payload.size());
  writer.write<std::uint64_t>(hash64(payload));
  finish_head(&writer);
  writer.write_bytes(payload);
  writer.pad_to(kDiskAlign);
  return writer.take();
}

Result<CodebookFileHeader> parse_codebook_header(ByteSpan first_bytes) {
  KVT_TRY(ByteReader reader, open_head(first_bytes, kMagic, kCodebookFileVersion));
  CodebookFileHeader header;
  header.space = reader.read<SpaceId>();
  header.fingerprint = reader.read<BlockHash>();
  header.spec = reader.read<std::uint32_t>();
  const auto reserved = reader.read<std::uint32_t>();
  header.id = reader.read<std::uint64_t>();
  header.payload_bytes = reader.read<std::uint64_t>();
  header.payload_checksum = reader.read<std::uint64_t>();
  KVT_TRY_VOID(expect_zeros(&reader));
  const Result<AbstractSpec> spec = unpack_abstract_spec(header.spec);
  if (!header.space.valid() || header.id == 0 || reserved != 0 || !spec ||
      spec->abstract != AbstractKind::kCodes)
    return error(Code::kCorrupt, "the codebook has no space, no id or no codes");
  if (header.payload_bytes < sizeof(CodebookHeader) ||
      header.payload_bytes > kCodebookPayloadBytesMax)
    return error(Code::kCorrupt, "the codebook is above its limit");
  return header;
}

Result<ByteSpan> check_codebook(const CodebookFileHeader& header, const Geometry& geometry,
                                ByteSpan file) {
  if (file.size() != kHeadBytes + align_up<std::uint64_t>(header.payload_bytes, kDiskAlign))
    return error(Code::kCorrupt, "the codebook has another length than its header says");
  const ByteSpan payload = file.subspan(kHeadBytes, header.payload_bytes);
  if (hash64(payload) != header.payload_checksum)
    return error(Code::kCorrupt, "the codebook's checksum is wrong");
  KVT_TRY(const AbstractSpec spec, unpack_abstract_spec(header.spec));
  const CodebookLayout layout(geometry, spec);
  CodebookHeader inside;
  std::memcpy(&inside, payload.data(), sizeof(inside));
  if (layout.size_bytes() != payload.size() || inside.spec != header.spec ||
      inside.id != header.id || inside.version != kCodebookVersion)
    return error(Code::kCorrupt, "the codebook is of another space or kind of codes");
  KVT_TRY_VOID(layout.check_contents(payload.data()));
  return payload;
}

std::string codebook_path(SpaceId space, std::uint64_t id) {
  return std::string(kPrefix) + hex16(space.value) + '-' + hex16(id) + std::string(kSuffix);
}

Result<CodebookName> codebook_name_of(std::string_view file_name) {
  if (file_name.size() != 33 + kSuffix.size() || !file_name.ends_with(kSuffix) ||
      file_name[16] != '-')
    return error(Code::kInvalid, "not the name of a codebook");
  KVT_TRY(const std::uint64_t space, parse_hex16(file_name.substr(0, 16)));
  KVT_TRY(const std::uint64_t id, parse_hex16(file_name.substr(17, 16)));
  if (space == 0 || id == 0) return error(Code::kInvalid, "not the name of a codebook");
  return CodebookName{SpaceId{space}, id};
}

}  // namespace kvtier
