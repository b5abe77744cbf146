#include "client/profiles.h"

#include "base/limits.h"
#include "base/toml.h"
#include "client/last_error.h"
#include "client/user_files.h"

namespace kvtier {
namespace {

std::string directory() { return user_folder("profiles"); }

// "" or what is wrong with the entry.
std::string take_entry(const TomlEntry& entry, Profile* out) {
  if (entry.key.starts_with("measured.")) return "";
  if (entry.key == "budget") {
    const auto* rows = std::get_if<std::int64_t>(&entry.value);
    if (rows == nullptr || *rows < 1 || *rows > static_cast<std::int64_t>(kSequenceTokensMax))
      return "budget is a number of rows, at least 1";
    out->budget = static_cast<std::uint64_t>(*rows);
    return "";
  }
  std::string* const target = entry.key == "model"    ? &out->model
                              : entry.key == "also"   ? &out->also
                              : entry.key == "preset" ? &out->preset
                                                      : nullptr;
  if (target == nullptr)
    return "unknown key '" + entry.key + "': a profile has model, also, preset, budget";
  const auto* text = std::get_if<std::string>(&entry.value);
  if (text == nullptr || text->empty()) return entry.key + " is a text in quotes";
  *target = *text;
  return "";
}

Result<Profile> read_profile(const std::string& path) {
  KVT_TRY(const std::string text, read_user_file(path));
  std::string problem;
  const auto entries = parse_toml(text, &problem);
  Profile profile;
  profile.path = path;
  for (std::size_t i = 0; entries && i < entries->size() && problem.empty(); ++i)
    if (problem = take_entry((*entries)[i], &profile); !problem.empty())
      problem += at_line((*entries)[i].line);
  if (problem.empty() && (profile.model.empty() || profile.preset.empty() || profile.budget == 0))
    problem = "a profile needs model, preset and budget";
  if (!problem.empty()) return error_with(Code::kInvalid, "%s: %s", path.c_str(), problem.c_str());
  return profile;
}

}  // namespace

Result<std::optional<Profile>> find_profile(std::string_view model) {
  std::optional<Profile> found;
  for (const std::string& path : toml_files(directory())) {
    Result<Profile> profile = read_profile(path);
    if (!profile) {
      // A broken one counts where it may be this model's.
      const Result<std::string> text = read_user_file(path);
      if (text && text->find(model) != std::string::npos) {
        KVT_TRY(found, read_profile(path));
        return found;
      }
      clear_error_text();
      continue;
    }
    if (profile->model != model && profile->also != model) continue;
    if (found)
      return error_with(Code::kInvalid, "%s and %s are profiles of the same model: remove one",
                        found->path.c_str(), path.c_str());
    found = *std::move(profile);
  }
  return found;
}

Result<std::string> preset_or_profile(std::string_view preset, std::string_view model) {
  if (!preset.empty()) return std::string(preset);
  KVT_TRY(const std::optional<Profile> profile, find_profile(model));
  return profile ? profile->preset : std::string();
}

Json list_profiles() {
  Json out = Json::array();
  for (const std::string& path : toml_files(directory())) {
    if (const Result<Profile> profile = read_profile(path)) {
      out.push_back({{"from", path},
                     {"model", profile->model},
                     {"also", profile->also},
                     {"preset", profile->preset},
                     {"budget", profile->budget}});
      continue;
    }
    out.push_back({{"from", path}, {"error", error_text()}});
    clear_error_text();
  }
  return out;
}

}  // namespace kvtier
