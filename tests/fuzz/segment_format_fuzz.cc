// Fuzz target: segment metadata, as it comes and again with all checksums made right. What parses
// must have one byte form, chunks inside the file, and be salvaged whole.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/resign.h"
#include "tiers/segment_format.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

using kvtier::ByteSpan;

void require(bool condition) {
  if (!condition) std::abort();
}

void parse(const std::vector<std::byte>& bytes) {
  const auto header = kvtier::parse_segment_header(bytes);
  const auto meta = kvtier::parse_segment_meta(bytes);
  const kvtier::SegmentSalvage salvage = kvtier::salvage_segment_meta(bytes);
  if (!meta) {
    const kvtier::Code code = meta.error().code;
    require(code == kvtier::Code::kCorrupt || code == kvtier::Code::kVersion);
    return;
  }
  require(header.has_value() && *header == kvtier::segment_meta_bytes(*meta) &&
          *header <= bytes.size());
  const std::vector<std::byte> again = kvtier::encode_segment_meta(*meta);
  require(again.size() == *header && std::equal(again.begin(), again.end(), bytes.begin()));
  require(salvage.damaged.empty() && salvage.chunks_known && salvage.meta.tokens == meta->tokens);
  const kvtier::PlaneLayout layout(meta->geometry, static_cast<std::uint32_t>(meta->tokens.size()));
  require(layout.chunks_total() == meta->chunks.size());
  ++reached;
  for (const kvtier::ChunkEntry& chunk : meta->chunks)
    require(chunk.offset >= *header && chunk.offset + chunk.stored_bytes <= meta->file_bytes() &&
            chunk.stored_bytes <= kvtier::kSlotBytesMax);
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin, begin + size);
  parse(bytes);
  constexpr std::size_t kRegionsAt = 120;  // five of (offset, size, checksum)
  for (std::size_t i = 0; i < 5; ++i) {
    const std::size_t entry = kRegionsAt + 24 * i;
    kvtier::fuzz::sign(&bytes, kvtier::fuzz::get<std::uint64_t>(bytes, entry),
                       kvtier::fuzz::get<std::uint64_t>(bytes, entry + 8), entry + 16);
  }
  kvtier::fuzz::sign_head(&bytes);
  parse(bytes);
  return 0;
}
