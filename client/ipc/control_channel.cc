#include "client/ipc/control_channel.h"

#include <poll.h>

#include <array>
#include <cerrno>

namespace kvtier {

namespace {
constexpr std::size_t kReceiveBytes = 64 * 1024;
constexpr std::size_t kErrorTextBytesMax = 4096;
}  // namespace

tl::unexpected<Status> ControlChannel::break_with(const Status& status) noexcept {
  broken_ = true;
  parser_ = FrameParser();  // and the descriptors in it
  writer_ = FrameWriter();
  if (status.code == Code::kDaemonLost)  // however the socket put it
    return error(
        Code::kDaemonLost,
        "the daemon ended or closed the connection: try again (a client starts it where it "
        "is gone; `kvtier status` tells whether it runs)");
  return error(status);
}

Result<void> ControlChannel::wait_for(short events, const Deadline& deadline) {
  for (;;) {
    pollfd fd{socket_.get(), events, 0};
    timespec left;
    const int count = ::ppoll(&fd, 1, deadline.left(&left), nullptr);
    if (count > 0)
      return {};  // errors and hang-ups too: the send or receive that follows names them
    if (count == 0) return error(Code::kTimeout, "the daemon did not answer in time");
    if (errno != EINTR) return error(Code::kIo, "cannot wait for the control socket", errno);
  }
}

Result<void> ControlChannel::send(const Json& body, ByteSpan payload, std::span<const int> fds,
                                  const Deadline& deadline) {
  if (!usable()) return error(Code::kDaemonLost, "not connected to the daemon");
  KVT_TRY_VOID(writer_.enqueue(body, std::vector<std::byte>(payload.begin(), payload.end()), fds));
  for (;;) {
    const Result<bool> done = writer_.flush(socket_.get());
    if (!done) return break_with(done.error());
    if (*done) return {};
    if (const Result<void> ready = wait_for(POLLOUT, deadline); !ready)
      return break_with(ready.error());
  }
}

Result<ControlMessage> ControlChannel::receive(const Deadline& deadline) {
  if (!usable()) return error(Code::kDaemonLost, "not connected to the daemon");
  for (;;) {
    if (std::optional<ControlMessage> message = parser_.next()) return std::move(*message);
    KVT_TRY_VOID(wait_for(POLLIN, deadline));
    std::array<std::byte, kReceiveBytes> room;
    std::vector<UniqueFd> fds;
    const Result<Received> received = receive_some(socket_.get(), room, &fds);
    if (!received) return break_with(received.error());
    if (received->closed)
      return break_with({Code::kDaemonLost, 0, "the daemon closed the connection"});
    const Result<void> fed = parser_.feed(ByteSpan(room).first(received->bytes), std::move(fds));
    if (!fed) return break_with(fed.error());
  }
}

Result<ControlMessage> ControlChannel::check_reply(ControlMessage reply, std::size_t fds_expected) {
  KVT_TRY(const bool ok, json_bool(reply.body, "ok", false));
  if (!ok) {
    KVT_TRY(const std::uint64_t code,
            json_uint(reply.body, "code", static_cast<std::uint64_t>(Code::kInternal), 99));
    KVT_TRY(error_text_, json_string(reply.body, "error", "", kErrorTextBytesMax));
    return error(code == 0 ? Code::kProtocol : static_cast<Code>(code));
  }
  if (reply.fds.size() != fds_expected)
    return error(Code::kProtocol, "the daemon sent another number of descriptors");
  return reply;
}

void ControlChannel::take_late_reply(std::uint64_t id, const Json& body) {
  std::erase(given_up_, id);
  const Result<std::uint64_t> handle = json_uint(body, "handle", 0);
  if (handle && *handle != 0) late_handles_.push_back(*handle);
}

Result<void> ControlChannel::post(Json request, const Deadline& deadline) {
  request["id"] = ++last_id_;
  return send(request, {}, {}, deadline);
}

Result<ControlMessage> ControlChannel::call(Json request, ByteSpan payload,
                                            std::size_t fds_expected, const Deadline& deadline) {
  error_text_.clear();
  const std::uint64_t id = ++last_id_;
  request["id"] = id;
  KVT_TRY_VOID(send(request, payload, {}, deadline));
  for (;;) {
    Result<ControlMessage> received = receive(deadline);
    if (!received) {
      if (fds_expected != 0 && usable()) given_up_.push_back(id);
      return received;
    }
    ControlMessage& reply = *received;
    const Result<std::uint64_t> reply_id = json_uint(reply.body, "id", 0);
    if (!reply_id || *reply_id > id)
      return break_with({Code::kProtocol, 0, "a reply to nothing that was asked"});
    if (*reply_id < id) {  // somebody gave up waiting for it
      take_late_reply(*reply_id, reply.body);
      continue;
    }
    return check_reply(std::move(reply), fds_expected);
  }
}

}  // namespace kvtier
