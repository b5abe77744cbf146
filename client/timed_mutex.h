// TimedMutex: a mutex that is waited for until a deadline. std::timed_mutex does that, too, by a
// call that ThreadSanitizer of GCC 12 does not know. Any thread; not recursive.
#pragma once

#include <condition_variable>
#include <mutex>

#include "client/ipc/deadline.h"

namespace kvtier {

class TimedMutex {
 public:
  // Owns nothing where the deadline passed.
  [[nodiscard]] std::unique_lock<TimedMutex> lock_until(const Deadline& deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    timespec left{};
    while (taken_) {
      if (deadline.passed()) return {};
      if (deadline.left(&left) == nullptr)
        free_.wait(lock);
      else
        free_.wait_for(lock,
                       std::chrono::seconds(left.tv_sec) + std::chrono::nanoseconds(left.tv_nsec));
    }
    taken_ = true;
    return {*this, std::adopt_lock};
  }
  void unlock() {
    std::lock_guard<std::mutex> lock(mutex_);
    taken_ = false;
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;  // guarded by mutex_
};

}  // namespace kvtier
