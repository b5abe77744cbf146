// presets: how views can choose rows, built-in or by the user's files. Needs no daemon.
#include <cstdio>
#include <utility>

#include "kvtier/kvtier.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

bool ask(const Invocation& invocation, Json* reply, int* exit_code) {
  const std::string preset = invocation.get("PRESET");
  char* text = nullptr;
  const kvt_status status = kvt_presets(preset.empty() ? nullptr : preset.c_str(), &text);
  if (status != KVT_OK) {
    *exit_code = print_error(invocation, {static_cast<Code>(status)}, kvt_last_error());
    return false;
  }
  *reply = *parse_json(text);
  kvt_free(text);
  return true;
}

// A number that only some have, behind the word that it belongs to: "cosine 0.7". Null: none.
std::string with_number(const Json& preset, const char* word, const char* number) {
  const auto found = number != nullptr ? preset.find(number) : preset.end();
  return text_of(preset, word) + (found != preset.end() ? " " + found->dump() : "");
}

void print_list(const Json& reply) {
  std::vector<std::vector<std::string>> rows = {{"NAME", "PARTITION", "ABSTRACT", "QUERY", "SEARCH",
                                                 "SCORE", "GROUP", "SCOPE", "BUDGET", "TRIGGER",
                                                 "FETCH", "PRECISION", "FROM"}};
  for (const Json& preset : reply["presets"]) {
    const bool before = text_of(preset, "query") == "step-before";
    rows.push_back(
        {text_of(preset, "name"), text_of(preset, "partition"), text_of(preset, "abstract"),
         with_number(preset, "query", before ? "level" : nullptr), text_of(preset, "search"),
         text_of(preset, "score"), text_of(preset, "group"), text_of(preset, "scope"),
         with_number(preset, "budget", "share"),
         with_number(preset, "trigger", before ? nullptr : "level"), text_of(preset, "fetch"),
         with_number(preset, "precision", "exact_above"), text_of(preset, "from")});
  }
  print_table(rows);
}

void print_profiles(const Json& profiles) {
  std::vector<std::vector<std::string>> rows = {{"MODEL", "ALSO", "PRESET", "BUDGET", "PROFILE"}};
  for (const Json& profile : profiles) {
    const std::string also = text_of(profile, "also");
    if (!profile.contains("error"))
      rows.push_back({short_model(text_of(profile, "model")), also.empty() ? "" : short_model(also),
                      text_of(profile, "preset"), std::to_string(number_of(profile, "budget")),
                      text_of(profile, "from")});
  }
  if (rows.size() == 1) return;
  std::printf("\nWhat views of a model take where nobody names a preset:\n");
  print_table(rows);
}

int run_presets(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (!ask(invocation, &reply, &exit_code)) return exit_code;
  const Json profiles = reply.value("profiles", Json::array());  // of all, not of one
  std::vector<std::string> broken;
  for (const Json* list : {&std::as_const(reply["broken"]), &profiles})
    for (const Json& entry : *list)
      if (entry.contains("error")) broken.push_back(text_of(entry, "error"));
  const int found = broken.empty() ? 0 : 3;
  if (invocation.json) {
    reply["ok"] = true;
    print_json(reply);
  } else if (invocation.has("PRESET")) {
    std::fputs(text_of(reply["presets"][0], "toml").c_str(), stdout);
  } else {
    print_list(reply);
    print_profiles(profiles);
  }
  std::fflush(stdout);  // what is broken comes last
  if (!invocation.json)
    for (const std::string& problem : broken) std::fprintf(stderr, "kvtier: %s\n", problem.c_str());
  return found;
}

}  // namespace

Command presets_command() {
  return {"presets",
          "list how views can choose rows, built-in and by the user's files",
          {{"PRESET", "print this one as a file to start from; a name or a path", false}},
          {},
          run_presets};
}

}  // namespace kvtier::cli
