// One table of keys serves the parser, the bounds, `kvtier config` and the documentation.
#include "daemon/options.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <variant>

#include "base/limits.h"
#include "base/near_names.h"
#include "base/toml.h"
#include "client/ipc/paths.h"

namespace kvtier {
namespace {

using Options = DaemonOptions;
using Member = std::variant<std::string Options::*, std::uint64_t Options::*,
                            std::uint32_t Options::*, bool Options::*>;

struct Key {
  const char* name;  // section.key
  Member member;
  std::uint64_t min, max;  // of numbers
  const char* choices;     // of texts: "a|b|c", or null: free
  const char* help;
};

constexpr std::uint64_t kMiB = 1ull << 20;
constexpr std::uint64_t kTiB = 1ull << 40;

const std::vector<Key>& keys() {
  static const std::vector<Key> table = {
      {"store.path", &Options::store_path, 0, 0, nullptr, "directory of the store"},
      {"store.disk_bytes_max", &Options::disk_bytes_max, 64 * kMiB, 64 * kTiB, nullptr,
       "bytes on disk; beyond it the least recently used is removed, then writes are refused"},
      {"store.disk_write_bytes_per_day", &Options::disk_write_bytes_per_day, 0, 64 * kTiB, nullptr,
       "write budget of a day; explicit commits are counted and warned about, never refused; 0: "
       "none"},
      {"store.admission", &Options::admission, 0, 1, nullptr,
       "above half of the write budget, store what is closed without name or commit only on its "
       "second use"},
      {"store.decline_slow_loads", &Options::decline_slow_loads, 0, 1, nullptr,
       "do not use a stored prefix that would take longer to load than to compute"},
      {"host.arena_bytes", &Options::host_bytes, 2 * kMiB, 4 * kTiB, nullptr, "memory for chunks"},
      {"host.abstracts_bytes", &Options::abstracts_bytes, kMiB, kTiB, nullptr,
       "memory for abstracts"},
      {"host.leased_bytes_per_client_max", &Options::leased_bytes_per_client_max, kMiB, kTiB,
       nullptr, "bytes that one client may hold under leases; unset: at most half of the arena"},
      {"host.tail_bytes_max", &Options::tail_bytes_max, 64 * kMiB, 64 * kTiB, nullptr,
       "bytes to which the tails of all open sequences may grow, 4,096 tokens each; beyond it none "
       "is opened for writing"},
      {"host.probation_percent", &Options::probation_percent, 10, 50, nullptr,
       "share of memory, and of the disk limit, for what was used only once"},
      {"host.huge_pages", &Options::huge_pages, 0, 1, nullptr, "ask for huge pages"},
      {"disk.backend", &Options::io_backend, 0, 0, "auto|io_uring|threads",
       "how the disk is driven: auto, io_uring or threads"},
      {"disk.depth", &Options::io_depth, 1, kIoDepthMax, nullptr, "operations in flight"},
      {"disk.bytes_in_flight_max", &Options::io_bytes_in_flight_max, kMiB, 256 * kMiB, nullptr,
       "bytes in flight"},
      {"disk.direct", &Options::direct_io, 0, 1, nullptr, "bypass the page cache"},
      {"daemon.socket", &Options::socket_path, 0, 0, nullptr, "path of the control socket"},
      {"daemon.workers", &Options::workers, 1, 64, nullptr,
       "threads for sealing, checksums, abstracts"},
      {"daemon.clients_max", &Options::clients_max, 1, kClientsMax, nullptr,
       "data clients at a time"},
      {"daemon.spin_us", &Options::spin_us, 0, 1000, nullptr,
       "spin before sleeping; 0: chosen by the number of cores"},
      {"daemon.idle_seal_s", &Options::idle_seal_s, 1, 86400, nullptr,
       "a tail idle this long is sealed"},
      {"daemon.scrub_mb_per_s", &Options::scrub_mb_per_s, 0, 10000, nullptr,
       "background verification; 0: off"},
      {"daemon.log_level", &Options::log_level, 0, 0, "error|warn|info|debug",
       "what is logged: error, warn, info or debug"},
      {"daemon.kernels", &Options::kernels, 0, 0, "auto|scalar|simd",
       "kernel back end of abstracts: auto, scalar or simd"},
  };
  return table;
}

const Key* find_key(std::string_view name) {
  for (const Key& key : keys())
    if (name == key.name) return &key;
  return nullptr;
}

// Names what there is: a user whose file is refused cannot ask `kvtier config` with it.
std::string unknown_key(std::string_view name) {
  const std::string section(name.substr(0, name.find('.')));
  std::vector<std::string> sections, of_section;
  for (const Key& key : keys()) {
    const std::string_view known = key.name;
    const std::string_view part = known.substr(0, known.find('.'));
    if (sections.empty() || sections.back() != part) sections.emplace_back(part);
    if (part == section) of_section.emplace_back(known.substr(part.size() + 1));
  }
  const std::vector<std::string> near = near_names(name, option_names());
  std::string text = "unknown key '" + std::string(name) + "'";
  if (!near.empty()) text += "; the nearest known one is '" + near.front() + "'";
  return text + (of_section.empty() ? "; the sections are " + joined(sections)
                                    : "; section " + section + " has " + joined(of_section));
}

bool is_choice(const char* choices, std::string_view value) {
  for (std::string_view rest = choices; !rest.empty();) {
    const std::size_t bar = rest.find('|');
    if (rest.substr(0, bar) == value) return true;
    if (bar == std::string_view::npos) break;
    rest.remove_prefix(bar + 1);
  }
  return false;
}

bool is_path(const Key& key) {
  const auto* member = std::get_if<std::string Options::*>(&key.member);
  return member != nullptr && (*member == &Options::store_path || *member == &Options::socket_path);
}

// A path means the same wherever the daemon runs: "~/" is HOME, and nothing else is relative.
Result<void> set_path(const Key& key, std::string_view value, Options* options,
                      std::string* problem) {
  const char* home = std::getenv("HOME");
  const bool has_home = home != nullptr && *home == '/';
  std::string path(value);
  if (has_home && value.starts_with("~/")) path = home + path.substr(1);
  if (!path.empty() && path.front() != '/') {
    const bool plain = value.find_first_of("~$%") == std::string_view::npos;
    const std::string example = plain ? std::string(value) : "kvtier";
    *problem = std::string(key.name) + " = '" + std::string(value) +
               "': must be an absolute path, such as " + (has_home ? home : "") + "/" + example +
               (has_home ? ", or ~/" + example : "");
    return error(Code::kInvalid, "a setting is a relative path");
  }
  options->*std::get<std::string Options::*>(key.member) = std::move(path);
  return {};
}

Result<void> set_text(const Key& key, std::string_view value, Options* options,
                      std::string* problem) {
  if (is_path(key)) return set_path(key, value, options, problem);
  if (key.choices != nullptr && !is_choice(key.choices, value)) {
    *problem =
        std::string(key.name) + " = '" + std::string(value) + "': choose one of " + key.choices;
    return error(Code::kInvalid, "a setting has an unknown value");
  }
  options->*std::get<std::string Options::*>(key.member) = std::string(value);
  return {};
}

Result<void> set_number(const Key& key, std::uint64_t value, Options* options,
                        std::string* problem) {
  if (value < key.min || value > key.max) {
    *problem = std::string(key.name) + " = " + std::to_string(value) + ": must be " +
               std::to_string(key.min) + " to " + std::to_string(key.max);
    return error(Code::kInvalid, "a setting is out of its bounds");
  }
  if (const auto* wide = std::get_if<std::uint64_t Options::*>(&key.member))
    options->*(*wide) = value;
  if (const auto* narrow = std::get_if<std::uint32_t Options::*>(&key.member))
    options->*(*narrow) = static_cast<std::uint32_t>(value);
  if (const auto* flag = std::get_if<bool Options::*>(&key.member)) options->*(*flag) = value != 0;
  return {};
}

// `given`: " = 'value'", as shown(); "" where it has no text.
Result<void> wrong_kind(const Key& key, const std::string& given, const char* wanted,
                        std::string* problem) {
  *problem = key.name + given + ": must be " + wanted;
  return error(Code::kInvalid, "a setting has the wrong kind");
}

std::string shown(std::string_view text) { return " = '" + std::string(text) + "'"; }

std::string shown(const TomlEntry& entry) {
  if (const auto* text = std::get_if<std::string>(&entry.value)) return shown(*text);
  if (const auto* number = std::get_if<std::int64_t>(&entry.value))
    return " = " + std::to_string(*number);
  if (const auto* flag = std::get_if<bool>(&entry.value)) return *flag ? " = true" : " = false";
  if (const auto* real = std::get_if<double>(&entry.value)) {
    char text[32];
    std::snprintf(text, sizeof text, " = %g", *real);
    return text;
  }
  return "";
}

// "64GiB", "512 MiB", "1000".
bool parse_size(std::string_view text, std::uint64_t* value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), *value);
  if (parsed.ec != std::errc()) return false;
  std::string_view unit(parsed.ptr,
                        static_cast<std::size_t>(text.data() + text.size() - parsed.ptr));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  constexpr std::pair<const char*, int> kUnits[] = {
      {"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  for (const auto& [name, shift] : kUnits) {
    if (unit != name) continue;
    if (*value > (UINT64_MAX >> shift)) return false;
    *value <<= shift;
    return true;
  }
  return false;
}

Result<void> set_entry(const Key& key, const TomlEntry& entry, Options* options,
                       std::string* problem) {
  const auto* text = std::get_if<std::string>(&entry.value);
  if (std::holds_alternative<std::string Options::*>(key.member))
    return text != nullptr ? set_text(key, *text, options, problem)
                           : wrong_kind(key, shown(entry), "a text", problem);
  if (std::holds_alternative<bool Options::*>(key.member)) {
    const auto* flag = std::get_if<bool>(&entry.value);
    return flag != nullptr ? set_number(key, *flag ? 1 : 0, options, problem)
                           : wrong_kind(key, shown(entry), "true or false", problem);
  }
  std::uint64_t value = 0;
  if (const auto* number = std::get_if<std::int64_t>(&entry.value)) {
    if (*number < 0) return wrong_kind(key, shown(entry), "a number, 0 or more", problem);
    value = static_cast<std::uint64_t>(*number);
  } else if (text == nullptr || !parse_size(*text, &value)) {
    return wrong_kind(key, shown(entry),
                      "a number, or a size such as \"8 GiB\" (KiB, MiB, GiB or TiB)", problem);
  }
  return set_number(key, value, options, problem);
}

Json value_json(const Key& key, const Options& options) {
  return std::visit([&options](auto member) { return Json(options.*member); }, key.member);
}

}  // namespace

