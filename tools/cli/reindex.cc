// reindex: abstracts of what is stored, built again by the daemon's workers. The job is the
// daemon's: it goes on where this program is ended.
#include <chrono>
#include <cstdio>
#include <thread>

#include <unistd.h>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

constexpr std::chrono::milliseconds kPause{200};

unsigned long long count_of(const Json& state, const char* key) { return number_of(state, key); }

void print_end(const Json& state) {
  std::printf("%llu abstracts of %llu segments are built again", count_of(state, "built"),
              count_of(state, "segments"));
  if (count_of(state, "unwritten") != 0)
    std::printf("; %llu were not written and are built when a view wants them",
                count_of(state, "unwritten"));
  if (count_of(state, "gone") != 0)
    std::printf("; %llu were of segments that went meanwhile", count_of(state, "gone"));
  if (count_of(state, "failed") != 0)
    std::printf("; %llu FAILED: `kvtier verify` names what is damaged", count_of(state, "failed"));
  std::printf("\n");
}

int run_reindex(const Invocation& invocation) {
  if (invocation.has("SEQUENCE") == invocation.has("all")) {
    print_error(invocation, {Code::kInvalid}, "give a sequence, or --all");
    return 2;
  }
  Json body{{"op", "reindex"}, {"kind", invocation.get("kind")}};
  if (invocation.has("all"))
    body["all"] = true;
  else
    body["target"] = target_of(invocation.get("SEQUENCE"));
  const bool shows = !invocation.json && ::isatty(STDERR_FILENO) == 1;
  Json state;
  int exit_code = 0;
  if (!request(invocation, std::move(body), &state, &exit_code)) return exit_code;
  while (state.value("running", false)) {
    if (shows)
      std::fprintf(stderr, "\r%llu of %llu abstracts left ", count_of(state, "left"),
                   count_of(state, "abstracts"));
    std::this_thread::sleep_for(kPause);
    if (!request(invocation, Json{{"op", "reindex_state"}}, &state, &exit_code)) return exit_code;
  }
  if (shows) std::fprintf(stderr, "\r\033[K");
  if (invocation.json)
    print_json(state);
  else
    print_end(state);
  return count_of(state, "failed") != 0 ? 3 : 0;
}

}  // namespace

Command reindex_command() {
  return {"reindex",
          "build the abstracts of a sequence, or of all, again from the stored keys",
          {{"SEQUENCE", "name, or id as `kvtier ls` shows it", false}},
          {{"--all", nullptr, "of everything that is stored"},
           {"--kind", "KIND", "only these, like box/pages:16"}},
          run_reindex};
}

}  // namespace kvtier::cli
