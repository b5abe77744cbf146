// kvtier-bench: measures what the product promises, each figure against its ceiling or peer in the
// same run.
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tools/bench/bench.h"

namespace {

using namespace kvtier;
using namespace kvtier::bench;

const std::vector<Bench>& benches() {
  static const std::vector<Bench> table = {
      {"ring", "round trip of the shared-memory ring", bench_ring},
      {"fetch", "one chunk from host memory, through the daemon", bench_fetch},
      {"disk", "256 KiB reads, queue depth 16", bench_disk},
      {"seal", "2,048 tokens into a segment: the work, and until it is durable", bench_seal},
      {"build", "what workers build of a segment, against the prefill of it", bench_build},
      {"commit", "tokens durable: one, 1 MiB and more", bench_commit},
      {"restore", "a whole session from disk, checksums on", bench_restore},
      {"resume", "64k tokens: attach and one decode step at budget 1,024, cold", bench_resume},
      {"match", "longest prefix of 64k tokens", bench_match},
      {"open", "a store of 5,000 segments and 160,000 blocks", bench_open},
      {"score", "scoring of abstracts and key codes, and choosing", bench_score},
      {"tree", "choosing by boxes, from coarse to fine and flat", bench_tree},
      {"attend", "attention over rows, raw and from a base rendition", bench_attend},
      {"decode", "attention of one step over 7k tokens, all layers, against SDPA", bench_decode},
      {"replay", "KV of decode steps after a trace of what they choose, context beyond memory",
       bench_replay},
      {"idle", "what an idle daemon takes: processor time, and speed of a model beside it",
       bench_idle},
  };
  return table;
}

std::string beside_us(const char* name) {
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  return (self.parent_path() / name).string();
}

// Programs that wanted a processor in the last minute: on a busy machine figures say little.
double load_average() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 ? load : 0;
}

// `held` and `goal` are null where there is no verdict.
Json line_of(const Bench& bench, const Figure& f, bool verdict) {
  const bool judged = verdict && f.goal > 0;
  return Json{{"bench", bench.name},
              {"metric", f.metric},
              {"value", f.value},
              {"unit", f.unit},
              {"ceiling", f.ceiling},
              {"ceiling_name", f.ceiling_name},
              {"ratio", f.ratio},
              {"ratio_min", f.ratio_min},
              {"ratio_max", f.ratio_max},
              {"goal", judged ? Json(f.goal) : Json()},
              {"better", f.better == Better::kLower ? "lower" : "higher"},
              {"held", judged ? Json(f.held()) : Json()},
              {"n", f.n},
              {"note", f.note},
              {"load", load_average()}};
}

void print_head() {
  std::printf("%-44s %10s %-5s %10s %-30s %7s\n", "figure", "value", "", "ceiling", "", "ratio");
}

void print_figure(const Figure& f, bool verdict) {
  std::printf("%-44s %10.4g %-5s %10.4g %-30s %7.3f", f.metric.c_str(), f.value, f.unit.c_str(),
              f.ceiling, f.ceiling_name.c_str(), f.ratio);
  if (f.goal > 0 && verdict)
    std::printf("  %s %-5.3g %s", f.better == Better::kLower ? "<=" : ">=", f.goal,
                f.held() ? "held" : "MISSED");
  std::printf("%s%s\n", f.note.empty() ? "" : "  ", f.note.c_str());
  std::fflush(stdout);
}

// Python with torch for the peers: of an activated environment, else of the repository this program
// was built in.
std::string find_python() {
  std::vector<std::string> candidates;
  if (const char* environment = std::getenv("VIRTUAL_ENV"); environment != nullptr)
    candidates.push_back(std::string(environment) + "/bin/python");
  candidates.push_back(beside_us("../../.venv/bin/python"));
  for (const std::string& path : candidates)
    if (::access(path.c_str(), X_OK) == 0) return path;
  return "";
}

struct Arguments {
  std::vector<std::string> names;
  std::string json_path, directory, python;
  bool quick = false, smoke = false, list = false;
  ReplayOptions replay;

  [[nodiscard]] bool wants(const Bench& bench) const {
    for (const std::string& name : names)
      if (name == "all" || name == bench.name) return true;
    return false;
  }
};

void list_benches() {
  for (const Bench& bench : benches()) std::printf("%-9s %s\n", bench.name, bench.help);
}

