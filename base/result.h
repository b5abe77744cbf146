// Result<T>: a value or a Status. The alias of tl::expected is the one third-party type allowed in
// headers.
#pragma once

#include <tl/expected.hpp>

#include "base/status.h"

namespace kvtier {

template <class T>
using Result = tl::expected<T, Status>;

[[nodiscard]] inline tl::unexpected<Status> error(Code code, const char* text = nullptr,
                                                  int os_error = 0) noexcept {
  return tl::unexpected<Status>(Status{code, os_error, text});
}
[[nodiscard]] inline tl::unexpected<Status> error(const Status& status) noexcept {
  return tl::unexpected<Status>(status);
}

}  // namespace kvtier

#define KVT_CONCAT_INNER(a, b) a##b
#define KVT_CONCAT(a, b) KVT_CONCAT_INNER(a, b)

// KVT_TRY(declaration, expression): declares the value of a Result, or returns its error from this
// function.
#define KVT_TRY(declaration, ...)                                   \
  auto KVT_CONCAT(kvt_try_, __LINE__) = (__VA_ARGS__);              \
  if (!KVT_CONCAT(kvt_try_, __LINE__))                              \
    return ::kvtier::error(KVT_CONCAT(kvt_try_, __LINE__).error()); \
  declaration = *std::move(KVT_CONCAT(kvt_try_, __LINE__))

// KVT_TRY_VOID(expression): the same for Result<void>, and for a Result whose value is not wanted.
#define KVT_TRY_VOID(...)                                            \
  do {                                                               \
    auto kvt_try_void = (__VA_ARGS__);                               \
    if (!kvt_try_void) return ::kvtier::error(kvt_try_void.error()); \
  } while (false)
