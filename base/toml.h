// TOML files of users: settings of the daemon, presets. The door to toml++. Never on the data path.
//
// A file becomes a flat list of entries with their lines, so that whoever reads it can say where
// something is wrong. The text is not trusted: whatever it holds, the answer is a list or a problem
// with its line (tests/fuzz/options_fuzz.cc). Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace kvtier {

struct TomlEntry {
  // Tables and name, joined by dots: "disk.depth". A part that has a dot itself is in quotes.
  std::string key;
  // Nothing: an array of anything but whole numbers, a date, or tables in tables deeper than 8.
  std::variant<std::monostate, std::string, std::int64_t, double, bool, std::vector<std::int64_t>>
      value;
  std::size_t line = 0;
};

// In the order of the lines. kInvalid where it is not TOML; `*problem` says why, with the line.
[[nodiscard]] Result<std::vector<TomlEntry>> parse_toml(std::string_view text,
                                                        std::string* problem);
// " (line 3)", for the end of a message.
[[nodiscard]] std::string at_line(std::size_t line);

}  // namespace kvtier
