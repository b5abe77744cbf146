#include <locale.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <cwchar>
#include <filesystem>
#include <sstream>

#include <unistd.h>

#include "base/near_names.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/paths.h"
#include "client/ipc/shm_layout.h"
#include "tools/cli/command.h"

namespace kvtier::cli {
namespace {

std::string socket_path(const Invocation& invocation) {
  return invocation.socket.empty() ? default_socket_path() : invocation.socket;
}

std::string no_connection(const Invocation& invocation, const Status& status) {
  const std::string path = socket_path(invocation);
  return status.code == Code::kNotFound ? "no kvtierd listens at " + path + ": run `kvtier start" +
                                              socket_flag(invocation) + "`"
                                        : "cannot connect to " + path + ": " + describe(status);
}

// As the client library looks for it: named, beside this program, in PATH.
std::string find_program() {
  if (const char* named = std::getenv("KVTIER_DAEMON"); named != nullptr && *named != '\0')
    return named;
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (!failed && is_program(self.parent_path() / "kvtierd")) return self.parent_path() / "kvtierd";
  const char* path = std::getenv("PATH");
  std::stringstream folders(path != nullptr ? path : "/usr/local/bin:/usr/bin");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (!folder.empty() && is_program(folder + "/kvtierd")) return folder + "/kvtierd";
  return "";
}

constexpr std::string_view kPrefix = "KVTIER_";

std::vector<std::string> our_variables() {
  std::vector<std::string> names;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    const std::string_view text(*variable);
    if (text.starts_with(kPrefix)) names.emplace_back(text.substr(0, text.find('=')));
  }
  return names;
}

// The settings as the program reads them. `before` is what a shell runs it with.
Result<Json> ask_program(const std::string& program, const std::string& before,
                         std::string* problem) {
  FILE* pipe = ::popen((before + shell_quoted(program) + " --check --json 2>&1").c_str(), "r");
  std::string output;
  char buffer[4096];
  while (pipe != nullptr && std::fgets(buffer, sizeof buffer, pipe) != nullptr) output += buffer;
  const int status = pipe != nullptr ? ::pclose(pipe) : -1;
  while (!output.empty() && output.back() == '\n') output.pop_back();
  Result<Json> parsed = status == 0 ? parse_json(output) : error(Code::kInvalid);
  if (parsed) return parsed;
  constexpr std::string_view kSaid = "kvtierd: ";
  if (output.starts_with(kSaid)) output.erase(0, kSaid.size());
  *problem = output.empty() ? program + " cannot be run" : output;
  return parsed;
}

}  // namespace

std::string describe(const Status& status) {
  std::string text = status.message();
  if (status.os_error != 0) text += std::string(": ") + std::strerror(status.os_error);
  return text;
}

int print_error(const Invocation& invocation, const Status& status, const std::string& text) {
  if (invocation.json) {
    print_json(Json{{"ok", false}, {"code", static_cast<int>(status.code)}, {"error", text}});
  } else {
    std::fprintf(stderr, "kvtier: %s\n", text.c_str());
  }
  return 1;
}

Result<Json> try_request(const Invocation& invocation, Json body, std::string* text,
                         unsigned timeout_s) {
  const std::string path = socket_path(invocation);
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(5000));
  if (!socket) {
    *text = no_connection(invocation, socket.error());
    return error(socket.error());
  }
  ControlChannel channel(std::move(*socket));
  Result<ControlMessage> hello = channel.call(Json{{"op", "hello"},
                                                   {"version", kProtocolVersion},
                                                   {"name", "kvtier"},
                                                   {"pid", ::getpid()},
                                                   {"data", false}},
                                              {}, 0, Deadline::after_ms(15000));
  const Deadline deadline =
      timeout_s == 0 ? Deadline::never() : Deadline::after_ms(timeout_s * 1000);
  Result<ControlMessage> answer = error(hello ? Status{} : hello.error());
  if (hello) answer = channel.call(std::move(body), {}, 0, deadline);
  if (!answer) {
    *text = channel.error_text().empty() ? describe(answer.error()) : channel.error_text();
    return error(answer.error());
  }
  answer->body.erase("id");
  return std::move(answer->body);
}

