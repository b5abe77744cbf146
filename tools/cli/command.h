// Command: one row of the table that the parser, the help, the shell completion and the manual page
// are made of. Adding a command is one file with its row and one line in commands.cc.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "base/shell_word.h"

namespace kvtier::cli {

struct Argument {
  const char* name;  // positional, e.g. "SEQUENCE"
  const char* help;
  bool required = true;
};

struct Flag {
  const char* name;   // "--wipe"; with a value if `value` is not null
  const char* value;  // "PATH", or null: a switch
  const char* help;
  const char* fallback = nullptr;  // its value where the flag stands alone; null: it may not
  bool repeats = false;            // may be given several times, each with a value
};

// What the user typed, checked against the table. Absent ones are not in the maps; switches map to
// "true".
struct Invocation {
  std::map<std::string, std::string> values;  // by argument name or by flag without dashes
  std::map<std::string, std::vector<std::string>> lists;  // of flags that may be repeated
  bool json = false;   // --json: one JSON value on standard output, nothing else
  std::string socket;  // --socket; empty: the default

  [[nodiscard]] bool has(const std::string& name) const { return values.count(name) != 0; }
  [[nodiscard]] std::string get(const std::string& name, const std::string& fallback = "") const {
    const auto found = values.find(name);
    return found == values.end() ? fallback : found->second;
  }
  // Every value of a flag, whether it may be repeated or not.
  [[nodiscard]] std::vector<std::string> all(const std::string& name) const {
    if (const auto found = lists.find(name); found != lists.end()) return found->second;
    return has(name) ? std::vector<std::string>{get(name)} : std::vector<std::string>{};
  }
};

struct Command {
  const char* name;
  const char* help;  // one line
  std::vector<Argument> arguments;
  std::vector<Flag> flags;
  int (*run)(const Invocation&
                 invocation);  // exit code: 0 done, 1 failed, 2 wrong use, 3 found something wrong
};

[[nodiscard]] const std::vector<Command>& commands();

// ---- what commands share ----

// One request to the daemon; where it fails, `*text` says why. `timeout_s` 0: as long as it takes.
[[nodiscard]] Result<Json> try_request(const Invocation& invocation, Json body, std::string* text,
                                       unsigned timeout_s = 30);
// The same; an error is printed (as text, or as JSON where asked for) and its exit code returned in
// `*exit_code`.
[[nodiscard]] bool request(const Invocation& invocation, Json body, Json* reply, int* exit_code,
                           unsigned timeout_s = 30);
// Whether a daemon takes connections there; an error where that cannot be told (no path for a
// socket, one of another user, one that takes no connection), with `*text` as above.
[[nodiscard]] Result<bool> daemon_listens(const Invocation& invocation, std::string* text);
// Whether it is a file that may be run; `*why` says what else it is.
[[nodiscard]] bool is_program(const std::string& path, std::string* why = nullptr);
// Asks the daemon's program, not a running daemon, for its settings. `*program` is "" where there
// is none; `*problem` what it says where it does not like them.
[[nodiscard]] bool offline_settings(std::string* program, Json* settings, std::string* problem);
// Where that fails: the settings that the environment decides, whatever the file holds (none where
// a variable is bad itself). `*all`: every setting that there is, with its default; untouched where
// the program cannot tell.
[[nodiscard]] Json settings_of_environment(const std::string& program, Json* all);
// Variables of the environment that begin as ours do and mean nothing: name, and what may be meant
// ("" where none is like it). `settings`: what offline_settings or the request "config" gave.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> unknown_variables(
    const Json& settings);
// Whether one of them is so near to what may be meant that it is a slip.
[[nodiscard]] bool is_slip(const std::string& name, const std::string& meant);
// Says on standard error which of them are nearly one that means something; `all`: the others too.
void warn_of_variables(const Json& settings, bool all);
// What a status says, with the system's word where it has one.
[[nodiscard]] std::string describe(const Status& status);
int print_error(const Invocation& invocation, const Status& status, const std::string& text);
void print_json(const Json& value);
// How many columns of a terminal a UTF-8 text takes.
[[nodiscard]] std::size_t columns_of(const std::string& text);
// Columns aligned; numbers right, texts left. The first row is the head.
void print_table(const std::vector<std::vector<std::string>>& rows);
// "1.5 GiB", "640 KiB", "12 B".
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);
// "2026-11-22 13:05", "never" for 0.
[[nodiscard]] std::string human_time(std::uint64_t unix_s);
[[nodiscard]] std::string human_duration(std::uint64_t seconds);
[[nodiscard]] std::uint64_t number_of(const Json& object, const char* key);
[[nodiscard]] std::string text_of(const Json& object, const char* key);
// A sequence's name, or "#ID" where it has none.
[[nodiscard]] std::string label_of(const Json& entry);
// "1 segment", "2 segments".
[[nodiscard]] std::string counted(std::uint64_t count, const char* one, const char* more = "s");
// A model as its client named it; of one that is a hash, the first 12 characters.
[[nodiscard]] std::string short_model(const std::string& model);
// " --socket PATH" as the user gave it, for commands that a text proposes; else "".
[[nodiscard]] std::string socket_flag(const Invocation& invocation);
// A target of the protocol: a number if it is one, else a name.
[[nodiscard]] Json target_of(const std::string& text);
// One line of at most `bytes_max` bytes of the text, then "..."; never a part of a character.
[[nodiscard]] std::string one_line(const std::string& text, std::size_t bytes_max);

}  // namespace kvtier::cli
