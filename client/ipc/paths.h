// Where the daemon's socket and the user's settings are. Any thread (reads the environment).
#pragma once

#include <string>

namespace kvtier {

// $KVTIER_SOCKET; else $XDG_RUNTIME_DIR/kvtier/kvtierd.sock; else /tmp/kvtier-<uid>/kvtierd.sock.
// Empty variables count as unset, and so does an XDG_RUNTIME_DIR that is not absolute.
[[nodiscard]] std::string default_socket_path();
// Where the daemon that a client starts for this socket writes its log.
[[nodiscard]] std::string daemon_log_path(const std::string& socket_path);
// $XDG_CONFIG_HOME/kvtier where that is absolute; else $HOME/.config/kvtier; "" without either.
[[nodiscard]] std::string default_config_directory();

}  // namespace kvtier
