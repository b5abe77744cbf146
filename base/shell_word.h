// A text as one word for a shell, for the commands that messages propose.
#pragma once

#include <string>

namespace kvtier {

// In single quotes, whatever it holds.
[[nodiscard]] inline std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

// In quotes only where it needs them.
[[nodiscard]] inline std::string shell_word(const std::string& text) {
  const bool plain =
      !text.empty() && text.find_first_of(" \t\n'\"\\$`&|;<>()*?[]{}#~!") == std::string::npos;
  return plain ? text : shell_quoted(text);
}

}  // namespace kvtier
