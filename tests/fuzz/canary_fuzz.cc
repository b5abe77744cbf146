// A target with a planted bug behind a corpus input that lacks one bit of it: its run must fail, or
// no run of the others proves anything.
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int kvt_fuzz_reached() { return 1; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.find("canary") != std::string_view::npos) std::abort();
  return 0;
}
