// doctor: looks at the set-up, the store (doctor_store.cc) and the machine (doctor_machine.cc), and
// names the mend of whatever is wrong or slow. It changes nothing; where it writes a scratch file
// to see whether that can be done, it takes it away again.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/log.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/paths.h"
#include "client/ipc/unix_socket.h"
#include "kernels/registry.h"
#include "kvtier/kvtier.h"
#include "tools/cli/commands.h"
#include "tools/cli/finding.h"

namespace kvtier::cli {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding not_checked(const char* what, const std::string& why) {
  return {Grade::kInfo, what, "not checked: " + why, "see `settings`"};
}

std::string setting_of(const Json& settings, const char* name) {
  if (settings.is_object() && settings.contains("keys"))
    for (const Json& key : settings["keys"])
      if (text_of(key, "key") == name)
        return key["value"].is_string() ? text_of(key, "value") : key["value"].dump();
  return "";
}

namespace {

std::string socket_path(const Invocation& invocation) {
  return invocation.socket.empty() ? default_socket_path() : invocation.socket;
}

// What makes the directory what it is, for the mends.
std::string socket_mend(const Invocation& invocation) {
  if (!invocation.socket.empty()) return "name another --socket";
  const char* named = std::getenv("KVTIER_SOCKET");
  if (named != nullptr && *named != '\0') return "set KVTIER_SOCKET to a path of your own";
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  return runtime != nullptr && *runtime == '/'
             ? "set XDG_RUNTIME_DIR to a directory of your own (or unset it), or KVTIER_SOCKET to "
               "a path of your own"
             : "set KVTIER_SOCKET to a path of your own";
}

// The daemon makes this one directory, and none above it; `kvtier start` none that only --socket
// names.
Finding check_absent_directory(const Invocation& invocation, const std::string& directory,
                               const std::string& mend) {
  if (!invocation.socket.empty())
    return {Grade::kBad, "socket directory", "there is no directory " + directory,
            "mkdir -p -m 700 " + shell_word(directory) + ", or " + mend};
  const std::string parent = std::filesystem::path(directory).parent_path();
  struct stat info {};
  if (::stat(parent.c_str(), &info) != 0)
    return {Grade::kBad, "socket directory", parent + ": " + std::strerror(errno),
            "mkdir -p -m 700 " + shell_word(parent) + ", or " + mend};
  if (::faccessat(AT_FDCWD, parent.c_str(), W_OK | X_OK, AT_EACCESS) != 0)
    return {Grade::kBad, "socket directory", directory + " cannot be made: " + std::strerror(errno),
            mend};
  return {Grade::kGood, "socket directory", directory + " will be made at start", ""};
}

Finding check_socket_directory(const Invocation& invocation) {
  const std::string path = socket_path(invocation);
  const std::string directory = std::filesystem::path(path).parent_path();
  const std::string mend = socket_mend(invocation);
  struct stat info {};
  if (path.front() != '/')
    return {Grade::kBad, "socket directory", path + " does not begin with /",
            "set KVTIER_SOCKET to an absolute path"};
  if (path.size() > 107)
    return {Grade::kBad, "socket directory", path + " is longer than 107 bytes",
            "set KVTIER_SOCKET to a shorter path"};
  if (::lstat(directory.c_str(), &info) != 0 && errno == ENOENT)
    return check_absent_directory(invocation, directory, mend);
  if (info.st_mode == 0)
    return {Grade::kBad, "socket directory", directory + ": " + std::strerror(errno), mend};
  if (!S_ISDIR(info.st_mode))
    return {Grade::kBad, "socket directory", directory + " is no directory", "remove it"};
  if (info.st_uid != ::geteuid())
    return {Grade::kBad, "socket directory", directory + " belongs to another user", mend};
  if ((info.st_mode & 077) != 0)
    return {Grade::kBad, "socket directory", directory + " can be entered by others",
            "chmod 700 " + shell_word(directory) + " if nothing else uses it; else " + mend};
  if (ClosedPlace closed = find_closed_place(path); !closed.found.empty())
    return {Grade::kBad, "socket directory", std::move(closed.found), std::move(closed.mend)};
  return {Grade::kGood, "socket directory", directory, ""};
}

// Nobody listens: is something in the way?
Finding check_socket_file(const Invocation& invocation) {
  const std::string path = socket_path(invocation);
  const std::string start = "kvtier start" + socket_flag(invocation);
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0)
    return {Grade::kSlow, "daemon", "not running", start + " (a client starts it by itself, too)"};
  if (S_ISSOCK(info.st_mode))
    return {Grade::kSlow, "daemon",
            "not running; " + path + " is left over from one that was killed",
            start + " (it removes the stale socket)"};
  return {Grade::kBad, "daemon", "where the socket should be lies something else: " + path,
          "set KVTIER_SOCKET to another name, or move that away"};
}

bool is_kvtierd(pid_t process) {
  return read_line("/proc/" + std::to_string(process) + "/comm") == "kvtierd";
}

// Of a daemon that is there and does not answer as it should.
std::string restart_hint(pid_t process) {
  const std::string pid = std::to_string(process);
  if (!is_kvtierd(process))  // systemd: the socket is its own
    return "`journalctl --user -u kvtierd` says why it does not answer; after its mend: systemctl "
           "--user restart kvtierd.socket (without systemd: kvtier stop; kvtier start)";
  const std::string stat = read_line("/proc/" + pid + "/stat");
  const std::size_t end = stat.rfind(')');
  if (end != std::string::npos && stat.compare(end, 3, ") T") == 0)
    return "it is stopped (SIGSTOP): kill -CONT " + pid;
  return "kill " + pid + "; kvtier start";
}

Finding judge_no_connection(const Invocation& invocation, const Status& status, Seen* seen) {
  const std::string path = socket_path(invocation);
  const std::string found = std::string("cannot connect: ") + status.message();
  if (status.code == Code::kNotFound) return check_socket_file(invocation);
  if (status.code == Code::kTimeout) {  // its lock file holds its pid
    seen->listener = true;
    const std::string holder = read_line(path + ".lock");
    return {Grade::kBad, "daemon", found,
            holder.empty() ? "end the process that holds " + path
                           : restart_hint(std::atoi(holder.c_str()))};
  }
  return {Grade::kBad, "daemon", found, "see `socket directory`; or set KVTIER_SOCKET"};
}

Finding check_daemon(const Invocation& invocation, Seen* seen) {
  const std::string path = socket_path(invocation);
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(3000));
  if (!socket) return judge_no_connection(invocation, socket.error(), seen);
  seen->listener = true;
  const pid_t peer = check_peer(socket->get()).value_or(0);
  // While systemd holds the socket it is the peer, whether a daemon runs behind it or not.
  if (is_kvtierd(peer)) seen->daemon = peer;
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
    return {Grade::kBad, "daemon", text, restart_hint(peer)};
  }
  if (seen->daemon == 0) seen->daemon = static_cast<pid_t>(number_of(hello->body, "pid"));
  // Reads their files, so that what is off below says what is wrong with them.
  static_cast<void>(channel.call(Json{{"op", "codebooks"}}, {}, 0, Deadline::after_ms(10000)));
  const auto answer = channel.call(Json{{"op", "status"}}, {}, 0, Deadline::after_ms(3000));
  if (answer) seen->status = answer->body;
  const auto counters = channel.call(Json{{"op", "stats"}}, {}, 0, Deadline::after_ms(3000));
  if (counters) seen->stats = counters->body;
  const std::string version = text_of(hello->body, "daemon_version");
  if (version != KVT_VERSION)
    return {Grade::kSlow, "daemon", "runs " + version + ", this kvtier is " KVT_VERSION,
            "kvtier stop && kvtier start"};
  return {Grade::kGood, "daemon",
          "runs, " + version + ", pid " + std::to_string(number_of(hello->body, "pid")), ""};
}

