// A machine that refuses things: a full disk, a store that cannot be written, no locked memory, no
// io_uring, no huge pages, another user, a disk that fails its n-th operation. The daemon goes on,
// with the fallback and its reason in stats, or refuses in one line; nothing is lost and nothing
// wrong served. What needs root (mounting, other users) says so where it is skipped.
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>

#include "tests/fault/fault_store.h"

namespace kvtier::testing {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kNobody = 65534;

// A store of its own without anything in it, and the story that is written there.
class Place {
 public:
  explicit Place(bool in_memory = true) : directory(in_memory) {
    settings.store = directory.path() + "/store";
    settings.socket = directory.path() + "/run/kvtierd.sock";
    settings.settings = {"host.arena_bytes=16MiB", "host.leased_bytes_per_client_max=8MiB",
                         "host.abstracts_bytes=2MiB", "daemon.workers=2"};
    settings.log_path = directory.path() + "/daemon.log";
    settings.log_level = "warn";
  }
  ~Place() { close(); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  void close() {
    kvt_space_close(space_);
    kvt_client_close(client_);
    space_ = nullptr;
    client_ = nullptr;
  }
  kvt_status open() {
    kvt_status status = open_known_client(settings.socket, &client_);
    return status == KVT_OK ? open_known_space(client_, &space_) : status;
  }
  // A tail log, a sealed segment and what is behind it; the first status that is not OK.
  // `acknowledged` grows with each commit that succeeded.
  kvt_status write(const char* name, std::uint64_t seed, std::uint64_t* acknowledged) {
    kvt_sequence_options options;
    kvt_sequence_options_init(&options);
    options.name = name;
    kvt_sequence* sequence = nullptr;
    kvt_status status = kvt_sequence_create(space_, &options, nullptr, 0, nullptr, &sequence);
    for (const std::uint32_t count : {100u, 1000u, 1000u, 200u}) {
      if (status == KVT_OK) status = append_known(sequence, seed, count);
      if (status == KVT_OK) status = kvt_sequence_commit(sequence);
      if (status == KVT_OK) *acknowledged = kvt_sequence_length(sequence);
      if (status != KVT_OK) break;
    }
    text = status == KVT_OK ? "" : kvt_last_error();
    kvt_status read = KVT_OK;
    if (sequence != nullptr) wrong = check_known(sequence, seed, &read);
    if (read != KVT_OK) wrong.clear();  // an error is no wrong byte
    const kvt_status closed = kvt_sequence_close(sequence);
    return status == KVT_OK ? closed : status;
  }
  // Opens for writing, so that the tail is replayed too; "" where all acknowledged tokens are
  // right.
  std::string check(const char* name, std::uint64_t seed, std::uint64_t acknowledged) {
    kvt_sequence* sequence = nullptr;
    kvt_status status = kvt_sequence_open(space_, name, 0, 1, &sequence);
    if (status == KVT_ERROR_NOT_FOUND && acknowledged == 0) return "";
    if (status != KVT_OK) return std::string("open: ") + kvt_last_error();
    std::string problem = kvt_sequence_length(sequence) < acknowledged ? "tokens were lost" : "";
    if (problem.empty()) problem = check_known(sequence, seed, &status);
    kvt_sequence_close(sequence);
    return problem;
  }
  Json stats() {
    char* reply = nullptr;
    if (kvt_client_request(client_, R"({"op":"stats"})", &reply) != KVT_OK) return Json::object();
    Json parsed = parse_json(reply).value_or(Json::object());
    kvt_free(reply);
    return parsed;
  }
  std::string off() { return stats()["off"].dump(); }
  [[nodiscard]] std::string log() const { return read_text(settings.log_path); }

  // Starts, writes, reads, stops; all must go well.
  void expect_works(std::string* off_text = nullptr) {
    ASSERT_TRUE(daemon.start(settings)) << log();
    ASSERT_EQ(open(), KVT_OK) << kvt_last_error();
    std::uint64_t acknowledged = 0;
    EXPECT_EQ(write("story", 7, &acknowledged), KVT_OK) << text;
    EXPECT_EQ(wrong, "");
    EXPECT_EQ(check("story", 7, 2300), "");
    if (off_text != nullptr) *off_text = off();
    last_stats = stats();
    close();
    EXPECT_TRUE(daemon.stop()) << log();
  }
  // It ends by itself with code 2 and one line of its own that holds `words`.
  void expect_refusal(const std::string& words) {
    EXPECT_FALSE(daemon.start(settings));
    EXPECT_TRUE(WIFEXITED(daemon.last_status()) && WEXITSTATUS(daemon.last_status()) == 2);
    const std::string said = log();
    const std::size_t at = said.find("kvtierd: ");
    ASSERT_NE(at, std::string::npos) << said;
    EXPECT_NE(said.find(words, at), std::string::npos) << said;
    EXPECT_EQ(said.find('\n', at), said.size() - 1) << "more than one line: " << said;
  }

  const ScratchDirectory directory;
  DaemonSettings settings;
  DaemonProcess daemon;
  std::string text, wrong;
  Json last_stats;

 private:
  kvt_client* client_ = nullptr;
  kvt_space* space_ = nullptr;
};

// Runs the body as nobody, in a process of its own; its failures are printed there and counted
// here.
template <class Body>
void as_nobody(const Body& body) {
  // nobody may not be able to enter the build folder
  const ScratchDirectory programs;
  ::chmod(programs.path().c_str(), 0755);
  fs::create_directory(programs.path() + "/bin");
  for (const char* name : {"kvtierd", "kvtier"})
    fs::copy(fs::path(daemon_path()).parent_path() / name, programs.path() + "/bin/" + name);
  ::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("KVTIER_BUILD", programs.path().c_str(), 1);
    const bool changed =
        ::setgroups(0, nullptr) == 0 && ::setgid(kNobody) == 0 && ::setuid(kNobody) == 0;
    EXPECT_TRUE(changed);
    if (changed) body();
    ::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "failed as nobody, see above";
}

bool root() { return ::geteuid() == 0; }

// io_uring_setup fails with EPERM, as under a container's default profile.
void forbid_io_uring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{4, code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    ::_exit(125);
}

TEST(HostileMachine, AsAnUnprivilegedUser) {
  if (!root()) GTEST_SKIP() << "all other tests run as an unprivileged user already";
  as_nobody([] { Place().expect_works(); });
}

TEST(HostileMachine, WithoutLockedMemory) {
  const auto body = [] {
    Place place(false);
    place.settings.before_exec = [] {
      const rlimit none{0, 0};
      if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0) ::_exit(125);
    };
    std::string off;
    place.expect_works(&off);
    if (place.last_stats["disk"].value("backend", "") == "threads") return;  // said there
    EXPECT_NE(off.find("memlock"), std::string::npos) << off;
    EXPECT_EQ(place.last_stats["disk"].value("registered_reads", 1u), 0u);
  };
  root() ? as_nobody(body) : body();
}

TEST(HostileMachine, WithoutIoUring) {
  Place place;
  place.settings.before_exec = forbid_io_uring;
  std::string off;
  place.expect_works(&off);
  EXPECT_EQ(place.last_stats["disk"].value("backend", ""), "threads");
  EXPECT_NE(off.find("io_uring"), std::string::npos) << off;
  EXPECT_NE(off.find("seccomp"), std::string::npos) << off;
  // Asked for by name, it is no matter of choice.
  Place forced;
  forced.settings.before_exec = forbid_io_uring;
  forced.settings.settings.push_back("disk.backend=io_uring");
  forced.expect_refusal("io_uring does not work here");
}

TEST(HostileMachine, WithoutHugePages) {
  Place place;
  place.settings.before_exec = [] {
    if (::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) ::_exit(125);
  };
  std::string off;
  place.expect_works(&off);
  EXPECT_NE(off.find("huge pages: "), std::string::npos) << off;
  EXPECT_EQ(place.last_stats["host"].value("pages", ""), "4 KiB");
}

TEST(HostileMachine, AStoreThatCannotBeWritten) {
  const auto body = [] {
    Place place;
    place.expect_works();
    ASSERT_EQ(::chmod(place.settings.store.c_str(), 0500), 0);
    ASSERT_EQ(::chmod((place.settings.store + "/LOCK").c_str(), 0400), 0);
    place.expect_refusal("cannot write in the store's directory");
    ASSERT_EQ(::chmod(place.settings.store.c_str(), 0700), 0);
    ASSERT_EQ(::chmod((place.settings.store + "/LOCK").c_str(), 0600), 0);
    // A folder inside: what is stored is served, what is to be written is refused with its cause.
    ASSERT_EQ(::chmod((place.settings.store + "/segments").c_str(), 0500), 0);
    ASSERT_TRUE(place.daemon.start(place.settings)) << place.log();
    ASSERT_EQ(place.open(), KVT_OK);
    EXPECT_EQ(place.check("story", 7, 2300), "");
    std::uint64_t acknowledged = 0;
    EXPECT_NE(place.write("second", 8, &acknowledged), KVT_OK);
    EXPECT_EQ(place.wrong, "");
    EXPECT_NE(place.text, "");
    EXPECT_GT(place.stats()["writing"].value("seal_failures", 0u), 0u);
    ASSERT_EQ(::chmod((place.settings.store + "/segments").c_str(), 0700), 0);
    EXPECT_EQ(place.check("second", 8, acknowledged), "");
    place.close();
    EXPECT_TRUE(place.daemon.stop());
  };
  root() ? as_nobody(body) : body();
}

// A file system of its own, gone with the object.
class Mount {
 public:
  Mount(std::string path, const char* options) : path_(std::move(path)) {
    fs::create_directories(path_);
    mounted_ = ::mount("none", path_.c_str(), "tmpfs", 0, options) == 0;
  }
  ~Mount() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  [[nodiscard]] bool mounted() const noexcept { return mounted_; }
  bool remount(unsigned long flags) {
    return ::mount("none", path_.c_str(), "tmpfs", MS_REMOUNT | flags, nullptr) == 0;
  }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST(HostileMachine, AFileSystemThatIsReadOnly) {
  Place place;
  Mount mount(place.settings.store, "size=64m,mode=0700");
  if (!mount.mounted()) GTEST_SKIP() << "mounting needs root";
  place.expect_works();
  ASSERT_TRUE(mount.remount(MS_RDONLY));
  place.expect_refusal("cannot write in the store's directory");
  int exit_code = -1;  // reading it needs no writing
  const CommandResult offline = run_kvtier("verify --store " + place.settings.store);
  exit_code = offline.exit_code;
  EXPECT_EQ(exit_code, 0) << offline.output;
  ASSERT_TRUE(mount.remount(0));
  ASSERT_TRUE(place.daemon.start(place.settings));
  ASSERT_EQ(place.open(), KVT_OK);
  EXPECT_EQ(place.check("story", 7, 2300), "");
}

TEST(HostileMachine, AFullDisk) {
  Place place;
  Mount mount(place.settings.store, "size=24m,mode=0700");
  if (!mount.mounted()) GTEST_SKIP() << "mounting needs root";
  ASSERT_TRUE(place.daemon.start(place.settings)) << place.log();
  ASSERT_EQ(place.open(), KVT_OK);
  std::uint64_t first = 0;
  ASSERT_EQ(place.write("first", 1, &first), KVT_OK) << place.text;
  {
    std::ofstream ballast(place.settings.store + "/ballast", std::ios::binary);
    const std::string page(4096, 'x');
    while (ballast.write(page.data(), 4096).flush()) {
    }
  }
  std::uint64_t second = 0;
  const kvt_status full = place.write("second", 2, &second);
  EXPECT_TRUE(full == KVT_ERROR_NO_SPACE || full == KVT_ERROR_READ_ONLY) << full << place.text;
  EXPECT_NE(place.text, "");
  EXPECT_EQ(place.wrong, "");
  const Json stats = place.stats();
  EXPECT_GT(stats["writing"].value("seal_failures", 0u) +
                stats["writing"].value("commit_failures", 0u) +
                stats["writing"].value("catalogue_failures", 0u),
            0u)
      << stats.dump();
  EXPECT_EQ(place.check("first", 1, first), "") << "what was stored is served all the same";
  ASSERT_TRUE(fs::remove(place.settings.store + "/ballast"));
  // It takes writes again by itself, within seconds.
  kvt_status again = KVT_ERROR_NO_SPACE;
  std::uint64_t third = 0;
  for (int i = 0; i < 50 && again != KVT_OK; ++i, ::usleep(100'000))
    again = place.write(("third" + std::to_string(i)).c_str(), 3, &third);
  EXPECT_EQ(again, KVT_OK) << place.text;
  EXPECT_EQ(place.check("second", 2, second), "");
  place.close();
  EXPECT_TRUE(place.daemon.stop()) << place.log();
  ASSERT_TRUE(place.daemon.start(place.settings)) << place.log();
  ASSERT_EQ(place.open(), KVT_OK);
  EXPECT_EQ(place.check("first", 1, first), "");
  EXPECT_EQ(place.check("second", 2, second), "");
  const CommandResult verified = run_kvtier("verify --socket " + place.settings.socket);
  EXPECT_EQ(verified.exit_code, 0) << verified.output;
}

// Of a repair, until there is room for all of it: what it cannot read for want of room is not lost.
TEST(HostileMachine, ARepairOnAFullDisk) {
  Place place;
  const std::string store = place.settings.store;
  Mount mount(store, "size=24m,mode=0700");
  if (!mount.mounted()) GTEST_SKIP() << "mounting needs root";
  place.expect_works();
  for (const auto& file : fs::directory_iterator(store + "/catalogue"))
    if (file.path().filename().string().starts_with("MANIFEST")) fs::resize_file(file.path(), 10);
  std::ofstream(store + "/ballast", std::ios::binary)
      << std::string(fs::space(store).available, 'x');
  int refused = 0;
  CommandResult repaired;
  while ((repaired = run_kvtier("repair --store " + store)).exit_code != 0 && refused < 100) {
    EXPECT_NE(repaired.output.find("no room"), std::string::npos) << repaired.output;
    ++refused;
    const unsigned freed = refused < 40 ? 4 << 10 : 64 << 10;
    fs::resize_file(store + "/ballast", fs::file_size(store + "/ballast") - freed);
  }
  EXPECT_GT(refused, 3);
  ASSERT_TRUE(fs::remove(store + "/ballast"));
  ASSERT_TRUE(place.daemon.start(place.settings)) << place.log();
  ASSERT_EQ(place.open(), KVT_OK);
  EXPECT_EQ(place.check("story", 7, 2300), "");
  place.close();
  EXPECT_TRUE(place.daemon.stop());
}

// What a newer kvtier has written is not guessed at, and nothing that its row may name is removed.
// Of the n-th row that the daemon writes, n = 1, 2, ... until there are no more; a row that was
// written again behind it is read as any other.
TEST(HostileMachine, ARowOfANewerVersion) {
  int refused = 0;
  bool untouched = false;
  for (int n = 1; n <= 60 && !untouched; ++n) {
    SCOPED_TRACE("the " + std::to_string(n) + "th row");
    Place place;
    place.settings.faults = "catalogue.newer_row=fail@" + std::to_string(n);
    place.expect_works();
    untouched = place.log().find("fault point catalogue.newer_row") == std::string::npos;
    place.settings.faults.clear();
    const auto files = [&] {
      std::vector<std::string> names;
      for (const auto& entry : fs::directory_iterator(place.settings.store + "/segments"))
        names.push_back(entry.path());
      std::sort(names.begin(), names.end());
      return names;
    };
    const std::vector<std::string> before = files();
    ASSERT_EQ(before.size(), 2u);
    if (place.daemon.start(place.settings)) {
      ASSERT_EQ(place.open(), KVT_OK) << kvt_last_error();
      EXPECT_EQ(place.check("story", 7, 2300), "");
      place.close();
      EXPECT_TRUE(place.daemon.stop());
      continue;
    }
    ++refused;
    place.expect_refusal("the store was written by a newer kvtier: upgrade this one");
    EXPECT_EQ(files(), before);
  }
  EXPECT_TRUE(untouched) << "more rows than this test goes through";
  EXPECT_GE(refused, 4) << "rows of a number, a space and two segments stay as they were written";
}

class FailingDisk : public ::testing::TestWithParam<const char*> {};

// The n-th visit of a fault point fails, n = 1, 2, ... until a run passes untouched.
TEST_P(FailingDisk, EveryOperation) {
  int hit = 0;
  bool untouched = false;
  constexpr int kVisitsMax = 40;
  for (int n = 1; n <= kVisitsMax && !untouched; ++n) {
    SCOPED_TRACE(std::string(GetParam()) + "=fail@" + std::to_string(n));
    Place place;
    place.settings.faults = std::string(GetParam()) + "=fail@" + std::to_string(n);
    std::uint64_t acknowledged = 0;
    kvt_status status = KVT_ERROR_IO;
    if (place.daemon.start(place.settings)) {
      status = place.open();
      if (status == KVT_OK) status = place.write("story", 7, &acknowledged);
      EXPECT_EQ(place.wrong, "");
      EXPECT_TRUE(status == KVT_OK || status == KVT_ERROR_IO || status == KVT_ERROR_READ_ONLY ||
                  status == KVT_ERROR_MISS || status == KVT_ERROR_CANCELLED)
          << status << ": " << place.text;
      place.close();
      EXPECT_TRUE(place.daemon.stop()) << place.log();
    } else {
      EXPECT_TRUE(WIFEXITED(place.daemon.last_status())) << "it did not end by itself";
      EXPECT_NE(place.log().find("kvtierd: "), std::string::npos) << place.log();
    }
    untouched = place.log().find("fault point") == std::string::npos;
    hit += untouched ? 0 : 1;
    EXPECT_TRUE(!untouched || status == KVT_OK) << "an error without a fault";
    place.settings.faults.clear();
    ASSERT_TRUE(place.daemon.start(place.settings)) << place.log();
    ASSERT_EQ(place.open(), KVT_OK) << kvt_last_error();
    EXPECT_EQ(place.check("story", 7, acknowledged), "");
    const CommandResult verified = run_kvtier("verify --socket " + place.settings.socket);
    EXPECT_EQ(verified.exit_code, 0) << verified.output;
  }
  EXPECT_GT(hit, 0) << "the fault never happened";
  EXPECT_TRUE(untouched) << "more operations than this test goes through";
}

INSTANTIATE_TEST_SUITE_P(Points, FailingDisk,
                         ::testing::Values("io.open", "io.read", "io.write", "io.sync", "io.unlink",
                                           "io.rename", "io.sync_directory", "io.allocate",
                                           "catalogue.write", "catalogue.written"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == '.') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace kvtier::testing
