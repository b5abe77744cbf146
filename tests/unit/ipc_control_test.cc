// The control channel over real sockets: replies, descriptors, deadlines, hang-ups, and a peer that
// breaks the rules.
#include "client/ipc/control_channel.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/check.h"

namespace kvtier {
namespace {

struct SocketPair {
  UniqueFd ours;
  UniqueFd theirs;
  SocketPair() {
    int sockets[2];
    KVT_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sockets) == 0);
    ours = UniqueFd(sockets[0]);
    theirs = UniqueFd(sockets[1]);
  }
};

std::size_t open_descriptors() {
  DIR* folder = ::opendir("/proc/self/fd");
  std::size_t count = 0;
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

ino_t inode_of(int fd) {
  struct stat info {};
  KVT_CHECK(::fstat(fd, &info) == 0);
  return info.st_ino;
}

// Sends raw bytes with descriptors, as a peer that keeps to nothing would.
void send_raw(int socket, ByteSpan bytes, const std::vector<int>& fds) {
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size() * sizeof(int));
  }
  ASSERT_EQ(::sendmsg(socket, &message, 0), static_cast<ssize_t>(bytes.size()));
}

std::vector<std::byte> raw_frame(const ControlFrameHeader& header, std::string_view json) {
  ByteWriter writer;
  writer.write(header);
  writer.write_bytes(as_bytes(json));
  return writer.take();
}

Deadline soon() { return Deadline::after_ms(5000); }

TEST(ControlChannel, CarriesJsonPayloadAndDescriptors) {
  SocketPair pair;
  const auto memory = make_memfd("control test", 4096, MemfdAccess::kSharedWrite, false).value();
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  ControlChannel ours(std::move(pair.ours));
  ControlChannel theirs(std::move(pair.theirs));
  const std::size_t before = open_descriptors();
  {
    const std::array<int, 2> fds{memory.fd.get(), event.get()};
    ASSERT_TRUE(theirs.send({{"id", 1}, {"name", "käse"}}, as_bytes("payload"), fds, soon()));
    const auto message = ours.receive(soon());
    ASSERT_TRUE(message);
    EXPECT_EQ(message->body["name"], "käse");
    EXPECT_EQ(message->payload.size(), 7u);
    ASSERT_EQ(message->fds.size(), 2u);
    EXPECT_EQ(inode_of(message->fds[0].get()), inode_of(memory.fd.get()));
    for (const UniqueFd& fd : message->fds) EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(ControlChannel, CarriesALargePayloadThroughASmallSocket) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  ControlChannel theirs(std::move(pair.theirs));
  std::vector<std::byte> payload(24u << 20);
  for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 31 >> 7);
  std::thread sender([&] { EXPECT_TRUE(theirs.send(Json::object(), payload, {}, soon())); });
  const auto message = ours.receive(soon());
  sender.join();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->payload, payload);
}

// Answers requests by `answer` until the peer goes away.
template <class Answer>
std::thread serve(UniqueFd socket, Answer answer) {
  return std::thread([channel = ControlChannel(std::move(socket)), answer]() mutable {
    while (auto request = channel.receive(Deadline::after_ms(5000))) answer(channel, request->body);
  });
}

TEST(ControlChannel, CallReturnsTheReplyOrItsError) {
  SocketPair pair;
  std::thread server =
      serve(std::move(pair.theirs), [](ControlChannel& channel, const Json& request) {
        Json reply{{"id", request["id"]}, {"ok", request["op"] == "good"}};
        if (request["op"] == "bad")
          reply.update({{"code", 22}, {"error", "the name is taken: choose another"}});
        ASSERT_TRUE(channel.send(reply, {}, {}, soon()));
      });
  {
    ControlChannel ours(std::move(pair.ours));
    EXPECT_TRUE(ours.call({{"op", "good"}}, {}, 0, soon()));
    const auto bad = ours.call({{"op", "bad"}}, {}, 0, soon());
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, Code::kExists);
    EXPECT_EQ(ours.error_text(), "the name is taken: choose another");
    EXPECT_TRUE(ours.call({{"op", "good"}}, {}, 0, soon()));
    EXPECT_EQ(ours.error_text(), "");
    EXPECT_EQ(ours.call({{"op", "good"}}, {}, 2, soon()).error().code, Code::kProtocol)
        << "descriptors are missing";
  }
  server.join();
}

