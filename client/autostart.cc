#include "client/autostart.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/unique_fd.h"
#include "client/ipc/paths.h"
#include "client/ipc/unix_socket.h"
#include "client/last_error.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

// A larger log is put aside at the next start: it may lie in memory.
constexpr off_t kLogBytesMax = 1 << 20;

bool is_program(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) && ::access(path.c_str(), X_OK) == 0;
}

// Folders of this library (or the program it is linked into) and of the running program.
std::vector<fs::path> own_folders() {
  std::vector<fs::path> folders;
  std::error_code failed;
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&find_daemon), &info) != 0 &&
      info.dli_fname != nullptr) {
    const fs::path library = fs::canonical(info.dli_fname, failed);
    if (!failed) folders.push_back(library.parent_path());
  }
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (!failed) folders.push_back(program.parent_path());
  return folders;
}

// What the child tells before exec: its pid, then, if exec fails, the reason.
struct Report {
  pid_t pid;
  int exec_error;
};

// Only calls that are safe between fork and exec in a process with threads.
[[noreturn]] void run_daemon(const char* program, char* const* arguments, int log, int report_fd) {
  Report report{::getpid(), 0};
  if (::write(report_fd, &report, sizeof report) < 0) ::_exit(127);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0) ::_exit(127);
  if (report_fd != 3) {
    if (::dup2(report_fd, 3) < 0) ::_exit(127);
    report_fd = 3;
  }
  ::fcntl(report_fd, F_SETFD, FD_CLOEXEC);
  ::close_range(4, ~0u, 0);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execv(program, arguments);
  report.exec_error = errno;
  if (::write(report_fd, &report, sizeof report) < 0) ::_exit(127);
  ::_exit(127);
}

}  // namespace

Result<std::string> find_daemon(const std::string& option) {
  const char* variable = std::getenv("KVTIER_DAEMON");
  const bool has_variable = variable != nullptr && variable[0] != '\0';
  if (!option.empty() || has_variable) {
    const std::string named = !option.empty() ? option : variable;
    if (is_program(named)) return fs::absolute(named).string();
    return error_with(Code::kNotFound, "%s names %s, which is no program",
                      !option.empty() ? "daemon_path" : "KVTIER_DAEMON", named.c_str());
  }
  std::string looked;
  for (const fs::path& folder : own_folders()) {
    for (const char* place : {".", "../bin", "../../bin", "../../../bin"}) {
      const fs::path path = (folder / place / "kvtierd").lexically_normal();
      if (is_program(path)) return path.string();
    }
    looked += folder.string() + ", ";
  }
  const char* path_variable = std::getenv("PATH");
  std::string rest = path_variable != nullptr ? path_variable : "/usr/local/bin:/usr/bin";
  while (!rest.empty()) {
    const std::size_t colon = rest.find(':');
    const fs::path path = fs::path(rest.substr(0, colon)) / "kvtierd";
    if (is_program(path)) return fs::absolute(path).string();
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
  }
  return error_with(Code::kNotFound,
                    "no kvtierd found beside %sin ../bin of these, nor in PATH: set KVTIER_DAEMON, "
                    "or start it yourself",
                    looked.c_str());
}

Result<pid_t> spawn_daemon(const std::string& program, const std::string& socket_path) {
  const fs::path folder = fs::path(socket_path).parent_path();
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return error_with(Code::kPermission,
                      "cannot make %s: %s; set XDG_RUNTIME_DIR to a directory of your own, or "
                      "KVTIER_SOCKET to a path of your own",
                      folder.c_str(), std::strerror(errno));
  if (const ClosedPlace closed = find_closed_place(socket_path); !closed.found.empty())
    return error_with(Code::kPermission, "%s; %s", closed.found.c_str(), closed.mend.c_str());
  // A place that the daemon would refuse gets no log either.
  KVT_TRY_VOID(check_listening_place(socket_path));
  const std::string log_path = daemon_log_path(socket_path);
  struct stat info {};
  if (::lstat(log_path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > kLogBytesMax)
    ::rename(log_path.c_str(), (log_path + ".1").c_str());
  UniqueFd log(
      ::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!log.valid())
    return error_with(Code::kPermission, "cannot write %s: %s", log_path.c_str(),
                      std::strerror(errno));
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return error(Code::kIo, "cannot make a pipe", errno);
  UniqueFd from_child(ends[0]), to_parent(ends[1]);

  std::string program_copy = program, flag = "--socket", socket_copy = socket_path;
  const std::array<char*, 4> arguments{program_copy.data(), flag.data(), socket_copy.data(),
                                       nullptr};
  const pid_t child = ::fork();
  if (child < 0) return error(Code::kIo, "cannot fork", errno);
  if (child == 0) {
    ::setsid();
    const pid_t grandchild = ::fork();
    if (grandchild != 0) ::_exit(grandchild < 0 ? 127 : 0);
    run_daemon(program.c_str(), arguments.data(), log.get(), to_parent.get());
  }
  to_parent.reset();
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  Report report{}, failed{};
  if (::read(from_child.get(), &report, sizeof report) != static_cast<ssize_t>(sizeof report))
    return error(Code::kIo, "the child that should become kvtierd ended at once");
  if (::read(from_child.get(), &failed, sizeof failed) == static_cast<ssize_t>(sizeof failed))
    return error_with(Code::kNotFound, "cannot run %s: %s", program.c_str(),
                      std::strerror(failed.exec_error));
  return report.pid;
}

std::string last_line_of(const std::string& path, std::uint64_t from) {
  std::error_code absent;
  if (fs::file_size(path, absent) < from) from = 0;  // begun anew
  std::ifstream file(path);
  file.seekg(static_cast<std::streamoff>(from));
  std::string line, last;
  while (std::getline(file, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

}  // namespace kvtier
