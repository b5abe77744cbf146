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

}  // namespace kvtier
