// Frames of the control socket: header, JSON, payload, descriptors (docs/protocol.md, section 1).
//
// FrameParser takes bytes as they come and gives whole messages; FrameWriter does the reverse.
// Neither blocks, so the daemon uses them on its event loop, and ControlChannel wraps them for a
// client that waits. What the peer says about lengths is checked before anything is allocated for
// it, and memory grows only with the bytes that really came. After an error a connection cannot be
// used any more. One thread per object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/json.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "client/ipc/shm_layout.h"

namespace kvtier {

inline constexpr std::uint32_t kControlFdsMax = 16;              // descriptors of one frame
inline constexpr std::uint32_t kRequestJsonBytesMax = 1u << 20;  // JSON of a request

struct ControlMessage {
  Json body;  // an object
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
};

// What a receiver accepts. The daemon: {kRequestJsonBytesMax, 0}.
struct FrameLimits {
  std::uint32_t json_bytes_max = static_cast<std::uint32_t>(kControlFrameBytesMax);
  std::uint32_t fds_max = kControlFdsMax;
};

class FrameParser {
 public:
  explicit FrameParser(const FrameLimits& limits = {}) noexcept : limits_(limits) {}

  // Takes the bytes and descriptors of one receive_some. kProtocol (kTooLarge for a frame above a
  // limit): drop the connection; messages that were whole before can still be taken.
  [[nodiscard]] Result<void> feed(ByteSpan bytes, std::vector<UniqueFd> fds = {});
  // The next whole message, if there is one.
  [[nodiscard]] std::optional<ControlMessage> next();

 private:
  Result<void> take(ByteSpan* bytes);
  Result<void> check_header();
  Result<void> finish_frame();
  Result<void> check_descriptors();

  FrameLimits limits_;  // constant
  ControlFrameHeader header_{};
  std::size_t header_bytes_ = 0;  // of the frame in progress
  std::string json_;
  std::vector<std::byte> payload_;
  std::deque<UniqueFd> fds_;  // not yet given to a frame
  std::deque<ControlMessage> messages_;
  Status failed_;
};

class FrameWriter {
 public:
  // Queues a frame. Descriptors are duplicated. kTooLarge above a limit, and then nothing is
  // queued.
  [[nodiscard]] Result<void> enqueue(const Json& body, std::vector<std::byte> payload = {},
                                     std::span<const int> fds = {});
  // Sends as much as the socket takes now. True: nothing is left. kDaemonLost where the peer is
  // gone (on either side).
  [[nodiscard]] Result<bool> flush(int socket);
  [[nodiscard]] bool empty() const noexcept { return frames_.empty(); }

 private:
  struct Frame {
    std::string head;  // header and JSON
    std::vector<std::byte> payload;
    std::vector<UniqueFd> fds;
    std::size_t sent = 0;
  };
  std::deque<Frame> frames_;
};

struct Received {
  std::size_t bytes = 0;  // 0 and not closed: nothing there now
  bool closed = false;
};
// One recvmsg that never blocks. Descriptors come close-on-exec. kProtocol where descriptors were
// lost, kDaemonLost where the connection was reset.
[[nodiscard]] Result<Received> receive_some(int socket, MutableByteSpan room,
                                            std::vector<UniqueFd>* fds);

}  // namespace kvtier
