// start, stop, status: the daemon's life.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "client/ipc/control_channel.h"
#include "client/ipc/paths.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"
#include "kvtier/kvtier.h"
#include "tools/cli/commands.h"
#include "tools/cli/finding.h"

namespace kvtier::cli {
namespace {

// A directory that nobody named but in --socket is more likely a slip than wanted.
bool has_directory(const Invocation& invocation, std::string* problem) {
  if (!invocation.socket.starts_with('/')) return true;  // what is wrong with it, the client says
  const std::string directory = std::filesystem::path(invocation.socket).parent_path();
  std::error_code failed;
  if (std::filesystem::exists(directory, failed) || failed) return true;
  *problem = "there is no directory " + directory + ": mkdir -p -m 700 " + shell_word(directory) +
             ", or name another --socket";
  return false;
}

// One line where the daemon's start found that the catalogue has lost its last rows; else "".
std::string lost_rows(const Json& stats) {
  const Json disk = stats.value("disk", Json::object());
  const std::uint64_t files = number_of(disk, "kept_lost");
  if (files == 0) return "";
  return "rows of the catalogue were lost: " + std::to_string(files) +
         " files are newer than all that it knows; `kvtier doctor` has the details, `kvtier stop; "
         "kvtier repair --store " +
         shell_word(text_of(disk, "store")) +
         "` finds what they hold (before kvtier gc, which removes them)";
}

// The same of the daemon that runs. Nothing where it does not say its stats: the commands that ask
// are about something else.
std::optional<std::string> ask_lost_rows(const Invocation& invocation) {
  std::string why;
  const Result<Json> stats = try_request(invocation, Json{{"op", "stats"}}, &why);
  if (!stats) return std::nullopt;
  return lost_rows(*stats);
}

// A daemon that can read its store starts; that storing fails would show only then.
void warn_of_closed_store(const Invocation& invocation) {
  std::string why;
  const Result<Json> status = try_request(invocation, Json{{"op", "status"}}, &why);
  int refused = 0;
  const std::string part = status ? closed_part(text_of(*status, "store"), &refused) : "";
  if (!part.empty())
    std::fprintf(stderr, "kvtier: %s cannot be written: %s; `kvtier doctor` has the mend\n",
                 part.c_str(), std::strerror(refused));
}

int run_start(const Invocation& invocation) {
  std::string program, why;
  Json settings;
  static_cast<void>(offline_settings(&program, &settings, &why));
  // A setting that is misspelt there would be passed over without a word.
  warn_of_variables(settings, false);
  if (!has_directory(invocation, &why)) return print_error(invocation, {Code::kNotFound}, why);
  const bool running = daemon_listens(invocation, &why).value_or(false);
  // The client library knows how to find and start the daemon; opening a client is starting it.
  kvt_client_options options;
  kvt_client_options_init(&options);
  if (!invocation.socket.empty()) options.socket_path = invocation.socket.c_str();
  options.name = "kvtier start";
  kvt_client* client = nullptr;
  const kvt_status status = kvt_client_open(&options, &client);
  if (status != KVT_OK)
    return print_error(invocation, {static_cast<Code>(status)},
                       std::string("cannot start kvtierd: ") + kvt_last_error());
  const std::optional<std::string> lost = ask_lost_rows(invocation);
  kvt_client_close(client);
  if (invocation.json) {
    Json reply{{"ok", true}, {"started", !running}};
    if (lost) reply["lost"] = *lost;
    print_json(reply);
    return 0;
  }
  if (lost && !lost->empty()) std::fprintf(stderr, "kvtier: %s\n", lost->c_str());
  warn_of_closed_store(invocation);
  std::printf(running ? "kvtierd runs already\n" : "kvtierd runs\n");
  return 0;
}

// Asks the daemon to stop; its pid, or 0, with the error printed. One that speaks another protocol
// gets the signal that means the same.
pid_t ask_to_stop(const Invocation& invocation, Json* reply, int* exit_code) {
  Json status;
  if (request(invocation, Json{{"op", "status"}}, &status, exit_code) &&
      request(invocation, Json{{"op", "stop"}}, reply, exit_code))
    return static_cast<pid_t>(number_of(status, "pid"));
  return 0;
}

pid_t signal_other_version(const Invocation& invocation, int* exit_code) {
  const std::string path = invocation.socket.empty() ? default_socket_path() : invocation.socket;
  const Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(2000));
  const Result<pid_t> peer = socket ? check_peer(socket->get()) : error(socket.error());
  std::string why = "it speaks another protocol, and ";
  if (!peer) {
    why += std::string("its process is not known: ") + peer.error().message();
  } else if (const std::string name = read_line("/proc/" + std::to_string(*peer) + "/comm");
             name != "kvtierd") {  // systemd, where the socket is its
    why += "the socket is held by " + name + " (pid " + std::to_string(*peer) +
           "): systemctl --user stop kvtierd.service, or end that process";
  } else if (::kill(*peer, SIGTERM) != 0) {
    why += "its process " + std::to_string(*peer) + " takes no signal: " + std::strerror(errno);
  } else {
    return *peer;
  }
  *exit_code =
      print_error(invocation, {Code::kVersion}, "cannot stop the daemon at " + path + ": " + why);
  return 0;
}

bool speaks_another_version(const Invocation& invocation) {
  const std::string path = invocation.socket.empty() ? default_socket_path() : invocation.socket;
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(2000));
  if (!socket) return false;
  ControlChannel channel(std::move(*socket));
  const auto hello = channel.call(Json{{"op", "hello"},
                                       {"version", kProtocolVersion},
                                       {"name", "kvtier stop"},
                                       {"pid", ::getpid()},
                                       {"data", false}},
                                  {}, 0, Deadline::after_ms(2000));
  return !hello && hello.error().code == Code::kVersion;
}