TEST(ControlChannel, SkipsALateReplyAfterATimeout) {
  SocketPair pair;
  std::thread server =
      serve(std::move(pair.theirs), [](ControlChannel& channel, const Json& request) {
        if (request["op"] == "slow") std::this_thread::sleep_for(std::chrono::milliseconds(150));
        const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
        const std::array<int, 1> fds{event.get()};
        ASSERT_TRUE(channel.send({{"id", request["id"]}, {"ok", true}, {"op", request["op"]}}, {},
                                 fds, soon()));
      });
  {
    ControlChannel ours(std::move(pair.ours));
    EXPECT_EQ(ours.call({{"op", "slow"}}, {}, 1, Deadline::after_ms(20)).error().code,
              Code::kTimeout);
    EXPECT_TRUE(ours.usable());
    const auto next = ours.call({{"op", "next"}}, {}, 1, soon());
    ASSERT_TRUE(next);
    EXPECT_EQ(next->body["op"], "next");
  }
  server.join();
}

TEST(ControlChannel, RefusesAReplyToNothing) {
  SocketPair pair;
  std::thread server = serve(std::move(pair.theirs), [](ControlChannel& channel, const Json&) {
    ASSERT_TRUE(channel.send({{"id", 4000}, {"ok", true}}, {}, {}, soon()));
  });
  {
    ControlChannel ours(std::move(pair.ours));
    EXPECT_EQ(ours.call({{"op", "x"}}, {}, 0, soon()).error().code, Code::kProtocol);
    EXPECT_FALSE(ours.usable());
    EXPECT_EQ(ours.call({{"op", "x"}}, {}, 0, soon()).error().code, Code::kDaemonLost);
  }
  server.join();
}

TEST(ControlChannel, DeadlineOfASendThatNobodyTakes) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::byte> payload(16u << 20);
  EXPECT_EQ(ours.send(Json::object(), payload, {}, Deadline::after_ms(50)).error().code,
            Code::kTimeout);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  EXPECT_FALSE(ours.usable()) << "half a frame is out: nothing can follow it";
}

TEST(ControlChannel, HangupWhileWaiting) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  std::thread killer([fd = std::move(pair.theirs)]() mutable {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    fd.reset();
  });
  EXPECT_EQ(ours.receive(soon()).error().code, Code::kDaemonLost);
  killer.join();
  EXPECT_FALSE(ours.usable());
}

TEST(ControlChannel, TruncatedFrameThenHangup) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  const auto frame = raw_frame({kControlMagic, 200, 0, 0}, R"({"id":)");
  send_raw(pair.theirs.get(), frame, {});
  pair.theirs.reset();
  EXPECT_EQ(ours.receive(soon()).error().code, Code::kDaemonLost);
}

TEST(ControlChannel, SendToADeadPeerIsAnErrorNotASignal) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  pair.theirs.reset();
  EXPECT_EQ(ours.send(Json::object(), {}, {}, soon()).error().code, Code::kDaemonLost);
}

TEST(ControlChannel, OversizedFrameIsRefusedByItsHeader) {
  SocketPair pair;
  ControlChannel ours(std::move(pair.ours));
  send_raw(pair.theirs.get(), raw_frame({kControlMagic, 2, UINT32_MAX, 0}, "{}"), {});
  EXPECT_EQ(ours.receive(soon()).error().code, Code::kTooLarge);
  EXPECT_FALSE(ours.usable());
}

// Whatever descriptors a peer sends, none stays open here unless a message carries it.
TEST(ControlChannel, ClosesDescriptorsThatNobodyAskedFor) {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  for (const std::size_t sent : {1u, 3u, 16u, 17u, 100u}) {
    SocketPair pair;
    const std::size_t before = open_descriptors();
    ControlChannel ours(std::move(pair.ours));
    send_raw(pair.theirs.get(), raw_frame({kControlMagic, 2, 0, 2}, "{}"),
             std::vector<int>(sent, event.get()));
    EXPECT_EQ(ours.receive(soon()).error().code, Code::kProtocol) << sent;
    EXPECT_EQ(open_descriptors(), before) << sent;
  }
}

