// Bench: the frame of kvtier-bench. A benchmark measures its subject and its ceiling (or peer) in
// the same run, interleaved, and reports medians and their ratio: absolute figures of one machine
// say little.
//
// Adding one: a file with a function and a line in main.cc's table.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace kvtier::bench {

enum class Size {
  kSmoke,  // seconds in all, no verdicts: does it run
  kQuick,  // fewer rounds; aims at 6 minutes in all
  kFull,
};

// What only `replay` takes; 0 and empty: as the size says.
struct ReplayOptions {
  std::uint32_t tokens = 0, layers = 0, steps = 0;
  std::string trace_path;     // replayed instead of a made trace
  std::string write_path;     // the trace is written to it
  std::string fit_path;       // a recorded trace whose law is found, instead of a replay
  bool layouts_only = false;  // orders of rows on disk are counted, and nothing is replayed
};

struct Context {
  Size size = Size::kFull;
  std::string directory;    // scratch; made and removed by main
  std::string daemon_path;  // kvtierd
  std::string python_path;  // of peers that need torch; empty: none
  ReplayOptions replay;

  [[nodiscard]] bool smoke() const noexcept { return size == Size::kSmoke; }
  // Interleaved rounds: 1 in smoke, `quick` (at least 3) in quick, `full` else.
  [[nodiscard]] std::size_t rounds(std::size_t quick = 3, std::size_t full = 7) const noexcept {
    return size == Size::kSmoke ? 1 : size == Size::kQuick ? quick : full;
  }
};

enum class Better { kHigher, kLower };

// One row of the table and one line of the JSON. `ratio` is the median of the rounds' ratios, which
// a disk that swings from one second to the next disturbs less than the ratio of two medians.
struct Figure {
  std::string metric;
  std::string unit;
  double value = 0;    // median
  double ceiling = 0;  // median of what it is compared with
  double ratio = 0, ratio_min = 0, ratio_max = 0;
  std::size_t n = 0;  // rounds
  std::string ceiling_name;
  double goal = 0;  // of the ratio; 0: none, for information
  Better better = Better::kLower;
  std::string note;

  [[nodiscard]] bool held() const noexcept {
    return goal <= 0 || (better == Better::kLower ? ratio <= goal : ratio >= goal);
  }
};

struct Bench {
  const char* name;
  const char* help;
  Result<void> (*run)(const Context& context, std::vector<Figure>* figures);
};

[[nodiscard]] double median(std::vector<double> values);
[[nodiscard]] double seconds_now();
// Processor time of the calling thread: for what only computes, so that other programs do not
// count.
[[nodiscard]] double thread_seconds_now();

using Measure = std::function<Result<double>()>;
// Runs all measures in turn, `rounds` times, every other round backwards, so that a drift of the
// machine meets all alike. One column of figures per measure, in the order given.
[[nodiscard]] Result<std::vector<std::vector<double>>> interleave(
    std::size_t rounds, const std::vector<Measure>& measures);
// Medians and ratios of two columns; name, goal and note are the caller's.
[[nodiscard]] Figure compare(std::string metric, const std::vector<double>& ours,
                             const std::vector<double>& theirs);
// The same against a fixed bound.
[[nodiscard]] Figure bounded(std::string metric, const std::vector<double>& ours, double bound);
// Into another unit.
void scale(Figure* figure, double factor);
// The row of fio against fio, in bytes per second.
[[nodiscard]] Figure noise_floor(const std::string& what, const std::vector<double>& a,
                                 const std::vector<double>& b);
// "0.93-1.08": what one and the same thing differs by from itself in this run.
[[nodiscard]] std::string spread(const std::vector<double>& a, const std::vector<double>& b);

// Writes data back and drops the page cache where permitted; where not, *cold is made false.
void drop_page_cache(bool* cold);
// A figure of what was to be cold: where it was not, its note says so, and it has no verdict.
void judge_cold(Figure* figure, bool cold);
// A file of random bytes, synced.
[[nodiscard]] Result<void> make_random_file(const std::string& path, std::uint64_t size_bytes);
// fio on an existing file: bytes per second of direct reads.
struct FioJob {
  std::string path;
  bool sequential = false;
  std::uint64_t block_bytes = 256 * 1024;
  std::uint32_t depth = 16;
  double seconds = 2;       // for so long
  std::uint64_t bytes = 0;  // or, where not 0, so many bytes
};
[[nodiscard]] Result<double> run_fio(const FioJob& job);

// A daemon of our own over a store of our own, and its end.
class OwnDaemon {
 public:
  // `settings`: KEY=VALUE. Waits until it serves.
  [[nodiscard]] static Result<OwnDaemon> start(const Context& context, const std::string& store,
                                               const std::vector<std::string>& settings);
  OwnDaemon(OwnDaemon&& other) noexcept;
  OwnDaemon& operator=(OwnDaemon&& other) noexcept;
  ~OwnDaemon();  // stops it
  void stop();   // asks, and waits
  void kill();   // SIGKILL
  [[nodiscard]] const std::string& socket() const noexcept { return socket_; }
  [[nodiscard]] int pid() const noexcept { return pid_; }

 private:
  OwnDaemon() = default;
  int pid_ = -1;
  std::string socket_;
};

// One per line of main.cc's table.
[[nodiscard]] Result<void> bench_ring(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_fetch(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_disk(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_seal(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_build(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_commit(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_restore(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_resume(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_match(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_open(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_score(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_tree(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_attend(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_decode(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_replay(const Context& context, std::vector<Figure>* figures);
[[nodiscard]] Result<void> bench_idle(const Context& context, std::vector<Figure>* figures);

}  // namespace kvtier::bench
