// JSON for the control socket, the CLI and reports. The door to nlohmann/json. Never on the data
// path.
//
// Bytes from a peer go through parse_json, and their fields through the json_* readers, which check
// kind and range and never throw.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvtier {

using Json = nlohmann::ordered_json;

// An object or array no deeper than 32; anything else is kProtocol.
[[nodiscard]] Result<Json> parse_json(std::string_view text);
// The field, or the fallback where it is absent or null; kInvalid where it has another kind or is
// out of range.
[[nodiscard]] Result<std::uint64_t> json_uint(const Json& object, const char* key,
                                              std::uint64_t fallback,
                                              std::uint64_t max = UINT64_MAX);
[[nodiscard]] Result<bool> json_bool(const Json& object, const char* key, bool fallback);
[[nodiscard]] Result<std::string> json_string(const Json& object, const char* key,
                                              std::string_view fallback,
                                              std::size_t bytes_max = 4096);
// One line; bytes that are not UTF-8 are replaced.
[[nodiscard]] std::string dump_json(const Json& value);

}  // namespace kvtier
