#include "tests/support/daemon_process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "client/ipc/unix_socket.h"

namespace kvtier::testing {

std::string daemon_path() {
  if (const char* build = std::getenv("KVTIER_BUILD")) return std::string(build) + "/bin/kvtierd";
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  return (self.parent_path().parent_path() / "bin" / "kvtierd").string();
}

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
    ::setenv("KVTIER_CONFIG", "/dev/null", 1);
    ::setenv("KVTIER_FAULTS", settings.faults.c_str(), 1);
    ::setenv("KVTIER_LOG", "error", 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (int i = 0; i < 12000; ++i) {
    if (connect_unix(settings.socket, Deadline::after_ms(1000))) return true;
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

ScratchDirectory::ScratchDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvtier-test.XXXXXX").string();
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
