// Fuzz target: a trace file of kvtier-bench. What is refused has a text; what is taken is written
// again as a file that reads the same.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "tools/bench/replay_trace.h"

namespace {

std::uint64_t taken = 0;

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return taken > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvtier::bench;
  std::string problem;
  const auto trace = parse_trace({reinterpret_cast<const std::byte*>(data), size}, &problem);
  require(trace.has_value() == problem.empty());
  if (!trace) return 0;
  ++taken;
  const auto bytes = encode_trace(*trace);
  const auto again = parse_trace(bytes, &problem);
  require(again.has_value() && encode_trace(*again) == bytes);
  if (trace->shape.budget <= 4096) static_cast<void>(figures_of(*trace, 0));
  return 0;
}
