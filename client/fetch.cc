#include "client/fetch.h"

#include <cstring>

namespace kvtier {
namespace {

// A daemon that runs takes requests within microseconds; one that does not is noticed by its
// socket.
constexpr std::uint64_t kSubmitMs = 10'000;

}  // namespace

Result<Fetch> Fetch::submit(std::shared_ptr<Connection> connection, std::uint32_t handle,
                            std::span<const FetchEntry> entries, Priority priority, bool block) {
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(Op::kFetch);
  submission.priority = static_cast<std::uint8_t>(priority);
  submission.sequence = handle;
  return send(std::move(connection), submission, entries, block);
}

Result<Fetch> Fetch::ahead(std::shared_ptr<Connection> connection, std::uint32_t handle,
                           std::span<const FetchEntry> entries, std::uint64_t size_bytes) {
  if (!connection->take_ahead(size_bytes)) return error(Code::kBusy);
  auto sent = submit(connection, handle, entries, Priority::kDemand, false);
  if (sent) {
    sent->ahead_bytes_ = size_bytes;
  } else {
    connection->give_back_ahead(size_bytes);
  }
  return sent;
}

Result<Ticket> Fetch::prefetch(std::shared_ptr<Connection> connection, std::uint32_t handle,
                               std::span<const FetchEntry> entries) {
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(Op::kPrefetch);
  submission.priority = static_cast<std::uint8_t>(Priority::kPrefetch);
  submission.sequence = handle;
  KVT_TRY(Fetch sent, send(std::move(connection), submission, entries, false));
  // Abandoned at once: its arguments come back when the daemon is done with them.
  return sent.ticket_;
}

void Fetch::cancel(Connection& connection, Ticket ticket) noexcept {
  Submission cancel{};
  cancel.op = static_cast<std::uint16_t>(Op::kCancel);
  cancel.value0 = ticket;
  static_cast<void>(connection.post(cancel, Deadline::after_ms(kSubmitMs)));
}

Result<Fetch> Fetch::send(std::shared_ptr<Connection> connection, Submission submission,
                          std::span<const FetchEntry> entries, bool block) {
  const Deadline deadline = Deadline::after_ms(kSubmitMs);
  KVT_TRY(const std::uint64_t arguments,
          connection->take_arguments(ArgumentArea::kLargeBytes, block, deadline));
  std::memcpy(connection->arguments(arguments), entries.data(), entries.size_bytes());
  Fetch fetch(std::move(connection), arguments, entries.size());
  submission.argument_offset = arguments;
  submission.count = static_cast<std::uint32_t>(entries.size());
  KVT_TRY(fetch.ticket_, fetch.connection_->submit(submission, deadline));
  return fetch;
}

Fetch::Fetch(Fetch&& other) noexcept
    : connection_(std::move(other.connection_)),
      arguments_(other.arguments_),
      count_(other.count_),
      ticket_(other.ticket_),
      lease_(other.lease_),
      bytes_disk_(other.bytes_disk_),
      ahead_bytes_(other.ahead_bytes_) {
  other.connection_.reset();
}

Fetch::~Fetch() { release(); }

void Fetch::release() noexcept {
  if (connection_ == nullptr) return;
  connection_->give_back_ahead(ahead_bytes_);
  if (ticket_ != 0) {  // under way: the daemon still writes into the arguments
    connection_->tie_arguments(ticket_, arguments_);
    connection_->abandon(ticket_);
  } else {
    connection_->give_arguments_back(arguments_);
    if (lease_ != 0) {
      Submission release{};
      release.op = static_cast<std::uint16_t>(Op::kRelease);
      release.value0 = lease_;
      static_cast<void>(connection_->post(
          release, Deadline::after_ms(kSubmitMs)));  // fails only with the connection
    }
  }
  connection_.reset();
}

Result<void> Fetch::wait(const Deadline& deadline) {
  const Ticket ticket = ticket_;
  auto done = connection_->wait(ticket, deadline);
  if (!done) {
    // Lost: nobody writes any more. Timed out: abandoned inside, the block follows the request.
    if (connection_->lost()) ticket_ = 0;
    return error(done.error());
  }
  ticket_ = 0;
  lease_ = done->value0;
  bytes_disk_ = done->bytes_disk;
  const auto code = static_cast<Code>(done->status);
  if (code != Code::kOk)
    return error(code, code == Code::kFull ? "all that this client may lease is leased" : nullptr);
  return {};
}

Code Fetch::status(std::size_t index) const noexcept {
  FetchEntry entry;
  std::memcpy(&entry, connection_->arguments(arguments_) + index * sizeof entry, sizeof entry);
  return static_cast<Code>(entry.status);
}

const std::byte* Fetch::chunk(std::size_t index, std::uint64_t slot_bytes) const noexcept {
  FetchEntry entry;
  std::memcpy(&entry, connection_->arguments(arguments_) + index * sizeof entry, sizeof entry);
  if (lease_ == 0 || entry.status != static_cast<std::int16_t>(Code::kOk)) return nullptr;
  const std::uint64_t cap = connection_->arena_bytes();
  if (entry.slot_offset > cap || slot_bytes > cap - entry.slot_offset) return nullptr;
  return connection_->arena() + entry.slot_offset;
}

}  // namespace kvtier
