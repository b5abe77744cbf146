#include "client/last_error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace kvtier {
namespace {

constexpr std::size_t kTextBytes = 1024;
thread_local char text[kTextBytes];

}  // namespace

void clear_error_text() noexcept { text[0] = '\0'; }

const char* error_text() noexcept { return text; }

void set_error_text(const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, kTextBytes, format, arguments);
  va_end(arguments);
}

tl::unexpected<Status> error_with(Code code, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, kTextBytes, format, arguments);
  va_end(arguments);
  return error(code);
}

void describe_error(const Status& status) noexcept {
  if (text[0] != '\0') return;
  if (status.os_error == 0) {
    set_error_text("%s", status.message());
    return;
  }
  char os_text[128];
  set_error_text("%s: %s", status.message(),
                 ::strerror_r(status.os_error, os_text, sizeof os_text));
}

}  // namespace kvtier
