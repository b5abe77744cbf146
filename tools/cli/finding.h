// What doctor finds: one line each, with its mend. doctor.cc looks at the set-up (socket, daemon,
// settings), doctor_store.cc at the store, doctor_machine.cc at what kernel and limits give.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/json.h"

namespace kvtier::cli {

// kInfo: off because a setting says so, no fault. kBad alone makes doctor exit with 3.
enum class Grade { kGood, kInfo, kSlow, kBad };

struct Finding {
  Grade grade;
  std::string what;
  std::string found;
  std::string mend;  // "" where nothing is to be done
};

// What doctor knows before it looks at the machine. `status` is null where no daemon answers. Where
// none is there at all, `daemon` is 0 and what is measured is this process, whose limits a daemon
// started from here would have.
struct Seen {
  Json status, stats, settings;
  bool settings_read = true;  // false: `settings` has those that the environment decides, no others
  pid_t daemon = 0;
  bool listener = false;        // somebody holds the socket: a daemon, or systemd for one
  std::string probe_directory;  // where a scratch file may be written; "": nowhere in the store
};

// Of a codebook that is damaged or missing.
inline constexpr const char* kMendCodebook =
    "kvtier calibrate makes it anew now (kvtier codebooks names its model); so does the next view "
    "that chooses by key codes";
// What needs settings that cannot be read; their own finding has the mend.
[[nodiscard]] Finding not_checked(const char* what, const std::string& why);
// "" where no such setting is known.
[[nodiscard]] std::string setting_of(const Json& settings, const char* name);
// The first line of a file; "" where it cannot be read.
[[nodiscard]] std::string read_line(const std::string& path);

// What lies in this store and refuses to be written, by asking, and why (errno); "": nothing does.
[[nodiscard]] std::string closed_part(const std::string& store, int* why);

// A running daemon holds it, and so does a repair.
[[nodiscard]] bool is_held(const std::string& store);
// The store's directory or the nearest that exists above it: may we write, is there room, also for
// what store.disk_bytes_max allows (0: not known). `*probe_directory` is set where a scratch file
// may be written.
void check_store(const std::string& store, std::uint64_t limit_bytes, bool held_elsewhere,
                 std::string* probe_directory, std::vector<Finding>* findings);
// What the running daemon knows: its limits, its budget, what it found damaged.
void check_counters(const Json& stats, std::vector<Finding>* findings);
// Without a daemon: whether one could start over this store.
void check_catalogue(const std::string& store, std::vector<Finding>* findings);

[[nodiscard]] Finding check_disk_backend(const Seen& seen);
[[nodiscard]] Finding check_memlock(const Seen& seen);
[[nodiscard]] Finding check_open_files(const Seen& seen);
[[nodiscard]] Finding check_huge_pages(const Seen& seen);
[[nodiscard]] Finding check_memory(const Seen& seen);
// What the running daemon says is off, where no other finding speaks of it.
void check_switched_off(const Seen& seen, std::vector<Finding>* findings);

}  // namespace kvtier::cli
