// Small TOML files of this user: presets, profiles. Any thread (reads the environment).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvtier {

// The folder `name` beside the user's settings; "" where this user has none.
[[nodiscard]] std::string user_folder(std::string_view name);
// What in the folder ends in ".toml", by name.
[[nodiscard]] std::vector<std::string> toml_files(const std::string& folder);
// The text of a file of at most 64 KiB. kNotFound, kIo, kTooLarge with the path in last_error.h.
[[nodiscard]] Result<std::string> read_user_file(const std::string& path);

}  // namespace kvtier
