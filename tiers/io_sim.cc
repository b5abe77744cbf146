// SimIo: the Io over a SimDisk, on a virtual clock. One thread.
//
// An operation takes effect when it is submitted or when it completes, drawn for each, so that code
// which does not wait for a completion is found out. A read that is in flight sees the file at one
// of these two times. A failed sync poisons the open file as the real back ends do.
#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "tiers/io_backends.h"
#include "tiers/sim_disk.h"
#include "tiers/sim_disk_state.h"

namespace kvtier {

class SimIo final : public Io {
 public:
  SimIo(SimDisk& disk, VirtualClock& clock)
      : disk_(disk),
        state_(*disk.state_),
        clock_(clock),
        random_(state_.random.next()),
        power_cuts_(state_.power_cuts) {}

  Result<FileId> open(std::string_view path, OpenOptions options) override;
  void close(FileId file) override { files_.erase(file.value); }
  Result<std::uint64_t> size_bytes(FileId file) override;
  Result<void> resize(FileId file, std::uint64_t size_bytes) override;
  Result<void> make_directory(std::string_view path) override;
  Result<std::vector<std::string>> list(std::string_view directory) override;
  Result<void> rename(std::string_view from, std::string_view to) override;
  Result<void> unlink(std::string_view path) override;
  Result<void> sync_directory(std::string_view path) override;
  Result<std::uint64_t> free_bytes() override { return disk_.free_bytes(); }

  void submit(IoRequest request) override;
  std::size_t poll() override;
  void wait() override;
  std::size_t in_flight() const override { return running_.size(); }
  int event_fd() const override { return -1; }
  bool register_memory(std::byte*, std::uint64_t) override { return true; }
  const char* name() const override { return "simulated"; }
  std::string note() const override { return ""; }
  IoStats stats() const override { return stats_; }

 private:
  struct File {
    SimNodePtr node;
    bool direct = false;
    bool writable = false;
    bool poisoned = false;
  };
  struct Operation {
    IoRequest request;
    bool applied = false;
    Result<void> result;
  };
  // Time at which it is due, then a drawn number: the order of completions.
  using Due = std::pair<std::uint64_t, std::uint64_t>;

  [[nodiscard]] Result<void> alive() const {
    if (power_cuts_ == state_.power_cuts) return {};
    return error(Code::kIo, "the power was cut");
  }
  [[nodiscard]] Result<File*> file(FileId id);
  [[nodiscard]] Result<void> apply(const IoRequest& request);
  [[nodiscard]] Result<void> transfer(const IoRequest& request, File& file);
  [[nodiscard]] Result<void> sync(File& file);
  void count(const IoRequest& request, const Result<void>& result);

  SimDisk& disk_;
  SimDisk::State& state_;
  VirtualClock& clock_;
  Random random_;
  const std::uint64_t power_cuts_;
  std::unordered_map<std::uint32_t, File> files_;
  std::uint32_t next_file_ = 1;
  std::map<Due, Operation> running_;
  IoStats stats_;
};

Result<SimIo::File*> SimIo::file(FileId id) {
  const auto found = files_.find(id.value);
  if (found == files_.end()) return error(Code::kInvalid, "the file is not open");
  return &found->second;
}

Result<FileId> SimIo::open(std::string_view path, OpenOptions options) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(path, false));
  File opened{nullptr, options.direct, options.mode != OpenMode::kRead, false};
  if (options.mode == OpenMode::kCreateNew) {
    KVT_TRY(opened.node, state_.create(path, true));
  } else {
    KVT_TRY(opened.node, state_.file(path));
  }
  opened.node->direct = opened.node->direct || options.direct;
  const FileId id{next_file_++};
  files_.emplace(id.value, std::move(opened));
  return id;
}

Result<std::uint64_t> SimIo::size_bytes(FileId id) {
  KVT_TRY_VOID(alive());
  KVT_TRY(const File* const found, file(id));
  return found->node->now.size_bytes();
}

Result<void> SimIo::resize(FileId id, std::uint64_t size_bytes) {
  KVT_TRY_VOID(alive());
  KVT_TRY(File* const found, file(id));
  if (!found->writable) return error(Code::kInvalid, "the file is open for reading only");
  return state_.resize(*found->node, size_bytes);
}

Result<void> SimIo::make_directory(std::string_view path) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(path, false));
  return disk_.make_directory(path);
}

Result<std::vector<std::string>> SimIo::list(std::string_view directory) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(directory, true));
  return disk_.list(directory);
}

