// ls, show, rm, rename, pin, expire, warm, fork, export, import: what one does with stored
// sequences.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include <unistd.h>

#include "base/limits.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

// Sends one request and prints the reply as JSON, or by `print`.
template <class Print>
int simple(const Invocation& invocation, Json body, Print print, unsigned timeout_s = 30) {
  Json reply;
  int exit_code = 0;
  if (!request(invocation, std::move(body), &reply, &exit_code, timeout_s)) return exit_code;
  if (invocation.json)
    print_json(reply);
  else
    print(reply);
  return 0;
}

std::string marks(const Json& entry) {
  std::string text;
  if (entry.value("pinned", false)) text += "pinned ";
  if (entry.value("private", false)) text += "private ";
  if (number_of(entry, "writer_pid") != 0) text += "open ";
  if (number_of(entry, "expires_unix_s") != 0)
    text += "expires " + human_time(number_of(entry, "expires_unix_s")) + " ";
  if (!text.empty()) text.pop_back();
  return text;
}

// After the rebuilding of a catalogue there can be segments that no sequence shows.
void print_no_sequences(const Json& reply) {
  std::uint64_t segments = 0, bytes = 0;
  for (const Json& space : reply.value("spaces", Json::array())) {
    segments += number_of(space, "segments");
    bytes += number_of(space, "bytes_disk");
  }
  if (segments == 0)
    std::printf("Nothing is stored yet.\n");
  else
    std::printf("No sequences; %s (%s): storing or matching the same text finds %s.\n",
                counted(segments, "segment").c_str(), human_bytes(bytes).c_str(),
                segments == 1 ? "it" : "them");
}

// Of a model that is stored in several spaces (another runtime or dtype) also which one, by the
// beginning of its number, which `kvtier show` has in full.
std::string model_of(const Json& entry, const Json& spaces) {
  const auto of_model = std::count_if(spaces.begin(), spaces.end(), [&entry](const Json& space) {
    return text_of(space, "model") == text_of(entry, "model");
  });
  return short_model(text_of(entry, "model")) +
         (of_model > 1 ? " (space " + std::to_string(number_of(entry, "space")).substr(0, 6) + "..)"
                       : "");
}

// One word, as a command takes it.
std::string name_of(const Json& entry) {
  const std::string name = text_of(entry, "name");
  return name.empty() ? name : shell_word(name);
}

void print_list(const Json& reply) {
  std::vector<std::vector<std::string>> rows = {
      {"ID", "NAME", "MODEL", "TOKENS", "ON DISK", "SHARED", "IN MEMORY", "USED", ""}};
  for (const Json& entry : reply["sequences"])
    rows.push_back({std::to_string(number_of(entry, "sequence")), name_of(entry),
                    model_of(entry, reply["spaces"]), std::to_string(number_of(entry, "tokens")),
                    human_bytes(number_of(entry, "bytes_disk")),
                    human_bytes(number_of(entry, "bytes_shared")),
                    human_bytes(number_of(entry, "bytes_resident")),
                    human_time(number_of(entry, "used_unix_s")), marks(entry)});
  if (rows.size() == 1) return print_no_sequences(reply);
  print_table(rows);
}

void print_names(const Json& reply) {
  for (const Json& entry : reply["sequences"])
    if (const std::string name = text_of(entry, "name"); !name.empty())
      std::printf("%s\n", name.c_str());
}

int run_ls(const Invocation& invocation) {
  return simple(invocation, Json{{"op", "ls"}}, invocation.has("names") ? print_names : print_list);
}