bool request(const Invocation& invocation, Json body, Json* reply, int* exit_code,
             unsigned timeout_s) {
  std::string text;
  Result<Json> answer = try_request(invocation, std::move(body), &text, timeout_s);
  if (answer)
    *reply = std::move(*answer);
  else
    *exit_code = print_error(invocation, answer.error(), text);
  return answer.has_value();
}

Result<bool> daemon_listens(const Invocation& invocation, std::string* text) {
  const std::string path = socket_path(invocation);
  const Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(2000));
  if (socket) return true;
  if (socket.error().code == Code::kNotFound) return false;
  *text = no_connection(invocation, socket.error());
  return error(socket.error());
}

bool is_program(const std::string& path, std::string* why) {
  std::error_code ignored;
  const bool runs = ::access(path.c_str(), X_OK) == 0;
  if (runs && std::filesystem::is_regular_file(path, ignored)) return true;
  if (why != nullptr) *why = runs ? "it is no file" : std::strerror(errno);
  return false;
}

bool offline_settings(std::string* program, Json* settings, std::string* problem) {
  *program = find_program();
  if (program->empty()) return false;
  std::string why;
  if (!is_program(*program, &why)) {
    *problem = *program + " cannot be run: " + why;
    return false;
  }
  const Result<Json> asked = ask_program(*program, "", problem);
  if (asked) *settings = *asked;
  return asked.has_value();
}

Json settings_of_environment(const std::string& program, Json* all) {
  constexpr const char* kNoFile = "KVTIER_CONFIG=/dev/null ";
  std::string ignored, bare = "env ";
  const Result<Json> read = ask_program(program, kNoFile, &ignored);
  Json mine{{"keys", Json::array()}};
  if (read) {
    *all = *read;
    for (const Json& key : (*read)["keys"])
      if (text_of(key, "source") == "environment") mine["keys"].push_back(key);
    return mine;
  }
  for (const std::string& name : our_variables()) bare += "-u " + shell_quoted(name) + " ";
  if (const Result<Json> unset = ask_program(program, bare + kNoFile, &ignored); unset)
    *all = *unset;
  return mine;
}

bool is_slip(const std::string& name, const std::string& meant) {
  constexpr std::size_t kSlipsMax = 2;
  return !meant.empty() && edit_distance(name, meant) <= kSlipsMax;
}

std::vector<std::pair<std::string, std::string>> unknown_variables(const Json& settings) {
  constexpr std::size_t kOurs = kPrefix.size();
  std::vector<std::string> known = {"SOCKET", "CONFIG", "DAEMON", "LOG", "FAULTS", "KERNELS"};
  const bool all_known = settings.is_object() && settings.contains("keys");
  if (all_known)
    for (const Json& key : settings["keys"]) {
      std::string name = text_of(key, "key");
      for (char& c : name)
        c = c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      known.push_back(std::move(name));
    }
  std::vector<std::pair<std::string, std::string>> found;
  for (const std::string& name : our_variables()) {
    if (std::ranges::count(known, name.substr(kOurs)) != 0) continue;
    const std::vector<std::string> near = near_names(name.substr(kOurs), known, 1);
    const std::string meant = near.empty() ? "" : std::string(kPrefix) + near.front();
    // Without the list it may well be a setting, unless it is nearly one of these.
    if (all_known || is_slip(name, meant)) found.emplace_back(name, meant);
  }
  return found;
}

void warn_of_variables(const Json& settings, bool all) {
  for (const auto& [name, meant] : unknown_variables(settings))
    if (!meant.empty())
      std::fprintf(stderr, "kvtier: the environment has %s, which means nothing: is it %s?\n",
                   name.c_str(), meant.c_str());
    else if (all)
      std::fprintf(stderr,
                   "kvtier: the environment has %s, which is no setting: store.path is "
                   "KVTIER_STORE_PATH, and so on\n",
                   name.c_str());
}

void print_json(const Json& value) { std::printf("%s\n", dump_json(value).c_str()); }

