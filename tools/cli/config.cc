// config: every setting with its value, default and bounds.
#include <unistd.h>

#include <cstdio>

#include "base/near_names.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

std::string show(const Json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// For people: "64 GiB (68719476736)"; `exact` leaves the number of bytes away where nothing is
// lost.
std::string show_size(const std::string& name, const Json& value, bool exact = false) {
  if (name.find("_bytes") == std::string::npos || !value.is_number_unsigned()) return show(value);
  const auto bytes = value.get<std::uint64_t>();
  if (bytes < 1024) return show(value);
  std::string text = human_bytes(bytes);
  if (const std::size_t at = text.find(".0 "); at != std::string::npos) text.erase(at, 2);
  return exact && (bytes & (bytes - 1)) == 0 ? text : text + " (" + show(value) + ")";
}

// What the settings say now, where the running daemon, which read them at its start, has something
// else. Only where a file has a part in it: this program's environment need not be the daemon's.
std::vector<std::vector<std::string>> pending(const Json& running) {
  std::vector<std::vector<std::string>> rows = {{"KEY", "RUNS", "AT THE NEXT START"}};
  std::string program, problem;
  Json now;
  if (!offline_settings(&program, &now, &problem)) {
    if (!program.empty())
      std::fprintf(stderr, "kvtier: not at the next start: %s\n", problem.c_str());
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
      print_json(found);
    else
      // A script that asks for one key wants what it can calculate with.
      std::printf("%s\n", ::isatty(STDOUT_FILENO) != 0 ? show_size(wanted, found["value"]).c_str()
                                                       : show(found["value"]).c_str());
    return 0;
  }
  if (invocation.json) {
    print_json(reply);
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {
      {"KEY", "VALUE", "DEFAULT", "MIN", "MAX", "FROM", "MEANING"}};
  for (const Json& key : reply["keys"]) {
    const std::string name = text_of(key, "key");
    rows.push_back({name, show_size(name, key["value"]), show_size(name, key["default"]),
                    show_size(name, key["min"], true), show_size(name, key["max"], true),
                    text_of(key, "source"), text_of(key, "help")});
  }
  print_table(rows);
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
