#include "base/toml.h"

#include <algorithm>
#include <optional>

// toml++ 3.3 takes for granted that a key begins like one, and some broken files reach
// that place: its assertions, which NDEBUG turns into assumptions for the optimiser, are off in all
// builds. Its parser then reports the error like any other (tests/fuzz/options_fuzz.cc).
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(expr) static_cast<void>(0)
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

namespace kvtier {
namespace {

constexpr int kDepthMax = 8;

// The first line with a byte beyond ASCII outside quotes and comments, or 0. No key needs one, and
// toml++ 3.3 looks such characters up in tables with holes.
std::size_t foreign_line(std::string_view text) {
  std::size_t line = 1;
  char quote = 0;
  bool comment = false;
  const std::size_t begin = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;  // a byte order mark
  for (std::size_t i = begin; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') {
      ++line;
      quote = 0;
      comment = false;
    } else if (comment) {
      continue;
    } else if (quote != 0) {
      if (c == quote) quote = 0;
      if (c == '\\' && quote == '"' && i + 1 < text.size() && text[i + 1] != '\n') ++i;
    } else if (c == '#') {
      comment = true;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      return line;
    }
  }
  return 0;
}

std::string joined(const std::string& table, std::string_view name) {
  const bool plain = name.find('.') == std::string_view::npos;
  const std::string part = plain ? std::string(name) : '"' + std::string(name) + '"';
  return table.empty() ? part : table + "." + part;
}

std::optional<std::vector<std::int64_t>> whole_numbers(const toml::array& array) {
  std::vector<std::int64_t> out;
  for (const toml::node& item : array) {
    const auto number = item.value_exact<std::int64_t>();
    if (!number) return std::nullopt;
    out.push_back(*number);
  }
  return out;
}

void flatten(const toml::table& table, const std::string& prefix, int depth,
             std::vector<TomlEntry>* out) {
  for (const auto& [name, node] : table) {
    TomlEntry entry;
    entry.key = joined(prefix, name.str());
    entry.line = node.source().begin.line;
    if (const toml::table* inner = node.as_table(); inner != nullptr && depth < kDepthMax) {
      flatten(*inner, entry.key, depth + 1, out);
      continue;
    }
    if (const auto text = node.value_exact<std::string>()) entry.value = *text;
    if (const auto number = node.value_exact<std::int64_t>()) entry.value = *number;
    if (const auto number = node.value_exact<double>()) entry.value = *number;
    if (const auto flag = node.value_exact<bool>()) entry.value = *flag;
    if (const toml::array* array = node.as_array(); array != nullptr)
      if (auto numbers = whole_numbers(*array)) entry.value = *std::move(numbers);
    out->push_back(std::move(entry));
  }
}

}  // namespace

std::string at_line(std::size_t line) { return " (line " + std::to_string(line) + ")"; }

Result<std::vector<TomlEntry>> parse_toml(std::string_view text, std::string* problem) {
  if (const std::size_t line = foreign_line(text); line != 0) {
    *problem = "a character outside ASCII that is neither quoted nor in a comment" + at_line(line);
    return error(Code::kInvalid, "the file is not TOML as it is wanted here");
  }
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    const toml::source_position at = parsed.error().source().begin;
    const std::string what(parsed.error().description());
    *problem =
        what + " (line " + std::to_string(at.line) + ", column " + std::to_string(at.column) + ")";
    if (what.find("header") == std::string::npos)
      *problem += "; text and sizes stand in quotes, numbers, true and false do not";
    return error(Code::kInvalid, "the file is not TOML");
  }
  std::vector<TomlEntry> entries;
  flatten(parsed.table(), "", 0, &entries);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const TomlEntry& a, const TomlEntry& b) { return a.line < b.line; });
  return entries;
}

}  // namespace kvtier
