// tune: the cheapest preset and budget for a model. The Python package measures: this checks the
// number, finds the package's program and becomes it.
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

constexpr const char* kProgram = "kvtier-quality";

// A number above 0 that all of the text is, infinity not: that would take the first thing tried.
bool is_divergence(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end != text.c_str() && *end == '\0' && std::isfinite(value) && value > 0;
}

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

int run_tune(const Invocation& invocation) {
  if (const std::string kl = invocation.get("KL"); !is_divergence(kl)) {
    print_error(invocation, {Code::kInvalid},
                "KL is a divergence above 0, as 0.003, not '" + kl + "'");
    return 2;
  }
  std::vector<std::string> arguments = {kProgram, "--tune", invocation.get("KL")};
  for (const char* flag : {"text", "model", "preset", "budget", "context", "eval"})
    if (invocation.has(flag)) {
      arguments.push_back(std::string("--") + flag);
      arguments.push_back(invocation.get(flag));
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

}  // namespace

Command tune_command() {
  return {"tune",
          "find the cheapest preset and budget for a model, and make them its default",
          {{"KL", "the divergence from full attention that is allowed, as 0.003"}},
          {{"--text", "FILE", "a text like those that will be read (a built-in one)"},
           {"--model", "PATH", "a directory or .gguf (SmolLM2-135M-Instruct)"},
           {"--preset", "NAMES", "by commas (codes,clusters)"},
           {"--budget", "ROWS", "by commas (64 to 2048)"},
           {"--context", "TOKENS", "stored ones (6144)"},
           {"--eval", "TOKENS", "evaluated ones behind them (512)"}},
          run_tune};
}

}  // namespace kvtier::cli
