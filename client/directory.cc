#include "client/directory.h"

#include <sched.h>
#include <sys/stat.h>

#include <algorithm>

#include "client/ipc/deadline.h"
#include "client/ipc/shared_copy.h"

namespace kvtier {
namespace {

// The daemon writes for microseconds; a version that stays odd for this long belongs to a daemon
// that is gone or stopped.
constexpr std::uint64_t kPatienceMs = 100;

}  // namespace

Result<Directory> Directory::map(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || static_cast<std::uint64_t>(info.st_size) < kDirectoryBytes)
    return error(Code::kProtocol, "the daemon's directory has another size");
  Directory directory;
  KVT_TRY(directory.memory_, Mapping::map(fd, kDirectoryBytes, false));
  return directory;
}

Result<bool> Directory::refresh() {
  const auto* header = reinterpret_cast<const DirectoryHeader*>(memory_.data());
  if (header->version.load(std::memory_order_acquire) == version_) return false;
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  for (;;) {
    KVT_TRY(const bool copied, copy());
    if (copied) return true;
    if (deadline.passed())
      return error(Code::kDaemonLost, "the daemon does not finish its directory");
    ::sched_yield();
  }
}

Result<bool> Directory::copy() {
  const auto* header = reinterpret_cast<const DirectoryHeader*>(memory_.data());
  const std::uint64_t version = header->version.load(std::memory_order_acquire);
  if (version % 2 != 0) return false;
  struct {
    std::uint64_t version, tokens;
    std::uint32_t segments;
  } head{};
  copy_from_shared<SharedOrder::kAcquire>(&head, header, sizeof head);
  if (head.segments > kSequenceSegmentsMax) {
    if (header->version.load(std::memory_order_acquire) != version) return false;
    return error(Code::kProtocol, "the daemon's directory has too many segments");
  }
  entries_.resize(head.segments);
  copy_from_shared<SharedOrder::kAcquire>(entries_.data(), memory_.data() + sizeof(DirectoryHeader),
                                          head.segments * sizeof(DirectoryEntry));
  if (header->version.load(std::memory_order_acquire) != version) return false;
  std::uint64_t next = 0;
  for (const DirectoryEntry& entry : entries_) {
    if (entry.first_token != next || entry.visible_tokens == 0 ||
        entry.visible_tokens > entry.tokens || entry.tokens > kSegmentTokensMax)
      return error(Code::kProtocol, "the daemon's directory contradicts itself");
    next += entry.visible_tokens;
  }
  if (next != head.tokens)
    return error(Code::kProtocol, "the daemon's directory contradicts itself");
  tokens_ = head.tokens;
  version_ = version;
  return true;
}

std::size_t Directory::segment_of(std::uint64_t token) const noexcept {
  const auto after = std::upper_bound(
      entries_.begin(), entries_.end(), token,
      [](std::uint64_t t, const DirectoryEntry& entry) { return t < entry.first_token; });
  return static_cast<std::size_t>(after - entries_.begin()) - 1;
}

}  // namespace kvtier
