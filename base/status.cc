#include "base/status.h"

namespace kvtier {

const char* code_name(Code code) noexcept {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kMiss:
      return "miss";
    case Code::kFull:
      return "full";
    case Code::kTimeout:
      return "timeout";
    case Code::kCancelled:
      return "cancelled";
    case Code::kBusy:
      return "busy";
    case Code::kNoSpace:
      return "no space";
    case Code::kInvalid:
      return "invalid argument";
    case Code::kNotFound:
      return "not found";
    case Code::kExists:
      return "exists already";
    case Code::kTooLarge:
      return "too large";
    case Code::kWrongSpace:
      return "wrong space";
    case Code::kNotFinite:
      return "not finite";
    case Code::kPermission:
      return "permission denied";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kStale:
      return "stale";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kVersion:
      return "unknown version";
    case Code::kProtocol:
      return "protocol error";
    case Code::kIo:
      return "i/o error";
    case Code::kReadOnly:
      return "read-only store";
    case Code::kDaemonLost:
      return "daemon lost";
    case Code::kFork:
      return "used after fork";
    case Code::kInternal:
      return "internal error";
  }
  return "unknown";
}

}  // namespace kvtier
