// doctor: looks at the machine and the set-up, and names the mend of whatever is wrong or slow.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/ipc/control_channel.h"
#include "client/ipc/paths.h"
#include "tiers/io.h"
#include "tiers/store_check.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

enum class Grade { kGood, kSlow, kBad };

struct Finding {
  Grade grade;
  std::string what;
  std::string found;
  std::string mend;  // "" where nothing is to be done
};

std::string read_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding check_socket_directory(const Invocation& invocation) {
  const std::string path = invocation.socket.empty() ? default_socket_path() : invocation.socket;
  const std::string directory = std::filesystem::path(path).parent_path();
  struct stat info {};
  if (::lstat(directory.c_str(), &info) != 0)
    return {Grade::kGood, "socket directory", directory + " will be made at start", ""};
  if (!S_ISDIR(info.st_mode))
    return {Grade::kBad, "socket directory", directory + " is no directory", "remove it"};
  if (info.st_uid != ::getuid())
    return {Grade::kBad, "socket directory", directory + " belongs to another user",
            "set KVTIER_SOCKET to a path of your own"};
  if ((info.st_mode & 077) != 0)
    return {Grade::kBad, "socket directory", directory + " can be entered by others",
            "chmod 700 " + directory};
  return {Grade::kGood, "socket directory", directory, ""};
}

Finding check_daemon(const Invocation& invocation, Json* status) {
  const std::string path = invocation.socket.empty() ? default_socket_path() : invocation.socket;
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(3000));
  if (!socket) {
    if (socket.error().code == Code::kNotFound)
      return {Grade::kSlow, "daemon", "not running",
              "kvtier start (a client starts it by itself, too)"};
    return {Grade::kBad, "daemon", std::string("cannot connect: ") + socket.error().message(),
            "kvtier stop, or end the process that holds " + path};
  }
  ControlChannel channel(std::move(*socket));
  const auto hello = channel.call(Json{{"op", "hello"},
                                       {"version", kProtocolVersion},
                                       {"name", "kvtier doctor"},
                                       {"pid", ::getpid()},
                                       {"data", false}},
                                  {}, 0, Deadline::after_ms(3000));
  if (!hello) {
    const std::string text =
        channel.error_text().empty() ? hello.error().message() : channel.error_text();
    return {Grade::kBad, "daemon", text, "restart it: kvtier stop && kvtier start"};
  }
  const auto answer = channel.call(Json{{"op", "status"}}, {}, 0, Deadline::after_ms(3000));
  if (answer) *status = answer->body;
  return {Grade::kGood, "daemon", "runs, pid " + std::to_string(number_of(hello->body, "pid")), ""};
}

std::string default_store() {
  if (const char* path = std::getenv("KVTIER_STORE_PATH")) return path;
  if (const char* data = std::getenv("XDG_DATA_HOME"); data != nullptr && *data == '/')
    return std::string(data) + "/kvtier";
  const char* home = std::getenv("HOME");
  return home == nullptr ? "" : std::string(home) + "/.local/share/kvtier";
}

// The store's directory or the nearest that exists above it: may we write, is there room.
void check_store(const std::string& store, std::vector<Finding>* findings) {
  if (store.empty()) {
    findings->push_back(
        {Grade::kBad, "store", "no place for it: HOME is not set", "set KVTIER_STORE_PATH"});
    return;
  }
  std::filesystem::path place = store;
  std::error_code ignored;
  while (!std::filesystem::exists(place, ignored) && place.has_parent_path() &&
         place != place.parent_path())
    place = place.parent_path();
  if (::access(place.c_str(), W_OK) != 0) {
    findings->push_back(
        {Grade::kBad, "store", store + " cannot be written",
         "chown or chmod " + place.string() + ", or set store.path in kvtierd.toml"});
    return;
  }
  struct statvfs info {};
  ::statvfs(place.c_str(), &info);
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  if (free_bytes < (2ull << 30))
    findings->push_back({Grade::kBad, "disk space",
                         human_bytes(free_bytes) + " free at " + place.string(),
                         "free some, or move the store (store.path)"});
  else
    findings->push_back(
        {Grade::kGood, "store", store + ", " + human_bytes(free_bytes) + " free", ""});
}