bool names_known(const Arguments& arguments) {
  for (const std::string& name : arguments.names) {
    bool known = name == "all";
    for (const Bench& bench : benches()) known = known || name == bench.name;
    if (known) continue;
    std::fprintf(stderr, "kvtier-bench: no benchmark '%s'; --list shows them\n", name.c_str());
    return false;
  }
  return true;
}

struct Verdict {
  bool failed = false, missed = false;
};

Verdict run_benches(const Arguments& arguments, const Context& context, FILE* json) {
  Verdict verdict;
  const bool table = json != stdout, judged = !context.smoke();
  if (table) print_head();
  for (const Bench& bench : benches()) {
    if (!arguments.wants(bench)) continue;
    std::vector<Figure> figures;
    const Result<void> run = bench.run(context, &figures);
    for (const Figure& figure : figures) {
      if (table) print_figure(figure, judged);
      if (json != nullptr)
        std::fprintf(json, "%s\n", dump_json(line_of(bench, figure, judged)).c_str());
      verdict.missed = verdict.missed || (judged && !figure.held());
    }
    if (json != nullptr) std::fflush(json);
    if (run) continue;
    std::fprintf(stderr, "kvtier-bench: %s: %s\n", bench.name, run.error().message());
    verdict.failed = true;
  }
  return verdict;
}

void add_replay_options(CLI::App* app, ReplayOptions* replay) {
  const char* group = "replay";
  const auto add = [&](const char* name, auto* value, const char* help) {
    app->add_option(name, *value, help)->group(group);
  };
  add("--tokens", &replay->tokens, "stored tokens of the made trace; default 131072, quick 16384");
  add("--layers", &replay->layers, "its layers; default 32, quick 8");
  add("--steps", &replay->steps, "its steps, three fifths of them to warm up; default 80");
  add("--trace", &replay->trace_path, "replay this trace (kvtier-quality --trace) instead");
  add("--write-trace", &replay->write_path, "write the trace that is replayed to this file");
  app->add_flag("--layouts", replay->layouts_only,
                "only count what other orders of rows on disk would read: no store, no daemon")
      ->group(group);
  add("--fit", &replay->fit_path, "find the law of a recorded trace, and replay nothing");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "kvtier-bench measures kvtier against ceilings and peers in the same run.\n"
      "Ends with 0: all goals held, 3: a goal was missed, 1: a benchmark failed, 2: usage.");
  Arguments arguments;
  app.add_option("NAME", arguments.names, "benchmarks to run, or `all`");
  app.add_flag("--quick", arguments.quick, "fewer rounds: aims at 6 minutes for `all`");
  app.add_flag("--smoke", arguments.smoke, "does it run, within a minute; no verdicts");
  app.add_flag("--list", arguments.list, "what there is");
  app.add_option("--json", arguments.json_path,
                 "append one line per figure to this file; - for standard output");
  app.add_option("--dir", arguments.directory,
                 "scratch directory on the disk to be measured; default: the current one");
  app.add_option("--python", arguments.python,
                 "Python with torch and safetensors for the peers of resume and decode; default: "
                 "$VIRTUAL_ENV, else .venv of the repository");
  add_replay_options(&app, &arguments.replay);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& failed) {
    return app.exit(failed) == 0 ? 0 : 2;  // 0: --help
  }
  if (arguments.list || arguments.names.empty()) {
    list_benches();
    return arguments.list ? 0 : 2;
  }
  if (!names_known(arguments)) return 2;

  Context context;
  context.size = arguments.smoke ? Size::kSmoke : arguments.quick ? Size::kQuick : Size::kFull;
  context.replay = arguments.replay;
  context.daemon_path = beside_us("kvtierd");
  context.python_path = arguments.python.empty() ? find_python() : arguments.python;
  if (arguments.directory.empty()) arguments.directory = ".";
  // Absolute: the daemon has another working directory.
  std::string pattern = std::filesystem::absolute(arguments.directory) / "kvtier-bench.XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror("kvtier-bench: cannot make a scratch directory");
    return 1;
  }
  context.directory = pattern;
  const std::string& path = arguments.json_path;
  FILE* json = path.empty() ? nullptr : path == "-" ? stdout : std::fopen(path.c_str(), "a");
  if (!path.empty() && json == nullptr) {
    std::perror("kvtier-bench: cannot write the JSON");
    return 1;
  }
  const Verdict verdict = run_benches(arguments, context, json);
  std::error_code ignored;
  std::filesystem::remove_all(context.directory, ignored);
  if (json != nullptr && json != stdout) std::fclose(json);
  if (verdict.failed) return 1;
  return verdict.missed ? 3 : 0;
}
