#include "tests/support/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/ipc/control_channel.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"

namespace kvtier::testing {

std::string daemon_path() {
  if (const char* build = std::getenv("KVTIER_BUILD")) return std::string(build) + "/bin/kvtierd";
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  return (self.parent_path().parent_path() / "bin" / "kvtierd").string();
}

namespace {

// It listens before it has opened its store: only an answer says that it serves.
bool answers(const std::string& socket_path) {
  Result<UniqueFd> socket = connect_unix(socket_path, Deadline::after_ms(1000));
  if (!socket) return false;
  const Json hello{{"op", "hello"},
                   {"version", kProtocolVersion},
                   {"name", "test"},
                   {"pid", ::getpid()},
                   {"data", false}};
  ControlChannel channel(std::move(*socket));
  return channel.call(hello, {}, 0, Deadline::after_ms(20000)).has_value();
}

}  // namespace

bool DaemonProcess::start(const DaemonSettings& settings) {
  kill_now();
  std::vector<std::string> words = {daemon_path(), "--store", settings.store, "--socket",
                                    settings.socket};
  for (const std::string& setting : settings.settings)
    words.insert(words.end(), {"--set", setting});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setenv("KVTIER_CONFIG", settings.config.c_str(), 1);
    ::setenv("KVTIER_FAULTS", settings.faults.c_str(), 1);
    ::setenv("KVTIER_LOG", settings.log_level.c_str(), 1);
    if (!settings.log_path.empty()) {
      const int log = ::open(settings.log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      if (log < 0 || ::dup2(log, STDERR_FILENO) < 0) ::_exit(126);
    }
    if (settings.before_exec) settings.before_exec();
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (int i = 0; i < 12000; ++i) {
    if (answers(settings.socket)) return true;
    if (ended()) return false;
    ::usleep(5000);
  }
  return false;
}

bool DaemonProcess::ended() {
  if (pid_ < 0) return true;
  if (::waitpid(pid_, &status_, WNOHANG) != pid_) return false;
  pid_ = -1;
  return true;
}

void DaemonProcess::kill_now() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, &status_, 0);
  pid_ = -1;
}

bool DaemonProcess::stop() {
  if (pid_ < 0) return false;
  ::kill(pid_, SIGTERM);
  ::waitpid(pid_, &status_, 0);
  pid_ = -1;
  return WIFEXITED(status_) && WEXITSTATUS(status_) == 0;
}

CommandResult run_kvtier(const std::string& arguments) {
  CommandResult result;
  const std::string program =
      (std::filesystem::path(daemon_path()).parent_path() / "kvtier").string();
  std::FILE* pipe = ::popen((program + " " + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  char part[4096];
  for (std::size_t got = 0; (got = std::fread(part, 1, sizeof part, pipe)) > 0;)
    result.output.append(part, got);
  const int status = ::pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

ScratchDirectory::ScratchDirectory(bool in_memory) {
  const bool memory = in_memory && ::access("/dev/shm", W_OK) == 0;
  const std::filesystem::path base = memory ? "/dev/shm" : std::filesystem::temp_directory_path();
  std::string pattern = (base / "kvtier-test.XXXXXX").string();
  path_ = ::mkdtemp(pattern.data());
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

unsigned long long number_from_environment(const char* name, unsigned long long fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

}  // namespace kvtier::testing
