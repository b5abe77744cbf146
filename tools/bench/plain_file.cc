#include "tools/bench/plain_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tools/bench/bench.h"

namespace kvtier::bench {

Result<PlainFile> PlainFile::make(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600));
  if (!fd.valid()) return error(Code::kIo, "cannot make a file for the benchmark", errno);
  AlignedBuffer block(1 << 20);
  std::memset(block.data(), 0x5a, block.size_bytes());
  return PlainFile(std::move(fd), std::move(block));
}

Result<double> PlainFile::append(std::uint64_t bytes) {
  const double start = seconds_now();
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint64_t count = std::min<std::uint64_t>(block_.size_bytes(), bytes - done);
    if (::pwrite(fd_.get(), block_.data(), count, static_cast<off_t>(end_)) !=
        static_cast<ssize_t>(count))
      return error(Code::kNoSpace, "cannot write the benchmark's file", errno);
    done += count;
    end_ += count;
  }
  if (::fdatasync(fd_.get()) != 0) return error(Code::kIo, "fdatasync failed", errno);
  return seconds_now() - start;
}

}  // namespace kvtier::bench
