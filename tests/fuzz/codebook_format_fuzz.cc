// Fuzz target: codebooks, as they come and again with both checksums made right. What parses must
// have one byte form.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/resign.h"
#include "tests/unit/format_samples.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

void require(bool condition) {
  if (!condition) std::abort();
}

void parse(const std::vector<std::byte>& bytes) {
  const auto header = kvtier::parse_codebook_header(bytes);
  if (!header) {
    const kvtier::Code code = header.error().code;
    require(code == kvtier::Code::kCorrupt || code == kvtier::Code::kVersion);
    return;
  }
  const auto payload = kvtier::check_codebook(*header, kvtier::samples::codebook_geometry(), bytes);
  if (!payload) return require(payload.error().code == kvtier::Code::kCorrupt);
  ++reached;
  const std::vector<std::byte> again = kvtier::encode_codebook(*header, *payload);
  const auto used = static_cast<std::ptrdiff_t>(kvtier::kHeadBytes + payload->size());
  require(again.size() == bytes.size() &&
          std::equal(again.begin(), again.begin() + used, bytes.begin()));
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin, begin + size);
  parse(bytes);
  constexpr std::size_t kPayloadBytesAt = 56, kPayloadChecksumAt = 64;
  kvtier::fuzz::sign(&bytes, kvtier::kHeadBytes,
                     kvtier::fuzz::get<std::uint64_t>(bytes, kPayloadBytesAt), kPayloadChecksumAt);
  kvtier::fuzz::sign_head(&bytes);
  parse(bytes);
  return 0;
}
