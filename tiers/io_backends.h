// What the Io back ends share and what make_io knows of them. Only tiers/io*.cc include this.
#pragma once

#include <memory>
#include <string>

#include "tiers/io.h"

namespace kvtier {

// The status that an errno stands for; `text` says what was tried.
[[nodiscard]] Status status_of_errno(int os_error, const char* text) noexcept;

// A path below the root: not absolute, no "..", no NUL, not empty unless the root itself is meant.
[[nodiscard]] Result<void> check_io_path(std::string_view path, bool root_allowed);

// Everything about a request that can be told without the disk: count of pieces, overflow, direct
// alignment, access.
[[nodiscard]] Result<void> check_io_request(const IoRequest& request, bool direct, bool writable);

[[nodiscard]] Result<std::unique_ptr<Io>> make_thread_io(const IoOptions& options,
                                                         std::string note);
[[nodiscard]] Result<std::unique_ptr<Io>> make_uring_io(const IoOptions& options);
// Does io_uring do here what the back end needs? Empty if so, else the reason in one line.
[[nodiscard]] std::string probe_uring(const IoOptions& options);

}  // namespace kvtier
