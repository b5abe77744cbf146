#include "client/preset_files.h"

#include <filesystem>

#include "client/last_error.h"
#include "client/profiles.h"
#include "client/retrieval/preset_text.h"
#include "client/user_files.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".toml";

std::string directory() { return user_folder("presets"); }

bool is_path(std::string_view name) {
  return name.find('/') != std::string_view::npos || name.ends_with(kSuffix);
}

std::string file_of(std::string_view name) {
  if (is_path(name)) return std::string(name);
  const std::string folder = directory();
  return folder.empty() ? "" : folder + "/" + std::string(name) + std::string(kSuffix);
}

Result<Preset> read_preset(const std::string& path) {
  KVT_TRY(const std::string text, read_user_file(path));
  std::string problem;
  Result<Preset> preset = parse_preset(fs::path(path).stem().string(), text, &problem);
  if (!preset) return error_with(preset.error().code, "%s: %s", path.c_str(), problem.c_str());
  return preset;
}

Json entry_of(const Preset& preset, const std::string& from) {
  Json entry{{"name", preset.name}, {"from", from}};
  entry.update(preset_json(preset));
  return entry;
}

// Of a file that has a built-in preset's name, or that set the error text otherwise.
Json broken_entry(const std::string& path) {
  const std::string name = fs::path(path).stem().string();
  if (find_preset(name))
    set_error_text("%s: a built-in preset has this name: give the file another", path.c_str());
  Json entry{{"name", name}, {"from", path}, {"error", error_text()}};
  clear_error_text();
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
  for (const std::string& file : toml_files(directory()))
    mine += (mine.empty() ? "; of this user: " : ", ") + fs::path(file).stem().string();
  return error_with(Code::kNotFound, "no such preset: %s; %s%s (%s)", std::string(name).c_str(),
                    built_in.error().message(), mine.c_str(),
                    path.empty() ? "no HOME" : ("there is no " + path).c_str());
}

Json list_presets() {
  Json presets = Json::array(), broken = Json::array();
  for (const Preset& preset : all_presets()) presets.push_back(entry_of(preset, "built-in"));
  for (const std::string& path : toml_files(directory())) {
    const bool taken = find_preset(fs::path(path).stem().string()).has_value();
    if (const Result<Preset> preset = taken ? error(Code::kExists) : read_preset(path))
      presets.push_back(entry_of(*preset, path));
    else
      broken.push_back(broken_entry(path));
  }
  return {{"presets", std::move(presets)},
          {"broken", std::move(broken)},
          {"directory", directory()},
          {"profiles", list_profiles()}};
}

Result<Json> describe_preset(std::string_view name) {
  KVT_TRY(const Preset preset, load_preset(name));
  const bool built_in = find_preset(name).has_value();
  Json entry = entry_of(preset, built_in ? "built-in" : file_of(name));
  entry["toml"] = preset_toml(preset);
  Json broken = Json::array();
  std::error_code ignored;
  if (built_in && fs::exists(file_of(preset.name), ignored))
    broken.push_back(broken_entry(file_of(preset.name)));
  return Json{{"presets", Json::array({std::move(entry)})},
              {"broken", std::move(broken)},
              {"directory", directory()}};
}

}  // namespace kvtier
