#include "client/ipc/unix_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "base/shell_word.h"
#include "client/ipc/paths.h"

namespace kvtier {

namespace {

constexpr int kBacklog = 128;
constexpr mode_t kOthersMask = 077;

Result<sockaddr_un> make_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos)
    return error(Code::kInvalid, "the socket path must be absolute");
  if (path.size() >= sizeof(address.sun_path))
    return error(Code::kTooLarge,
                 "the socket path is longer than 107 bytes: set KVTIER_SOCKET to a shorter one");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> make_socket() {
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return error(Code::kIo, "cannot make a socket", errno);
  return socket;
}

// Makes the directory and checks that nobody else can come in. Checked on the descriptor, not on
// the name.
Result<void> prepare_directory(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return error(errno == EACCES || errno == EROFS ? Code::kPermission : Code::kIo,
                 "cannot make the socket's directory", errno);
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid())
    return error(Code::kPermission, "the socket's directory is a link, a file, or closed to us",
                 errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0)
    return error(Code::kIo, "cannot look at the socket's directory", errno);
  if (info.st_uid != ::geteuid())
    return error(Code::kPermission, "the socket's directory belongs to another user");
  if ((info.st_mode & kOthersMask) != 0)
    return error(Code::kPermission,
                 "others may enter the socket's directory: chmod 700 it, or set KVTIER_SOCKET");
  return {};
}

Result<UniqueFd> take_lock(const std::string& path) {
  UniqueFd lock(::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return error(Code::kIo, "cannot open the socket's lock file", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return error(Code::kBusy, "another kvtierd serves this socket: stop it first (kvtier stop)");
    return error(Code::kIo, "cannot lock the socket's lock file", errno);
  }
  // The holder's pid, for people. Nothing depends on it.
  char text[16];
  const int bytes = std::snprintf(text, sizeof(text), "%ld\n", static_cast<long>(::getpid()));
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), text, static_cast<std::size_t>(bytes), 0) != bytes)
    return error(Code::kIo, "cannot write the socket's lock file", errno);
  return lock;
}

Result<void> remove_stale(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return error(Code::kIo, "cannot look at the old socket", errno);
  }
  if (!S_ISSOCK(info.st_mode))
    return error(Code::kExists, "where the socket should be lies something else: move it away");
  if (::unlink(path.c_str()) != 0) return error(Code::kIo, "cannot remove the old socket", errno);
  return {};
}

Result<ucred> peer_of(int socket) {
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
    return error(Code::kIo, "cannot ask who is at the other end of a socket", errno);
  return peer;
}

// A non-blocking connect to a Unix socket succeeds or fails at once; EAGAIN: the backlog is full.
Result<void> connect_until(int socket, const sockaddr_un& address, const Deadline& deadline) {
  for (;;) {
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
      return {};
    const int os_error = errno;
    if (os_error == ENOENT || os_error == ECONNREFUSED || os_error == ENOTDIR)
      return error(Code::kNotFound, "no kvtierd listens: start it with `kvtier start`", os_error);
    if (os_error == EACCES || os_error == EPERM)
      return error(Code::kPermission, "the socket belongs to another user", os_error);
    if (os_error != EAGAIN && os_error != EINTR)
      return error(Code::kIo, "cannot connect to kvtierd", os_error);
    if (deadline.passed()) return error(Code::kTimeout, "kvtierd is there but takes no connection");
    constexpr timespec kRetry{0, 2'000'000};
    ::nanosleep(&kRetry, nullptr);
  }
}

}  // namespace

Result<void> check_listening_place(const std::string& path) {
  KVT_TRY_VOID(make_address(path));
  const std::size_t slash = path.rfind('/');
  if (slash == 0) return error(Code::kInvalid, "the socket needs a directory of its own");
  return prepare_directory(path.substr(0, slash));
}

Result<UnixListener> listen_unix(const std::string& path) {
  KVT_TRY(const sockaddr_un address, make_address(path));
  KVT_TRY_VOID(check_listening_place(path));
  UnixListener listener;
  KVT_TRY(listener.lock, take_lock(path));
  KVT_TRY_VOID(remove_stale(path));
  KVT_TRY(listener.socket, make_socket());
  const int fd = listener.socket.get();
  // The mode that bind gives to the file, so that there is no moment with a wider one.
  if (::fchmod(fd, 0600) != 0) return error(Code::kIo, "cannot set the socket's mode", errno);
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return error(Code::kIo, "cannot bind the socket", errno);
  if (::chmod(path.c_str(), 0600) != 0)
    return error(Code::kIo, "cannot set the socket's mode", errno);
  if (::listen(fd, kBacklog) != 0) return error(Code::kIo, "cannot listen on the socket", errno);
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0)
    return error(Code::kIo, "cannot look at the new socket", errno);
  listener.path = path;
  listener.device = info.st_dev;
  listener.inode = info.st_ino;
  return listener;
}

ClosedPlace find_closed_place(const std::string& path) {
  const std::string directory = path.substr(0, path.rfind('/'));
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return {};  // none yet
  if (::faccessat(AT_FDCWD, directory.c_str(), R_OK | W_OK | X_OK, AT_EACCESS) != 0) {
    const bool ours = errno == EACCES && info.st_uid == ::geteuid();
    return {
        directory + " cannot be written: " + std::strerror(errno),
        ours ? "chmod 700 " + shell_word(directory) : "set KVTIER_SOCKET to a path of your own"};
  }
  for (const std::string& file : {daemon_log_path(path), path + ".lock"}) {
    const UniqueFd opened(
        ::open(file.c_str(), O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC));
    if (opened.valid() || errno == ENOENT || errno == EMFILE || errno == ENFILE) continue;
    return {file + " cannot be written: " + std::strerror(errno), "remove " + shell_word(file)};
  }
  return {};
}

void remove_listener(UnixListener* listener) noexcept {
  // No other daemon binds there while we hold the lock. systemd does, where kvtierd.socket is
  // enabled beside us: that socket stays. The open socket keeps its inode's number from being used
  // again.
  struct stat info {};
  if (listener->lock.valid() && listener->socket.valid() &&
      ::lstat(listener->path.c_str(), &info) == 0 && info.st_dev == listener->device &&
      info.st_ino == listener->inode)
    ::unlink(listener->path.c_str());
  listener->socket.reset();
  listener->lock.reset();
}

Result<UniqueFd> connect_unix(const std::string& path, const Deadline& deadline) {
  KVT_TRY(const sockaddr_un address, make_address(path));
  KVT_TRY(UniqueFd socket, make_socket());
  KVT_TRY_VOID(connect_until(socket.get(), address, deadline));
  KVT_TRY_VOID(check_peer(socket.get()));
  return socket;
}

Result<UniqueFd> accept_unix(int listener) {
  for (;;) {
    UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) {
      KVT_TRY_VOID(check_peer(socket.get()));
      return socket;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return error(Code::kBusy, "no connection waits");
    return error(Code::kIo, "cannot accept a connection", errno);
  }
}

Result<pid_t> check_peer(int socket) {
  KVT_TRY(const ucred peer, peer_of(socket));
  if (peer.uid != ::geteuid())
    return error(Code::kPermission, "the process at the other end belongs to another user");
  return peer.pid;
}

Result<UniqueFd> peer_pidfd(int socket) {
  KVT_TRY(const ucred peer, peer_of(socket));
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
  if (fd.valid()) return fd;
  if (errno == ESRCH) return error(Code::kNotFound, "the process at the other end is gone", errno);
  return error(Code::kUnsupported, "this kernel has no pidfd", errno);
}

}  // namespace kvtier
