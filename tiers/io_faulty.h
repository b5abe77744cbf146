// FaultyIo: an Io around another that fails, shortens or delays chosen operations. For tests that
// let the n-th operation fail, n = 0, 1, 2 ... until a run passes untouched. One thread, as any Io.
//
// Data operations are counted in order of submit() (those of one kind where the plan names it),
// namespace operations in order of call; each count has its own n.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tiers/io.h"

namespace kvtier {

enum class FaultKind : std::uint8_t {
  kFail,   // nothing is done, the status is given (kOk: it is said to be done)
  kShort,  // the first half of the bytes is transferred, then the status is given (a namespace
           // call: as kFail)
  kLate,   // everything is done, and the status is given all the same
  kDelay,  // done, but not begun before `delay_polls` polls (a namespace call: untouched)
};

struct FaultPlan {
  FaultKind kind = FaultKind::kFail;
  std::uint64_t data_at = UINT64_MAX;       // first data operation that is hit, from 0
  std::uint64_t namespace_at = UINT64_MAX;  // first namespace call that is hit, from 0
  std::uint64_t count = 1;                  // how many are hit from there on; UINT64_MAX: all
  std::uint32_t delay_polls = 3;
  Status status{Code::kIo, 5, "injected fault"};
  std::optional<IoOp> data_op = std::nullopt;  // only data operations of this kind count
};

class FaultyIo final : public Io {
 public:
  explicit FaultyIo(std::unique_ptr<Io> inner, FaultPlan plan = {})
      : inner_(std::move(inner)), plan_(plan) {}

  // Replaces the plan; the counts begin at 0 again.
  void set_plan(FaultPlan plan);
  // Begins what is delayed with the next poll.
  void end_delays();
  [[nodiscard]] std::uint64_t data_operations() const noexcept { return data_count_; }
  // Operations that were hit since the plan was set.
  [[nodiscard]] std::uint64_t hits() const noexcept { return hits_; }

  Result<FileId> open(std::string_view path, OpenOptions options) override;
  void close(FileId file) override { inner_->close(file); }
  Result<std::uint64_t> size_bytes(FileId file) override;
  Result<void> resize(FileId file, std::uint64_t size_bytes) override;
  Result<void> make_directory(std::string_view path) override;
  Result<std::vector<std::string>> list(std::string_view directory) override;
  Result<void> rename(std::string_view from, std::string_view to) override;
  Result<void> unlink(std::string_view path) override;
  Result<void> sync_directory(std::string_view path) override;
  Result<std::uint64_t> free_bytes() override;

  void submit(IoRequest request) override;
  std::size_t poll() override;
  void wait() override;
  std::size_t in_flight() const override {
    return inner_->in_flight() + failed_.size() + delayed_.size();
  }
  int event_fd() const override { return inner_->event_fd(); }
  bool register_memory(std::byte* data, std::uint64_t size) override {
    return inner_->register_memory(data, size);
  }
  const char* name() const override { return inner_->name(); }
  std::string note() const override { return inner_->note(); }
  IoStats stats() const override { return inner_->stats(); }

 private:
  struct Delayed {
    IoRequest request;
    std::uint32_t polls = 0;
  };
  // Runs a namespace call, or fails it as the plan says.
  template <class Call>
  auto name_call(Call call) -> decltype(call());
  [[nodiscard]] bool hit(std::uint64_t index, std::uint64_t at) noexcept;
  void signal() const;

  std::unique_ptr<Io> inner_;
  FaultPlan plan_;
  std::uint64_t data_count_ = 0, namespace_count_ = 0, hits_ = 0;
  std::deque<IoDone> failed_;  // called with the plan's status by the next poll
  std::deque<Delayed> delayed_;
};

}  // namespace kvtier