Result<void> SimIo::rename(std::string_view from, std::string_view to) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(from, false));
  KVT_TRY_VOID(check_io_path(to, false));
  return disk_.rename(from, to);
}

Result<void> SimIo::unlink(std::string_view path) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(path, false));
  return state_.unlink(path, false);
}

Result<void> SimIo::sync_directory(std::string_view path) {
  KVT_TRY_VOID(alive());
  KVT_TRY_VOID(check_io_path(path, true));
  return disk_.sync_directory(path);
}

void SimIo::submit(IoRequest request) {
  Operation operation{std::move(request), false, {}};
  if (random_.one_in(2)) {
    operation.applied = true;
    operation.result = apply(operation.request);
  }
  const std::uint64_t latency_ns = random_.below(std::uint64_t{state_.options.latency_ns_max} + 1);
  running_.emplace(Due{clock_.now_ns() + latency_ns, random_.next()}, std::move(operation));
}

std::size_t SimIo::poll() {
  // What callbacks submit waits for the next poll.
  std::vector<Operation> finished;
  while (!running_.empty() && running_.begin()->first.first <= clock_.now_ns()) {
    finished.push_back(std::move(running_.begin()->second));
    running_.erase(running_.begin());
  }
  for (Operation& operation : finished) {
    if (!operation.applied) operation.result = apply(operation.request);
    if (const Result<void> powered = alive(); !powered) operation.result = powered;
    count(operation.request, operation.result);
    if (operation.request.done) operation.request.done(operation.result);
  }
  return finished.size();
}

void SimIo::wait() {
  if (running_.empty()) return;
  const std::uint64_t due = running_.begin()->first.first;
  if (due > clock_.now_ns()) clock_.advance_ns(due - clock_.now_ns());
}

Result<void> SimIo::apply(const IoRequest& request) {
  KVT_TRY_VOID(alive());
  if (request.op == IoOp::kSyncDirectory) {
    if (request.file.value != 0) return error(Code::kInvalid, "a directory is synced by its name");
    KVT_TRY_VOID(check_io_request(request, false, false));
    return sync_directory(request.directory);
  }
  KVT_TRY(File* const target, file(request.file));
  KVT_TRY_VOID(check_io_request(request, target->direct, target->writable));
  if (request.op == IoOp::kSync) return sync(*target);
  if (request.op == IoOp::kAllocate)
    return state_.resize(*target->node, std::max(target->node->now.size_bytes(), request.offset));
  return transfer(request, *target);
}

Result<void> SimIo::transfer(const IoRequest& request, File& file) {
  if (request.op == IoOp::kWrite) {
    // One write of the disk, whatever its pieces: a power cut may tear it anywhere.
    std::vector<std::byte> bytes;
    bytes.reserve(static_cast<std::size_t>(request.size_bytes()));
    for (const IoVec& piece : request.pieces)
      bytes.insert(bytes.end(), piece.data, piece.data + piece.size_bytes);
    return state_.write(*file.node, request.offset, bytes);
  }
  std::uint64_t offset = request.offset;
  for (const IoVec& piece : request.pieces) {
    std::uint64_t got = 0;
    KVT_TRY_VOID(state_.read(*file.node, offset,
                             {piece.data, static_cast<std::size_t>(piece.size_bytes)}, &got));
    if (got != piece.size_bytes) return error(Code::kCorrupt, "file is shorter than it should be");
    offset += got;
  }
  return {};
}

Result<void> SimIo::sync(File& file) {
  if (file.poisoned)
    return error(Code::kIo, "an earlier sync of this file failed: its data cannot be trusted");
  const Result<void> result = state_.sync(*file.node);
  file.poisoned = !result;
  return result;
}

void SimIo::count(const IoRequest& request, const Result<void>& result) {
  if (!result) {
    ++stats_.errors;
    return;
  }
  switch (request.op) {
    case IoOp::kRead:
      ++stats_.reads;
      stats_.read_bytes += request.size_bytes();
      break;
    case IoOp::kWrite:
      ++stats_.writes;
      stats_.written_bytes += request.size_bytes();
      break;
    case IoOp::kSync:
    case IoOp::kSyncDirectory:
      ++stats_.syncs;
      break;
    case IoOp::kAllocate:
      break;
  }
}

std::unique_ptr<Io> make_sim_io(SimDisk& disk, VirtualClock& clock) {
  return std::make_unique<SimIo>(disk, clock);
}

}  // namespace kvtier
