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
  kQuick,  // every row of docs/benchmarks.md within 6 minutes in all
  kFull,
};

struct Context {
  Size size = Size::kFull;
  std::string directory;    // scratch; made and removed by main
  std::string daemon_path;  // kvtierd
  bool json = false;

  [[nodiscard]] bool smoke() const noexcept { return size == Size::kSmoke; }
  // Interleaved pairs: 1 in smoke, 3 in quick, `full` else.
  [[nodiscard]] std::size_t pairs(std::size_t full = 7) const noexcept {
    return size == Size::kSmoke ? 1 : size == Size::kQuick ? 3 : full;
  }
};

enum class Better { kHigher, kLower };

struct Figure {
  std::string metric;
  double value = 0;  // median
  std::string unit;
  double ceiling = 0;  // median of what it is compared with
  std::string ceiling_name;
  double goal = 0;  // of value / ceiling; 0: none, for information
  Better better = Better::kLower;
  std::size_t n = 0;  // pairs
  std::string note;

  [[nodiscard]] double ratio() const noexcept { return ceiling > 0 ? value / ceiling : 0; }
  [[nodiscard]] bool held() const noexcept {
    return goal <= 0 || (better == Better::kLower ? ratio() <= goal : ratio() >= goal);
  }
};

struct Bench {
  const char* name;
  const char* help;
  Result<void> (*run)(const Context& context, std::vector<Figure>* figures);
};

[[nodiscard]] double median(std::vector<double> values);
[[nodiscard]] double seconds_now();
// Runs ours and theirs in turn, `pairs` times; each returns its figure (or an error).
struct Pairs {
  std::vector<double> ours, theirs;
};
[[nodiscard]] Result<Pairs> interleave(std::size_t pairs,
                                       const std::function<Result<double>()>& ours,
                                       const std::function<Result<double>()>& theirs);

// Writes data back and drops the page cache where permitted; says whether it could.
bool drop_page_cache();
// A file of random bytes, synced.
[[nodiscard]] Result<void> make_random_file(const std::string& path, std::uint64_t size_bytes);
// fio on an existing file: bytes per second of direct reads.
struct FioJob {
  std::string path;
  bool sequential = false;
  std::uint64_t block_bytes = 256 * 1024;
  std::uint32_t depth = 16;
  double seconds = 2;
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

[[nodiscard]] Result<void> bench_ring(const Context& context,
                                      std::vector<Figure>* figures);  // ring.cc
[[nodiscard]] Result<void> bench_fetch(const Context& context,
                                       std::vector<Figure>* figures);  // fetch.cc
[[nodiscard]] Result<void> bench_disk(const Context& context,
                                      std::vector<Figure>* figures);  // disk.cc
[[nodiscard]] Result<void> bench_seal(const Context& context,
                                      std::vector<Figure>* figures);  // write.cc
[[nodiscard]] Result<void> bench_commit(const Context& context,
                                        std::vector<Figure>* figures);  // write.cc
[[nodiscard]] Result<void> bench_restore(const Context& context,
                                         std::vector<Figure>* figures);  // restore.cc
[[nodiscard]] Result<void> bench_resume(const Context& context,
                                        std::vector<Figure>* figures);  // restore.cc
[[nodiscard]] Result<void> bench_match(const Context& context,
                                       std::vector<Figure>* figures);  // match.cc
[[nodiscard]] Result<void> bench_open(const Context& context,
                                      std::vector<Figure>* figures);  // open.cc
[[nodiscard]] Result<void> bench_score(const Context& context,
                                       std::vector<Figure>* figures);  // kernels.cc
[[nodiscard]] Result<void> bench_attend(const Context& context,
                                        std::vector<Figure>* figures);  // kernels.cc
[[nodiscard]] Result<void> bench_decode(const Context& context,
                                        std::vector<Figure>* figures);  // restore.cc
[[nodiscard]] Result<void> bench_idle(const Context& context,
                                      std::vector<Figure>* figures);  // match.cc

}  // namespace kvtier::bench