class Sockets : public testing::Test {
 protected:
  Sockets() {
    char name[] = "/tmp/kvt-ipc-XXXXXX";
    KVT_CHECK(::mkdtemp(name) != nullptr);
    root_ = name;
    path_ = root_ + "/d/s.sock";
  }
  ~Sockets() override {
    for (const char* file : {"/d/s.sock", "/d/s.sock.lock"}) ::unlink((root_ + file).c_str());
    ::unlink((root_ + "/d").c_str());
    ::rmdir((root_ + "/d").c_str());
    ::rmdir(root_.c_str());
  }
  static mode_t mode_of(const std::string& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : 0;
  }
  std::string root_;
  std::string path_;
};

TEST_F(Sockets, ListenMakesAPrivatePlaceWhateverTheUmask) {
  const mode_t mask = ::umask(0);
  auto listener = listen_unix(path_);
  ::umask(mask);
  ASSERT_TRUE(listener) << listener.error().message();
  EXPECT_EQ(mode_of(root_ + "/d"), 0700u);
  EXPECT_EQ(mode_of(path_), 0600u);
  EXPECT_EQ(mode_of(path_ + ".lock"), 0600u);

  ControlChannel client(connect_unix(path_, soon()).value());
  ControlChannel server(accept_unix(listener->socket.get()).value());
  EXPECT_EQ(check_peer(server.socket()).value(), ::getpid());
  ASSERT_TRUE(client.send({{"id", 1}}, {}, {}, soon()));
  EXPECT_EQ(server.receive(soon())->body["id"], 1);
  EXPECT_EQ(accept_unix(listener->socket.get()).error().code, Code::kBusy);

  EXPECT_EQ(listen_unix(path_).error().code, Code::kBusy) << "two daemons on one socket";
  remove_listener(&*listener);
  EXPECT_EQ(connect_unix(path_, soon()).error().code, Code::kNotFound);
  EXPECT_TRUE(listen_unix(path_));
}

