// Fuzz target: the configuration file, and single settings as flags and environment give them. What
// is refused has a text; what is taken can be shown and lies within its bounds.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/json.h"
#include "daemon/options.h"

namespace {

std::uint64_t taken = 0;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_bounds(const kvtier::DaemonOptions& options) {
  const kvtier::Json all = kvtier::options_json(options);
  for (const kvtier::Json& key : all["keys"]) {
    if (key["max"].is_null()) continue;
    require(key["value"].get<std::uint64_t>() <= key["max"].get<std::uint64_t>());
    require(key["value"].get<std::uint64_t>() >= key["min"].get<std::uint64_t>());
  }
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return taken > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static const kvtier::DaemonOptions defaults = kvtier::default_options();
  kvtier::DaemonOptions options = defaults;
  std::string problem;
  const auto parsed = kvtier::parse_options_toml(text, &options, &problem);
  require(parsed.has_value() == problem.empty());
  taken += parsed.has_value() && options.source_of("host.arena_bytes") != std::string("default");
  check_bounds(options);
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos) return 0;
  problem.clear();
  const auto set =
      kvtier::set_option(text.substr(0, equals), text.substr(equals + 1), &options, &problem);
  require(set.has_value() == problem.empty());
  check_bounds(options);
  return 0;
}
