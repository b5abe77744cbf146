#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/random.h"
#include "base/unique_fd.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double thread_seconds_now() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

Result<std::vector<std::vector<double>>> interleave(std::size_t rounds,
                                                    const std::vector<Measure>& measures) {
  std::vector<std::vector<double>> columns(measures.size());
  for (std::size_t round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < measures.size(); ++i) {
      const std::size_t which = round % 2 == 0 ? i : measures.size() - 1 - i;
      KVT_TRY(const double value, measures[which]());
      columns[which].push_back(value);
    }
  }
  return columns;
}

Figure compare(std::string metric, const std::vector<double>& ours,
               const std::vector<double>& theirs) {
  Figure figure;
  figure.metric = std::move(metric);
  figure.value = median(ours);
  figure.ceiling = median(theirs);
  figure.n = ours.size();
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i)
    ratios.push_back(theirs[i] > 0 ? ours[i] / theirs[i] : 0);
  figure.ratio = median(ratios);
  figure.ratio_min = *std::min_element(ratios.begin(), ratios.end());
  figure.ratio_max = *std::max_element(ratios.begin(), ratios.end());
  return figure;
}

Figure bounded(std::string metric, const std::vector<double>& ours, double bound) {
  return compare(std::move(metric), ours, std::vector<double>(ours.size(), bound));
}

void scale(Figure* figure, double factor) {
  figure->value *= factor;
  figure->ceiling *= factor;
}

Figure noise_floor(const std::string& what, const std::vector<double>& a,
                   const std::vector<double>& b) {
  Figure figure = compare("noise floor: fio against fio, " + what, a, b);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s fio";
  figure.better = Better::kHigher;
  figure.note = "ratios " + spread(a, b);
  return figure;
}

std::string spread(const std::vector<double>& a, const std::vector<double>& b) {
  const Figure figure = compare("", a, b);
  char text[64];
  std::snprintf(text, sizeof text, "%.2f-%.2f", figure.ratio_min, figure.ratio_max);
  return text;
}

void drop_page_cache(bool* cold) {
  ::sync();
  const UniqueFd fd(::open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC));
  if (!fd.valid() || ::write(fd.get(), "3", 1) != 1) *cold = false;
}

void judge_cold(Figure* figure, bool cold) {
  if (cold) return;
  figure->goal = 0;
  figure->note = "page cache not dropped" + (figure->note.empty() ? "" : "; " + figure->note);
}

Result<void> make_random_file(const std::string& path, std::uint64_t size_bytes) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return error(Code::kIo, "cannot make a file for the benchmark", errno);
  std::vector<std::uint64_t> block(1 << 17);
  Random random(size_bytes);
  for (auto& word : block) word = random.next();
  for (std::uint64_t done = 0; done < size_bytes;) {
    block[0] = done;
    const std::uint64_t bytes = std::min<std::uint64_t>(block.size() * 8, size_bytes - done);
    if (::write(fd.get(), block.data(), bytes) != static_cast<ssize_t>(bytes))
      return error(Code::kNoSpace, "cannot fill a file for the benchmark", errno);
    done += bytes;
  }
  if (::fsync(fd.get()) != 0) return error(Code::kIo, "fsync failed", errno);
  return {};
}

namespace {

// Standard output of a command; kNotFound where it cannot run.
Result<std::string> output_of(const std::string& command) {
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return error(Code::kIo, "cannot run a command", errno);
  std::string text;
  char room[4096];
  for (std::size_t n = 0; (n = std::fread(room, 1, sizeof room, pipe)) > 0;) text.append(room, n);
  if (::pclose(pipe) != 0)
    return error(Code::kNotFound, "fio did not run: install the package fio");
  return text;
}

}  // namespace

Result<double> run_fio(const FioJob& job) {
  std::ostringstream command;
  command << "fio --name=peer --filename='" << job.path
          << "' --rw=" << (job.sequential ? "read" : "randread") << " --bs=" << job.block_bytes
          << " --iodepth=" << job.depth << " --ioengine=io_uring --direct=1"
          << (job.bytes != 0 ? " --size=" + std::to_string(job.bytes)
                             : " --time_based --runtime=" + std::to_string(job.seconds))
          << " --readonly --output-format=json 2>/dev/null";
  KVT_TRY(const std::string text, output_of(command.str()));
  KVT_TRY(const Json report, parse_json(text.substr(std::min(text.find('{'), text.size()))));
  if (!report.contains("jobs") || report["jobs"].empty())
    return error(Code::kIo, "fio gave no figures");
  return report["jobs"][0]["read"]["bw_bytes"].get<double>();
}

}  // namespace kvtier::bench
