// A daemon of the benchmark's own, over a store of its own.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string_view>
#include <utility>

#include "client/ipc/unix_socket.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {

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
  // What is measured is not to depend on settings of the user's.
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry)
    if (!std::string_view(*entry).starts_with("KVTIER_")) environment.push_back(*entry);
  std::string config = "KVTIER_CONFIG=/dev/null";
  environment.insert(environment.end(), {config.data(), nullptr});
  daemon.pid_ = ::fork();
  if (daemon.pid_ == 0) {
    ::execve(argv[0], argv.data(), environment.data());
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
