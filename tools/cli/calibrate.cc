// calibrate: the codebook of a model's key codes, made before the first view that needs it. It
// takes queries and rotation, which only a runtime knows: the Python package runs the model, as a
// client of the daemon that this program would ask.
#include <cstdlib>

#include "tools/cli/commands.h"
#include "tools/cli/quality_program.h"

namespace kvtier::cli {
namespace {

int run_calibrate(const Invocation& invocation) {
  if (!check_tokens(invocation, "context")) return 2;
  if (!invocation.socket.empty()) ::setenv("KVTIER_SOCKET", invocation.socket.c_str(), 1);
  return become_quality(invocation, {"--calibrate"}, {"text", "model", "preset", "context"});
}

}  // namespace

Command calibrate_command() {
  return {
      "calibrate",
      "make the codebook that a model's key codes refer to, before a view does",
      {},
      {{"--text", "FILE", "what it is made from; may be repeated (built-in ones)", nullptr, true},
       {"--model", "PATH", "a directory or .gguf (SmolLM2-135M-Instruct)"},
       {"--preset", "NAME", "whose key codes (codes)"},
       {"--context", "TOKENS", "read at most (the model's positions, up to 8192)"}},
      run_calibrate};
}

}  // namespace kvtier::cli
