// Fetch: one request for chunks, from submission to the release of its lease. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "client/connection.h"

namespace kvtier {

class Fetch {
 public:
  // Submits it. With `block` false: kBusy where all argument blocks are lent.
  [[nodiscard]] static Result<Fetch> submit(std::shared_ptr<Connection> connection,
                                            std::uint32_t handle,
                                            std::span<const FetchEntry> entries, Priority priority,
                                            bool block);
  // One whose lease of `size_bytes` may lie for long before it is looked at: kBusy where no room is
  // left for those (Connection::take_ahead), and where all argument blocks are lent.
  [[nodiscard]] static Result<Fetch> ahead(std::shared_ptr<Connection> connection,
                                           std::uint32_t handle,
                                           std::span<const FetchEntry> entries,
                                           std::uint64_t size_bytes);
  // Asks the daemon to have these chunks in memory, behind what anybody waits for. Nobody can wait
  // for its end, which leases nothing; the ticket is for cancel(). kBusy where all argument blocks
  // are lent. At most limits().fetch_entries.
  [[nodiscard]] static Result<Ticket> prefetch(std::shared_ptr<Connection> connection,
                                               std::uint32_t handle,
                                               std::span<const FetchEntry> entries);
  // Nobody wants what was prefetched any more: what the daemon has not begun to read is not read.
  // Nothing where it has ended.
  static void cancel(Connection& connection, Ticket ticket) noexcept;
  Fetch(Fetch&& other) noexcept;
  Fetch& operator=(Fetch&&) = delete;
  // Gives the lease back; abandons what has not completed.
  ~Fetch();

  // wait() will not block.
  [[nodiscard]] bool ready() const { return connection_->poll(ticket_); }
  // Waits for the end. Then the entries have their statuses, and chunks with kOk may be read until
  // release(). kFull: nothing is leased, ask for less.
  [[nodiscard]] Result<void> wait(const Deadline& deadline);
  // After wait. Status of an entry, and its chunk (null unless kOk); `slot_bytes` is checked
  // against the arena.
  [[nodiscard]] Code status(std::size_t index) const noexcept;
  [[nodiscard]] const std::byte* chunk(std::size_t index, std::uint64_t slot_bytes) const noexcept;
  [[nodiscard]] std::uint64_t bytes_disk() const noexcept { return bytes_disk_; }
  void release() noexcept;

 private:
  static Result<Fetch> send(std::shared_ptr<Connection> connection, Submission submission,
                            std::span<const FetchEntry> entries, bool block);
  Fetch(std::shared_ptr<Connection> connection, std::uint64_t arguments, std::size_t count)
      : connection_(std::move(connection)), arguments_(arguments), count_(count) {}

  std::shared_ptr<Connection> connection_;  // null: moved away, or released
  std::uint64_t arguments_;
  std::size_t count_;
  Ticket ticket_ = 0;
  std::uint64_t lease_ = 0;
  std::uint64_t bytes_disk_ = 0;
  std::uint64_t ahead_bytes_ = 0;
};

}  // namespace kvtier
