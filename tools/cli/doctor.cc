// doctor: looks at the machine and the set-up, and names the mend of whatever is wrong or slow.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/ipc/control_channel.h"
#include "client/ipc/paths.h"
#include "client/ipc/unix_socket.h"
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

std::string socket_path(const Invocation& invocation) {
  return invocation.socket.empty() ? default_socket_path() : invocation.socket;
}

Finding check_socket_directory(const Invocation& invocation) {
  const std::string path = socket_path(invocation);
  const std::string directory = std::filesystem::path(path).parent_path();
  struct stat info {};
  if (path.size() > 107)
    return {Grade::kBad, "socket directory", path + " is longer than 107 bytes",
            "set KVTIER_SOCKET to a shorter path"};
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

// Nobody listens: is something in the way?
Finding check_socket_file(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0)
    return {Grade::kSlow, "daemon", "not running",
            "kvtier start (a client starts it by itself, too)"};
  if (S_ISSOCK(info.st_mode))
    return {Grade::kSlow, "daemon",
            "not running; " + path + " is left over from one that was killed",
            "kvtier start (it removes the stale socket)"};
  return {Grade::kBad, "daemon", "where the socket should be lies something else: " + path,
          "move it away"};
}

std::string restart_hint(pid_t pid) {
  const std::string comm = read_line(("/proc/" + std::to_string(pid) + "/comm").c_str());
  return comm == "kvtierd" ? "kill " + std::to_string(pid) + "; kvtier start"
                           : "kvtier stop; kvtier start (systemctl --user restart kvtierd)";
}

Finding check_daemon(const Invocation& invocation, Json* status, Json* stats) {
  const std::string path = socket_path(invocation);
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(3000));
  if (!socket) {
    if (socket.error().code == Code::kNotFound) return check_socket_file(path);
    return {Grade::kBad, "daemon", std::string("cannot connect: ") + socket.error().message(),
            "end the process that holds " + path + ", or set KVTIER_SOCKET"};
  }
  const Result<pid_t> peer = check_peer(socket->get());
  const std::string restart = restart_hint(peer ? *peer : 0);
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
    return {Grade::kBad, "daemon", text, restart};
  }
  const auto answer = channel.call(Json{{"op", "status"}}, {}, 0, Deadline::after_ms(3000));
  if (answer) *status = answer->body;
  const auto counters = channel.call(Json{{"op", "stats"}}, {}, 0, Deadline::after_ms(3000));
  if (counters) *stats = counters->body;
  const std::string version = text_of(hello->body, "daemon_version");
  if (version != KVT_VERSION)
    return {Grade::kSlow, "daemon", "runs " + version + ", this kvtier is " KVT_VERSION,
            "kvtier stop && kvtier start"};
  return {Grade::kGood, "daemon",
          "runs, " + version + ", pid " + std::to_string(number_of(hello->body, "pid")), ""};
}

// What the daemon itself thinks of its settings. `*settings`: its answer, where they are fine.
Finding check_settings(Json* settings) {
  std::string program, problem;
  if (offline_settings(&program, settings, &problem))
    return {Grade::kGood, "settings", "read by " + program, ""};
  if (program.empty())
    return {Grade::kBad, "settings", "no kvtierd beside this program nor in PATH",
            "install it, or set KVTIER_DAEMON"};
  return {Grade::kBad, "settings", problem,
          "change that setting (file, then environment KVTIER_..., then flags)"};
}

std::string setting_of(const Json& settings, const char* name) {
  if (settings.is_object() && settings.contains("keys"))
    for (const Json& key : settings["keys"])
      if (text_of(key, "key") == name) return text_of(key, "value");
  return "";
}

// A file system that forgets, or that is not on this machine.
void check_file_system(const std::string& place, std::vector<Finding>* findings) {
  struct statfs info {};
  if (::statfs(place.c_str(), &info) != 0) return;
  const auto type = static_cast<std::uint64_t>(info.f_type);
  constexpr std::uint64_t kTmpfs = 0x01021994, kNfs = 0x6969, kCifs = 0xFF534D42,
                          kSmb2 = 0xFE534D42;
  if (type == kTmpfs)
    findings->push_back({Grade::kSlow, "file system",
                         place + " is in memory (tmpfs): the store is gone at the next boot",
                         "set store.path to a disk"});
  if (type == kNfs || type == kCifs || type == kSmb2)
    findings->push_back({Grade::kSlow, "file system", place + " is on the network",
                         "set store.path to a local disk"});
}