// Not by the socket: systemd may hold it, and a connection would start the daemon again.
bool wait_for_end(pid_t pid) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid()) return errno == ESRCH;
  pollfd watched{process.get(), POLLIN, 0};
  return ::poll(&watched, 1, 30'000) == 1;
}

int run_stop(const Invocation& invocation) {
  std::string text;
  const Result<bool> listens = daemon_listens(invocation, &text);
  if (!listens) return print_error(invocation, listens.error(), text);
  if (!*listens) {
    if (invocation.json)
      print_json(Json{{"ok", true}, {"stopped", false}});
    else
      std::printf("no kvtierd runs\n");
    return 0;
  }
  Json reply;
  int exit_code = 0;
  const pid_t pid = speaks_another_version(invocation)
                        ? signal_other_version(invocation, &exit_code)
                        : ask_to_stop(invocation, &reply, &exit_code);
  if (exit_code != 0) return exit_code;
  if (pid <= 0 || !wait_for_end(pid))
    return print_error(invocation, {Code::kTimeout},
                       "kvtierd has not stopped within 30 s; see its log");
  if (invocation.json)
    print_json(Json{{"ok", true}, {"stopped", true}});
  else
    std::printf("stopped\n");
  return 0;
}

int run_status(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "status"}}, &reply, &exit_code)) return exit_code;
  const std::optional<std::string> lost = ask_lost_rows(invocation);
  if (invocation.json) {
    if (lost) reply["lost"] = *lost;
    print_json(reply);
    return 0;
  }
  std::printf("kvtierd %s, pid %llu, up %s\n", text_of(reply, "daemon_version").c_str(),
              static_cast<unsigned long long>(number_of(reply, "pid")),
              human_duration(number_of(reply, "uptime_s")).c_str());
  std::printf("store   %s\nsocket  %s\n", text_of(reply, "store").c_str(),
              text_of(reply, "socket").c_str());
  if (reply.contains("modes"))
    for (const auto& [name, value] : reply["modes"].items()) {
      const bool bytes = name.ends_with("_bytes") && value.is_number_unsigned();
      std::printf("%-7s %s\n", (bytes ? name.substr(0, name.rfind('_')) : name).c_str(),
                  (bytes               ? human_bytes(value.get<std::uint64_t>())
                   : value.is_string() ? value.get<std::string>()
                                       : value.dump())
                      .c_str());
    }
  if (reply.contains("off"))
    for (const Json& line : reply["off"])
      std::printf("off     %s\n", line.get<std::string>().c_str());
  if (lost && !lost->empty()) std::printf("lost    %s\n", lost->c_str());
  std::vector<std::vector<std::string>> rows = {{"CLIENT", "PID", "SEQUENCES", "LEASED"}};
  if (reply.contains("clients"))
    for (const Json& client : reply["clients"])
      rows.push_back({text_of(client, "name"), std::to_string(number_of(client, "pid")),
                      std::to_string(number_of(client, "sequences")),
                      human_bytes(number_of(client, "leased_bytes"))});
  std::printf("\n");
  if (rows.size() > 1)
    print_table(rows);
  else
    std::printf("no clients\n");
  return 0;
}

}  // namespace

Command start_command() {
  return {"start", "start the daemon, if it does not run", {}, {}, run_start};
}
Command stop_command() {
  return {"stop", "finish what has begun and stop the daemon", {}, {}, run_stop};
}
Command status_command() {
  return {"status", "what runs, with which back ends, and what is off and why", {}, {}, run_status};
}

}  // namespace kvtier::cli
