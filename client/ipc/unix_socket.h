// Unix sockets of one user: listen, connect, and who is at the other end.
//
// All sockets made here are non-blocking and close-on-exec. Any thread.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "client/ipc/deadline.h"

namespace kvtier {

struct UnixListener {
  UniqueFd socket;  // listening
  UniqueFd lock;    // flock'd <path>.lock; keep it as long as the socket serves
  std::string path;
  dev_t device = 0;  // with the inode: the socket's file, where it lies at the path still
  ino_t inode = 0;
};

// Makes the socket's directory (0700) where it is missing and refuses one that others own or may
// enter (kPermission).
[[nodiscard]] Result<void> check_listening_place(const std::string& path);
// The same, and takes the lock (kBusy: another daemon serves here); removes a stale socket only
// then (kExists: something that is no socket); binds with mode 0600 and listens.
[[nodiscard]] Result<UnixListener> listen_unix(const std::string& path);

struct ClosedPlace {
  std::string found, mend;
};
// What at this socket's place we may not write, so that no daemon of ours can start there: its
// directory, or the log or lock file in it. Both "" where nothing is in the way. Changes nothing.
[[nodiscard]] ClosedPlace find_closed_place(const std::string& path);

// Removes the socket file, if it is still the listener's own, and gives the lock back.
void remove_listener(UnixListener* listener) noexcept;

// Connects. kNotFound: nobody listens (start the daemon). kPermission: somebody of another user
// does.
[[nodiscard]] Result<UniqueFd> connect_unix(const std::string& path, const Deadline& deadline);
// The next waiting connection, checked by check_peer. kBusy: none waits. kPermission: one of
// another user was closed.
[[nodiscard]] Result<UniqueFd> accept_unix(int listener);

// kPermission unless the process at the other end runs as our user. Its pid.
[[nodiscard]] Result<pid_t> check_peer(int socket);
// A descriptor that becomes readable when the peer's process is gone, even if a forked child keeps
// the socket. kUnsupported, kNotFound (gone already).
[[nodiscard]] Result<UniqueFd> peer_pidfd(int socket);

}  // namespace kvtier
