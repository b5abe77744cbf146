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

  // Text of the last failed call(); "" where the failure has no text beyond its Status.
  [[nodiscard]] const std::string& error_text() const noexcept { return error_text_; }
  // The socket, borrowed: Waiter watches it for the peer's death. -1 once closed.
  [[nodiscard]] int socket() const noexcept { return socket_.get(); }
  [[nodiscard]] bool usable() const noexcept { return socket_.valid() && !broken_; }
  void close() noexcept { socket_.reset(); }

 private:
  Result<void> wait_for(short events, const Deadline& deadline);
  tl::unexpected<Status> break_with(const Status& status) noexcept;
  Result<ControlMessage> check_reply(ControlMessage reply, std::size_t fds_expected);

  UniqueFd socket_;
  FrameParser parser_;
  FrameWriter writer_;
  std::uint64_t last_id_ = 0;
  std::string error_text_;
  bool broken_ = false;
};

}  // namespace kvtier
