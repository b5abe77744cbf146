// What the io_uring and the thread back end share. FileTable: open files and names below a root
// directory on a real file system. Paths are resolved from the root's descriptor, so the root may
// be renamed under us. FileIo: an Io of which only the transfers are missing. One thread, but for
// OpenFile::poisoned.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/unique_fd.h"
#include "tiers/io.h"

namespace kvtier {

struct OpenFile {
  UniqueFd fd;
  std::string path;
  bool direct = false;  // was asked for: alignment is checked
  bool direct_in_kernel = false;
  bool writable = false;
  std::int32_t slot = -1;  // of io_uring's registered files; -1: none
  // A sync failed: the kernel may have dropped what it could not write and calls it clean, so no
  // later sync means anything. Any thread.
  std::atomic<bool> poisoned{false};
};

// Behind what waits already (anything with a `request`), but commits go first: of small reads more
// are sent down than a back end runs at once.
template <class Queue>
void queue_request(Queue* waiting, typename Queue::value_type one) {
  const auto is_commit = [](const auto& other) {
    return other.request.priority == IoPriority::kCommit;
  };
  const auto place = is_commit(one) ? std::find_if_not(waiting->begin(), waiting->end(), is_commit)
                                    : waiting->end();
  waiting->insert(place, std::move(one));
}

class FileTable {
 public:
  [[nodiscard]] static Result<FileTable> open_root(const std::string& root);

  [[nodiscard]] Result<FileId> open(std::string_view path, OpenOptions options);
  void close(FileId file) { files_.erase(file.value); }
  // Null where it is not open. Valid until close().
  [[nodiscard]] OpenFile* find(FileId file) const;
  [[nodiscard]] Result<std::uint64_t> size_bytes(FileId file) const;
  [[nodiscard]] Result<void> resize(FileId file, std::uint64_t size_bytes);
  [[nodiscard]] Result<void> make_directory(std::string_view path);
  [[nodiscard]] Result<std::vector<std::string>> list(std::string_view directory) const;
  [[nodiscard]] Result<void> rename(std::string_view from, std::string_view to);
  [[nodiscard]] Result<void> unlink(std::string_view path);
  [[nodiscard]] Result<void> sync_directory(std::string_view path);
  [[nodiscard]] Result<std::uint64_t> free_bytes() const;

  // The file of a request that may go to the kernel; checks the request, its fault point and the
  // poison. A directory is opened for its sync, as the request's file: release() closes it.
  [[nodiscard]] Result<OpenFile*> admit(IoRequest& request);
  void release(const IoRequest& request);
  // What says that a file system has no such thing as room without contents.
  static bool cannot_allocate(int os_error);
  // The status of a failed transfer or sync, logged; a failed sync poisons. Any thread.
  static Status failed(OpenFile& file, IoOp op, int os_error);
  // "direct I/O refused by the file system", or "".
  [[nodiscard]] const std::string& note() const noexcept { return note_; }

 private:
  explicit FileTable(UniqueFd root) : root_(std::move(root)) {}
  [[nodiscard]] Result<OpenFile*> admit_directory(IoRequest& request);
  FileId add(std::unique_ptr<OpenFile> file);

  UniqueFd root_;
  std::unordered_map<std::uint32_t, std::unique_ptr<OpenFile>> files_;
  std::uint32_t next_ = 1;
  std::string note_;
};

class FileIo : public Io {
 public:
  Result<FileId> open(std::string_view path, OpenOptions options) override {
    return files_.open(path, options);
  }
  void close(FileId file) override { files_.close(file); }
  Result<std::uint64_t> size_bytes(FileId file) final { return files_.size_bytes(file); }
  Result<void> resize(FileId file, std::uint64_t size) final { return files_.resize(file, size); }
  Result<void> make_directory(std::string_view path) final { return files_.make_directory(path); }
  Result<std::vector<std::string>> list(std::string_view directory) final {
    return files_.list(directory);
  }
  Result<void> rename(std::string_view from, std::string_view to) final {
    return files_.rename(from, to);
  }
  Result<void> unlink(std::string_view path) final { return files_.unlink(path); }
  Result<void> sync_directory(std::string_view path) final { return files_.sync_directory(path); }
  Result<std::uint64_t> free_bytes() final { return files_.free_bytes(); }

  std::size_t in_flight() const final { return in_flight_; }
  int event_fd() const final { return event_.get(); }
  std::string note() const final;
  IoStats stats() const final { return stats_; }

 protected:
  // `event`: an eventfd, readable while poll() has something to do.
  FileIo(FileTable files, UniqueFd event) : files_(std::move(files)), event_(std::move(event)) {}
  void signal() const;  // any thread
  void drain_event() const;
  // The request has ended: it is counted, and its owner called.
  void end(IoRequest& request, Result<void> result);

  FileTable files_;
  const UniqueFd event_;
  std::string own_note_;  // why not a faster back end, or without what
  std::size_t in_flight_ = 0;
  IoStats stats_;
};
[[nodiscard]] Result<UniqueFd> make_io_event();

}  // namespace kvtier
