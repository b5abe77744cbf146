// Fuzz target: export files, as they come and again with the checksums of head and frames made
// right (the chain of frames is then mended too). What opens must read again without an error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/resign.h"
#include "tiers/export_format.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

void require(bool condition) {
  if (!condition) std::abort();
}

void read(const std::vector<std::byte>& bytes) {
  const kvtier::ExportSource source{
      bytes.size(),
      [&bytes](std::uint64_t offset, kvtier::MutableByteSpan target) -> kvtier::Result<void> {
        require(offset <= bytes.size() &&
                target.size() <= bytes.size() - offset);  // never beyond the file
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), target.size(),
                    target.begin());
        return {};
      }};
  auto reader = kvtier::ExportReader::open(source);
  if (!reader) {
    const kvtier::Code code = reader.error().code;
    require(code == kvtier::Code::kCorrupt || code == kvtier::Code::kVersion);
    return;
  }
  std::uint64_t tokens = 0;
  for (std::uint32_t i = 0; i < reader->segments(); ++i) {
    const auto segment = reader->read_segment(i);
    require(segment.has_value() && segment->start_token == tokens);
    tokens += segment->tokens.size();
    require(reader
                ->read_chunks(
                    i, [](std::uint32_t, kvtier::ByteSpan) -> kvtier::Result<void> { return {}; })
                .has_value());
  }
  require(tokens == reader->description().tokens);
  ++reached;
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin, begin + size);
  read(bytes);
  if (bytes.size() < kvtier::kHeadBytes) return 0;
  kvtier::fuzz::sign_head(&bytes);
  std::uint64_t chain = kvtier::hash64(kvtier::ByteSpan(bytes).first(kvtier::kHeadBytes));
  for (std::size_t offset = 4096; offset + 64 <= bytes.size();) {
    const auto payload = kvtier::fuzz::get<std::uint64_t>(bytes, offset + 16);
    const bool end = kvtier::fuzz::get<std::uint32_t>(bytes, offset + 4) == 4;
    if (end && bytes.size() - offset >= 80)
      std::memcpy(bytes.data() + offset + 72, &chain, sizeof(chain));
    kvtier::fuzz::sign(&bytes, offset + 64, payload, offset + 24);
    std::memcpy(bytes.data() + offset + 40, &chain, sizeof(chain));
    kvtier::fuzz::sign(&bytes, offset, 56, offset + 56);
    chain = kvtier::hash64(kvtier::ByteSpan(bytes).subspan(offset, 64), chain);
    if (payload > bytes.size() - offset - 64) break;
    offset += 64 + payload;
  }
  read(bytes);
  return 0;
}