void print_show(const Json& reply) {
  constexpr std::size_t kRuntimeBytes = 40;
  std::printf("%s: sequence %llu, %llu tokens (%llu of them in the tail log)\n",
              label_of(reply).c_str(),
              static_cast<unsigned long long>(number_of(reply, "sequence")),
              static_cast<unsigned long long>(number_of(reply, "tokens")),
              static_cast<unsigned long long>(number_of(reply, "tail_tokens")));
  std::printf("model %s, runtime %s (space %llu); created %s; used %s; %s\n\n",
              short_model(text_of(reply, "model")).c_str(),
              one_line(text_of(reply, "runtime"), kRuntimeBytes).c_str(),
              static_cast<unsigned long long>(number_of(reply, "space")),
              human_time(number_of(reply, "created_unix_s")).c_str(),
              human_time(number_of(reply, "used_unix_s")).c_str(),
              marks(reply).empty() ? "no marks" : marks(reply).c_str());
  std::vector<std::vector<std::string>> rows = {
      {"SEGMENT", "FIRST", "TOKENS", "ON DISK", "IN MEMORY", "SHARED BY", "FILE"}};
  for (const Json& segment : reply["segments"])
    rows.push_back({std::to_string(number_of(segment, "segment")),
                    std::to_string(number_of(segment, "first_token")),
                    std::to_string(number_of(segment, "visible_tokens")),
                    human_bytes(number_of(segment, "bytes_disk")),
                    human_bytes(number_of(segment, "bytes_resident")),
                    std::to_string(number_of(segment, "shared_by")), text_of(segment, "file")});
  print_table(rows);
}

// Of the sealed tokens, as far as their texts are known. False where it cannot be had.
bool read_text(const Invocation& invocation, std::uint64_t tokens, std::string* text,
               int* exit_code) {
  for (std::uint64_t first = 0; first < tokens;) {
    const std::uint64_t count = std::min<std::uint64_t>(tokens - first, kTextTokensMax);
    Json reply;
    if (!request(invocation,
                 Json{{"op", "texts"},
                      {"target", target_of(invocation.get("SEQUENCE"))},
                      {"first", first},
                      {"count", count},
                      {"as_text", true}},
                 &reply, exit_code))
      return false;
    *text += text_of(reply, "text");
    first += std::max<std::uint64_t>(1, number_of(reply, "count"));  // at whole characters
  }
  return true;
}

int run_show(const Invocation& invocation) {
  constexpr std::uint64_t kGlimpseTokens = 64;
  constexpr std::size_t kGlimpseBytes = 160;
  Json reply;
  int exit_code = 0;
  const Json body{{"op", "show"}, {"target", target_of(invocation.get("SEQUENCE"))}};
  if (!request(invocation, body, &reply, &exit_code)) return exit_code;
  const bool all = invocation.has("text");
  const std::uint64_t sealed = number_of(reply, "tokens") - number_of(reply, "tail_tokens");
  std::string text;
  if (all && !read_text(invocation, sealed, &text, &exit_code)) return exit_code;
  if (all && text.empty())
    return print_error(invocation, {Code::kMiss},
                       sealed != 0 ? "its client stored no texts with these tokens"
                                   : "nothing of it is sealed yet: texts are shown when it is");
  if (invocation.json) {
    if (all) reply["text"] = text;
    print_json(reply);
    return 0;
  }
  if (all) {
    std::printf("%s%s", text.c_str(), text.back() == '\n' ? "" : "\n");
    return 0;
  }
  print_show(reply);
  // What cannot be read is no reason to show nothing: verify says what is wrong with it.
  if (const std::uint64_t tokens = std::min(sealed, kGlimpseTokens);
      !read_text(invocation, tokens, &text, &exit_code))
    return 0;
  if (!text.empty()) std::printf("\n%s\n", one_line(text, kGlimpseBytes).c_str());
  return 0;
}

int run_rm(const Invocation& invocation) {
  return simple(
      invocation,
      Json{{"op", "rm"},
           {"target", target_of(invocation.get("SEQUENCE"))},
           {"wipe", invocation.has("wipe")},
           {"force", invocation.has("force")}},
      [wipe = invocation.has("wipe")](const Json& reply) {
        std::printf("removed; %s freed\n", human_bytes(number_of(reply, "bytes_freed")).c_str());
        if (const std::uint64_t kept = number_of(reply, "segments_kept"); wipe && kept != 0)
          std::printf("%s (%s) %s: other sequences use %s\n", counted(kept, "segment").c_str(),
                      human_bytes(number_of(reply, "bytes_kept")).c_str(),
                      kept == 1 ? "stays as it is" : "stay as they are", kept == 1 ? "it" : "them");
      },
      0);
}

