#include "client/ipc/paths.h"

#include <unistd.h>

#include <cstdlib>

namespace kvtier {

std::string default_socket_path() {
  if (const char* path = std::getenv("KVTIER_SOCKET"); path != nullptr && *path != '\0')
    return path;
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr && *runtime == '/')
    return std::string(runtime) + "/kvtier/kvtierd.sock";
  return "/tmp/kvtier-" + std::to_string(::geteuid()) + "/kvtierd.sock";
}

std::string daemon_log_path(const std::string& socket_path) {
  return socket_path.substr(0, socket_path.rfind('/') + 1) + "kvtierd.log";
}

std::string default_config_directory() {
  if (const char* config = std::getenv("XDG_CONFIG_HOME"); config != nullptr && *config == '/')
    return std::string(config) + "/kvtier";
  const char* home = std::getenv("HOME");
  return home != nullptr ? std::string(home) + "/.config/kvtier" : "";
}

}  // namespace kvtier
