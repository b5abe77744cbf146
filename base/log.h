// The log: one line per event, to standard error. spdlog lives behind log.cc. Any thread.
//
// KVT_LOG(kWarn, "segment %llu: checksum of chunk %u differs", ...) formats as printf does and is
// checked by the compiler. Level from set_log_level or the environment variable KVTIER_LOG (error,
// warn, info, debug).
#pragma once

namespace kvtier {

enum class LogLevel : int { kError = 0, kWarn = 1, kInfo = 2, kDebug = 3 };

void set_log_level(LogLevel level) noexcept;
[[nodiscard]] bool log_enabled(LogLevel level) noexcept;
void log_line(LogLevel level, const char* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));

}  // namespace kvtier

#define KVT_LOG(level, ...)                                       \
  do {                                                            \
    if (::kvtier::log_enabled(::kvtier::LogLevel::level))         \
      ::kvtier::log_line(::kvtier::LogLevel::level, __VA_ARGS__); \
  } while (false)
