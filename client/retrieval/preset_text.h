// Presets as text: the parts by name, as a user's file has them and as `kvtier presets` shows them.
//
//   base = "quest"               # a built-in to start from; without it, the defaults of preset.h
//   partition = "pages:32"       # and every other part of preset_text.cc's table, which parser
//   budget = "ratio"             # and printer share
//   share = 0.1
//
// What parse_preset takes, preset_toml prints, and the other way round. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "client/retrieval/preset.h"

namespace kvtier {

// kInvalid for an unknown key or part, a value out of its bounds, or parts that do not go together;
// `*problem` says what fits.
[[nodiscard]] Result<Preset> parse_preset(std::string_view name, std::string_view toml,
                                          std::string* problem);
// All parts by key, in the table's order; those that say nothing (a share without a budget that has
// one, the partition of no abstract) are left out.
[[nodiscard]] Json preset_json(const Preset& preset);
// The same as a file that parse_preset takes.
[[nodiscard]] std::string preset_toml(const Preset& preset);

}  // namespace kvtier