// What the daemon itself thinks of its settings. `*all`: every one that there is.
Finding check_settings(Seen* seen, Json* all) {
  std::string program, problem;
  seen->settings_read = offline_settings(&program, &seen->settings, &problem);
  if (seen->settings_read) {
    *all = seen->settings;
    return {Grade::kGood, "settings", "read by " + program, ""};
  }
  if (program.empty())
    return {Grade::kBad, "settings", "no kvtierd beside this program nor in PATH",
            "install it, or set KVTIER_DAEMON"};
  if (!is_program(program))
    return {Grade::kBad, "settings", problem, "set KVTIER_DAEMON to the program, or unset it"};
  seen->settings = settings_of_environment(program, all);
  return {Grade::kBad, "settings", problem,
          "change that setting (file, then environment KVTIER_..., then flags); `kvtierd --check` "
          "tells whether it is right"};
}

// Variables that begin as ours do and mean nothing.
void check_variables(const Json& all, std::vector<Finding>* findings) {
  if (all.is_null())
    findings->push_back(
        not_checked("environment", "their names come from kvtierd, which cannot be run"));
  for (const auto& [name, meant] : unknown_variables(all)) {
    const bool slip = is_slip(name, meant);
    findings->push_back(
        {slip ? Grade::kBad : Grade::kInfo, "environment", name + " means nothing",
         meant.empty()
             ? "if a setting is meant: `kvtier config` lists them (store.path is "
               "KVTIER_STORE_PATH); else leave it"
             : "if " + meant + " is meant, name it so; else " + (slip ? "unset it" : "leave it")});
  }
}