Finding check_disk_backend(const std::string& store) {
  std::error_code failed;
  const bool exists = !store.empty() && std::filesystem::exists(store, failed);
  const std::filesystem::path scratch =
      exists ? std::filesystem::path(store) : std::filesystem::temp_directory_path();
  IoOptions options;
  options.root = scratch.string();
  const auto io = make_io(options);
  if (!io)
    return {Grade::kBad, "disk I/O", io.error().message(),
            "check the permissions of " + scratch.string()};
  if ((*io)->note().empty()) return {Grade::kGood, "disk I/O", (*io)->name(), ""};
  const std::string disabled = read_line("/proc/sys/kernel/io_uring_disabled");
  const std::string mend = !disabled.empty() && disabled != "0"
                               ? "sudo sysctl kernel.io_uring_disabled=0"
                               : "allow io_uring_setup, io_uring_enter and io_uring_register in "
                                 "the container's seccomp profile";
  return {Grade::kSlow, "disk I/O", std::string((*io)->name()) + ": " + (*io)->note(), mend};
}

// Without a daemon: whether one could start over this store.
void check_catalogue(const std::string& store, std::vector<Finding>* findings) {
  std::error_code ignored;
  CatalogueOptions options;
  options.path = store + "/catalogue";
  options.read_only = true;
  if (store.empty() || !std::filesystem::exists(options.path, ignored)) return;
  const Result<std::unique_ptr<Catalogue>> catalogue = Catalogue::open(options);
  if (catalogue && load_store_rows(**catalogue)) return;
  findings->push_back({Grade::kBad, "catalogue", "damaged: the daemon will not start",
                       "kvtier repair --store " + store});
}

Finding check_memlock() {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max >= (1ull << 30) || ::geteuid() == 0)
    return {Grade::kGood, "locked memory", "enough for registered buffers", ""};
  return {Grade::kSlow, "locked memory",
          human_bytes(limit.rlim_max) + ": disk buffers cannot be registered",
          "LimitMEMLOCK=infinity in the systemd unit, or `memlock unlimited` in "
          "/etc/security/limits.conf"};
}

Finding check_huge_pages() {
  const std::string mode = read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  if (mode.find("[advise]") != std::string::npos || mode.find("[always]") != std::string::npos ||
      mode.find("[within_size]") != std::string::npos)
    return {Grade::kGood, "huge pages", "given on request", ""};
  return {Grade::kSlow, "huge pages", mode.empty() ? "not available" : "off for shared memory",
          "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled"};
}

Finding check_memory(const Json& status) {
  const auto pages = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES));
  const std::uint64_t total = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t arena = status.is_object() && status.contains("modes")
                                  ? number_of(status["modes"], "arena_bytes")
                                  : 0;
  if (arena > total / 2)
    return {Grade::kSlow, "memory",
            "the arena (" + human_bytes(arena) + ") may take over half of " + human_bytes(total),
            "lower host.arena_bytes in kvtierd.toml"};
  return {Grade::kGood, "memory", human_bytes(total), ""};
}

int run_doctor(const Invocation& invocation) {
  std::vector<Finding> findings;
  Json status;
  findings.push_back(check_socket_directory(invocation));
  findings.push_back(check_daemon(invocation, &status));
  const std::string store = status.is_object() && !text_of(status, "store").empty()
                                ? text_of(status, "store")
                                : default_store();
  check_store(store, &findings);
  if (!status.is_object() || status.empty()) check_catalogue(store, &findings);
  findings.push_back(check_disk_backend(store));
  findings.push_back(check_memlock());
  findings.push_back(check_huge_pages());
  findings.push_back(check_memory(status));
  if (status.is_object() && status.contains("off"))
    for (const Json& line : status["off"])
      findings.push_back({Grade::kSlow, "switched off",
                          line.is_string() ? line.get<std::string>() : line.dump(),
                          "see above, or `kvtier stats`"});

  bool bad = false;
  Json list = Json::array();
  for (const Finding& finding : findings) {
    bad = bad || finding.grade == Grade::kBad;
    const char* grade = finding.grade == Grade::kGood   ? "good"
                        : finding.grade == Grade::kSlow ? "slow"
                                                        : "bad";
    list.push_back(Json{{"grade", grade},
                        {"what", finding.what},
                        {"found", finding.found},
                        {"mend", finding.mend}});
    if (invocation.json) continue;
    std::printf("%-5s %-17s %s\n", grade, finding.what.c_str(), finding.found.c_str());
    if (!finding.mend.empty()) std::printf("      %-17s mend: %s\n", "", finding.mend.c_str());
  }
  if (invocation.json) print_json(Json{{"ok", !bad}, {"findings", std::move(list)}});
  return bad ? 3 : 0;
}

}  // namespace

Command doctor_command() {
  return {
      "doctor",
      "look at the set-up and name the mend of what is wrong or slow (exit 3: something is wrong)",
      {},
      {},
      run_doctor};
}

}  // namespace kvtier::cli