void DaemonOptions::fill_in() {
  if (source_of("host.leased_bytes_per_client_max") == std::string_view("default"))
    leased_bytes_per_client_max = std::min(leased_bytes_per_client_max, host_bytes / 2);
}

Result<void> DaemonOptions::validate(std::string* problem) const {
  if (store_path.empty())
    return error(Code::kInvalid, "no directory for the store: set store.path or HOME");
  if (leased_bytes_per_client_max > host_bytes) {
    if (problem != nullptr)
      *problem =
          "host.leased_bytes_per_client_max = " + std::to_string(leased_bytes_per_client_max) +
          " is above host.arena_bytes = " + std::to_string(host_bytes) +
          ": lower it, or leave it out for half of the arena";
    return error(Code::kInvalid,
                 "host.leased_bytes_per_client_max is above host.arena_bytes: lower it");
  }
  return {};
}

const char* DaemonOptions::source_of(std::string_view key) const noexcept {
  for (auto entry = sources.rbegin(); entry != sources.rend(); ++entry)
    if (entry->first == key) return entry->second;
  return "default";
}

void DaemonOptions::set_source(std::string_view key, const char* source) {
  sources.emplace_back(std::string(key), source);
}

Result<void> parse_options_toml(std::string_view text, DaemonOptions* options,
                                std::string* problem) {
  KVT_TRY(const std::vector<TomlEntry> entries, parse_toml(text, problem));
  for (const TomlEntry& entry : entries) {
    const Key* key = find_key(entry.key);
    if (key == nullptr) {
      *problem = unknown_key(entry.key) + at_line(entry.line);
      return error(Code::kInvalid, "unknown key in the configuration");
    }
    const Result<void> set = set_entry(*key, entry, options, problem);
    if (!set) {
      *problem += at_line(entry.line);
      return set;
    }
    options->set_source(entry.key, "file");
  }
  return {};
}

