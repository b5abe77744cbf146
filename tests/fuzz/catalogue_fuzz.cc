// Fuzz target: the decoders of the catalogue's rows. Input: flags u8 | key length u8 | key | value.
// Flag 1 puts the right checksum into the last 8 bytes, so that the fields before it are reached
// too. What decodes must come out the same when it is encoded and decoded again.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "tiers/catalogue_rows.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

namespace rows = kvtier::catalogue_rows;
using kvtier::ByteSpan;

// Counts, so that the compiler cannot drop the work.
struct Seen {
  int rows = 0, damaged = 0;
};

std::vector<std::byte> encode_any(std::string_view key, ByteSpan value, Seen* seen) {
  std::vector<std::byte> encoded;
  kvtier::CatalogueVisitor visitor;
  const auto keep = [&](const auto& row) {
    ++seen->rows;
    encoded = rows::encode(key, row);
  };
  visitor.space = keep;
  visitor.segment = keep;
  visitor.sequence = keep;
  visitor.object = keep;
  visitor.number = [&](std::string_view, std::uint64_t number) { keep(number); };
  visitor.damaged = [&](const std::string&, kvtier::Status status) {
    ++seen->damaged;
    if (status.code != kvtier::Code::kCorrupt && status.code != kvtier::Code::kVersion)
      std::abort();
  };
  rows::visit(key, value, visitor);
  return encoded;
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvtier::ByteReader reader({reinterpret_cast<const std::byte*>(data), size});
  const auto flags = reader.read<std::uint8_t>();
  const ByteSpan key_bytes = reader.read_bytes(reader.read<std::uint8_t>());
  if (!reader.ok()) return 0;
  const std::string_view key(reinterpret_cast<const char*>(key_bytes.data()), key_bytes.size());
  const ByteSpan rest = reader.read_bytes(reader.remaining());
  std::vector<std::byte> value(rest.begin(), rest.end());
  if ((flags & 1) != 0 && value.size() >= 8) {
    const ByteSpan body = ByteSpan(value).first(value.size() - 8);
    const std::uint64_t sum = kvtier::hash64(body, kvtier::hash64(kvtier::as_bytes(key)));
    std::memcpy(value.data() + body.size(), &sum, 8);
  }
  Seen first, second;
  const auto encoded = encode_any(key, value, &first);
  if (first.rows + first.damaged != 1) std::abort();
  if (first.rows == 0) return 0;
  const auto again = encode_any(key, encoded, &second);
  if (second.rows != 1 || again != encoded) std::abort();
  ++reached;
  return 0;
}
