// Choice of the back end where io_uring is forbidden, memory may not be locked, or the root is
// missing. What is changed cannot be changed back, so each case runs in a child process.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/log.h"
#include "tiers/io.h"

namespace kvtier {
namespace {

class IoProbeTest : public testing::Test {
 protected:
  void SetUp() override {
    char root[] = "/tmp/kvtier-probe-XXXXXX";
    ASSERT_NE(::mkdtemp(root), nullptr);
    options_.root = root;
    ASSERT_EQ(::chmod(root, 0777), 0);  // one case gives up its privileges
  }
  void TearDown() override { std::filesystem::remove_all(options_.root); }

  IoOptions options_;
};

// Runs `body` in a child; "" where it returned "", else what it returned.
std::string in_child(const std::function<std::string()>& body) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string text = body();
    static_cast<void>(!::write(ends[1], text.data(), text.size()));
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<std::size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return "the child died: " + text;
  return text;
}

// From now on io_uring_setup fails with `os_error`.
bool forbid_io_uring(int os_error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(os_error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(sizeof code / sizeof code[0]), code};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

std::string use(Io& io) {
  const auto file = io.open("used", {OpenMode::kCreateNew, true});
  if (!file) return "open";
  AlignedBuffer written(1 << 16), read(1 << 16);
  std::memset(written.data(), 0x3C, written.size_bytes());
  if (!write_fully(io, *file, 0, written.span()) || !sync_fully(io, *file)) return "write";
  if (!read_fully(io, *file, 0, read.span())) return "read";
  return std::memcmp(read.data(), written.data(), read.size_bytes()) == 0 ? "" : "other bytes";
}

TEST_F(IoProbeTest, FallsBackToThreadsAndSaysWhy) {
  for (const int os_error : {EPERM, ENOSYS}) {
    const std::string told = in_child([&]() -> std::string {
      if (!forbid_io_uring(os_error)) return "no seccomp";
      auto io = make_io(options_);
      if (!io) return "no Io";
      if (std::string((*io)->name()) != "threads") return (*io)->name();
      const std::string used = use(**io);
      static_cast<void>((*io)->unlink("used"));
      return used + (*io)->note();
    });
    const std::string expected =
        os_error == EPERM ? "io_uring: EPERM: blocked by seccomp or kernel.io_uring_disabled"
                          : "io_uring: ENOSYS: not in this kernel";
    EXPECT_EQ(told.substr(0, expected.size()), expected) << told;
  }
}

TEST_F(IoProbeTest, AForcedBackEndThatDoesNotWorkIsAnError) {
  options_.backend = "io_uring";
  EXPECT_EQ(in_child([&]() -> std::string {
              if (!forbid_io_uring(EPERM)) return "no seccomp";
              const auto io = make_io(options_);
              return io ? "it worked" : code_name(io.error().code);
            }),
            code_name(Code::kUnsupported));
}

// Gives up what lets root lock memory in spite of the limit.
bool limit_memlock(std::uint64_t size_bytes) {
  const rlimit limit{size_bytes, size_bytes};
  if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return false;
  return ::geteuid() != 0 || (::setgid(65534) == 0 && ::setuid(65534) == 0);
}

TEST_F(IoProbeTest, MemoryThatMayNotBeLockedIsSaidAndDoneWithout) {
  options_.backend = "io_uring";
  if (!make_io(options_)) GTEST_SKIP() << "back end io_uring does not work on this machine";
  const std::string told = in_child([&]() -> std::string {
    if (!limit_memlock(512 << 10)) return "no limit";  // enough for the ring
    auto io = make_io(options_);
    if (!io) return "no Io";
    AlignedBuffer arena(1 << 20);
    if ((*io)->register_memory(arena.data(), arena.size_bytes())) return "registered";
    return use(**io) + (*io)->note();
  });
  EXPECT_EQ(told.substr(0, 27), "registered buffers: ENOMEM:") << told;
  EXPECT_NE(told.find("memlock limit of 512 KiB"), std::string::npos) << told;
  EXPECT_NE(told.find("kvtier doctor"), std::string::npos) << told;
}

// Newer kernels count the ring itself: then threads it is. Either way it works and names the limit.
TEST_F(IoProbeTest, MemlockZeroGoesOnAndNamesTheLimit) {
  options_.backend = "io_uring";
  if (!make_io(options_)) GTEST_SKIP() << "back end io_uring does not work on this machine";
  options_.backend = "auto";
  const std::string told = in_child([&]() -> std::string {
    if (!limit_memlock(0)) return "no limit";
    auto io = make_io(options_);
    if (!io) return "no Io";
    AlignedBuffer arena(1 << 20);
    if ((*io)->register_memory(arena.data(), arena.size_bytes())) return "registered";
    return use(**io) + (*io)->note();
  });
  EXPECT_NE(told.find("memlock limit"), std::string::npos) << told;
  EXPECT_NE(told.find("ENOMEM"), std::string::npos) << told;
}

TEST_F(IoProbeTest, LeavesNothingBehind) {
  ASSERT_TRUE(make_io(options_));
  EXPECT_TRUE(std::filesystem::is_empty(options_.root));
}

TEST_F(IoProbeTest, OptionsAreChecked) {
  const auto code_with = [&](auto change) {
    IoOptions options = options_;
    change(options);
    const auto io = make_io(options);
    return io ? Code::kOk : io.error().code;
  };
  EXPECT_EQ(code_with([](IoOptions& options) { options.root = "/nonexistent/kvtier"; }),
            Code::kNotFound);
  EXPECT_EQ(code_with([](IoOptions& options) { options.root = "/proc/self/status"; }),
            Code::kInvalid);
  EXPECT_EQ(code_with([](IoOptions& options) { options.backend = "magic"; }), Code::kInvalid);
  EXPECT_EQ(code_with([](IoOptions& options) { options.depth = 0; }), Code::kInvalid);
  EXPECT_EQ(code_with([](IoOptions& options) { options.depth = 257; }), Code::kInvalid);
  EXPECT_EQ(code_with([](IoOptions& options) { options.threads = 0; }), Code::kInvalid);
  EXPECT_EQ(code_with([](IoOptions& options) { options.depth = 256; }), Code::kOk);
  EXPECT_EQ(code_with([](IoOptions& options) { options.depth = 1; }), Code::kOk);
}

// The file system under /proc takes no O_DIRECT; neither do some network ones.
TEST_F(IoProbeTest, RefusedDirectIoIsBufferedAndNoted) {
  IoOptions options{"/proc/self", "threads", 1, 1};
  auto io = make_io(options);
  ASSERT_TRUE(io);
  ASSERT_TRUE((*io)->open("status", {OpenMode::kRead, true}));
  EXPECT_NE((*io)->note().find("direct I/O: refused"), std::string::npos) << (*io)->note();
}

}  // namespace
}  // namespace kvtier
