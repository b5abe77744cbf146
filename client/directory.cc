#include "client/directory.h"

#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>

#include "client/ipc/deadline.h"
#include "client/ipc/shared_copy.h"

namespace kvtier {
namespace {

// The daemon writes for microseconds; a version that stays odd for this long belongs to a daemon
// that is gone or stopped.
constexpr std::uint64_t kPatienceMs = 100;

// The first token of `older` that `newer` has in another segment or not at all; UINT64_MAX: none.
std::uint64_t first_difference(std::span<const DirectoryEntry> older,
                               std::span<const DirectoryEntry> newer) {
  for (std::size_t i = 0; i < older.size(); ++i) {
    const DirectoryEntry& before = older[i];
    if (i >= newer.size() || newer[i].segment != before.segment) return before.first_token;
    if (newer[i].visible_tokens < before.visible_tokens)
      return before.first_token + newer[i].visible_tokens;
    if (newer[i].visible_tokens > before.visible_tokens && i + 1 < older.size())
      return older[i + 1].first_token;
  }
  return UINT64_MAX;
}

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
  KVT_TRY(const Head head, read());
  differs_from_ = first_difference(entries_, incoming_);
  entries_.swap(incoming_);
  tokens_ = head.tokens;
  version_ = head.version;
  return true;
}

Result<std::span<const DirectoryEntry>> Directory::newest() {
  KVT_TRY_VOID(read());
  return std::span<const DirectoryEntry>(incoming_);
}

Result<Directory::Head> Directory::read() {
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  for (;;) {
    Head head;
    KVT_TRY(const bool whole, try_read(&head));
    if (whole) return head;
    if (deadline.passed())
      return error(Code::kDaemonLost, "the daemon does not finish its directory");
    ::sched_yield();
  }
}

bool Directory::moved() const noexcept {
  const auto* header = reinterpret_cast<const DirectoryHeader*>(memory_.data());
#ifndef __SANITIZE_THREAD__  // which knows no fences
  // What was read before stays before: those reads are plain.
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  return header->version.load(std::memory_order_relaxed) != version_;
}

Result<bool> Directory::try_read(Head* out) {
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
  incoming_.resize(head.segments);
  copy_from_shared<SharedOrder::kAcquire>(incoming_.data(),
                                          memory_.data() + sizeof(DirectoryHeader),
                                          head.segments * sizeof(DirectoryEntry));
  if (header->version.load(std::memory_order_acquire) != version) return false;
  std::uint64_t next = 0;
  for (const DirectoryEntry& entry : incoming_) {
    if (entry.first_token != next || entry.visible_tokens == 0 ||
        entry.visible_tokens > entry.tokens || entry.tokens > kSegmentTokensMax)
      return error(Code::kProtocol, "the daemon's directory contradicts itself");
    next += entry.visible_tokens;
  }
  if (next != head.tokens)
    return error(Code::kProtocol, "the daemon's directory contradicts itself");
  *out = {version, head.tokens};
  return true;
}

std::uint64_t Directory::differs_from(const Directory& older) const noexcept {
  return first_difference(older.entries_, entries_);
}

std::size_t Directory::segment_of(std::uint64_t token) const noexcept {
  const auto after = std::upper_bound(
      entries_.begin(), entries_.end(), token,
      [](std::uint64_t t, const DirectoryEntry& entry) { return t < entry.first_token; });
  return static_cast<std::size_t>(after - entries_.begin()) - 1;
}

}  // namespace kvtier
