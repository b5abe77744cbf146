// doctor's look at the store: its directory, its catalogue, and what a running daemon counts there.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/unique_fd.h"
#include "tiers/catalogue.h"
#include "tiers/store_check.h"
#include "tiers/store_lock.h"
#include "tools/cli/commands.h"
#include "tools/cli/finding.h"

namespace kvtier::cli {
namespace {

// Room for the scratch file of the disk's back end.
constexpr std::uint64_t kProbeBytes = 1ull << 20;

// A file system that forgets, or that is not on this machine.
void check_file_system(const std::string& place, std::vector<Finding>* findings) {
  struct statfs info {};
  if (::statfs(place.c_str(), &info) != 0) return;
  const auto type = static_cast<std::uint64_t>(info.f_type);
  constexpr std::uint64_t kTmpfs = 0x01021994, kNfs = 0x6969, kCifs = 0xFF534D42,
                          kSmb2 = 0xFE534D42;
  if (type == kTmpfs)
    findings->push_back({Grade::kSlow, "file system",
                         place + " is in memory (tmpfs): the store is gone at the next boot",
                         "set store.path to a disk"});
  if (type == kNfs || type == kCifs || type == kSmb2)
    findings->push_back({Grade::kSlow, "file system", place + " is on the network",
                         "set store.path to a local disk"});
}

std::string mend_of_holder(const std::string& store) {
  const StoreHolder holder = read_store_holder(store);
  if (holder.socket.empty()) return "set KVTIER_SOCKET to its socket, stop it, or set store.path";
  const std::string socket = shell_word(holder.socket);
  return "kvtier stop --socket " + socket + "; or use it, export KVTIER_SOCKET=" + socket +
         "; or set store.path";
}

// How a name that refuses to be written is made to take it.
std::string mend_of_refusal(const std::string& place, int why) {
  constexpr const char* kElsewhere = ", or set store.path in kvtierd.toml";
  struct stat info {};
  if (why == EROFS) return std::string("mount it writable") + kElsewhere;
  if (why == ENOSPC || why == EDQUOT) return "free some space there: `kvtier rm`, `kvtier gc`";
  if ((why == EACCES || why == EPERM) && ::stat(place.c_str(), &info) == 0)
    return (info.st_uid == ::geteuid()
                ? "chmod u+rwX " + shell_word(place)
                : "as root: chown -R " + std::to_string(::geteuid()) + " " + shell_word(place)) +
           kElsewhere;
  return "set store.path in kvtierd.toml to a directory that can be made";
}

// By doing: access() is of no use to root on a read-only file system, nor with odd mounts. Of what
// lies in a store already, asking must do: nothing of it may change.
bool is_writable(const std::string& store, const std::string& place, Finding* finding) {
  const std::string probe = place + "/.kvtier-doctor." + std::to_string(::getpid());
  const UniqueFd made(::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  std::string refused = place;
  int why = made.valid() ? 0 : errno;
  if (made.valid()) {
    ::unlink(probe.c_str());
    const std::string part = closed_part(store, &why);
    if (!part.empty()) refused = part;
  }
  if (why == 0) return true;
  *finding = {Grade::kBad, "store",
              (refused == place ? store : refused) + " cannot be written: " + std::strerror(why),
              mend_of_refusal(refused, why)};
  return false;
}

std::uint64_t bytes_in(const std::string& store) {
  std::uint64_t bytes = 0;
  std::error_code failed;  // a running daemon removes what is looked at
  std::filesystem::recursive_directory_iterator entry(store, failed);
  for (; !failed && entry != std::filesystem::end(entry); entry.increment(failed)) {
    std::error_code gone;
    const std::uint64_t size = entry->is_regular_file(gone) ? entry->file_size(gone) : 0;
    if (!gone) bytes += size;
  }
  return bytes;
}

// A limit that the disk does not let the store reach.
void check_limit(const std::string& store, std::uint64_t free_bytes, std::uint64_t limit_bytes,
                 std::vector<Finding>* findings) {
  const std::uint64_t most = bytes_in(store) + free_bytes;
  if (limit_bytes <= most) return;
  findings->push_back({Grade::kSlow, "disk limit",
                       "store.disk_bytes_max is " + human_bytes(limit_bytes) +
                           ", and the disk has room for a store of " + human_bytes(most) +
                           ": it is full before that, and storing fails",
                       "lower store.disk_bytes_max to \"" + std::to_string(most >> 30) +
                           " GiB\", or free space there"});
}

std::uint64_t check_room(const std::string& store, const std::string& place,
                         std::uint64_t limit_bytes, std::vector<Finding>* findings) {
  struct statvfs info {};
  ::statvfs(place.c_str(), &info);
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  if (free_bytes < (1ull << 30)) {
    findings->push_back({Grade::kBad, "disk space", human_bytes(free_bytes) + " free at " + place,
                         "free some (`kvtier rm`, `kvtier gc`), or move the store (store.path)"});
    return free_bytes;
  }
  findings->push_back(
      {Grade::kGood, "store", store + ", " + human_bytes(free_bytes) + " free", ""});
  check_limit(store, free_bytes, limit_bytes, findings);
  return free_bytes;
}

constexpr const char* kMendDamage = "kvtier verify names what is damaged, kvtier repair drops it";

// What is damaged now, whoever found it, and what was met since the daemon's start.
void check_damage(const Json& stats, std::vector<Finding>* findings) {
  if (!stats.contains("damage")) return;
  const Json& damage = stats["damage"];
  const auto add = [&](std::uint64_t count, const char* one, const char* many) {
    if (count != 0)
      findings->push_back({Grade::kBad, "stored data",
                           std::to_string(count) + (count == 1 ? one : many), kMendDamage});
  };
  add(number_of(damage, "segments_damaged_now"), " segment is damaged or missing",
      " segments are damaged or missing");
  add(number_of(damage, "rows_damaged"), " row of the catalogue was damaged at start",
      " rows of the catalogue were damaged at start");
  add(number_of(damage, "logs_torn"), " tail log was found torn or damaged since start",
      " tail logs were found torn or damaged since start");
  if (stats.contains("objects") && stats["objects"].contains("misses"))
    add(number_of(stats["objects"]["misses"], "checksum"),
        " value of an opaque key was found damaged since start",
        " values of opaque keys were found damaged since start");
}

// Whether there are files that a catalogue should name.
bool has_files(const std::string& store) {
  constexpr std::pair<const char*, const char*> kKinds[] = {
      {"segments", ".kvs"}, {"logs", ".kvl"}, {"objects", ".kvo"}};
  std::error_code failed;
  for (const auto& [directory, extension] : kKinds)
    for (const auto& entry : std::filesystem::directory_iterator(store + "/" + directory, failed))
      if (entry.path().extension() == extension) return true;
  return false;
}

bool knows_nothing(const StoreRows& rows) {
  return rows.spaces.empty() && rows.segments.empty() && rows.sequences.empty() &&
         rows.objects.empty() && rows.damaged.empty();
}

// Those that a daemon would find when it needs them.
void check_codebooks_of(const StoreRows& rows, const std::string& store,
                        std::vector<Finding>* findings) {
  const Result<std::unique_ptr<Io>> io = make_io({.root = store, .backend = "threads"});
  if (!io) return;
  for (const kvtier::Finding& found : check_codebooks(**io, rows).findings)
    findings->push_back(
        {Grade::kSlow, "key codes", found.path + ": " + found.what,
         found.severity == FindingSeverity::kWarning ? kMendCodebook
         : found.kind == FindingKind::kNewer
             ? "install that version of kvtier again; what it stored stays as it is"
             : "make it readable: chown, chmod, or see what the kernel's log says"});
}

}  // namespace

std::string closed_part(const std::string& store, int* why) {
  for (const char* part :
       {"LOCK", "catalogue", "segments", "logs", "codebooks", "sidecars", "objects"}) {
    const std::string path = store + "/" + part;
    const int wanted = std::strcmp(part, "LOCK") == 0 ? W_OK : W_OK | X_OK;
    if (::faccessat(AT_FDCWD, path.c_str(), wanted, AT_EACCESS) == 0 || errno == ENOENT) continue;
    *why = errno;
    return path;
  }
  return "";
}

bool is_held(const std::string& store) {
  const UniqueFd lock(::open((store + "/LOCK").c_str(), O_RDONLY | O_CLOEXEC));
  return lock.valid() && ::flock(lock.get(), LOCK_SH | LOCK_NB) != 0;
}

void check_store(const std::string& store, std::uint64_t limit_bytes, bool held_elsewhere,
                 std::string* probe_directory, std::vector<Finding>* findings) {
  if (store.empty()) {
    findings->push_back(
        {Grade::kBad, "store", "no place for it: HOME is not set", "set KVTIER_STORE_PATH"});
    return;
  }
  std::filesystem::path place = std::filesystem::absolute(store);
  std::error_code ignored;
  while (!std::filesystem::exists(place, ignored) && place.has_parent_path() &&
         place != place.parent_path())
    place = place.parent_path();
  if (!std::filesystem::is_directory(place, ignored)) {
    findings->push_back({Grade::kBad, "store", place.string() + " is no directory",
                         "move it away, or set store.path in kvtierd.toml"});
    return;
  }
  struct stat info {};
  const bool exists = ::stat(store.c_str(), &info) == 0;
  if (exists && info.st_uid != ::geteuid()) {
    findings->push_back({Grade::kBad, "store", store + " belongs to another user",
                         "set store.path to a directory of your own, or as root: chown -R " +
                             std::to_string(::geteuid()) + " " + shell_word(store)});
    return;
  }
  if (exists && (info.st_mode & 077) != 0) {
    findings->push_back({Grade::kBad, "store", store + " can be entered by others",
                         "chmod 700 " + shell_word(store) +
                             ", or set store.path to an empty directory of your own"});
    return;
  }
  Finding refusal;
  if (!is_writable(store, place.string(), &refusal)) {
    findings->push_back(std::move(refusal));
    return;
  }
  check_file_system(place.string(), findings);
  if (held_elsewhere)
    findings->push_back({Grade::kBad, "store", store + " is served by a kvtierd on another socket",
                         mend_of_holder(store)});
  if (check_room(store, place.string(), limit_bytes, findings) > kProbeBytes)
    *probe_directory = place.string();
}

void check_counters(const Json& stats, std::vector<Finding>* findings) {
  if (!stats.is_object() || !stats.contains("disk") || !stats.contains("writes")) return;
  const Json& disk = stats["disk"];
  const std::uint64_t used = number_of(disk, "store_bytes"), limit = number_of(disk, "limit_bytes");
  if (limit != 0 && used > limit - limit / 20)
    findings->push_back({Grade::kSlow, "disk limit",
                         human_bytes(used) + " of " + human_bytes(limit) +
                             ": what is not named or pinned is evicted, then writes are refused",
                         "kvtier rm, kvtier gc, or raise store.disk_bytes_max"});
  const Json& writes = stats["writes"];
  if (writes.value("budget_spent", false))
    findings->push_back({Grade::kSlow, "write budget",
                         human_bytes(number_of(writes, "today_bytes")) + " written today, above " +
                             human_bytes(number_of(writes, "budget_bytes_per_day")),
                         "wait until midnight UTC, or raise store.disk_write_bytes_per_day"});
  if (stats.contains("misses") && number_of(stats["misses"], "newer") != 0)
    findings->push_back({Grade::kSlow, "newer data",
                         std::to_string(number_of(stats["misses"], "newer")) +
                             " misses: stored by a newer kvtier, which this one cannot read",
                         "install that kvtier again; what it stored stays as it is"});
  if (number_of(disk, "kept_lost") != 0)
    findings->push_back({Grade::kBad, "catalogue",
                         std::to_string(number_of(disk, "kept_lost")) +
                             " files are newer than all that it knows: it has lost its last rows",
                         "kvtier stop; kvtier repair --store " +
                             shell_word(text_of(disk, "store")) +
                             " (before kvtier gc, which removes them)"});
  check_damage(stats, findings);
}

void check_catalogue(const std::string& store, std::vector<Finding>* findings) {
  std::error_code ignored;
  CatalogueOptions options;
  options.path = store + "/catalogue";
  options.read_only = true;
  const bool absent = !std::filesystem::exists(options.path, ignored);
  if (store.empty() || (absent && !has_files(store))) return;
  const Result<std::unique_ptr<Catalogue>> catalogue = Catalogue::open(options);
  const Result<StoreRows> rows =
      catalogue ? load_store_rows(**catalogue) : Result<StoreRows>(error(catalogue.error()));
  bool newer = !rows && rows.error().code == Code::kVersion;
  if (rows)
    for (const auto& [key, status] : rows->damaged) newer = newer || status.code == Code::kVersion;
  if (newer)
    findings->push_back({Grade::kBad, "catalogue",
                         store + " was written by a newer kvtier: the daemon will not start",
                         "install that version of kvtier again, or set store.path to another "
                         "directory"});
  else if (!rows && (rows.error().code == Code::kPermission || rows.error().code == Code::kBusy))
    findings->push_back(
        {Grade::kBad, "catalogue", options.path + " cannot be read: " + rows.error().message(),
         "as root: chown -R " + std::to_string(::geteuid()) + " " + shell_word(store)});
  else if (!rows && rows.error().code == Code::kIo)
    findings->push_back({Grade::kBad, "catalogue",
                         options.path + " cannot be read: " + rows.error().message(),
                         "see what the kernel's log says of the disk; copy the store to a sound "
                         "one"});
  else if (!rows || (knows_nothing(*rows) && has_files(store)))
    findings->push_back({Grade::kBad, "catalogue",
                         std::string(absent  ? "missing, and the store is not empty"
                                     : !rows ? "damaged"
                                             : "empty, and the store is not") +
                             ": the daemon will not start",
                         "kvtier repair --store " + shell_word(store)});
  if (rows) check_codebooks_of(*rows, store, findings);
  if (rows)
    check_damage(Json{{"damage",
                       {{"segments_damaged_now",
                         std::count_if(rows->segments.begin(), rows->segments.end(),
                                       [](const SegmentRow& row) { return row.bad; })}}}},
                 findings);
}

}  // namespace kvtier::cli
