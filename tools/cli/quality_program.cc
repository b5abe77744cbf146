#include "tools/cli/quality_program.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace kvtier::cli {
namespace {

constexpr const char* kProgram = "kvtier-quality";

// Where the package may have put its program, beside PATH, first to last: into an activated
// environment, beside this program, into the .venv of the repository that this one was built in.
std::vector<std::string> places() {
  std::vector<std::string> places;
  if (const char* environment = std::getenv("VIRTUAL_ENV");
      environment != nullptr && *environment != 0)
    places.push_back(std::string(environment) + "/bin/" + kProgram);
  std::error_code failed;
  const auto own = std::filesystem::read_symlink("/proc/self/exe", failed).parent_path();
  if (!failed)
    for (const char* directory : {".", "../../.venv/bin"})
      places.push_back((own / directory / kProgram).lexically_normal());
  return places;
}

bool is_count(const std::string& text) {
  return text.size() < 10 && text.find_first_not_of('0') != std::string::npos &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool check_tokens(const Invocation& invocation, const std::string& flag) {
  if (!invocation.has(flag) || is_count(invocation.get(flag))) return true;
  print_error(invocation, {Code::kInvalid},
              "--" + flag + ": a number of tokens, not '" + invocation.get(flag) + "'");
  return false;
}

int become_quality(const Invocation& invocation, std::vector<std::string> arguments,
                   const std::vector<const char*>& flags) {
  arguments.insert(arguments.begin(), kProgram);
  for (const char* flag : flags)
    for (const std::string& value : invocation.all(flag)) {
      arguments.push_back(std::string("--") + flag);
      arguments.push_back(value);
    }
  if (invocation.json) {
    arguments.push_back("--json");
    arguments.push_back("-");
  }
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  ::execvp(kProgram, pointers.data());
  int problem = errno;
  std::string looked;
  for (const std::string& place : places()) {
    ::execv(place.c_str(), pointers.data());
    if (errno != ENOENT) problem = errno;
    looked += ", " + place;
  }
  return print_error(
      invocation, {Code::kNotFound, problem, "cannot be run"},
      std::string(kProgram) + " cannot be run: " + std::strerror(problem) +
          "; it comes with the Python package: `tools/quickstart` or `pip install .` "
          "in a clone. Looked in PATH" +
          looked);
}

}  // namespace kvtier::cli