std::size_t columns_of(const std::string& text) {
  // Whatever the user's locale: what is stored is UTF-8.
  static const locale_t utf8 = ::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  const locale_t before = utf8 != nullptr ? ::uselocale(utf8) : nullptr;
  std::size_t columns = 0;
  std::mbstate_t state{};
  for (std::size_t at = 0; at < text.size();) {
    wchar_t character = 0;
    const std::size_t bytes = std::mbrtowc(&character, &text[at], text.size() - at, &state);
    if (bytes == 0 || bytes > text.size() - at) {  // no character: shown as one mark a byte
      state = {};
      ++at;
      ++columns;
      continue;
    }
    const int width = ::wcwidth(character);
    columns += width > 0 ? static_cast<std::size_t>(width) : 0;
    at += bytes;
  }
  if (before != nullptr) ::uselocale(before);
  return columns;
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return;
  std::vector<std::size_t> widths(rows.front().size(), 0);
  std::vector<bool> numeric(rows.front().size(), rows.size() > 1);
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (std::size_t c = 0; c < widths.size(); ++c) {
      widths[c] = std::max(widths[c], columns_of(rows[r][c]));
      if (r > 0 && !rows[r][c].empty() && std::strchr("0123456789-", rows[r][c][0]) == nullptr)
        numeric[c] = false;
    }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < widths.size(); ++c) {
      const std::string pad(widths[c] - columns_of(row[c]), ' ');
      line += numeric[c] ? pad + row[c] : row[c] + pad;
      if (c + 1 < widths.size()) line += "  ";
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    std::printf("%s\n", line.c_str());
  }
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
                kUnits[unit]);
  return text;
}

std::string human_time(std::uint64_t unix_s) {
  if (unix_s == 0) return "never";
  const auto time = static_cast<std::time_t>(unix_s);
  std::tm parts{};
  ::localtime_r(&time, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &parts);
  return text;
}

std::string human_duration(std::uint64_t seconds) {
  if (seconds < 120) return std::to_string(seconds) + " s";
  if (seconds < 7200) return std::to_string(seconds / 60) + " min";
  if (seconds < 172800) return std::to_string(seconds / 3600) + " h";
  return std::to_string(seconds / 86400) + " days";
}

std::uint64_t number_of(const Json& object, const char* key) {
  const auto field = object.find(key);
  return field != object.end() && field->is_number() ? field->get<std::uint64_t>() : 0;
}

std::string text_of(const Json& object, const char* key) {
  const auto field = object.find(key);
  return field != object.end() && field->is_string() ? field->get<std::string>() : "";
}

std::string label_of(const Json& entry) {
  const std::string name = text_of(entry, "name");
  return name.empty() ? "#" + std::to_string(number_of(entry, "sequence")) : name;
}

std::string counted(std::uint64_t count, const char* one, const char* more) {
  return std::to_string(count) + " " + one + (count == 1 ? "" : more);
}

std::string short_model(const std::string& model) {
  constexpr std::size_t kHashDigitsMin = 32, kDigitsShown = 12, kBytesShown = 40;
  if (model.empty()) return "?";  // of a catalogue that was made anew
  const bool hash = model.size() >= kHashDigitsMin &&
                    model.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  return hash ? model.substr(0, kDigitsShown) : one_line(model, kBytesShown);
}

std::string socket_flag(const Invocation& invocation) {
  if (invocation.socket.empty()) return "";
  return " --socket " + shell_word(invocation.socket);
}

std::string one_line(const std::string& text, std::size_t bytes_max) {
  std::string line;
  std::size_t end = std::min(text.size(), bytes_max);
  while (end < text.size() && end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80)
    --end;
  for (const char c : text.substr(0, end)) {
    const bool space = static_cast<unsigned char>(c) < 0x21 || c == 0x7F;
    if (!space)
      line += c;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  return end < text.size() ? line + "..." : line;
}

Json target_of(const std::string& text) {
  if (!text.empty() && text.size() < 20 &&
      text.find_first_not_of("0123456789") == std::string::npos)
    return Json(static_cast<std::uint64_t>(std::stoull(text)));
  return Json(text);
}

}  // namespace kvtier::cli
