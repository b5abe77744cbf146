// codebooks: what the key codes of each space refer to.
#include <cstdio>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

std::string number_text(const Json& entry, const char* key) {
  return entry.contains(key) ? std::to_string(number_of(entry, key)) : "";
}

int run_codebooks(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "codebooks"}}, &reply, &exit_code)) return exit_code;
  for (const Json& entry : reply["codebooks"])
    if (entry.contains("problem")) exit_code = 3;
  if (invocation.json) {
    print_json(reply);
    return exit_code;
  }
  std::vector<std::vector<std::string>> rows = {
      {"SPACE", "MODEL", "KIND", "ID", "KEYS", "QUERIES", "POSITIONS", "SIZE", "STATE"}};
  for (const Json& entry : reply["codebooks"]) {
    const std::string problem = text_of(entry, "problem");
    const std::string state =
        text_of(entry, "state") + (entry.contains("in_memory") ? ", in memory only" : "");
    rows.push_back({std::to_string(number_of(entry, "space")), short_model(text_of(entry, "model")),
                    text_of(entry, "kind"), number_text(entry, "id"),
                    number_text(entry, "keys_per_head"), number_text(entry, "query_tokens"),
                    number_text(entry, "positions"),
                    entry.contains("bytes") ? human_bytes(number_of(entry, "bytes")) : "",
                    problem.empty() ? state : "its file " + problem});
  }
  if (rows.size() == 1)
    std::printf(
        "No space has a codebook: `kvtier calibrate` makes one, or the first view that chooses by "
        "key codes.\n");
  else
    print_table(rows);
  return exit_code;
}

}  // namespace

Command codebooks_command() {
  return {"codebooks", "list what the key codes of each space refer to", {}, {}, run_codebooks};
}

}  // namespace kvtier::cli
