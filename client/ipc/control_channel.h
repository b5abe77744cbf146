// ControlChannel: requests and replies over the control socket for a caller that waits, with
// deadlines.
//
// One request at a time. A reply that comes after its caller gave up is skipped by its id; a
// deadline that passes in the middle of sending, or any protocol error, breaks the channel:
// everything from then on is kDaemonLost. One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/ipc/deadline.h"
#include "client/ipc/frame.h"
#include "client/ipc/unix_socket.h"

namespace kvtier {

class ControlChannel {
 public:
  ControlChannel() = default;
  explicit ControlChannel(UniqueFd socket, const FrameLimits& limits = {}) noexcept
      : socket_(std::move(socket)), parser_(limits) {}

  // Sends one message. kTimeout, kDaemonLost, kTooLarge.
  [[nodiscard]] Result<void> send(const Json& body, ByteSpan payload, std::span<const int> fds,
                                  const Deadline& deadline);
  // The next message. kTimeout (the channel stays usable), kDaemonLost at the end of the stream,
  // kProtocol.
  [[nodiscard]] Result<ControlMessage> receive(const Deadline& deadline);
  // Adds "id", sends, and waits for the reply to it. A reply with "ok": false becomes its code as
  // an error; error_text() then says what the daemon wrote. `fds_expected`: how many descriptors an
  // ok reply must carry; else kProtocol.
  [[nodiscard]] Result<ControlMessage> call(Json request, ByteSpan payload,
                                            std::size_t fds_expected, const Deadline& deadline);

  // As call, but nobody waits for the reply: the next call skips it.
  [[nodiscard]] Result<void> post(Json request, const Deadline& deadline);

  // Sequences that the daemon opened for calls that had given up: whoever takes them closes them.
  [[nodiscard]] std::vector<std::uint64_t> take_late_handles() {
    return std::exchange(late_handles_, {});
  }
  // A call that opens one gave up, and its reply has not come yet.
  [[nodiscard]] bool handle_may_come() const noexcept { return !given_up_.empty(); }

  // Text of the last failed call(); "" where the failure has no text beyond its Status.
  [[nodiscard]] const std::string& error_text() const noexcept { return error_text_; }
  // The socket, borrowed: Waiter watches it for the peer's death. -1 once closed.
  [[nodiscard]] int socket() const noexcept { return socket_.get(); }
  [[nodiscard]] bool usable() const noexcept { return socket_.valid() && !broken_; }
  void close() noexcept { socket_.reset(); }

 private:
  Result<void> wait_for(short events, const Deadline& deadline);
  tl::unexpected<Status> break_with(const Status& status) noexcept;
  void take_late_reply(std::uint64_t id, const Json& body);
  Result<ControlMessage> check_reply(ControlMessage reply, std::size_t fds_expected);

  UniqueFd socket_;
  FrameParser parser_;
  FrameWriter writer_;
  std::uint64_t last_id_ = 0;
  std::vector<std::uint64_t> given_up_;  // ids of calls whose replies carry descriptors
  std::vector<std::uint64_t> late_handles_;
  std::string error_text_;
  bool broken_ = false;
};

}  // namespace kvtier
