// config: every setting with its value, default and bounds.
#include <unistd.h>

#include <cstdio>
#include <iterator>

#include "base/near_names.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

std::string show(const Json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// For people, as a setting may be written: "64 GiB"; "1.5 GiB (1610612737)" where it is no whole
// number of KiB.
std::string show_size(const std::string& name, const Json& value) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (name.find("bytes") == std::string::npos || !value.is_number_unsigned()) return show(value);
  const auto bytes = value.get<std::uint64_t>();
  std::uint64_t whole = bytes;
  std::size_t unit = 0;
  for (; whole != 0 && whole % 1024 == 0 && unit + 1 < std::size(kUnits); ++unit) whole /= 1024;
  if (bytes >= 1024 && unit == 0) return human_bytes(bytes) + " (" + show(value) + ")";
  return unit == 0 ? show(value) : std::to_string(whole) + " " + kUnits[unit];
}

// "1 MiB to 256 MiB".
std::string bounds(const std::string& name, const Json& key) {
  if (key["min"].is_null()) return "";
  return show_size(name, key["min"]) + " to " + show_size(name, key["max"]);
}

// What the settings say now, where the running daemon, which read them at its start, has something
// else. Only where a file has a part in it: this program's environment need not be the daemon's.
std::vector<std::vector<std::string>> pending(const Json& running) {
  std::vector<std::vector<std::string>> rows = {{"KEY", "RUNS", "AT THE NEXT START"}};
  std::string program, problem;
  Json now;
  if (!offline_settings(&program, &now, &problem)) {
    if (!program.empty())
      std::fprintf(stderr, "kvtier: this is what runs now; the next start will fail: %s\n",
                   problem.c_str());
    return rows;
  }
  for (const Json& key : running["keys"])
    for (const Json& other : now["keys"]) {
      if (text_of(key, "key") != text_of(other, "key") || key["value"] == other["value"]) continue;
      if (text_of(key, "source") == "file" || text_of(other, "source") == "file")
        rows.push_back({text_of(key, "key"), show_size(text_of(key, "key"), key["value"]),
                        show_size(text_of(key, "key"), other["value"])});
    }
  return rows;
}

// One beside the other they would be wider than a terminal: the meaning has a line of its own, and
// a default is shown where something else is set.
void print_settings(const Json& keys) {
  for (const Json& key : keys) {
    const std::string name = text_of(key, "key");
    const std::string limits = bounds(name, key);
    std::string notes = text_of(key, "source");
    if (key["value"] != key["default"]) notes += ", default " + show_size(name, key["default"]);
    if (!limits.empty()) notes += ", " + limits;
    std::printf("%s = %s  (%s)\n    %s\n", name.c_str(), show_size(name, key["value"]).c_str(),
                notes.c_str(), text_of(key, "help").c_str());
  }
}

// Of settings that no daemon has answered, too.
Json with_ok(const Json& answer) {
  Json with{{"ok", true}};
  with.update(answer);
  return with;
}

int run_config(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  std::string problem;
  const Result<bool> listens = daemon_listens(invocation, &problem);
  if (!listens) return print_error(invocation, listens.error(), problem);
  const bool runs = *listens;
  if (runs) {
    if (!request(invocation, Json{{"op", "config"}}, &reply, &exit_code)) return exit_code;
  } else {
    std::string program;
    if (!offline_settings(&program, &reply, &problem))
      return print_error(
          invocation, {Code::kNotFound},
          program.empty() ? "no kvtierd runs and none is installed: set KVTIER_DAEMON" : problem);
    if (!invocation.json && invocation.get("KEY").empty())
      std::printf("no daemon runs; this is what %s would use\n", program.c_str());
  }
  const std::string wanted = invocation.get("KEY");
  warn_of_variables(reply, wanted.empty());
  if (!wanted.empty()) {
    Json found;
    std::vector<std::string> names;
    for (const Json& key : reply["keys"]) {
      names.push_back(text_of(key, "key"));
      if (names.back() == wanted) found = key;
    }
    if (found.is_null()) {
      const std::vector<std::string> near = near_names(wanted, names);
      print_error(invocation, {Code::kNotFound},
                  "no setting '" + wanted + "'; " +
                      (near.empty() ? "there are " + joined(names) : "near it: " + joined(near)));
      return 2;
    }
    if (invocation.json)
      print_json(with_ok(found));
    else
      // A script that asks for one key wants what it can calculate with.
      std::printf("%s\n", (::isatty(STDOUT_FILENO) != 0 ? show_size(wanted, found["value"])
                                                        : show(found["value"]))
                              .c_str());
    return 0;
  }
  if (invocation.json) {
    print_json(with_ok(reply));
    return 0;
  }
  print_settings(reply["keys"]);
  if (!runs) return 0;
  std::fflush(stdout);
  if (const auto differ = pending(reply); differ.size() > 1) {
    std::printf(
        "\nthe settings differ from what runs; restart to apply: kvtier stop && kvtier start\n");
    print_table(differ);
  }
  return 0;
}

}  // namespace

Command config_command() {
  return {"config",
          "show the settings, their bounds and where they come from",
          {{"KEY", "only this one", false}},
          {},
          run_config};
}

}  // namespace kvtier::cli
