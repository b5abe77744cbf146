// Fuzz target: tail logs, as they come and again with all checksums made right. Replay must stay
// inside the half (the guard bytes and the sanitizer see to it), take whole records only, and agree
// with itself.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/resign.h"
#include "tests/unit/format_samples.h"
#include "tiers/tail_log_format.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

constexpr std::size_t kGuard = 4096;

void require(bool condition) {
  if (!condition) std::abort();
}

struct Half {
  kvtier::Geometry geometry = kvtier::samples::small_geometry();
  kvtier::PlaneLayout layout{geometry, kvtier::kSegmentTokensMax};
  std::vector<kvtier::TokenRecord> tokens =
      std::vector<kvtier::TokenRecord>(kvtier::kSegmentTokensMax + 2);
  std::vector<std::byte> plane = std::vector<std::byte>(layout.size_bytes() + 2 * kGuard);
};

void replay(const std::vector<std::byte>& bytes, Half* half) {
  const auto header = kvtier::parse_tail_log_header(bytes);
  const kvtier::TailLogHeader expected =
      header.value_or(kvtier::samples::make_log_header(kvtier::SequenceId{0x77}, 3, 2048));
  const auto result = kvtier::replay_tail_log(bytes, expected, half->geometry, half->layout,
                                              half->tokens.data() + 1, half->plane.data() + kGuard);
  require(result.has_value() == header.has_value());
  require(half->tokens.front() == kvtier::TokenRecord{} &&
          half->tokens.back() == kvtier::TokenRecord{});
  const kvtier::ByteSpan plane(half->plane);
  require(kvtier::all_zero(plane.first(kGuard)) && kvtier::all_zero(plane.last(kGuard)));
  if (!result) return;
  reached += result->tokens > 0 ? 1 : 0;
  require(result->texts.tokens() == result->tokens);
  require(result->tokens <= kvtier::kSegmentTokensMax && result->end_offset <= bytes.size());
  require(result->end_offset % 4096 == 0 &&
          (result->next_order == 0) == (result->end_offset == 4096));
  std::uint64_t offset = 4096;
  for (std::uint64_t i = 0; i < result->next_order; ++i) {
    const auto record = kvtier::parse_tail_record_header(kvtier::ByteSpan(bytes).subspan(offset));
    require(record.has_value() && record->order == i);
    offset += record->record_bytes;
  }
  require(offset == result->end_offset);
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Half half;
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin, begin + size);
  replay(bytes, &half);
  kvtier::fuzz::sign_head(&bytes);
  for (std::size_t offset = 4096; offset + 64 <= bytes.size();) {
    const auto record_bytes = kvtier::fuzz::get<std::uint64_t>(bytes, offset + 40);
    if (record_bytes >= 64) kvtier::fuzz::sign(&bytes, offset + 64, record_bytes - 64, offset + 48);
    kvtier::fuzz::sign(&bytes, offset, 56, offset + 56);
    offset += record_bytes >= 64 && record_bytes <= bytes.size() ? record_bytes : 4096;
  }
  replay(bytes, &half);
  return 0;
}
