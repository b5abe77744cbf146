#include "client/ipc/frame.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace kvtier {

namespace {

constexpr std::size_t kHeaderBytes = sizeof(ControlFrameHeader);
constexpr std::size_t kReserveBytesMax = 1u << 20;  // before the bytes are here

// The sum in 64 bits: the fields are 32 bits each and cannot overflow it.
std::uint64_t frame_bytes(std::uint64_t json_bytes, std::uint64_t payload_bytes) noexcept {
  return kHeaderBytes + json_bytes + payload_bytes;
}

bool would_block(int os_error) noexcept { return os_error == EAGAIN || os_error == EWOULDBLOCK; }
bool peer_gone(int os_error) noexcept {
  return os_error == EPIPE || os_error == ECONNRESET || os_error == ENOTCONN ||
         os_error == ECONNREFUSED;
}

// Takes the descriptors out of a received message; closes what is no descriptor list of ours by
// owning it.
void take_descriptors(msghdr* message, std::vector<UniqueFd>* fds) {
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      fds->emplace_back(fd);
    }
  }
}

}  // namespace

Result<void> FrameParser::feed(ByteSpan bytes, std::vector<UniqueFd> fds) {
  if (!failed_.ok()) return error(failed_);
  for (UniqueFd& fd : fds) fds_.push_back(std::move(fd));
  Result<void> outcome;
  while (outcome && !bytes.empty()) outcome = take(&bytes);
  if (outcome) outcome = check_descriptors();
  if (!outcome) {
    failed_ = outcome.error();
    fds_.clear();
  }
  return outcome;
}

Result<void> FrameParser::take(ByteSpan* bytes) {
  std::size_t count = 0;
  if (header_bytes_ < kHeaderBytes) {
    count = std::min(bytes->size(), kHeaderBytes - header_bytes_);
    std::memcpy(reinterpret_cast<std::byte*>(&header_) + header_bytes_, bytes->data(), count);
    header_bytes_ += count;
    if (header_bytes_ == kHeaderBytes) KVT_TRY_VOID(check_header());
  } else if (json_.size() < header_.json_bytes) {
    count = std::min<std::size_t>(bytes->size(), header_.json_bytes - json_.size());
    json_.append(reinterpret_cast<const char*>(bytes->data()), count);
  } else {
    count = std::min<std::size_t>(bytes->size(), header_.payload_bytes - payload_.size());
    payload_.insert(payload_.end(), bytes->begin(),
                    bytes->begin() + static_cast<std::ptrdiff_t>(count));
  }
  *bytes = bytes->subspan(count);
  if (header_bytes_ == kHeaderBytes && json_.size() == header_.json_bytes &&
      payload_.size() == header_.payload_bytes)
    return finish_frame();
  return {};
}

Result<void> FrameParser::check_header() {
  if (header_.magic != kControlMagic)
    return error(Code::kProtocol, "not a control frame: the first word is wrong");
  if (header_.json_bytes < 2) return error(Code::kProtocol, "a control frame without JSON");
  if (header_.json_bytes > limits_.json_bytes_max)
    return error(Code::kTooLarge, "a control frame with too much JSON");
  if (frame_bytes(header_.json_bytes, header_.payload_bytes) > kControlFrameBytesMax)
    return error(Code::kTooLarge, "a control frame above its limit");
  if (header_.fd_count > limits_.fds_max)
    return error(Code::kProtocol, "a control frame with too many descriptors");
  json_.reserve(std::min<std::size_t>(header_.json_bytes, kReserveBytesMax));
  payload_.reserve(std::min<std::size_t>(header_.payload_bytes, kReserveBytesMax));
  return {};
}

Result<void> FrameParser::finish_frame() {
  if (fds_.size() < header_.fd_count)
    return error(Code::kProtocol, "a control frame came without its descriptors");
  ControlMessage message;
  KVT_TRY(message.body, parse_json(json_));
  if (!message.body.is_object())
    return error(Code::kProtocol, "a control frame's JSON must be an object");
  message.payload = std::move(payload_);
  for (std::uint32_t i = 0; i < header_.fd_count; ++i) {
    message.fds.push_back(std::move(fds_.front()));
    fds_.pop_front();
  }
  messages_.push_back(std::move(message));
  json_.clear();
  json_.shrink_to_fit();
  payload_ = {};
  header_bytes_ = 0;
  return {};
}