int run_rename(const Invocation& invocation) {
  if (invocation.get("NAME").empty() != invocation.has("unname")) {
    print_error(invocation, {Code::kInvalid},
                "give a NAME that is not empty, or --unname to take the name away");
    return 2;
  }
  return simple(invocation,
                Json{{"op", "rename"},
                     {"target", target_of(invocation.get("SEQUENCE"))},
                     {"name", invocation.get("NAME")}},
                [unname = invocation.has("unname")](const Json&) {
                  std::printf(unname ? "it has no name any more\n" : "renamed\n");
                });
}

int run_pin(const Invocation& invocation) {
  const bool pinned = !invocation.has("off");
  return simple(
      invocation,
      Json{{"op", "pin"}, {"target", target_of(invocation.get("SEQUENCE"))}, {"pinned", pinned}},
      [pinned](const Json&) { std::printf(pinned ? "pinned\n" : "no longer pinned\n"); });
}

constexpr unsigned long long kExpiryUnitsMax = 100000;

// "30m", "12h", "7d", "never" -> seconds from now; false for anything else.
bool parse_duration(const std::string& text, std::uint64_t* seconds) {
  if (text == "never") {
    *seconds = 0;
    return true;
  }
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
  if (end == text.c_str() || value == 0 || value > kExpiryUnitsMax) return false;
  const std::string unit = end;
  if (unit == "m")
    *seconds = value * 60;
  else if (unit == "h")
    *seconds = value * 3600;
  else if (unit == "d")
    *seconds = value * 86400;
  else
    return false;
  return true;
}

int run_expire(const Invocation& invocation) {
  std::uint64_t seconds = 0;
  if (!parse_duration(invocation.get("IN"), &seconds)) {
    print_error(invocation, {Code::kInvalid},
                "IN is a number from 1 to " + std::to_string(kExpiryUnitsMax) +
                    " with m (minutes), h (hours) or d (days), like 30m, 12h or 7d; or never");
    return 2;
  }
  const std::uint64_t at =
      seconds == 0 ? 0 : static_cast<std::uint64_t>(std::time(nullptr)) + seconds;
  return simple(
      invocation,
      Json{{"op", "expire"}, {"target", target_of(invocation.get("SEQUENCE"))}, {"at_unix_s", at}},
      [&invocation, at](const Json& reply) {
        std::string text = human_time(at);
        if (at != 0 && reply.value("pinned", false))
          text += ", but it is pinned and stays until the pin is off (kvtier pin --off " +
                  shell_word(invocation.get("SEQUENCE")) + ")";
        std::printf("expires: %s\n", text.c_str());
      });
}

int run_warm(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  const Json body{{"op", "warm"}, {"target", target_of(invocation.get("SEQUENCE"))}};
  if (!request(invocation, body, &reply, &exit_code, 0)) return exit_code;
  const std::uint64_t unreadable = number_of(reply, "chunks_unreadable");
  if (invocation.json) {
    print_json(reply);
    return unreadable != 0 ? 3 : 0;
  }
  std::printf("%llu of %llu chunks are in memory; %s read\n",
              static_cast<unsigned long long>(number_of(reply, "chunks_resident")),
              static_cast<unsigned long long>(number_of(reply, "chunks")),
              human_bytes(number_of(reply, "bytes_read")).c_str());
  if (unreadable != 0)
    std::printf(
        "%llu could not be read: `kvtier verify` names what is damaged or missing, `kvtier repair` "
        "ends the sequence before it\n",
        static_cast<unsigned long long>(unreadable));
  return unreadable != 0 ? 3 : 0;
}

int run_fork(const Invocation& invocation) {
  if (invocation.get("NAME").empty()) {
    print_error(invocation, {Code::kInvalid}, "NAME is empty: the new sequence needs a name");
    return 2;
  }
  Json body{{"op", "fork"}, {"new_name", invocation.get("NAME")}, {"write", false}};
  const Json target = target_of(invocation.get("SEQUENCE"));
  body[target.is_number() ? "sequence" : "name"] = target;
  if (invocation.has("tokens")) {
    const Json tokens = target_of(invocation.get("tokens"));
    if (!tokens.is_number() || tokens == 0) {
      print_error(invocation, {Code::kInvalid}, "--tokens must be a number, 1 or more");
      return 2;
    }
    body["tokens"] = tokens;
  }
  return simple(invocation, std::move(body), [](const Json& reply) {
    std::printf("sequence %llu, %llu tokens, nothing copied\n",
                static_cast<unsigned long long>(number_of(reply, "sequence")),
                static_cast<unsigned long long>(number_of(reply, "tokens_sealed")));
  });
}

