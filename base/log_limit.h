// Warnings that may come thousands of times a second, as a client sends them or a disk stays full:
// one line per cause and ten seconds, with how many before it were left out. The log may lie in
// memory, and nothing else cuts it while the daemon runs. One per place, static as the log is. Any
// thread.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

namespace kvtier {

class LogLimit {
 public:
  // `cause`: few different ones, as of a status code. `now_ns`: of whatever clock the caller has;
  // one that went back is another world's.
  void warn(std::uint64_t now_ns, int cause, const char* format, ...)
      __attribute__((format(printf, 4, 5)));

 private:
  struct Cause {
    std::uint64_t last_ns = 0, left_out = 0;
  };
  std::mutex mutex_;
  std::map<int, Cause> causes_;  // guarded by mutex_
};

}  // namespace kvtier
