// kvtierd: the daemon. Reads its settings (file, then environment, then flags), starts a Server,
// waits.
#include <CLI/CLI.hpp>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/fault.h"
#include "base/log.h"
#include "base/shell_word.h"
#include "client/ipc/paths.h"
#include "daemon/server.h"
#include "daemon/version.h"
#include "tiers/catalogue.h"
#include "tiers/store_lock.h"

namespace {

using namespace kvtier;

int fail(const std::string& text) {
  std::fprintf(stderr, "kvtierd: %s\n", text.c_str());
  return 2;
}

// `*named`: somebody asked for this very file.
std::string default_config_path(bool* named) {
  const char* path = std::getenv("KVTIER_CONFIG");
  *named = path != nullptr && *path != '\0';
  if (path != nullptr) return path;
  const std::string directory = default_config_directory();
  return directory.empty() ? "" : directory + "/kvtierd.toml";
}

// "store.path" -> "KVTIER_STORE_PATH".
std::string environment_name(std::string name) {
  for (char& c : name)
    c = c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return "KVTIER_" + name;
}

Result<void> read_config(const std::string& path, bool must_exist, DaemonOptions* options,
                         std::string* problem) {
  errno = 0;
  std::ifstream file(path);
  std::error_code ignored;
  if (file && std::filesystem::is_directory(path, ignored)) {
    *problem = "cannot read " + path + ": it is a directory";
    return error(Code::kInvalid);
  }
  if (!file) {
    // A file that is there and closed to us is never taken for none.
    if (!must_exist && (errno == ENOENT || errno == ENOTDIR)) return {};
    *problem = "cannot read " + path + ": " + std::strerror(errno);
    return error(Code::kNotFound);
  }
  std::stringstream text;
  text << file.rdbuf();
  const Result<void> parsed = parse_options_toml(text.str(), options, problem);
  if (!parsed) *problem = path + ": " + *problem;
  return parsed;
}

Result<void> read_environment(DaemonOptions* options, std::string* problem) {
  for (const std::string& name : option_names()) {
    const char* value = std::getenv(environment_name(name).c_str());
    if (value == nullptr || *value == '\0') continue;  // as an unset one
    if (const Result<void> set = set_option(name, value, options, problem); !set) {
      *problem = environment_name(name) + ": " + *problem;
      return set;
    }
    options->set_source(name, "environment");
  }
  return {};
}

// The socket that systemd holds for us; -1: none. False where what it gave us is no such socket.
bool take_activated_socket(int* fd) {
  *fd = -1;
  const char* pid = std::getenv("LISTEN_PID");
  const char* count = std::getenv("LISTEN_FDS");
  if (pid == nullptr || count == nullptr || std::atol(pid) != ::getpid() || std::atoi(count) < 1)
    return true;
  int domain = 0, listening = 0;
  socklen_t bytes = sizeof(int);
  if (std::atoi(count) != 1 || ::getsockopt(3, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0 ||
      ::getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) != 0 || domain != AF_UNIX ||
      listening == 0)
    return false;
  // Ours alone, and never blocking: systemd hands it over as it made it.
  ::fcntl(3, F_SETFD, FD_CLOEXEC);
  ::fcntl(3, F_SETFL, ::fcntl(3, F_GETFL) | O_NONBLOCK);
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  *fd = 3;
  return true;
}

// What is relative on a command line is so to where that was typed; the settings know only absolute
// paths, and "~/".
std::string from_here(const std::string& path) {
  if (path.empty() || path.front() == '/' || path.starts_with("~/")) return path;
  return std::filesystem::absolute(path).lexically_normal();
}

LogLevel log_level_of(const std::string& name) {
  if (name == "error") return LogLevel::kError;
  if (name == "info") return LogLevel::kInfo;
  if (name == "debug") return LogLevel::kDebug;
  return LogLevel::kWarn;
}

// Who serves the store, where that is a running kvtierd, and how it is ended: by its socket, if
// that is another one than ours, which does not reach it.
std::string holder_of(const DaemonOptions& options) {
  const StoreHolder holder = read_store_holder(options.store_path);
  // Else it is ours, as the socket or the catalogue is what another one has.
  if (holder.process == ::getpid() || holder.process == 0) return "";
  const std::string process = std::to_string(holder.process);
  const bool elsewhere = !holder.socket.empty() && holder.socket != options.socket_path;
  return "; it is process " + process + " (" +
         (elsewhere ? "kvtier stop --socket " + shell_word(holder.socket) : "kill " + process) +
         ")";
}

// As much locked memory as this user may have, for registered disk buffers.
void raise_limits() {
  for (const auto resource : {RLIMIT_MEMLOCK, RLIMIT_NOFILE}) {
    rlimit limit{};
    if (::getrlimit(resource, &limit) != 0) continue;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(resource, &limit);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "kvtierd keeps the KV cache of language models in host memory and on disk, for every runtime "
      "of this user.");
  std::string config_path, socket_path, store_path;
  std::vector<std::string> settings;
  std::string kernels;
  bool check_only = false, as_json = false;
  app.set_version_flag("--version", std::string("kvtierd ") + kVersion);
  app.add_option("--config", config_path,
                 "TOML file; default $KVTIER_CONFIG or ~/.config/kvtier/kvtierd.toml");
  app.add_option("--socket", socket_path, "control socket (daemon.socket)");
  app.add_option("--store", store_path, "directory of the store (store.path)");
  app.add_option("--set", settings, "KEY=VALUE, as listed by `kvtier config`; may be given again");
  app.add_option("--kernels", kernels, "kernel back end (daemon.kernels)");
  app.add_flag("--check", check_only, "read the settings, say what is wrong, and end");
  app.add_flag("--json", as_json, "with --check: print every setting, its bounds and its source");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& failed) {
    if (failed.get_exit_code() == 0) return app.exit(failed);  // --help, --version
    return fail(std::string(failed.what()) + " (kvtierd --help)");
  }