// All descriptors of a frame come with its first byte, and a receive that brings some ends behind
// them: what is left over now belongs to the frame in progress, or to nobody.
Result<void> FrameParser::check_descriptors() {
  std::size_t expected = 0;
  if (header_bytes_ == kHeaderBytes)
    expected = header_.fd_count;
  else if (header_bytes_ > 0)
    expected = limits_.fds_max;
  if (fds_.size() > expected)
    return error(Code::kProtocol, "descriptors that no control frame names");
  return {};
}

std::optional<ControlMessage> FrameParser::next() {
  if (messages_.empty()) return std::nullopt;
  std::optional<ControlMessage> message(std::move(messages_.front()));
  messages_.pop_front();
  return message;
}

Result<void> FrameWriter::enqueue(const Json& body, std::vector<std::byte> payload,
                                  std::span<const int> fds) {
  Frame frame;
  const std::string json = dump_json(body);
  if (frame_bytes(json.size(), payload.size()) > kControlFrameBytesMax)
    return error(Code::kTooLarge, "a control message above 80 MiB: send it in parts");
  if (fds.size() > kControlFdsMax)
    return error(Code::kTooLarge, "too many descriptors in one control message");
  const ControlFrameHeader header{kControlMagic, static_cast<std::uint32_t>(json.size()),
                                  static_cast<std::uint32_t>(payload.size()),
                                  static_cast<std::uint32_t>(fds.size())};
  frame.head.reserve(kHeaderBytes + json.size());
  frame.head.append(reinterpret_cast<const char*>(&header), kHeaderBytes);
  frame.head.append(json);
  for (const int fd : fds) {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy.valid())
      return error(Code::kIo, "cannot duplicate a descriptor: raise the limit of open files",
                   errno);
    frame.fds.push_back(std::move(copy));
  }
  frame.payload = std::move(payload);
  frames_.push_back(std::move(frame));
  return {};
}

Result<bool> FrameWriter::flush(int socket) {
  while (!frames_.empty()) {
    Frame& frame = frames_.front();
    iovec pieces[2];
    std::size_t count = 0;
    const std::size_t head_sent = std::min(frame.sent, frame.head.size());
    const std::size_t payload_sent = frame.sent - head_sent;
    if (head_sent < frame.head.size())
      pieces[count++] = {frame.head.data() + head_sent, frame.head.size() - head_sent};
    if (payload_sent < frame.payload.size())
      pieces[count++] = {frame.payload.data() + payload_sent, frame.payload.size() - payload_sent};

    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count;
    alignas(cmsghdr) char control[CMSG_SPACE(kControlFdsMax * sizeof(int))] = {};
    if (frame.sent == 0 && !frame.fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(frame.fds.size() * sizeof(int));
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(frame.fds.size() * sizeof(int));
      for (std::size_t i = 0; i < frame.fds.size(); ++i) {
        const int fd = frame.fds[i].get();
        std::memcpy(CMSG_DATA(part) + i * sizeof(int), &fd, sizeof(fd));
      }
    }
    const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (would_block(errno)) return false;
      if (peer_gone(errno))
        return error(Code::kDaemonLost, "the connection was closed by the other side", errno);
      return error(Code::kIo, "cannot send on the control socket", errno);
    }
    frame.sent += static_cast<std::size_t>(sent);
    frame.fds.clear();  // they went with the first byte
    if (frame.sent == frame.head.size() + frame.payload.size()) frames_.pop_front();
  }
  return true;
}

Result<Received> receive_some(int socket, MutableByteSpan room, std::vector<UniqueFd>* fds) {
  iovec piece{room.data(), room.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kControlFdsMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got = -1;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (would_block(errno)) return Received{};
    if (peer_gone(errno))
      return error(Code::kDaemonLost, "the connection was reset by the other side", errno);
    return error(Code::kIo, "cannot receive on the control socket", errno);
  }
  std::vector<UniqueFd> taken;
  take_descriptors(&message, &taken);
  if ((message.msg_flags & MSG_CTRUNC) != 0)
    return error(Code::kProtocol,
                 "descriptors were lost: the peer sent too many, or too many files are open");
  for (UniqueFd& fd : taken) fds->push_back(std::move(fd));
  return Received{static_cast<std::size_t>(got), got == 0};
}

}  // namespace kvtier
