// tune: the cheapest preset and budget for a model. The Python package measures: this checks the
// number and becomes the package's program.
#include <cmath>
#include <cstdlib>

#include "tools/cli/commands.h"
#include "tools/cli/quality_program.h"

namespace kvtier::cli {
namespace {

// A number above 0 that all of the text is, infinity not: that would take the first thing tried.
// Nor a hexadecimal one, which Python does not read.
bool is_divergence(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end != text.c_str() && *end == '\0' && std::isfinite(value) && value > 0 &&
         text.find_first_of("xX") == std::string::npos;
}

int run_tune(const Invocation& invocation) {
  const std::string kl = invocation.get("KL");
  if (!is_divergence(kl)) {
    print_error(invocation, {Code::kInvalid},
                "KL is a divergence above 0, as 0.003, not '" + kl + "'");
    return 2;
  }
  if (!check_tokens(invocation, "context") || !check_tokens(invocation, "eval")) return 2;
  return become_quality(invocation, {"--tune", kl},
                        {"text", "model", "preset", "budget", "context", "eval"});
}

}  // namespace

Command tune_command() {
  return {"tune",
          "find the cheapest preset and budget for a model, and make them its default",
          {{"KL", "the divergence from full attention that is allowed, as 0.003"}},
          {{"--text", "FILE", "one like those that will be read; may be repeated (a built-in one)",
            nullptr, true},
           {"--model", "PATH", "a directory or .gguf (SmolLM2-135M-Instruct)"},
           {"--preset", "NAMES", "by commas (codes,clusters)"},
           {"--budget", "ROWS", "by commas (64 to 2048)"},
           {"--context", "TOKENS", "stored ones (6144)"},
           {"--eval", "TOKENS", "evaluated ones behind them (512)"}},
          run_tune};
}

}  // namespace kvtier::cli
