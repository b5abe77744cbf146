#include "client/ipc/ring.h"

#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

namespace kvtier {

Result<UniqueFd> make_doorbell() {
  UniqueFd doorbell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell.valid())
    return error(Code::kIo, "cannot make an eventfd: raise the limit of open files", errno);
  return doorbell;
}

void ring_doorbell(int doorbell) noexcept {
  const std::uint64_t one = 1;
  // EAGAIN: the counter is full, so it is readable already. Other errors leave the reader to its
  // deadline.
  while (::write(doorbell, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void drain_doorbell(int doorbell) noexcept {
  std::uint64_t count = 0;
  iovec piece{&count, sizeof(count)};
  // The peer shares the descriptor's flags and could take O_NONBLOCK away; RWF_NOWAIT holds for
  // this call.
  if (::preadv2(doorbell, &piece, 1, -1, RWF_NOWAIT) < 0 &&
      (errno == EOPNOTSUPP || errno == ENOSYS)) {
    [[maybe_unused]] const ssize_t drained =
        ::read(doorbell, &count, sizeof(count));  // EAGAIN: nothing to drain
  }
}

ClientRings make_client_rings(ControlLayout* control, int daemon_doorbell) noexcept {
  return {{&control->submission, control->submissions, kSubmissionEntries, daemon_doorbell},
          {&control->completion, control->completions, kCompletionEntries}};
}

DaemonRings make_daemon_rings(ControlLayout* control, int client_doorbell) noexcept {
  return {{&control->submission, control->submissions, kSubmissionEntries},
          {&control->completion, control->completions, kCompletionEntries, client_doorbell}};
}

}  // namespace kvtier
