// ReadFile: how the store check reads a file. Internal to it. One thread; blocks.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "tiers/io.h"
#include "tiers/store_check_files.h"

namespace kvtier {

// A file that is open for reading, and its length; counted among those of its kind where it is
// there. Closed at the end of the scope.
class ReadFile {
 public:
  ReadFile(Io& io, const std::string& path, std::uint64_t* count, CheckSink* sink)
      : io_(io), path_(path), sink_(*sink) {
    const Result<FileId> file = io.open(path, {.mode = OpenMode::kRead, .direct = false});
    if (!file && file.error().code == Code::kNotFound) {
      sink_.missing(path);
      return;
    }
    ++*count;
    if (!file) {
      sink_.failed(path, "", file.error());
      return;
    }
    file_ = *file;
    const Result<std::uint64_t> size = io.size_bytes(file_);
    if (!size) {
      sink_.failed(path, "", size.error());
      return;
    }
    size_bytes_ = *size;
    open_ = true;
    sink_.report().file_bytes += size_bytes_;
  }
  ~ReadFile() {
    if (file_.value != 0) io_.close(file_);
  }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  [[nodiscard]] bool open() const noexcept { return open_; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  // Of the last read that failed.
  [[nodiscard]] const Status& failure() const noexcept { return failure_; }
  // What the file has of [offset, offset + size_bytes).
  [[nodiscard]] Result<std::vector<std::byte>> read(std::uint64_t offset,
                                                    std::uint64_t size_bytes) {
    if (offset >= size_bytes_) return std::vector<std::byte>{};
    std::vector<std::byte> bytes(std::min(size_bytes, size_bytes_ - offset));
    if (const Result<void> read = read_fully(io_, file_, offset, bytes); !read) {
      failure_ = read.error();
      return error(failure_);
    }
    sink_.count_read(bytes.size());
    return bytes;
  }

  void check_length(std::uint64_t expected) {
    if (size_bytes_ < expected) {
      sink_.damaged(path_, "length",
                    "the file is cut short: " + std::to_string(size_bytes_) + " of " +
                        std::to_string(expected) + " bytes");
    } else if (size_bytes_ > expected) {
      sink_.add(path_, "length", FindingKind::kMismatch, FindingSeverity::kWarning,
                "the file goes on behind its end: " + std::to_string(size_bytes_) + " instead of " +
                    std::to_string(expected) + " bytes");
    }
  }

 private:
  Io& io_;
  const std::string path_;
  CheckSink& sink_;
  FileId file_;
  std::uint64_t size_bytes_ = 0;
  Status failure_;
  bool open_ = false;
};

}  // namespace kvtier