Result<void> set_option(std::string_view name, std::string_view value, DaemonOptions* options,
                        std::string* problem) {
  const Key* key = find_key(name);
  if (key == nullptr) {
    *problem = unknown_key(name);
    return error(Code::kInvalid, "unknown key");
  }
  if (std::holds_alternative<std::string Options::*>(key->member))
    return set_text(*key, value, options, problem);
  if (std::holds_alternative<bool Options::*>(key->member)) {
    if (value == "true" || value == "1") return set_number(*key, 1, options, problem);
    if (value == "false" || value == "0") return set_number(*key, 0, options, problem);
    return wrong_kind(*key, shown(value), "true or false", problem);
  }
  std::uint64_t number = 0;
  if (!parse_size(value, &number))
    return wrong_kind(*key, shown(value), "a number, or a size such as 8GiB (KiB, MiB, GiB or TiB)",
                      problem);
  return set_number(*key, number, options, problem);
}

DaemonOptions default_options() {
  DaemonOptions options;
  const char* data = std::getenv("XDG_DATA_HOME");
  const char* home = std::getenv("HOME");
  if (data != nullptr && *data == '/')
    options.store_path = std::string(data) + "/kvtier";
  else if (home != nullptr && *home == '/')
    options.store_path = std::string(home) + "/.local/share/kvtier";
  options.socket_path = default_socket_path();
  return options;
}

std::vector<std::string> option_names() {
  std::vector<std::string> names;
  for (const Key& key : keys()) names.emplace_back(key.name);
  return names;
}

Json options_json(const DaemonOptions& options) {
  const DaemonOptions defaults = default_options();
  Json list = Json::array();
  for (const Key& key : keys()) {
    Json entry;
    entry["key"] = key.name;
    entry["value"] = value_json(key, options);
    entry["default"] = value_json(key, defaults);
    if (!std::holds_alternative<std::string Options::*>(key.member) &&
        !std::holds_alternative<bool Options::*>(key.member)) {
      entry["min"] = key.min;
      entry["max"] = key.max;
    } else {
      entry["min"] = nullptr;
      entry["max"] = nullptr;
    }
    if (key.choices != nullptr) entry["choices"] = key.choices;
    entry["source"] = options.source_of(key.name);
    entry["help"] = key.help;
    list.push_back(std::move(entry));
  }
  return Json{{"keys", std::move(list)}};
}

}  // namespace kvtier
