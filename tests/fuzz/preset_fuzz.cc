// Fuzz target: a user's preset. What is refused has a text; what is taken is valid, and is the same
// preset when it was printed and read again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "client/retrieval/preset_text.h"

namespace {

std::uint64_t taken = 0;

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return taken > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string problem;
  const auto preset = kvtier::parse_preset("fuzz", text, &problem);
  require(preset.has_value() == problem.empty());
  if (!preset) return 0;
  ++taken;
  require(preset->validate().has_value());
  const auto again = kvtier::parse_preset("fuzz", kvtier::preset_toml(*preset), &problem);
  require(again.has_value() && *again == *preset);
  return 0;
}
