// Profiles: which preset, and which budget, views of a model have where nobody names one. Files of
// the user that `kvtier-quality --tune` writes, NAME.toml in $XDG_CONFIG_HOME/kvtier/profiles:
//
//   model = "..."    what a space's `model` is; "also": what it is with another runtime's hash
//   preset = "codes"
//   budget = 512     rows per layer and KV head
//   [measured]       for people: kept, not read
//
// Read anew by every call. Any thread (reads the environment).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace kvtier {

struct Profile {
  std::string path, model, also, preset;
  std::uint64_t budget = 0;
};

// Of a space's model; nothing where there is none. kInvalid where two are of this model, or one
// that names it is broken: which, is in last_error.h.
[[nodiscard]] Result<std::optional<Profile>> find_profile(std::string_view model);
// As what a view of this model opens without a name.
[[nodiscard]] Result<std::string> preset_or_profile(std::string_view preset,
                                                    std::string_view model);
// [{"from", "model", "also", "preset", "budget"} or {"from", "error"}].
[[nodiscard]] Json list_profiles();

}  // namespace kvtier
