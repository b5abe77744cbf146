// Autostart: finds kvtierd and starts it, detached from this process, where nobody listens.
//
// The daemon gets its own session, standard input from /dev/null and both outputs in <socket
// directory>/kvtierd.log; no other descriptor of ours. It is a grandchild: the caller never sees a
// SIGCHLD of it. Any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace kvtier {

// `option`, $KVTIER_DAEMON, beside this library or program (same folder, ../bin, ../../bin), PATH.
// kNotFound says where it looked. An option or variable that names no program is an error, not
// passed over.
[[nodiscard]] Result<std::string> find_daemon(const std::string& option);

// Starts `program --socket socket_path`; kPermission where it could not write what it needs there,
// with the mend. The pid, which may end at once if another daemon is
// faster. The socket answers later.
[[nodiscard]] Result<pid_t> spawn_daemon(const std::string& program,
                                         const std::string& socket_path);

// The last line of a log from that byte on; "" if there is none.
[[nodiscard]] std::string last_line_of(const std::string& path, std::uint64_t from = 0);

}  // namespace kvtier
