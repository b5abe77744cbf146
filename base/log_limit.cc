#include "base/log_limit.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>

#include "base/log.h"

namespace kvtier {

constexpr std::uint64_t kPauseNs = 10'000'000'000;

void LogLimit::warn(std::uint64_t now_ns, int cause, const char* format, ...) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [found, first] = causes_.try_emplace(cause);
  Cause& seen = found->second;
  if (!first && now_ns >= seen.last_ns && now_ns - seen.last_ns < kPauseNs) {
    ++seen.left_out;
    return;
  }
  char line[960];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (seen.left_out == 0)
    KVT_LOG(kWarn, "%s", line);
  else
    KVT_LOG(kWarn, "%s (%" PRIu64 " like it before were left out)", line, seen.left_out);
  seen = {now_ns, 0};
}

}  // namespace kvtier
