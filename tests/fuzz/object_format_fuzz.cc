// Fuzz target: object files, as they come and again with the header's checksum made right. What
// parses must have one byte form.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/resign.h"
#include "tiers/object_format.h"

namespace {

bool reached = false;  // an object that is right in every byte

void require(bool condition) {
  if (!condition) std::abort();
}

void parse(const std::vector<std::byte>& bytes) {
  const auto header = kvtier::parse_object_header(bytes);
  if (!header) {
    const kvtier::Code code = header.error().code;
    require(code == kvtier::Code::kCorrupt || code == kvtier::Code::kVersion);
    return;
  }
  const std::vector<std::byte> again = kvtier::encode_object_header(*header);
  require(again.size() <= bytes.size() && std::equal(again.begin(), again.end(), bytes.begin()));
  const kvtier::ByteSpan value = kvtier::ByteSpan(bytes).subspan(kvtier::kObjectHeaderBytes);
  if (kvtier::check_object_value(*header, value)) reached = true;
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin, begin + size);
  parse(bytes);
  kvtier::fuzz::sign_head(&bytes);
  parse(bytes);
  return 0;
}
