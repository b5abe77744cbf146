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
      {"seal", "2,048 tokens into a durable segment", bench_seal},
      {"commit", "one token durable", bench_commit},
      {"restore", "a whole session from disk, checksums on", bench_restore},
      {"resume", "64k tokens: attach and one decode step at budget 1,024, cold", bench_resume},
      {"match", "longest prefix of 64k tokens", bench_match},
      {"open", "a store of 5,000 segments and 160,000 blocks", bench_open},
      {"score", "scoring of abstracts", bench_score},
      {"attend", "attention over rows", bench_attend},
      {"decode", "attention of one step over 7k tokens, all layers", bench_decode},
      {"idle", "processor time of an idle daemon", bench_idle},
  };
  return table;
}

std::string beside_us(const char* name) {
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  return (self.parent_path() / name).string();
}

Json line_of(const Figure& f) {
  return Json{{"metric", f.metric},
              {"value", f.value},
              {"unit", f.unit},
              {"ceiling", f.ceiling},
              {"ceiling_name", f.ceiling_name},
              {"ratio", f.ratio()},
              {"goal", f.goal},
              {"better", f.better == Better::kLower ? "lower" : "higher"},
              {"held", f.held()},
              {"n", f.n},
              {"note", f.note}};
}

void print_figure(const Figure& f, bool verdict) {
  std::printf("%-34s %12.4g %-9s %12.4g %-22s %7.3f", f.metric.c_str(), f.value, f.unit.c_str(),
              f.ceiling, f.ceiling_name.c_str(), f.ratio());
  if (f.goal > 0 && verdict)
    std::printf("  %s %-6.3g %s", f.better == Better::kLower ? "<=" : ">=", f.goal,
                f.held() ? "held" : "MISSED");
  std::printf("%s%s\n", f.note.empty() ? "" : "  ", f.note.c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("kvtier-bench measures kvtier against ceilings and peers in the same run.");
  std::vector<std::string> names;
  std::string json_path, directory;
  bool quick = false, smoke = false, list = false;
  app.add_option("NAME", names, "benchmarks to run, or `all`");
  app.add_flag("--quick", quick, "every row within 6 minutes");
  app.add_flag("--smoke", smoke, "does it run; no verdicts");
  app.add_flag("--list", list, "what there is");
  app.add_option("--json", json_path,
                 "append one line per figure to this file; - for standard output");
  app.add_option("--dir", directory,
                 "scratch directory on the disk to be measured; default build/ or the current one");
  CLI11_PARSE(app, argc, argv);
  if (list || names.empty()) {
    for (const Bench& bench : benches()) std::printf("%-9s %s\n", bench.name, bench.help);
    return list ? 0 : 2;
  }
  for (const std::string& name : names) {
    bool known = name == "all";
    for (const Bench& bench : benches()) known = known || name == bench.name;
    if (!known) {
      std::fprintf(stderr, "kvtier-bench: no benchmark '%s'; --list shows them\n", name.c_str());
      return 2;
    }
  }

  Context context;
  context.size = smoke ? Size::kSmoke : quick ? Size::kQuick : Size::kFull;
  context.daemon_path = beside_us("kvtierd");
  context.json = json_path == "-";
  if (directory.empty()) directory = std::filesystem::current_path();
  std::string pattern = directory + "/kvtier-bench.XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror("kvtier-bench: cannot make a scratch directory");
    return 1;
  }
  context.directory = pattern;

  FILE* json = json_path.empty()  ? nullptr
               : json_path == "-" ? stdout
                                  : std::fopen(json_path.c_str(), "a");
  if (!context.json)
    std::printf("%-34s %12s %-9s %12s %-22s %7s\n", "figure", "value", "", "ceiling", "", "ratio");
  bool failed = false, missed = false;
  for (const Bench& bench : benches()) {
    bool wanted = false;
    for (const std::string& name : names) wanted = wanted || name == "all" || name == bench.name;
    if (!wanted) continue;
    std::vector<Figure> figures;
    const Result<void> run = bench.run(context, &figures);
    for (const Figure& figure : figures) {
      if (!context.json) print_figure(figure, !smoke);
      if (json != nullptr) std::fprintf(json, "%s\n", dump_json(line_of(figure)).c_str());
      missed = missed || !figure.held();
    }
    if (!run) {
      std::fprintf(stderr, "kvtier-bench: %s: %s\n", bench.name, run.error().message());
      failed = true;
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(context.directory, ignored);
  if (json != nullptr && json != stdout) std::fclose(json);
  if (failed) return 1;
  return missed && !smoke ? 3 : 0;
}
