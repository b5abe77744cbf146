#include "client/ipc/wait.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>

#include "client/ipc/ring.h"

namespace kvtier {

namespace {

constexpr int kSpinCpusMin = 4;

int cpus_allowed() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails only on machines with more CPUs than the set holds: surely enough of them.
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return kSpinCpusMin;
  return CPU_COUNT(&set);
}

}  // namespace

AdaptiveSpin::AdaptiveSpin(const WaiterOptions& options) noexcept {
  const bool on = options.spin == SpinMode::kAlways ||
                  (options.spin == SpinMode::kAuto && cpus_allowed() >= kSpinCpusMin);
  max_ns_ = on ? options.spin_us_max * 1000ull : 0;
  average_ns_ = max_ns_ / 2;
}

std::uint64_t AdaptiveSpin::budget_ns() const noexcept {
  // Where waits are long a spin of full length would be lost each time. A short one stays, to
  // notice when they get short again: a sleeper's waits never look short, because waking up is part
  // of them.
  if (average_ns_ > 4 * max_ns_) return max_ns_ / 8;
  return std::min(max_ns_, 2 * average_ns_);
}

void AdaptiveSpin::note_wait(std::uint64_t ns) noexcept {
  // One long pause must not be remembered for hundreds of waits.
  const std::uint64_t capped = std::min(ns, 16 * max_ns_);
  average_ns_ = average_ns_ - average_ns_ / 8 + capped / 8;
}

Waiter::Woken Waiter::sleep(int doorbell, int socket, const Deadline& deadline) noexcept {
  pollfd fds[2] = {{doorbell, POLLIN, 0}, {socket, POLLRDHUP, 0}};
  timespec left;
  const int count = ::ppoll(fds, socket >= 0 ? 2 : 1, deadline.left(&left), nullptr);
  if (count < 0) return deadline.passed() ? Woken::kTimeout : Woken::kDoorbell;  // a signal
  if (count == 0) return Woken::kTimeout;
  if ((fds[0].revents & POLLIN) != 0) drain_doorbell(doorbell);
  if (socket >= 0 && fds[1].revents != 0) return Woken::kHangup;
  if ((fds[0].revents & (POLLERR | POLLNVAL)) != 0)
    return Woken::kHangup;  // a closed doorbell: nobody can wake us
  return Woken::kDoorbell;
}

}  // namespace kvtier
