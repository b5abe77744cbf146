// Presets of users: TOML files (retrieval/preset_text.h), NAME.toml in $XDG_CONFIG_HOME/kvtier/
// presets, or any file by its path. A built-in preset's name cannot be taken. Files are read anew
// by every call. Any thread (reads the environment).
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "client/retrieval/preset.h"

namespace kvtier {

// A built-in by its name ("": the default), a user's by name, or by a path: what has a '/' or ends
// in ".toml". kNotFound with the names that there are, kInvalid with what fits; the text is in
// last_error.h.
[[nodiscard]] Result<Preset> load_preset(std::string_view name);

// {"presets": [{"name", "from": "built-in" or a path, parts...}], "broken": [{"name", "from",
// "error"}], "directory", "profiles": list_profiles()}: the built-in ones, then the user's by name.
[[nodiscard]] Json list_presets();
// Of one, with "toml": its file. "broken" has the user's file that a built-in one keeps from its
// name.
[[nodiscard]] Result<Json> describe_preset(std::string_view name);

}  // namespace kvtier