// The store's directory or the nearest that exists above it: may we write, is there room.
void check_store(const std::string& store, bool daemon_runs, std::vector<Finding>* findings) {
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
  if (!std::filesystem::is_directory(place, ignored)) {
    findings->push_back({Grade::kBad, "store", place.string() + " is no directory",
                         "move it away, or set store.path in kvtierd.toml"});
    return;
  }
  // By doing: access() is of no use to root on a read-only file system, nor with odd mounts.
  const std::string probe = (place / (".kvtier-doctor." + std::to_string(::getpid()))).string();
  const UniqueFd made(::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!made.valid()) {
    const int why = errno;
    const std::string mend = why == EROFS ? "mount it writable, or set store.path in kvtierd.toml"
                             : why == ENOSPC ? "free some space there: `kvtier rm`, `kvtier gc`"
                                             : "chown or chmod " + place.string() +
                                                   ", or set store.path in kvtierd.toml";
    findings->push_back(
        {Grade::kBad, "store", store + " cannot be written: " + std::strerror(why), mend});
    return;
  }
  ::unlink(probe.c_str());
  check_file_system(place.string(), findings);
  const UniqueFd lock(::open((store + "/LOCK").c_str(), O_RDONLY | O_CLOEXEC));
  if (!daemon_runs && lock.valid() && ::flock(lock.get(), LOCK_SH | LOCK_NB) != 0)
    findings->push_back({Grade::kBad, "store", store + " is served by a kvtierd on another socket",
                         "set KVTIER_SOCKET to its socket, stop it, or set store.path"});
  struct statvfs info {};
  ::statvfs(place.c_str(), &info);
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  if (free_bytes < (1ull << 30))
    findings->push_back({Grade::kBad, "disk space",
                         human_bytes(free_bytes) + " free at " + place.string(),
                         "free some (`kvtier rm`, `kvtier gc`), or move the store (store.path)"});
  else
    findings->push_back(
        {Grade::kGood, "store", store + ", " + human_bytes(free_bytes) + " free", ""});
}

// What the running daemon knows: its limits, its budget, what it found damaged.
void check_counters(const Json& stats, std::vector<Finding>* findings) {
  if (!stats.is_object() || !stats.contains("disk") || !stats.contains("writes")) return;
  const Json& disk = stats["disk"];
  const std::uint64_t used = number_of(disk, "store_bytes"), limit = number_of(disk, "limit_bytes");
  if (limit != 0 && used > limit - limit / 20)
    findings->push_back({Grade::kSlow, "disk limit",
                         human_bytes(used) + " of " + human_bytes(limit) +
                             ": what is not named or pinned is evicted, then writes are refused",
                         "kvtier rm, kvtier gc, or raise store.disk_bytes_max"});
  const Json& writes = stats["writes"];
  if (writes.value("budget_spent", false))
    findings->push_back({Grade::kSlow, "write budget",
                         human_bytes(number_of(writes, "today_bytes")) + " written today, above " +
                             human_bytes(number_of(writes, "budget_bytes_per_day")),
                         "wait until midnight UTC, or raise store.disk_write_bytes_per_day"});
  const Json& damage = stats["damage"];
  std::uint64_t damaged = 0;
  for (const char* key :
       {"segments_missing", "segments_bad", "chunks_bad", "logs_torn", "rows_damaged"})
    damaged += number_of(damage, key);
  if (damaged != 0)
    findings->push_back({Grade::kBad, "stored data",
                         std::to_string(damaged) + " objects were found damaged since start",
                         "kvtier verify names them, kvtier repair drops them"});
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
  Json status, stats, settings;
  findings.push_back(check_socket_directory(invocation));
  findings.push_back(check_daemon(invocation, &status, &stats));
  findings.push_back(check_settings(&settings));
  const bool runs = status.is_object() && !text_of(status, "store").empty();
  const std::string store = runs ? text_of(status, "store") : setting_of(settings, "store.path");
  if (runs || settings.is_object()) check_store(store, runs, &findings);
  if (!runs) check_catalogue(store, &findings);
  check_counters(stats, &findings);
  findings.push_back(check_disk_backend(store));
  findings.push_back(check_memlock());
  findings.push_back(check_huge_pages());
  findings.push_back(check_memory(status));
  if (status.is_object() && status.contains("off"))
    for (const Json& line : status["off"])
      findings.push_back({Grade::kSlow, "switched off",
                          line.is_string() ? line.get<std::string>() : line.dump(),
                          "if you want it, change the setting that it names"});

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
