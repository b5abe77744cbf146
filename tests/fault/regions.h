// Where the parts of a store's files lie, as the format readers say: what damage is aimed at.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvtier::testing {

struct Region {
  std::string name;  // as the store check calls it, or a part of that
  std::uint64_t offset = 0;
  std::uint64_t size_bytes = 0;
  // Whether every byte counts. Padding that nobody reads may be damaged without harm.
  bool read = true;
};

// Empty where the file is not sound: a test's own mistake.
[[nodiscard]] std::vector<Region> segment_regions(std::string_view file);
[[nodiscard]] std::vector<Region> tail_log_regions(std::string_view file);
[[nodiscard]] std::vector<Region> sidecar_regions(std::string_view file);

}  // namespace kvtier::testing
