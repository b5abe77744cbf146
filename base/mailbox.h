// Mailbox: messages to the one thread that owns a piece of state. Other threads put closures in;
// the owner runs them.
//
// Bounded by what the senders may have outstanding (each job sends one message). With a wake-up
// descriptor the owner can sleep in poll(2): it becomes readable when a message waits.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "base/unique_fd.h"

namespace kvtier {

class Mailbox {
 public:
  // With `wakes` a descriptor is made; without, event_fd() is -1 (simulation).
  explicit Mailbox(bool wakes);

  // Any thread.
  void post(std::function<void()> message);
  // Runs all that waits, in order; the count. Owner thread; messages posted meanwhile wait for the
  // next call.
  std::size_t drain();
  [[nodiscard]] int event_fd() const noexcept { return event_.get(); }
  // Forgets what waits: a simulated crash.
  void drop_all();

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> waiting_;  // guarded by mutex_
  UniqueFd event_;                              // constant after construction
};

}  // namespace kvtier
