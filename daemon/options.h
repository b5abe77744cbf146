// DaemonOptions: every setting of kvtierd, from one table of keys that parses TOML and environment,
// answers `kvtier config`, and names each key's bounds. An unknown key is refused with the nearest
// known one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace kvtier {

struct DaemonOptions {
  // store
  std::string store_path;  // default $XDG_DATA_HOME/kvtier or ~/.local/share/kvtier
  std::uint64_t disk_bytes_max = 64ull << 30;  // segments, sidecars, logs, objects
  std::uint64_t disk_write_bytes_per_day =
      256ull << 30;                // budget; explicit commits are counted, never refused
  bool admission = true;           // scarce writes: one-shot prefixes on their second use only
  bool decline_slow_loads = true;  // of prefixes that would be computed faster
  // host
  std::uint64_t host_bytes = 2ull << 30;                     // host arena
  std::uint64_t abstracts_bytes = 256ull << 20;              // abstracts arena
  std::uint64_t leased_bytes_per_client_max = 512ull << 20;  // unset: at most half of the arena
  std::uint64_t tail_bytes_max = 64ull << 30;                // of all open sequences
  std::uint32_t probation_percent = 40;  // of the eviction orders of memory and disk
  bool huge_pages = true;
  // disk
  std::string io_backend = "auto";  // auto, io_uring, threads
  std::uint32_t io_depth = 64;
  std::uint64_t io_bytes_in_flight_max = 8ull << 20;
  bool direct_io = true;
  // daemon
  std::string socket_path;  // default as in client/ipc/paths.h
  std::uint32_t workers = 1;
  std::uint32_t clients_max = 32;
  std::uint32_t spin_us = 0;         // 0: chosen by the number of cores
  std::uint32_t idle_seal_s = 60;    // a tail idle this long is sealed
  std::uint32_t scrub_mb_per_s = 0;  // background verification; 0: off
  std::string log_level = "warn";
  std::string kernels = "auto";

  // When all is read: what was not set follows what was. Before validate().
  void fill_in();
  // `*problem`, unless null, names the values that do not go together.
  [[nodiscard]] Result<void> validate(std::string* problem = nullptr) const;

  // Where the value of a key comes from: "default", "file", "environment" or "flag".
  [[nodiscard]] const char* source_of(std::string_view key) const noexcept;
  void set_source(std::string_view key, const char* source);  // a literal
  std::vector<std::pair<std::string, const char*>> sources;
};

// Reads a TOML text on top of `options`. `*problem` says which key, which line, and what would be
// right.
[[nodiscard]] Result<void> parse_options_toml(std::string_view text, DaemonOptions* options,
                                              std::string* problem);
// One key as "section.key" = value, as from the command line or KVTIER_SECTION_KEY.
[[nodiscard]] Result<void> set_option(std::string_view key, std::string_view value,
                                      DaemonOptions* options, std::string* problem);
// Defaults with paths of this user filled in.
[[nodiscard]] DaemonOptions default_options();
// The names of all keys, in the table's order.
[[nodiscard]] std::vector<std::string> option_names();
// Every key with value, default, bounds and meaning.
[[nodiscard]] Json options_json(const DaemonOptions& options);

}  // namespace kvtier
