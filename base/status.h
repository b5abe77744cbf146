// Status: why something did not work. A pinned number, a static text and the OS error, never
// allocated.
//
// Codes name causes, not operations. The numbers are part of the wire protocol and of the C ABI:
// they are grouped with gaps, never reused and never renumbered. A miss is a code, not a message.
// Any thread.
#pragma once

#include <cstdint>

namespace kvtier {

enum class Code : std::int32_t {
  kOk = 0,
  // 1-19: expected outcomes of a cache
  kMiss = 1,       // not stored, or not any more
  kFull = 2,       // a bounded resource has no room
  kTimeout = 3,    // a deadline passed
  kCancelled = 4,  // the caller took the request back
  kBusy = 5,       // somebody else holds it; try again
  kNoSpace = 6,    // the disk is full, or the store's limit is reached
  // 20-39: the caller asked for something that cannot be
  kInvalid = 20,      // an argument is out of its range
  kNotFound = 21,     // no such object
  kExists = 22,       // the name or id is taken
  kTooLarge = 23,     // above a limit of base/limits.h or of the configuration
  kWrongSpace = 24,   // object and request belong to different spaces
  kNotFinite = 25,    // NaN or infinity where numbers must be
  kPermission = 26,   // not allowed
  kUnsupported = 27,  // this build or machine cannot do it
  kStale = 28,        // a handle, lease or version of the past
  // 40-59: bytes that do not hold what they should
  kCorrupt = 40,   // checksum or structure wrong
  kVersion = 41,   // written by a newer format or protocol version
  kProtocol = 42,  // the peer broke the protocol
  // 60-79: the world failed
  kIo = 60,          // a device reported an error
  kReadOnly = 61,    // the store cannot be written
  kDaemonLost = 62,  // the daemon went away
  kFork = 63,        // a handle was used in a forked child
  // 80-99: we failed
  kInternal = 80,
};

// The name of a code, "corrupt" for kCorrupt; "unknown" for a number that is not in the list.
const char* code_name(Code code) noexcept;

// Trivially copyable, 16 bytes. `text` is a string literal (or null) that says what to do, never
// owned.
struct Status {
  Code code = Code::kOk;
  std::int32_t os_error = 0;
  const char* text = nullptr;

  [[nodiscard]] bool ok() const noexcept { return code == Code::kOk; }
  [[nodiscard]] const char* message() const noexcept {
    return text != nullptr ? text : code_name(code);
  }
};

}  // namespace kvtier
