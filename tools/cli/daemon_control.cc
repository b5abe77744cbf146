// start, stop, status: the daemon's life.
#include <cstdio>
#include <cstdlib>

#include <unistd.h>

#include "client/ipc/paths.h"
#include "client/ipc/unix_socket.h"
#include "kvtier/kvtier.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

bool listening(const Invocation& invocation) {
  const std::string path = invocation.socket.empty() ? default_socket_path() : invocation.socket;
  return connect_unix(path, Deadline::after_ms(2000)).has_value();
}

int run_start(const Invocation& invocation) {
  const bool running = listening(invocation);
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
  kvt_client_close(client);
  if (invocation.json)
    print_json(Json{{"ok", true}, {"started", !running}});
  else
    std::printf(running ? "kvtierd runs already\n" : "kvtierd runs\n");
  return 0;
}

int run_stop(const Invocation& invocation) {
  if (!listening(invocation)) {
    if (invocation.json)
      print_json(Json{{"ok", true}, {"stopped", false}});
    else
      std::printf("no kvtierd runs\n");
    return 0;
  }
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "stop"}}, &reply, &exit_code)) return exit_code;
  for (int i = 0; i < 300 && listening(invocation); ++i) ::usleep(100'000);
  if (listening(invocation))
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
  if (invocation.json) {
    print_json(reply);
    return 0;
  }
  std::printf("kvtierd %s, pid %llu, up %s\n", text_of(reply, "daemon_version").c_str(),
              static_cast<unsigned long long>(number_of(reply, "pid")),
              human_duration(number_of(reply, "uptime_s")).c_str());
  std::printf("store   %s\nsocket  %s\n", text_of(reply, "store").c_str(),
              text_of(reply, "socket").c_str());
  if (reply.contains("modes"))
    for (const auto& [name, value] : reply["modes"].items())
      std::printf("%-7s %s\n", name.c_str(),
                  value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  if (reply.contains("off"))
    for (const Json& line : reply["off"])
      std::printf("off     %s\n", line.get<std::string>().c_str());
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
