// The text of the last failed call of this thread: what kvt_last_error shows.
//
// Status carries only static text; where a failure has names and numbers to say ("layer 3, token
// 17"), the place where it arises puts them here. The C ABI clears the text when a call begins. Per
// thread, never shared.
#pragma once

#include "base/result.h"

namespace kvtier {

void clear_error_text() noexcept;
// What was set since the last clear, or "".
[[nodiscard]] const char* error_text() noexcept;
void set_error_text(const char* format, ...) noexcept __attribute__((format(printf, 1, 2)));
// Sets the text and gives the error: `return error_with(Code::kInvalid, "layer %u of %u", ...)`.
[[nodiscard]] tl::unexpected<Status> error_with(Code code, const char* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));
// The text where there is none yet: from the status and its OS error.
void describe_error(const Status& status) noexcept;

}  // namespace kvtier