TEST_F(Sockets, OneThatSystemdBoundInItsPlaceStays) {
  auto listener = listen_unix(path_);
  ASSERT_TRUE(listener) << listener.error().message();
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  const UniqueFd other(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(other.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(other.get(), 1), 0);
  remove_listener(&*listener);
  EXPECT_TRUE(connect_unix(path_, soon()));
}

TEST_F(Sockets, StaleSocketIsReplacedButNothingElse) {
  {
    auto dead = listen_unix(path_);
    ASSERT_TRUE(dead);
  }  // closed, not removed: as after SIGKILL
  EXPECT_EQ(connect_unix(path_, soon()).error().code, Code::kNotFound);
  {
    auto listener = listen_unix(path_);
    ASSERT_TRUE(listener) << listener.error().message();
    EXPECT_TRUE(connect_unix(path_, soon()));
  }
  ::unlink(path_.c_str());
  UniqueFd file(::open(path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT_EQ(listen_unix(path_).error().code, Code::kExists);
  EXPECT_EQ(mode_of(path_), 0600u) << "and it is still there";
}

TEST_F(Sockets, RefusesADirectoryThatOthersMayEnter) {
  ASSERT_EQ(::mkdir((root_ + "/d").c_str(), 0700), 0);
  ASSERT_EQ(::chmod((root_ + "/d").c_str(), 0755), 0);
  EXPECT_EQ(listen_unix(path_).error().code, Code::kPermission);
  ::rmdir((root_ + "/d").c_str());
  ASSERT_EQ(::symlink("/tmp", (root_ + "/d").c_str()), 0);
  EXPECT_EQ(listen_unix(path_).error().code, Code::kPermission);
}

TEST_F(Sockets, WhatCannotBeWrittenBesideItIsNamed) {
  EXPECT_EQ(find_closed_place(path_).found, "") << "no directory yet";
  { auto served = listen_unix(path_); }
  EXPECT_EQ(find_closed_place(path_).found, "");
  const std::string log = root_ + "/d/kvtierd.log";
  EXPECT_NE(::access(log.c_str(), F_OK), 0) << "looking makes nothing";
  for (const std::string& file : {log, path_ + ".lock"}) {
    ::unlink(file.c_str());
    ASSERT_EQ(::symlink("/dev/null", file.c_str()), 0);
    const ClosedPlace closed = find_closed_place(path_);
    EXPECT_EQ(closed.found, file + " cannot be written: " + std::strerror(ELOOP));
    EXPECT_EQ(closed.mend, "remove " + file);
    ::unlink(file.c_str());
  }
}

TEST_F(Sockets, RefusesPathsThatCannotBe) {
  EXPECT_EQ(listen_unix("relative/s.sock").error().code, Code::kInvalid);
  EXPECT_EQ(listen_unix("/s.sock").error().code, Code::kInvalid);
  EXPECT_EQ(listen_unix(root_ + "/" + std::string(120, 'x')).error().code, Code::kTooLarge);
  EXPECT_EQ(connect_unix(root_ + "/" + std::string(120, 'x'), soon()).error().code,
            Code::kTooLarge);
  EXPECT_EQ(connect_unix("", soon()).error().code, Code::kInvalid);
}

// The backlog is full and nobody accepts: a deadline, not a hang.
TEST_F(Sockets, ConnectHasADeadline) {
  auto listener = listen_unix(path_);
  ASSERT_TRUE(listener);
  ASSERT_EQ(::listen(listener->socket.get(), 0), 0);
  std::vector<UniqueFd> waiting;
  Code code = Code::kOk;
  for (int i = 0; i < 8 && code == Code::kOk; ++i) {
    auto socket = connect_unix(path_, Deadline::after_ms(50));
    if (socket)
      waiting.push_back(std::move(*socket));
    else
      code = socket.error().code;
  }
  EXPECT_EQ(code, Code::kTimeout);
}

// A forked child may keep the socket open; the pidfd still tells that the client is gone.
TEST_F(Sockets, PidfdTellsTheDeathThatAnInheritedSocketHides) {
  auto listener = listen_unix(path_);
  ASSERT_TRUE(listener);
  int ends[2];  // the grandchild lives as long as we hold the second one
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t client = ::fork();
  ASSERT_GE(client, 0);
  if (client == 0) {
    write_end.reset();
    auto socket = connect_unix(path_, Deadline::after_ms(5000));
    pollfd held{read_end.get(), 0, 0};
    if (socket && ::fork() == 0)
      ::poll(&held, 1, 60'000);
    else
      ::poll(&held, 1, 200);
    ::_exit(0);
  }
  pollfd incoming{listener->socket.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&incoming, 1, 5000), 1);
  const auto socket = accept_unix(listener->socket.get());
  ASSERT_TRUE(socket);
  const auto pidfd = peer_pidfd(socket->get());
  ASSERT_TRUE(pidfd) << pidfd.error().message();
  pollfd fds[2] = {{pidfd->get(), POLLIN, 0}, {socket->get(), POLLRDHUP, 0}};
  ASSERT_GE(::poll(fds, 1, 5000), 1);
  EXPECT_NE(fds[0].revents & POLLIN, 0);
  EXPECT_EQ(::poll(fds + 1, 1, 0), 0) << "the child still holds the socket";
  int status = 0;
  ::waitpid(client, &status, 0);
}

// Only root can become somebody else; others check that they are not refused themselves.
TEST_F(Sockets, PeerOfAnotherUserIsRefused) {
  ASSERT_EQ(::chmod(root_.c_str(), 0755), 0);
  auto listener = listen_unix(path_);
  ASSERT_TRUE(listener);
  ASSERT_EQ(::chmod((root_ + "/d").c_str(), 0755), 0);
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);  // as if the modes had failed us
  const bool root = ::geteuid() == 0;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (root && ::setuid(65534) != 0) ::_exit(3);
    const auto socket = connect_unix(path_, Deadline::after_ms(5000));
    const Code expected = root ? Code::kPermission : Code::kOk;
    ::_exit((socket ? Code::kOk : socket.error().code) == expected ? 0 : 1);
  }
  pollfd incoming{listener->socket.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&incoming, 1, 5000), 1);
  const auto socket = accept_unix(listener->socket.get());
  EXPECT_EQ(socket ? Code::kOk : socket.error().code, root ? Code::kPermission : Code::kOk);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace kvtier
