// Counting and failing of FaultyIo. A failed operation is answered by the next poll(), never inside
// submit().
#include "tiers/io_faulty.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

namespace kvtier {
namespace {

// The first half of a transfer, in whole blocks so that direct I/O takes it; false where no block
// is left.
bool halve(std::vector<IoVec>* pieces) {
  std::uint64_t left = 0;
  for (const IoVec& piece : *pieces) left += piece.size_bytes;
  left = left / 2 / kDiskAlign * kDiskAlign;
  std::vector<IoVec> half;
  for (const IoVec& piece : *pieces) {
    if (left == 0) break;
    half.push_back({piece.data, std::min(left, piece.size_bytes)});
    left -= half.back().size_bytes;
  }
  *pieces = std::move(half);
  return !pieces->empty();
}

}  // namespace

void FaultyIo::set_plan(FaultPlan plan) {
  plan_ = plan;
  data_count_ = namespace_count_ = hits_ = 0;
}

void FaultyIo::end_delays() {
  for (Delayed& each : delayed_) each.polls = 0;
}

bool FaultyIo::hit(std::uint64_t index, std::uint64_t at) noexcept {
  if (index < at || index - at >= plan_.count) return false;
  ++hits_;
  return true;
}

template <class Call>
auto FaultyIo::name_call(Call call) -> decltype(call()) {
  if (!hit(namespace_count_++, plan_.namespace_at) || plan_.kind == FaultKind::kDelay)
    return call();
  if (plan_.kind == FaultKind::kLate) static_cast<void>(call());
  return error(plan_.status);
}

Result<FileId> FaultyIo::open(std::string_view path, OpenOptions options) {
  return name_call([&] { return inner_->open(path, options); });
}
Result<std::uint64_t> FaultyIo::size_bytes(FileId file) {
  return name_call([&] { return inner_->size_bytes(file); });
}
Result<void> FaultyIo::resize(FileId file, std::uint64_t size_bytes) {
  return name_call([&] { return inner_->resize(file, size_bytes); });
}
Result<void> FaultyIo::make_directory(std::string_view path) {
  return name_call([&] { return inner_->make_directory(path); });
}
Result<std::vector<std::string>> FaultyIo::list(std::string_view directory) {
  return name_call([&] { return inner_->list(directory); });
}
Result<void> FaultyIo::rename(std::string_view from, std::string_view to) {
  return name_call([&] { return inner_->rename(from, to); });
}
Result<void> FaultyIo::unlink(std::string_view path) {
  return name_call([&] { return inner_->unlink(path); });
}
Result<void> FaultyIo::sync_directory(std::string_view path) {
  return name_call([&] { return inner_->sync_directory(path); });
}
Result<std::uint64_t> FaultyIo::free_bytes() {
  return name_call([&] { return inner_->free_bytes(); });
}

void FaultyIo::submit(IoRequest request) {
  const bool counts = !plan_.data_op || *plan_.data_op == request.op;
  if (!counts || !hit(data_count_++, plan_.data_at)) {
    inner_->submit(std::move(request));
    return;
  }
  if (plan_.kind == FaultKind::kDelay) {
    delayed_.push_back(Delayed{std::move(request), plan_.delay_polls});
    signal();
    return;
  }
  const bool runs =
      plan_.kind == FaultKind::kLate ||
      (plan_.kind == FaultKind::kShort && halve(&request.pieces));  // a sync has no half
  if (!runs) {
    failed_.push_back(std::move(request.done));
    signal();
    return;
  }
  request.done = [status = plan_.status, done = std::move(request.done)](Result<void>) {
    if (done) done(error(status));
  };
  inner_->submit(std::move(request));
}

std::size_t FaultyIo::poll() {
  for (std::size_t left = delayed_.size(); left > 0; --left) {
    Delayed next = std::move(delayed_.front());
    delayed_.pop_front();
    if (next.polls == 0)
      inner_->submit(std::move(next.request));
    else
      delayed_.push_back(Delayed{std::move(next.request), next.polls - 1});
  }
  std::size_t called = inner_->poll();
  std::deque<IoDone> failed;
  failed.swap(failed_);
  for (const IoDone& done : failed)
    if (done) done(plan_.status.ok() ? Result<void>() : error(plan_.status));
  called += failed.size();
  if (!delayed_.empty()) signal();
  return called;
}

void FaultyIo::wait() {
  if (failed_.empty() && delayed_.empty()) inner_->wait();
}

// The inner Io's descriptor is an eventfd: a write makes it readable, and the inner poll() empties
// it.
void FaultyIo::signal() const {
  const std::uint64_t one = 1;
  if (inner_->event_fd() >= 0) static_cast<void>(!::write(inner_->event_fd(), &one, sizeof one));
}

}  // namespace kvtier