std::string absolute(const std::string& path) {
  char directory[PATH_MAX];
  if (path.empty() || path[0] == '/' || ::getcwd(directory, sizeof directory) == nullptr)
    return path;
  return std::string(directory) + "/" + path;
}

int run_export(const Invocation& invocation) {
  if (invocation.get("FILE") == "-") {
    print_error(invocation, {Code::kInvalid},
                "FILE is -: an export goes into a file, not to the standard output (a file of that "
                "name is ./-)");
    return 2;
  }
  return simple(
      invocation,
      Json{{"op", "export"},
           {"target", target_of(invocation.get("SEQUENCE"))},
           {"path", absolute(invocation.get("FILE"))}},
      [](const Json& reply) {
        std::printf("%llu tokens, %s\n",
                    static_cast<unsigned long long>(number_of(reply, "tokens")),
                    human_bytes(number_of(reply, "bytes")).c_str());
      },
      0);
}

int run_import(const Invocation& invocation) {
  Json body{{"op", "import"}, {"path", absolute(invocation.get("FILE"))}};
  if (invocation.has("name")) body["name"] = invocation.get("name");
  return simple(
      invocation, std::move(body),
      [](const Json& reply) {
        std::printf("%s: sequence %llu, %llu tokens\n", label_of(reply).c_str(),
                    static_cast<unsigned long long>(number_of(reply, "sequence")),
                    static_cast<unsigned long long>(number_of(reply, "tokens")));
      },
      0);
}

const Argument kSequence = {"SEQUENCE", "name, or id as `kvtier ls` shows it"};

}  // namespace

Command ls_command() {
  return {"ls",
          "list the stored sequences",
          {},
          {{"--names", nullptr, "their names and nothing else, one a line"}},
          run_ls};
}
Command show_command() {
  return {"show",
          "show one sequence, its segments and how its text begins",
          {kSequence},
          {{"--text", nullptr, "its sealed text and nothing else (exit 1: its client gave none)"}},
          run_show};
}
Command rm_command() {
  return {"rm",
          "remove a sequence",
          {kSequence},
          {{"--wipe", nullptr, "overwrite what only it used"},
           {"--force", nullptr, "also where it is pinned"}},
          run_rm};
}
Command rename_command() {
  return {"rename",
          "give a sequence another name",
          {kSequence, {"NAME", "the new name", false}},
          {{"--unname", nullptr, "take its name away instead; its id stays"}},
          run_rename};
}
Command pin_command() {
  return {"pin",
          "keep a sequence on disk whatever the limits and its expiry say; rm refuses it",
          {kSequence},
          {{"--off", nullptr, "no longer"}},
          run_pin};
}
Command expire_command() {
  return {
      "expire",
      "remove a sequence by itself later",
      {kSequence,
       {"IN",
        "from now on: 30m (minutes), 12h (hours), 7d (days), at most 100000 of them; or never"}},
      {},
      run_expire};
}
Command warm_command() {
  return {"warm",
          "read a sequence into memory (exit 3: some of it cannot be read)",
          {kSequence},
          {},
          run_warm};
}
Command fork_command() {
  return {"fork",
          "make a sequence that shares another's beginning",
          {kSequence, {"NAME", "name of the new one"}},
          {{"--tokens", "N", "share only the first N tokens"}},
          run_fork};
}
Command export_command() {
  return {"export",
          "write a sequence into one verified file",
          {kSequence, {"FILE", "must not exist"}},
          {},
          run_export};
}
Command import_command() {
  return {"import",
          "read a sequence from an exported file",
          {{"FILE", "made by export"}},
          {{"--name", "NAME", "name it so"}},
          run_import};
}

}  // namespace kvtier::cli