// A view that is to run kernels by a name that is none does not open.
void check_kernel_choice(std::vector<Finding>* findings) {
  const char* named = std::getenv("KVTIER_KERNELS");
  const Result<const KernelTable*> chosen = select_kernels(named != nullptr ? named : "");
  if (chosen) return;
  std::string names = "auto";
  for (const KernelTable* table : all_kernels()) names += std::string(", ") + table->name;
  findings->push_back(
      {Grade::kBad, "environment",
       std::string("KVTIER_KERNELS is \"") + named + "\": " +
           (chosen.error().code == Code::kNotFound ? "no such kernels" : "not for this machine") +
           ", so no view opens",
       "unset it, or set it to one of " + names});
}

// A preset of the user's that no view can use.
void check_presets(std::vector<Finding>* findings) {
  char* text = nullptr;
  if (kvt_presets(nullptr, &text) != KVT_OK) return;
  const Result<Json> reply = parse_json(text);
  kvt_free(text);
  if (!reply || !reply->contains("broken")) return;
  for (const Json& broken : (*reply)["broken"])
    findings->push_back({Grade::kBad, "preset " + text_of(broken, "name"), text_of(broken, "error"),
                         "change that file, or move it away: " + text_of(broken, "from")});
  for (const Json& profile : reply->value("profiles", Json::array()))
    if (profile.contains("error"))
      findings->push_back({Grade::kBad, "profile", text_of(profile, "error"),
                           "change that file, or remove it: " + text_of(profile, "from")});
}

const char* grade_name(Grade grade) {
  switch (grade) {
    case Grade::kGood:
      return "good";
    case Grade::kInfo:
      return "info";
    case Grade::kSlow:
      return "slow";
    case Grade::kBad:
      return "bad";
  }
  return "";
}

// Of the daemon that runs, else of one that would start; 0: not known.
std::uint64_t disk_limit(const Seen& seen) {
  if (seen.stats.is_object() && seen.stats.contains("disk"))
    return number_of(seen.stats["disk"], "limit_bytes");
  return std::strtoull(setting_of(seen.settings, "store.disk_bytes_max").c_str(), nullptr, 10);
}

std::vector<Finding> look(const Invocation& invocation) {
  std::vector<Finding> findings;
  Seen seen;
  findings.push_back(check_socket_directory(invocation));
  findings.push_back(check_daemon(invocation, &seen));
  Json all_settings;
  findings.push_back(check_settings(&seen, &all_settings));
  check_variables(all_settings, &findings);
  check_kernel_choice(&findings);
  const bool runs = seen.status.is_object() && !text_of(seen.status, "store").empty();
  const std::string store =
      runs ? text_of(seen.status, "store") : setting_of(seen.settings, "store.path");
  // Behind a socket of systemd's may run a daemon that refuses us or is slow: it holds the store.
  const bool held = seen.daemon == 0 && is_held(store);
  if (!seen.settings_read && store.empty())
    findings.push_back(
        not_checked("store", "its place is a setting, and the settings cannot be read"));
  else
    check_store(store, disk_limit(seen), held && !seen.listener, &seen.probe_directory, &findings);
  // The catalogue of a running daemon changes while it is read.
  if (seen.daemon == 0 && !held) check_catalogue(store, &findings);
  check_presets(&findings);
  check_counters(seen.stats, &findings);
  findings.push_back(check_disk_backend(seen));
  findings.push_back(check_memlock(seen));
  findings.push_back(check_open_files(seen));
  findings.push_back(check_huge_pages(seen));
  findings.push_back(check_memory(seen));
  check_switched_off(seen, &findings);
  return findings;
}

int run_doctor(const Invocation& invocation) {
  // What the probes below would log, the findings say.
  if (std::getenv("KVTIER_LOG") == nullptr) set_log_level(LogLevel::kError);
  bool bad = false;
  Json list = Json::array();
  for (const Finding& finding : look(invocation)) {
    bad = bad || finding.grade == Grade::kBad;
    const char* grade = grade_name(finding.grade);
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
