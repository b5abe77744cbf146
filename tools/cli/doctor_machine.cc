// doctor's second half: what the kernel and this user's limits give to the daemon. Where one runs,
// it is asked, and its limits are looked at; else what it would get is found out by doing.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "client/ipc/off_topics.h"
#include "tiers/io.h"
#include "tools/cli/commands.h"
#include "tools/cli/finding.h"

namespace kvtier::cli {
namespace {

constexpr unsigned kCapIpcLock = 14;
// A daemon without clients holds 22; 32 were too few for one client that stores, 40 were enough.
constexpr std::uint64_t kOpenFilesLeast = 64;
constexpr std::uint64_t kOpenFilesWanted = 1024;
constexpr const char* kRestart = ", then kvtier stop; kvtier start";

// No shell and no unit of the user's own raises a hard limit: root does, for the next login. `item`
// as limits.conf names it, `directive` as systemd does.
std::string limit_mend(const std::string& item, const std::string& value,
                       const std::string& directive) {
  return "as root `USER - " + item + " " + value +
         "` in /etc/security/limits.conf, under systemd also `systemctl edit user@.service` with " +
         directive + ", then log in anew (a container: start it with --ulimit " + item + "=" +
         (value == "unlimited" ? "-1" : value) + ")" + kRestart;
}

std::string memlock_mend() { return limit_mend("memlock", "unlimited", "LimitMEMLOCK=infinity"); }
std::string open_files_mend() { return limit_mend("nofile", "65536", "LimitNOFILE=65536"); }

rlim_t hard_limit(__rlimit_resource resource, pid_t process) {
  rlimit limit{};
  if (::prlimit(process, resource, nullptr, &limit) != 0) ::getrlimit(resource, &limit);
  return limit.rlim_max;
}

// Whether the kernel lets the process lock as much as it likes. Of uid 0 in a container it does not
// follow.
bool may_lock_all(pid_t process) {
  std::ifstream file("/proc/" + (process != 0 ? std::to_string(process) : "self") + "/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("CapEff:"))
      return (std::strtoull(line.c_str() + 7, nullptr, 16) >> kCapIpcLock & 1) != 0;
  return false;
}

std::string off_line(const Json& status, OffTopic topic) {
  const std::string begin = off_beginning(topic);
  if (status.is_object() && status.contains("off"))
    for (const Json& line : status["off"])
      if (line.is_string() && line.get<std::string>().starts_with(begin))
        return line.get<std::string>().substr(begin.size());
  return "";
}

struct OffMend {
  Grade grade;
  const char* text;  // null: another finding speaks of it
};

// No default: a topic that the daemon learns is one here, too.
OffMend mend_of(OffTopic topic) {
  switch (topic) {
    case OffTopic::kDisk:
    case OffTopic::kHugePages:
    case OffTopic::kOptionalWriting:
      return {Grade::kSlow, nullptr};
    case OffTopic::kWriting:
      return {Grade::kBad,
              "free space on the store's disk, or mend it (dmesg says what failed); the daemon "
              "tries again by itself"};
    case OffTopic::kAbstracts:
    case OffTopic::kBaseRenditions:
      return {Grade::kSlow, "raise host.abstracts_bytes"};
    case OffTopic::kRotation:
      return {Grade::kSlow,
              "open the space with rope_pairing, rope_positions and rope_frequencies "
              "(kvt_space_options; in Python arguments of open_space)"};
    case OffTopic::kCodebooks:
      return {Grade::kSlow, kMendCodebook};
    case OffTopic::kKernels:
      return {Grade::kSlow,
              "set daemon.kernels = \"auto\"; for a processor without vectors there is no mend"};
    case OffTopic::kAdmission:
      return {Grade::kInfo, "if you want it, set store.admission = true"};
    case OffTopic::kDeclining:
      return {Grade::kInfo, "if you want it, set store.decline_slow_loads = true"};
    case OffTopic::kVerification:
      return {Grade::kInfo,
              "if you want it, set daemon.scrub_mb_per_s = 20: all that is stored is read at that "
              "rate"};
  }
  return {Grade::kSlow, nullptr};
}

Finding judge_disk_note(const std::string& name, const std::string& note) {
  const auto says = [&note](const char* words) { return note.find(words) != std::string::npos; };
  Finding finding{Grade::kSlow, "disk I/O", name + ": " + note, ""};
  if (note.empty()) return {Grade::kGood, "disk I/O", name, ""};
  if (says("not asked for")) {
    finding.grade = Grade::kInfo;
    finding.mend = std::string("if you want io_uring, set disk.backend = \"auto\"") + kRestart;
  } else if (says("memlock")) {
    finding.mend = memlock_mend();
  } else if (says("open files")) {
    finding.mend = open_files_mend();
  } else if (says("seccomp")) {
    const std::string disabled = read_line("/proc/sys/kernel/io_uring_disabled");
    finding.mend =
        !disabled.empty() && disabled != "0"
            ? std::string("as root: sysctl kernel.io_uring_disabled=0") + kRestart
            : "allow io_uring_setup, io_uring_enter and io_uring_register in the container's "
              "seccomp profile";
  } else if (says("direct I/O")) {
    finding.mend = "set store.path to a file system with direct I/O (ext4, xfs, btrfs)";
  } else {
    finding.mend = "none is needed: threads do the same, with more processor time";
  }
  return finding;
}

}  // namespace

Finding check_disk_backend(const Seen& seen) {
  if (seen.status.is_object() && seen.status.contains("modes"))
    return judge_disk_note(text_of(seen.status["modes"], "io"),
                           off_line(seen.status, OffTopic::kDisk));
  IoOptions options;
  options.root = seen.probe_directory.empty() ? std::filesystem::temp_directory_path().string()
                                              : seen.probe_directory;
  const std::string wanted = setting_of(seen.settings, "disk.backend");
  if (wanted == "threads") options.backend = wanted;
  const auto io = make_io(options);
  if (!io)
    return {Grade::kBad, "disk I/O", io.error().message(),
            "look at the permissions of " + options.root};
  Finding finding = judge_disk_note((*io)->name(), (*io)->note());
  if (wanted == "io_uring" && (*io)->name() != wanted) {
    finding.grade = Grade::kBad;
    finding.found = "disk.backend is io_uring: " + (*io)->note();
    finding.mend += "; or set disk.backend = \"auto\"";
  }
  return finding;
}

Finding check_memlock(const Seen& seen) {
  const rlim_t limit = hard_limit(RLIMIT_MEMLOCK, seen.daemon);
  if (limit == RLIM_INFINITY || limit >= (1ull << 30) || may_lock_all(seen.daemon))
    return {Grade::kGood, "locked memory", "enough for registered buffers", ""};
  return {Grade::kSlow, "locked memory",
          "the limit is " + human_bytes(limit) + ": disk buffers cannot be registered",
          memlock_mend()};
}

Finding check_open_files(const Seen& seen) {
  const rlim_t limit = hard_limit(RLIMIT_NOFILE, seen.daemon);
  const std::string found =
      limit == RLIM_INFINITY ? "no limit" : "at most " + std::to_string(limit);
  if (limit < kOpenFilesLeast)
    return {Grade::kBad, "open files", found + ": too few for the daemon and its clients",
            open_files_mend()};
  if (limit < kOpenFilesWanted)
    return {Grade::kSlow, "open files", found + ": too few for many clients", open_files_mend()};
  return {Grade::kGood, "open files", found, ""};
}

Finding check_huge_pages(const Seen& seen) {
  constexpr const char* kPath = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  const bool runs = seen.status.is_object() && seen.status.contains("modes");
  const bool unwanted =
      runs ? off_line(seen.status, OffTopic::kHugePages).find(" is false") != std::string::npos
           : setting_of(seen.settings, "host.huge_pages") == "false";
  if (unwanted)
    return {Grade::kInfo, "huge pages", "not asked for (host.huge_pages is false)",
            std::string("if you want them, set host.huge_pages = true") + kRestart};
  const std::string pages = runs ? text_of(seen.status["modes"], "pages") : "";
  if (runs && pages != "4 KiB") return {Grade::kGood, "huge pages", pages, ""};
  const std::string mode = read_line(kPath);
  if (mode.empty())
    return {Grade::kInfo, "huge pages", "this kernel has none for shared memory",
            "none is needed: all works with pages of 4 KiB"};
  for (const char* off : {"[never]", "[deny]"})
    if (mode.find(off) != std::string::npos)
      return {Grade::kSlow, "huge pages", std::string("off for shared memory: ") + off,
              std::string("optional, as root: echo advise > ") + kPath + kRestart};
  if (runs)
    return {Grade::kSlow, "huge pages", "allowed, but this daemon got none",
            "optional: kvtier stop; kvtier start, when more memory is free in one piece"};
  return {Grade::kGood, "huge pages", "given on request", ""};
}

Finding check_memory(const Seen& seen) {
  const auto pages = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES));
  const std::uint64_t total = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  // Before a daemon runs, what it would take.
  const bool runs = seen.status.is_object() && seen.status.contains("modes");
  const std::string wanted = setting_of(seen.settings, "host.arena_bytes");
  if (!runs && !seen.settings_read && wanted.empty())
    return not_checked("memory", "the arena's size is a setting, and the settings cannot be read");
  const std::uint64_t arena = runs ? number_of(seen.status["modes"], "arena_bytes")
                                   : std::strtoull(wanted.c_str(), nullptr, 10);
  if (arena > total / 2)
    return {Grade::kSlow, "memory",
            "the arena (" + human_bytes(arena) + ") may take over half of " + human_bytes(total),
            "lower host.arena_bytes in kvtierd.toml"};
  return {Grade::kGood, "memory", human_bytes(total), ""};
}

void check_switched_off(const Seen& seen, std::vector<Finding>* findings) {
  if (!seen.status.is_object() || !seen.status.contains("off")) return;
  for (const Json& entry : seen.status["off"]) {
    const std::string line = entry.is_string() ? entry.get<std::string>() : entry.dump();
    OffMend mend{Grade::kSlow, "if you want it, change the setting that it names"};
    for (const OffTopic topic : kOffTopics)
      if (line.starts_with(off_beginning(topic))) mend = mend_of(topic);
    if (mend.text != nullptr) findings->push_back({mend.grade, "switched off", line, mend.text});
  }
}

}  // namespace kvtier::cli