  ServerOptions options;
  options.daemon = default_options();
  std::string problem;
  bool named = !config_path.empty();
  if (!named) config_path = default_config_path(&named);
  if (!read_config(config_path, named, &options.daemon, &problem)) return fail(problem);
  if (!read_environment(&options.daemon, &problem)) return fail(problem);
  if (!socket_path.empty()) settings.push_back("daemon.socket=" + from_here(socket_path));
  if (!store_path.empty()) settings.push_back("store.path=" + from_here(store_path));
  if (!kernels.empty()) settings.push_back("daemon.kernels=" + kernels);
  for (const std::string& setting : settings) {
    const std::size_t equals = setting.find('=');
    if (equals == std::string::npos) return fail("--set needs KEY=VALUE, not '" + setting + "'");
    if (!set_option(setting.substr(0, equals), setting.substr(equals + 1), &options.daemon,
                    &problem))
      return fail(problem);
    options.daemon.set_source(setting.substr(0, equals), "flag");
  }
  options.daemon.fill_in();
  if (const auto valid = options.daemon.validate(&problem); !valid)
    return fail(problem.empty() ? valid.error().message() : problem);
  if (check_only) {
    if (as_json) std::printf("%s\n", dump_json(options_json(options.daemon)).c_str());
    return 0;
  }

  if (options.daemon.source_of("daemon.log_level") != std::string("default"))
    set_log_level(log_level_of(options.daemon.log_level));
  arm_faults_from_environment();
  raise_limits();
  if (!take_activated_socket(&options.listening_socket))
    return fail("LISTEN_FDS: descriptor 3 is not the one listening Unix socket that it should be");
  options.handle_signals = true;
  // Every path is absolute by now: the directory we were started in can be unmounted.
  if (::chdir("/") != 0) return fail(std::string("cannot change to /: ") + std::strerror(errno));
  auto server = Server::start(options);
  if (!server) {
    std::string text = with_store_named(server.error().message(), options.daemon.store_path);
    if (server.error().code == Code::kBusy) text += holder_of(options.daemon);
    if (server.error().os_error != 0)
      text += std::string(" (") + std::strerror(server.error().os_error) + ")";
    if (server.error().os_error == EMFILE || server.error().os_error == ENFILE)
      text +=
          ": raise the limit of open files (ulimit -n; of a systemd unit LimitNOFILE=; `kvtier "
          "doctor` says where)";
    return fail(text + " [store " + options.daemon.store_path + ", socket " +
                options.daemon.socket_path + "]");
  }
  (*server)->wait();
  return 0;
}
