// PlainFile: what writing durably costs without kvtier: direct writes behind the end of a file, and
// fdatasync. One thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "tiers/io.h"

namespace kvtier::bench {

class PlainFile {
 public:
  [[nodiscard]] static Result<PlainFile> make(const std::string& path);
  // Seconds to append `bytes`, a multiple of 4,096, in writes of at most 1 MiB, and to sync them.
  [[nodiscard]] Result<double> append(std::uint64_t bytes);

 private:
  PlainFile(UniqueFd fd, AlignedBuffer block) : fd_(std::move(fd)), block_(std::move(block)) {}

  UniqueFd fd_;
  AlignedBuffer block_;
  std::uint64_t end_ = 0;
};

}  // namespace kvtier::bench
