// Where the daemon's socket is. Any thread (reads the environment).
#pragma once

#include <string>

namespace kvtier {

// $KVTIER_SOCKET; else $XDG_RUNTIME_DIR/kvtier/kvtierd.sock; else /tmp/kvtier-<uid>/kvtierd.sock.
// Empty variables count as unset, and so does an XDG_RUNTIME_DIR that is not absolute.
[[nodiscard]] std::string default_socket_path();

}  // namespace kvtier
