#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/random.h"
#include "base/unique_fd.h"
#include "client/ipc/unix_socket.h"
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

Result<Pairs> interleave(std::size_t pairs, const std::function<Result<double>()>& ours,
                         const std::function<Result<double>()>& theirs) {
  Pairs result;
  for (std::size_t i = 0; i < pairs; ++i) {
    KVT_TRY(const double our, ours());
    KVT_TRY(const double their, theirs());
    result.ours.push_back(our);
    result.theirs.push_back(their);
  }
  return result;
}

bool drop_page_cache() {
  ::sync();
  const UniqueFd fd(::open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC));
  return fd.valid() && ::write(fd.get(), "3", 1) == 1;
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
          << " --time_based --runtime=" << job.seconds
          << " --readonly --output-format=json 2>/dev/null";
  KVT_TRY(const std::string text, output_of(command.str()));
  KVT_TRY(const Json report, parse_json(text.substr(std::min(text.find('{'), text.size()))));
  if (!report.contains("jobs") || report["jobs"].empty())
    return error(Code::kIo, "fio gave no figures");
  return report["jobs"][0]["read"]["bw_bytes"].get<double>();
}

Result<OwnDaemon> OwnDaemon::start(const Context& context, const std::string& store,
                                   const std::vector<std::string>& settings) {
  OwnDaemon daemon;
  daemon.socket_ = store + ".sockets/kvtierd.sock";
  ::mkdir((store + ".sockets").c_str(), 0700);
  std::vector<std::string> words = {context.daemon_path, "--store", store, "--socket",
                                    daemon.socket_};
  for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  daemon.pid_ = ::fork();
  if (daemon.pid_ == 0) {
    ::setenv("KVTIER_CONFIG", "/dev/null", 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (int i = 0; i < 2000; ++i) {
    if (connect_unix(daemon.socket_, Deadline::after_ms(1000))) return daemon;
    int status = 0;
    if (::waitpid(daemon.pid_, &status, WNOHANG) == daemon.pid_) {
      daemon.pid_ = -1;
      return error(Code::kIo, "kvtierd ended at once; its message is above");
    }
    ::usleep(5000);
  }
  return error(Code::kTimeout, "kvtierd does not answer");
}

OwnDaemon::OwnDaemon(OwnDaemon&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), socket_(std::move(other.socket_)) {}

OwnDaemon& OwnDaemon::operator=(OwnDaemon&& other) noexcept {
  stop();
  pid_ = std::exchange(other.pid_, -1);
  socket_ = std::move(other.socket_);
  return *this;
}

OwnDaemon::~OwnDaemon() { stop(); }

void OwnDaemon::stop() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGTERM);
  ::waitpid(std::exchange(pid_, -1), nullptr, 0);
}

void OwnDaemon::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(std::exchange(pid_, -1), nullptr, 0);
}

}  // namespace kvtier::bench
