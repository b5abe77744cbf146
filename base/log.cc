#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace kvtier {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kDebug:
      return spdlog::level::debug;
  }
  return spdlog::level::info;
}

spdlog::level::level_enum level_from_environment() {
  const char* text = std::getenv("KVTIER_LOG");
  if (text == nullptr) return spdlog::level::warn;
  if (std::strcmp(text, "error") == 0) return spdlog::level::err;
  if (std::strcmp(text, "info") == 0) return spdlog::level::info;
  if (std::strcmp(text, "debug") == 0) return spdlog::level::debug;
  return spdlog::level::warn;
}

// Never destroyed: threads may log while the process exits.
spdlog::logger& logger() {
  static spdlog::logger* const instance = [] {
    auto* made = new spdlog::logger("kvtier", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    made->set_level(level_from_environment());
    made->flush_on(spdlog::level::warn);
    return made;
  }();
  return *instance;
}

}  // namespace

void set_log_level(LogLevel level) noexcept { logger().set_level(to_spdlog(level)); }

bool log_enabled(LogLevel level) noexcept { return logger().should_log(to_spdlog(level)); }

void log_line(LogLevel level, const char* format, ...) noexcept {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  logger().log(to_spdlog(level), spdlog::string_view_t(line));
}

}  // namespace kvtier
