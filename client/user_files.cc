#include "client/user_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "client/ipc/paths.h"
#include "client/last_error.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kFileBytesMax = 64 << 10;

}  // namespace

std::string user_folder(std::string_view name) {
  const std::string config = default_config_directory();
  return config.empty() ? "" : config + "/" + std::string(name);
}

std::vector<std::string> toml_files(const std::string& folder) {
  std::vector<std::string> out;
  std::error_code ignored;
  for (fs::directory_iterator at(folder, ignored), end; !ignored && at != end;
       at.increment(ignored))
    if (at->path().extension() == ".toml") out.push_back(at->path().string());
  std::sort(out.begin(), out.end());
  return out;
}

Result<std::string> read_user_file(const std::string& path) {
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
    return error_with(Code::kTooLarge, "%s: a file of presets or profiles has at most 65536 bytes",
                      path.c_str());
  return text;
}

}  // namespace kvtier
