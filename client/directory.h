// Directory: a consistent copy of the mapped directory of one open sequence (shm_layout.h). One
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "client/ipc/shm_layout.h"
#include "kernels/layout.h"

namespace kvtier {

class Directory {
 public:
  Directory() = default;
  // Maps it. kProtocol where the memory is too small.
  [[nodiscard]] static Result<Directory> map(int fd);

  // Copies it anew if its version moved. True: something changed. kProtocol for one that
  // contradicts itself.
  [[nodiscard]] Result<bool> refresh();

  // Its segments as the daemon has them now; this copy stays what it is. Valid until the next call
  // that is not const. Errors as refresh().
  [[nodiscard]] Result<std::span<const DirectoryEntry>> newest();

  // The daemon has changed it since it was copied. What was read before this call from the memory
  // that the copy names is sound where it says no.
  [[nodiscard]] bool moved() const noexcept;

  [[nodiscard]] std::uint64_t tokens() const noexcept { return tokens_; }
  // Another number whenever the copy is another one.
  [[nodiscard]] std::uint64_t version() const noexcept { return version_; }
  // Where the newest copy begins to differ from the one before it: from this token on it has other
  // segments, or fewer tokens. UINT64_MAX: nowhere, at most tokens were added.
  [[nodiscard]] std::uint64_t differs_from() const noexcept { return differs_from_; }
  // The same of this one against an older directory of the same sequence.
  [[nodiscard]] std::uint64_t differs_from(const Directory& older) const noexcept;
  // Ascending, without gaps, from token 0.
  [[nodiscard]] std::span<const DirectoryEntry> segments() const noexcept { return entries_; }
  // The segment that holds a token below tokens(): its number in segments().
  [[nodiscard]] std::size_t segment_of(std::uint64_t token) const noexcept;

 private:
  // What a copy has beside the segments.
  struct Head {
    std::uint64_t version = 0, tokens = 0;
  };
  // Into incoming_, however often it takes.
  Result<Head> read();
  // False: the daemon was writing meanwhile.
  Result<bool> try_read(Head* head);

  Mapping memory_;
  std::uint64_t version_ = 1;  // odd: never copied
  std::uint64_t tokens_ = 0;
  std::uint64_t differs_from_ = UINT64_MAX;
  std::vector<DirectoryEntry> entries_;
  std::vector<DirectoryEntry> incoming_;  // being read
};

}  // namespace kvtier
