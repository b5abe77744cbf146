#include "client/preset_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "client/ipc/paths.h"
#include "client/last_error.h"
#include "client/retrieval/preset_text.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kFileBytesMax = 64 << 10;
constexpr std::string_view kSuffix = ".toml";

// "" where this user has no directory for settings.
std::string directory() {
  const std::string config = default_config_directory();
  return config.empty() ? "" : config + "/presets";
}

bool is_path(std::string_view name) {
  return name.find('/') != std::string_view::npos || name.ends_with(kSuffix);
}

std::string file_of(std::string_view name) {
  if (is_path(name)) return std::string(name);
  const std::string folder = directory();
  return folder.empty() ? "" : folder + "/" + std::string(name) + std::string(kSuffix);
}

Result<std::string> read_file(const std::string& path) {
  errno = 0;
  std::error_code failed;
  // A folder, or a pipe that nobody writes to, is no preset.
  const bool regular = fs::is_regular_file(path, failed);
  std::ifstream file;
  if (regular) file.open(path, std::ios::binary);
  if (!file.is_open()) {
    const int why = failed ? failed.value() : errno;
    return error_with(failed == std::errc::no_such_file_or_directory ? Code::kNotFound : Code::kIo,
                      "cannot read %s: %s", path.c_str(),
                      why != 0 ? std::strerror(why) : "it is no file");
  }
  std::string text(kFileBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kFileBytesMax)
    return error_with(Code::kTooLarge, "%s: a preset has at most 65536 bytes", path.c_str());
  return text;
}

Result<Preset> read_preset(const std::string& path) {
  KVT_TRY(const std::string text, read_file(path));
  std::string problem;
  Result<Preset> preset = parse_preset(fs::path(path).stem().string(), text, &problem);
  if (!preset) return error_with(preset.error().code, "%s: %s", path.c_str(), problem.c_str());
  return preset;
}

// The files of the user's directory, by name.
std::vector<std::string> files() {
  std::vector<std::string> out;
  std::error_code ignored;
  for (fs::directory_iterator at(directory(), ignored), end; !ignored && at != end;
       at.increment(ignored))
    if (at->path().extension() == kSuffix) out.push_back(at->path().string());
  std::sort(out.begin(), out.end());
  return out;
}

Json entry_of(const Preset& preset, const std::string& from) {
  Json entry{{"name", preset.name}, {"from", from}};
  entry.update(preset_json(preset));
  return entry;
}

}  // namespace

Result<Preset> load_preset(std::string_view name) {
  const Result<const Preset*> built_in = find_preset(name);
  if (built_in) return **built_in;
  if (is_path(name)) return read_preset(file_of(name));
  const std::string path = file_of(name);
  std::error_code ignored;
  if (!path.empty() && fs::exists(path, ignored)) return read_preset(path);
  std::string mine;
  for (const std::string& file : files())
    mine += (mine.empty() ? "; of this user: " : ", ") + fs::path(file).stem().string();
  return error_with(Code::kNotFound, "%s%s (%s)", built_in.error().message(), mine.c_str(),
                    path.empty() ? "no HOME" : ("there is no " + path).c_str());
}

Json list_presets() {
  Json presets = Json::array(), broken = Json::array();
  for (const Preset& preset : all_presets()) presets.push_back(entry_of(preset, "built-in"));
  for (const std::string& path : files()) {
    const std::string name = fs::path(path).stem().string();
    if (find_preset(name)) {
      set_error_text("%s: a built-in preset has this name: give the file another", path.c_str());
    } else if (const Result<Preset> preset = read_preset(path)) {
      presets.push_back(entry_of(*preset, path));
      continue;
    }
    broken.push_back(Json{{"name", name}, {"from", path}, {"error", error_text()}});
    clear_error_text();
  }
  return {
      {"presets", std::move(presets)}, {"broken", std::move(broken)}, {"directory", directory()}};
}

Result<Json> describe_preset(std::string_view name) {
  KVT_TRY(const Preset preset, load_preset(name));
  Json entry = entry_of(preset, find_preset(name) ? "built-in" : file_of(name));
  entry["toml"] = preset_toml(preset);
  return Json{{"presets", Json::array({std::move(entry)})},
              {"broken", Json::array()},
              {"directory", directory()}};
}

}  // namespace kvtier
