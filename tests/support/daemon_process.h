// DaemonProcess: a real kvtierd over a store of its own, for tests that kill it. One thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace kvtier::testing {

struct DaemonSettings {
  std::string store, socket;
  std::vector<std::string> settings;  // KEY=VALUE
  std::string faults;                 // KVTIER_FAULTS
  std::string config = "/dev/null";   // KVTIER_CONFIG
  std::string log_path;               // where standard error goes; "": nowhere else
  std::string log_level = "error";
  std::function<void()> before_exec;  // in the child: limits, another user, a seccomp filter
};

class DaemonProcess {
 public:
  DaemonProcess() = default;
  ~DaemonProcess() { kill_now(); }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Starts and waits until it serves; false where it ended before (a fault hit it while it started,
  // say).
  bool start(const DaemonSettings& settings);
  // True once it has ended by SIGKILL; reaps it. Does not wait.
  bool ended();
  void kill_now();  // SIGKILL, reaped
  bool stop();      // SIGTERM; true where it ended with 0
  [[nodiscard]] int pid() const noexcept { return pid_; }
  [[nodiscard]] int last_status() const noexcept { return status_; }  // of wait(2)

 private:
  int pid_ = -1;
  int status_ = 0;
};

// What a command of the build's `kvtier` gave.
struct CommandResult {
  int exit_code = -1;
  std::string output;  // standard output and error
};
[[nodiscard]] CommandResult run_kvtier(const std::string& arguments);
[[nodiscard]] std::string read_text(const std::string& path);  // "" where there is none
// kvtierd of this build: $KVTIER_BUILD/bin or beside the test program.
[[nodiscard]] std::string daemon_path();
// A fresh directory that is removed with the object. `in_memory`: where the machine has a file
// system in memory, there: for tests that start hundreds of daemons and whose subject is not the
// disk.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(bool in_memory = false);
  ~ScratchDirectory();
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};
// A number from the environment, or the fallback.
[[nodiscard]] unsigned long long number_from_environment(const char* name,
                                                         unsigned long long fallback);

}  // namespace kvtier::testing
