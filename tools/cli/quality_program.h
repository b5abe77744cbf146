// The Python package's program, kvtier-quality: what runs a model is there. A command that needs
// one checks what the user gave, and becomes it.
#pragma once

#include <string>
#include <vector>

#include "tools/cli/command.h"

namespace kvtier::cli {

// With `arguments`, then those of `flags` (names without dashes) that the user gave, then --json -
// where JSON is wanted. Comes back only where the program cannot be run: why is printed, and the
// exit code returned.
[[nodiscard]] int become_quality(const Invocation& invocation, std::vector<std::string> arguments,
                                 const std::vector<const char*>& flags);

// Whether the flag (its name without dashes), where the user gave it, is a number of tokens above
// 0. Where it is not, that is printed.
[[nodiscard]] bool check_tokens(const Invocation& invocation, const std::string& flag);

}  // namespace kvtier::cli
