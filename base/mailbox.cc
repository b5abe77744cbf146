#include "base/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/check.h"

namespace kvtier {

Mailbox::Mailbox(bool wakes) {
  if (!wakes) return;
  event_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  KVT_CHECK(event_.valid());
}

void Mailbox::post(std::function<void()> message) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = waiting_.empty();
    waiting_.push_back(std::move(message));
  }
  if (first && event_.valid()) {
    const std::uint64_t one = 1;
    // Fails only when the counter is full, and then the owner is awake anyway.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
  }
}

std::size_t Mailbox::drain() {
  std::vector<std::function<void()>> messages;
  {
    const std::lock_guard lock(mutex_);
    messages.swap(waiting_);
    if (event_.valid() && !messages.empty()) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(event_.get(), &count, sizeof count);
    }
  }
  for (auto& message : messages) message();
  return messages.size();
}

void Mailbox::drop_all() {
  const std::lock_guard lock(mutex_);
  waiting_.clear();
}

}  // namespace kvtier
