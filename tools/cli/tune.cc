// tune: the cheapest preset and budget for a model. The Python package measures: this only calls
// it.
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

constexpr const char* kProgram = "kvtier-quality";

int run_tune(const Invocation& invocation) {
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
  return print_error(invocation, {Code::kNotFound, errno, "cannot be run"},
                     std::string(kProgram) + " cannot be run: " + std::strerror(errno) +
                         "; it comes with the Python package (docs/python.md): put its directory, "
                         "as .venv/bin, into PATH");
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
